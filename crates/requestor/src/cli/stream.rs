//! Follows a stream of server-sent events across cuts and restarts.

use super::client::Client;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use std::time::Duration;

/// A stream that is silent for so long is opened anew; the requestor gives a sign of life every 15 s.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// The pause before a stream is opened anew, unless the requestor has asked for another.
const RECONNECT: Duration = Duration::from_secs(1);
/// The longest line that is read. An event is far shorter; a snapshot holds at most a page of operations.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Gives all events at `path`, and those to come, to `each`; ends when there will be no more.
pub(super) async fn follow(
    client: &Client,
    path: &[&str],
    mut each: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut reader = Reader::default();
    let mut response = Some(client.stream(path, None).await??);
    loop {
        if let Some(response) = response.take() {
            if response.status() == StatusCode::NO_CONTENT {
                return Ok(());
            }
            reader.read(response, &mut each).await?;
        }
        tokio::time::sleep(reader.reconnect.unwrap_or(RECONNECT)).await;
        // One that is away will come back; one that says no is believed.
        response = client.stream(path, reader.last_id.as_deref()).await?.ok();
    }
}

/// Reads the format of server-sent events (WHATWG HTML, section 9.2.6) as far as the requestor writes it.
#[derive(Debug, Default)]
struct Reader {
    line: Vec<u8>,
    data: String,
    id: Option<String>,
    last_id: Option<String>,
    reconnect: Option<Duration>,
}

impl Reader {
    /// Reads to the end of the stream, however it ends.
    async fn read(
        &mut self,
        mut response: Response,
        each: &mut impl FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        (self.line, self.data, self.id) = Default::default();
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENT_MAX, response.chunk()).await {
            for byte in chunk {
                if byte != b'\n' {
                    self.line.push(byte);
                    anyhow::ensure!(self.line.len() <= LINE_BYTES_MAX, "an event has more than {LINE_BYTES_MAX} bytes");
                } else if let Some(event) = self.end_line() {
                    each(&serde_json::from_str(&event)?)?;
                }
            }
        }
        Ok(())
    }

    /// The event, if the line was the empty one behind it.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            self.last_id = self.id.take().or(self.last_id.take());
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        match line.split_once(": ") {
            Some(("data", data)) => self.data.push_str(data),
            Some(("id", id)) => self.id = Some(id.to_owned()),
            Some(("retry", retry)) => self.reconnect = retry.parse().ok().map(Duration::from_millis),
            // The type is in the data as well.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_when_it_is_whole() {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for byte in *b"retry: 700\n\n:\n\nevent: a\nid: 7\ndata: {}\n\nevent: b\nid: 8\ndata: {\"cut" {
            match byte {
                b'\n' => events.extend(reader.end_line()),
                byte => reader.line.push(byte),
            }
        }
        assert_eq!(events, ["{}"]);
        assert_eq!((reader.last_id.as_deref(), reader.reconnect), (Some("7"), Some(Duration::from_millis(700))));
    }
}
