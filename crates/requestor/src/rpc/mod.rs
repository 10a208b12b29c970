//! Calls: a request and its reply in memory, for who does not need the record.
//!
//! A call is cheap and may be lost: it ends with the reply, or with an [`Error`] that says whether it may have run. It is
//! carried out by providers of pure kinds only, for which running twice harms nothing. What must happen once, or whose
//! outcome must be known after a crash, is submitted to a [`Requestor`](crate::Requestor).
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use requestor::rpc::{Client, Config};
//! use requestor::Content;
//! use std::time::Duration;
//!
//! let client = Client::connect(Config::load(None)?).await?;
//! let reply = client.call("echo", Content::json("42"), Duration::from_secs(5)).await?;
//! assert_eq!(reply.body, "42");
//! # Ok(())
//! # }
//! ```

mod calls;
mod connection;

use crate::config;
use calls::{Calls, Fate, NotSent};
use shared::amqp::{BrokerConfig, Status};
use shared::message::Content;
use shared::problem::Problem;
use shared::topology;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The longest that a call may take. A broker takes no expiration of 50 days or more.
const WITHIN_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long to wait before trying again to hand frames to a connection that takes nothing.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker. Of its limits `message_bytes_max` holds for requests and replies.
    pub broker: BrokerConfig,
    /// How many calls may be under way at once; more wait for their turn.
    pub in_flight_max: usize,
}

impl Config {
    /// The sections `[broker]` and `[calls]` of the requestor's configuration: its defaults, then `file`, then the
    /// environment.
    ///
    /// # Errors
    /// Which key is wrong and why.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        config::Config::load(file).map(|config| Self::from(&config))
    }
}

impl From<&config::Config> for Config {
    fn from(config: &config::Config) -> Self {
        Self { broker: config.broker.clone(), in_flight_max: config.calls.in_flight_max }
    }
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The provider answered with a problem.
    #[error("{}: {}", .0.title, .0.detail.as_deref().unwrap_or_default())]
    Failed(Problem),
    /// No provider takes calls of this kind. It has not run.
    #[error("no provider takes calls of {0:?}: start one that serves it as a pure kind, with calls.prefetch above 0")]
    NoProvider(String),
    /// There was no reply in time. It may or may not have run.
    #[error("no reply within the deadline; the call may or may not have run")]
    Deadline,
    /// The connection was lost before the reply. It may or may not have run.
    #[error("the connection was lost while the call was under way ({0}); it may or may not have run")]
    Interrupted(Arc<str>),
    /// There was no connection before the deadline. It has not run.
    #[error("no connection to the broker within the deadline ({0}); the call was not sent")]
    NotConnected(String),
    /// As many calls as there may be were under way until the deadline. It has not run.
    #[error("calls.in_flight_max calls were under way until the deadline; the call was not sent")]
    Busy,
    /// It cannot be sent as it is. It has not run.
    #[error("the call cannot be sent: {0}")]
    Invalid(String),
    /// The provider's reply has more bytes than `broker.message_bytes_max`. It has run.
    #[error("the reply has more bytes than broker.message_bytes_max")]
    ReplyTooLarge,
}

impl Error {
    /// Whether the provider may have carried the call out. If not, it can be made again without harm of any kind.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Deadline | Self::Interrupted(_) | Self::ReplyTooLarge => true,
            Self::NoProvider(_) | Self::NotConnected(_) | Self::Busy | Self::Invalid(_) => false,
        }
    }
}

/// Makes calls over one connection, which is made anew whenever it is lost. Cheap to clone; the connection ends with the
/// last clone.
#[derive(Clone, Debug)]
pub struct Client(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What callers share with the connection.
#[derive(Debug)]
struct Shared {
    config: Config,
    room: Semaphore,
    calls: Calls,
    status: watch::Sender<Status>,
}

impl Client {
    /// Connects, and stays connected.
    ///
    /// # Errors
    /// That there was no connection within `broker.connect_timeout`, and why.
    pub async fn connect(config: Config) -> anyhow::Result<Self> {
        config.broker.validate()?;
        let room = config.in_flight_max.min(Semaphore::MAX_PERMITS);
        anyhow::ensure!(room > 0, "calls.in_flight_max must be at least 1");
        let patience = config.broker.connect_timeout;
        let shared = Shared { room: Semaphore::new(room), calls: Calls::default(), status: Status::channel(), config };
        let (shared, stop, tasks) = (Arc::new(shared), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(connection::keep(Arc::clone(&shared), stop.clone()));
        tasks.close();
        let client = Self(Arc::new(Handle { shared, stop, tasks }));
        let until = Instant::now() + patience;
        client.0.shared.connected(until).await.map_err(|error| match error {
            Error::NotConnected(why) => anyhow::anyhow!("no connection to the broker: {why}"),
            error => error.into(),
        })?;
        Ok(client)
    }

    /// Calls `kind`, and waits for the reply for at most `within`, or a day. If this future is dropped, the call is given up: a
    /// reply to it is ignored.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn call(&self, kind: &str, content: Content, within: Duration) -> Result<Content, Error> {
        let shared = &*self.0.shared;
        shared.check(kind, &content)?;
        let deadline = Instant::now() + within.min(WITHIN_MAX);
        let _place = shared.place(deadline).await?;
        let pending = loop {
            match shared.calls.begin(kind, &content, deadline) {
                Ok(pending) => break pending,
                Err(NotSent::Away) if self.0.stop.is_cancelled() => {
                    return Err(Error::NotConnected("the client was closed".into()));
                }
                Err(NotSent::Away) => shared.connected(deadline).await?,
                Err(NotSent::Full) if Instant::now() < deadline => tokio::time::sleep(FULL_PAUSE).await,
                Err(NotSent::Full) => return Err(Error::NotConnected("the broker takes nothing".into())),
            }
        };
        match timeout_at(deadline, pending).await {
            Ok(Fate::Succeeded(reply)) => Ok(reply),
            // The provider keeps the same deadline, and can be the first to say so.
            Ok(Fate::Failed(problem)) if problem.is("deadline-exceeded") => Err(Error::Deadline),
            Ok(Fate::Failed(problem)) => Err(Error::Failed(problem)),
            Ok(Fate::Unroutable) => Err(Error::NoProvider(kind.to_owned())),
            Ok(Fate::TooLarge) => Err(Error::ReplyTooLarge),
            Ok(Fate::Interrupted(why)) => Err(Error::Interrupted(why)),
            Err(_) => Err(Error::Deadline),
        }
    }

    /// How many calls wait for their reply now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.shared.calls.len()
    }

    /// Follows what is known of the broker.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.shared.status.subscribe()
    }

    /// Ends the connection, also for all clones. What is under way is interrupted.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.wait().await;
    }
}

impl Shared {
    fn check(&self, kind: &str, content: &Content) -> Result<(), Error> {
        if !topology::is_kind(kind) {
            return Err(Error::Invalid(format!("{kind:.80?} cannot name a kind: use a-z, 0-9, . - _, at most 63")));
        }
        let (size, limit) = (content.body.len(), self.config.broker.message_bytes_max);
        if size > limit {
            return Err(Error::Invalid(format!("it has {size} bytes, more than broker.message_bytes_max, {limit}")));
        }
        if content.content_type.len() > 255 {
            return Err(Error::Invalid("its content type has more than 255 bytes".into()));
        }
        Ok(())
    }

    /// Waits for a place among those under way.
    async fn place(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Error> {
        if let Ok(place) = self.room.try_acquire() {
            return Ok(place);
        }
        match timeout_at(deadline, self.room.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Error::Busy),
        }
    }

    /// Waits until there is a connection.
    async fn connected(&self, deadline: Instant) -> Result<(), Error> {
        let mut status = self.status.subscribe();
        let connected = status.wait_for(|status| *status == Status::Connected);
        if matches!(timeout_at(deadline, connected).await, Ok(Ok(_))) {
            return Ok(());
        }
        let why = match &*self.status.borrow() {
            Status::Away(why) | Status::Blocked(why) => why.clone(),
            Status::Connected => "it came too late".into(),
        };
        Err(Error::NotConnected(why))
    }
}
