use crate::config::duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a request's head may take at least: hyper reads in buffers of this size.
const HEAD_BYTES_MIN: usize = 8192;

/// What a connection may take, and how many there may be. The annotated file gives the reasons.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerLimits {
    /// From connecting to the end of the first request's head, with the TLS handshake; and from the first byte of a
    /// further head to its end.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long a kept connection may be without a request.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// How long a client may take nothing of what it was sent.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// The largest head of a request.
    pub head_bytes_max: usize,
    /// Requests at once on a connection of HTTP/2.
    pub streams_max: u32,
    /// Connections open at once; further ones wait in the listen queue.
    pub connections_max: usize,
    /// Connections of one address at once; further ones are closed. 0: any number.
    pub connections_per_peer_max: usize,
    /// How long requests under way may take to end after SIGTERM.
    #[serde(with = "duration")]
    pub drain: Duration,
}

impl ServerLimits {
    /// Checks what would make a server that serves nobody.
    ///
    /// # Errors
    /// Which key is wrong.
    pub fn validate(&self) -> anyhow::Result<()> {
        let timeouts = [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("write_timeout", self.write_timeout),
        ];
        for (name, timeout) in timeouts {
            anyhow::ensure!(!timeout.is_zero(), "http.limits.{name} must be more than 0");
        }
        anyhow::ensure!(self.connections_max > 0, "http.limits.connections_max must be at least 1");
        anyhow::ensure!(self.streams_max > 0, "http.limits.streams_max must be at least 1");
        anyhow::ensure!(
            (HEAD_BYTES_MIN..=usize::from(u16::MAX)).contains(&self.head_bytes_max),
            "http.limits.head_bytes_max must be {HEAD_BYTES_MIN} to {}",
            u16::MAX
        );
        Ok(())
    }

    /// Makes room for the connections among the files that this process may have open, or takes fewer of them.
    ///
    /// # Errors
    /// When there is no room for any.
    pub fn fit_descriptors(&mut self) -> anyhow::Result<()> {
        self.connections_max = crate::descriptors::make_room(self.connections_max)?;
        Ok(())
    }
}
