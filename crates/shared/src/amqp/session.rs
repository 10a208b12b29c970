use super::PublishQueue;
use super::line::Line;
use crate::config::{SecretUrl, duration};
use anyhow::Context;
use futures_util::StreamExt;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A lost peer is noticed after two to two and a half heartbeats; RabbitMQ advises 5 to 20 seconds.
const HEARTBEAT_SECONDS: u16 = 10;
/// The first pause before another attempt to connect.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// How long closing a connection politely may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The section `[broker]` of both configuration files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// `amqp://` or `amqps://user:password@host:port/vhost`; of a cluster several `host:port`, with commas between them.
    pub url: SecretUrl,
    /// How long connecting may take, the AMQP handshake included.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// The longest pause between two attempts to connect.
    #[serde(with = "duration")]
    pub reconnect_max: Duration,
    /// How long a confirm may take before the message counts as unknown.
    #[serde(with = "duration")]
    pub confirm_timeout: Duration,
    /// How many messages are published before their confirms are awaited together.
    pub publish_batch_max: usize,
    /// How many messages may wait to be published.
    pub publish_queue_max: usize,
    /// The largest payload, in bytes.
    pub message_bytes_max: usize,
}

impl BrokerConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Which key is wrong and why.
    pub fn validate(&self) -> anyhow::Result<()> {
        for host in self.url.each_host() {
            uri(&host)?;
        }
        for (key, value) in [
            ("publish_batch_max", self.publish_batch_max),
            ("publish_queue_max", self.publish_queue_max),
            ("message_bytes_max", self.message_bytes_max),
        ] {
            anyhow::ensure!(value > 0, "broker.{key} must be at least 1");
        }
        Ok(())
    }

    /// Awaits a part of connecting, though not for longer than `connect_timeout`.
    ///
    /// # Errors
    /// Its own, or that it took too long.
    pub async fn in_time<T>(&self, connecting: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let limit = self.connect_timeout;
        let connected = tokio::time::timeout(limit, connecting).await;
        connected.with_context(|| format!("no connection within {}", humantime::format_duration(limit)))?
    }
}

/// The URL of one host as lapin wants it, with our heartbeat unless it names one, and `/` for an empty virtual host.
fn uri(host: &SecretUrl) -> anyhow::Result<AMQPUri> {
    let parsed: Result<AMQPUri, String> = host.expose().parse();
    let mut uri = parsed.map_err(|error| anyhow::anyhow!("broker.url {host}: {error}"))?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
}

/// What is known of the broker, for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not connected, and why.
    Away(String),
    /// Connected, and everything is declared.
    Connected,
    /// Connected, but a resource alarm at the broker stops publishing.
    Blocked(String),
}

impl Status {
    /// A status to start with.
    #[must_use]
    pub fn channel() -> watch::Sender<Self> {
        watch::Sender::new(Self::Away("not connected yet".into()))
    }
}

/// Two connections: the broker stops reading from one that publishes during a resource alarm, and
/// acknowledgements must not wait behind that.
#[derive(Debug)]
pub struct Session {
    publish: Connection,
    consume: Connection,
    user: Option<String>,
    opened: Instant,
    status: watch::Sender<Status>,
}

impl Session {
    async fn open(
        config: &BrokerConfig,
        host: &SecretUrl,
        name: &str,
        status: watch::Sender<Status>,
    ) -> anyhow::Result<Self> {
        let uri = uri(host)?;
        let user = Some(uri.authority.userinfo.username.clone()).filter(|user| !user.is_empty());
        let connect = |role: &str| {
            let properties = ConnectionProperties::default().with_connection_name(format!("{name} {role}").into());
            Connection::connect_uri(uri.clone(), properties)
        };
        let both = async { futures_util::try_join!(connect("publish"), connect("consume")) };
        let (publish, consume) = config.in_time(async { Ok(both.await?) }).await?;
        Ok(Self { publish, consume, user, opened: Instant::now(), status })
    }

    /// Tells that everything is declared, so that messages can be published.
    pub fn ready(&self) {
        self.status.send_replace(Status::Connected);
    }

    /// A channel for declaring and consuming.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn consume_channel(&self) -> anyhow::Result<Channel> {
        super::call("opening a channel", self.consume.create_channel()).await
    }

    /// Publishes what comes through `queue`, on one channel after another, until the connection fails or the queue
    /// ends.
    ///
    /// # Errors
    /// Why the connection can no longer be used.
    pub async fn publish_from(&self, queue: &mut PublishQueue) -> anyhow::Result<()> {
        loop {
            let channel = super::call("opening a channel", self.publish.create_channel()).await?;
            super::call("confirm.select", channel.confirm_select(Default::default())).await?;
            let error = match queue.publish_on(&self.publish, &channel, self.user.as_deref()).await {
                Ok(()) => return Ok(()),
                Err(error) if !self.publish.status().connected() => return Err(error),
                Err(error) => error,
            };
            // What the other connection consumes is not at fault.
            tracing::warn!(error = format!("{error:#}"), "publishing failed; going on with another channel");
            metrics::counter!("arr_publish_channels_lost_total").increment(1);
            tokio::time::sleep(RECONNECT_MIN).await;
        }
    }

    /// Follows the connections' events until one of them is lost.
    async fn lost(&self) -> anyhow::Error {
        let mut events = futures_util::stream::select(self.publish.events_listener(), self.consume.events_listener());
        while self.publish.status().connected() && self.consume.status().connected() {
            match events.next().await {
                Some(Event::ConnectionBlocked(reason)) => drop(self.status.send_replace(Status::Blocked(reason))),
                Some(Event::ConnectionUnblocked) => self.ready(),
                Some(Event::Error(error)) if !self.publish.status().connected() => return error.into(),
                Some(_) => {}
                None => break,
            }
        }
        anyhow::anyhow!("connection lost")
    }

    async fn close(self) {
        let goodbye = |connection: Connection| async move {
            if connection.status().connected() {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, "goodbye".into())).await;
            }
        };
        tokio::join!(goodbye(self.publish), goodbye(self.consume));
    }
}

/// Opens one session after another.
///
/// Whatever fails in a session ends it: consumers, channels and topology are made anew in the next, after a pause
/// that grows from 100 ms to `reconnect_max` with half jitter and starts over after a session that held. The hosts of a
/// cluster are taken in turn, from any of them on, so that services spread; the long pause comes after a whole round.
#[derive(Debug)]
pub struct Supervisor<'a> {
    config: &'a BrokerConfig,
    name: String,
    status: &'a watch::Sender<Status>,
    shutdown: &'a CancellationToken,
    hosts: Vec<SecretUrl>,
    /// Which of the hosts is next.
    turn: usize,
    /// How many failed since a session held.
    failures: usize,
    pause: Duration,
}

impl<'a> Supervisor<'a> {
    /// A supervisor that opens sessions until `shutdown` and tells `status` about them.
    pub fn new(
        config: &'a BrokerConfig,
        name: String,
        status: &'a watch::Sender<Status>,
        shutdown: &'a CancellationToken,
    ) -> Self {
        let hosts = config.url.each_host();
        let turn = rand::rng().random_range(0..hosts.len());
        Self { config, name, status, shutdown, hosts, turn, failures: 0, pause: RECONNECT_MIN }
    }

    /// A session, however long it takes to get one; none after the shutdown.
    pub async fn open(&mut self) -> Option<Session> {
        loop {
            let opening = Session::open(self.config, self.host(), &self.name, self.status.clone());
            match self.shutdown.run_until_cancelled(opening).await? {
                Ok(session) => return Some(self.connected(session)),
                Err(error) => self.away(&error).await,
            }
        }
    }

    /// A line, however long it takes to get one; none after the shutdown.
    pub async fn line(&mut self) -> Option<Line> {
        loop {
            let opening = async {
                let uri = uri(self.host())?;
                self.config.in_time(Line::open(&uri, &self.name)).await
            };
            match self.shutdown.run_until_cancelled(opening).await? {
                Ok(line) => return Some(self.connected(line)),
                Err(error) => self.away(&error).await,
            }
        }
    }

    fn connected<T>(&self, opened: T) -> T {
        tracing::info!(broker = %self.host(), "connected");
        opened
    }

    /// Runs `serve`, which uses `session`, until it returns or the session is lost.
    ///
    /// # Errors
    /// Those of `serve`, or that the session is lost.
    pub async fn guard(
        &self,
        session: &Session,
        serve: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        tokio::select! {
            biased;
            result = serve => result,
            error = session.lost() => Err(error),
        }
    }

    /// Closes `session`, which ended with `result`, and pauses unless it came to its end. Returns whether it did,
    /// as it does after the shutdown.
    pub async fn close(&mut self, session: Session, result: anyhow::Result<()>) -> bool {
        let held = session.opened.elapsed();
        session.close().await;
        match result {
            Ok(()) => true,
            Err(error) => {
                self.lost(held, &error).await;
                false
            }
        }
    }

    /// Pauses after a session or line that `held` for so long and ended with `error`.
    pub async fn lost(&mut self, held: Duration, error: &anyhow::Error) {
        if held > self.config.reconnect_max {
            (self.failures, self.pause) = (0, RECONNECT_MIN);
        }
        self.away(error).await;
    }

    fn host(&self) -> &SecretUrl {
        &self.hosts[self.turn]
    }

    async fn away(&mut self, error: &anyhow::Error) {
        tracing::warn!(broker = %self.host(), error = format!("{error:#}"), "broker away");
        self.status.send_replace(Status::Away(format!("{error:#}")));
        self.turn = (self.turn + 1) % self.hosts.len();
        self.failures += 1;
        let mut pause = RECONNECT_MIN;
        if self.failures.is_multiple_of(self.hosts.len()) {
            pause = self.pause;
            self.pause = (self.pause * 2).min(self.config.reconnect_max);
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        self.shutdown.run_until_cancelled(tokio::time::sleep(jittered)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn config(url: &str) -> BrokerConfig {
        BrokerConfig {
            url: SecretUrl::new(url),
            connect_timeout: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(1),
            confirm_timeout: Duration::from_secs(1),
            publish_batch_max: 1,
            publish_queue_max: 1,
            message_bytes_max: 1,
        }
    }

    #[tokio::test]
    async fn every_host_has_its_turn_before_the_pause_grows() {
        let (config, status, shutdown) = (config("amqp://one,two,three"), Status::channel(), CancellationToken::new());
        let mut supervisor = Supervisor::new(&config, "test".into(), &status, &shutdown);
        let mut tried = HashSet::new();
        for failures in 1..=3 {
            assert_eq!(supervisor.pause, RECONNECT_MIN);
            tried.insert(supervisor.host().expose().to_owned());
            supervisor.away(&anyhow::anyhow!("failure {failures}")).await;
        }
        assert_eq!((tried.len(), supervisor.pause), (3, RECONNECT_MIN * 2));
    }

    #[test]
    fn each_host_is_checked_and_no_password_is_shown() {
        assert!(config("amqp://me:secret@one:5672,[::1]:5673,three/v").validate().is_ok());
        let error = config("amqp://me:secret@one,two:port/v").validate().unwrap_err().to_string();
        assert!(error.contains("broker.url") && !error.contains("secret"), "{error}");
    }
}
