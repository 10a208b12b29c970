//! The requestor without HTTP, for a program in the same process: the same store, messages and guarantees.

use crate::config::Config;
use crate::engine::Engine;
use crate::http::Error;
use crate::http::idempotency::{self, KEY_BYTES_MAX};
use crate::kinds::Kinds;
use crate::operation::{Change, Event, Operation};
use crate::outcomes::{Awaiting, Seen};
use crate::store::{Created, IdempotencyKey, NewOperation, Room, Scope, StoreError};
use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::Value;
use shared::message::{Content, JSON, OperationId, Outcome, is_traceparent};
use shared::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Accepts requests as `POST /v1/requests/{kind}` does: what [`Requestor::submit`] returns is durable and reaches one
/// outcome by its deadline. Cheap to clone.
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use requestor::{Content, Requestor, SubmitOptions, config::Config};
/// use std::time::Duration;
///
/// let shutdown = tokio_util::sync::CancellationToken::new();
/// let requestor = Requestor::start(Config::load(None)?, shutdown.clone()).await?;
/// let operation = requestor.submit("echo", Content::json("42"), SubmitOptions::default()).await?;
/// let outcome = requestor.outcome(operation.id, Duration::from_secs(30)).await?;
/// println!("{outcome:?}");
/// shutdown.cancel();
/// requestor.ended().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Requestor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    config: Config,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What may be said with a request.
#[derive(Clone, Debug, Default)]
pub struct SubmitOptions {
    /// How long the operation may take; if not given, what the kind has.
    pub timeout: Option<Duration>,
    /// 0 to 9; quorum queues tell priorities apart from RabbitMQ 4.0 on.
    pub priority: Option<u8>,
    /// W3C Trace Context, passed on to the provider.
    pub traceparent: Option<String>,
    /// A request that is submitted again with its key is accepted once.
    pub idempotency_key: Option<String>,
}

/// Why something was not done. Nothing was accepted or changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {}", .0.title, .0.detail.as_deref().unwrap_or_default())]
pub struct Refused(pub Problem);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error.problem)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Error::from(error).into()
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl Requestor {
    /// Opens the store and serves until `shutdown`, over as many sessions with the broker as it takes. There need be no
    /// broker yet. The sections `[http]` and `[callers]` of `config` are not used, but for the limits of bodies.
    ///
    /// # Errors
    /// What keeps it from starting, such as a store that another process uses.
    pub async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let (kinds, shutdown) = (Kinds::load(&config)?, shutdown.child_token());
        let (engine, background) = Box::pin(Engine::open(&config, kinds)).await?;
        let requestor = Self(Arc::new(Inner { engine, config, shutdown, tasks: TaskTracker::new() }));
        let inner = Arc::clone(&requestor.0);
        requestor.0.tasks.spawn(async move {
            let Inner { engine, config, shutdown, .. } = &*inner;
            if let Err(error) = Box::pin(engine.run(config, background, shutdown, shutdown)).await {
                tracing::error!(%error, "the requestor ended");
            }
            engine.store.close().await;
            // Who waits for an outcome need not wait for what will not come.
            shutdown.cancel();
        });
        requestor.0.tasks.close();
        Ok(requestor)
    }

    /// Stores a request of `kind` and sends it. When this returns, the operation is durable.
    ///
    /// # Errors
    /// [`Refused`], with the problems of `POST /v1/requests/{kind}`.
    pub async fn submit(&self, kind: &str, content: Content, options: SubmitOptions) -> Result<Operation, Refused> {
        let (operation, key) = self.check(kind, &content, options)?;
        self.accept(operation, key, content).await
    }

    /// As [`Self::submit`] and then [`Self::outcome`]. The outcome is handed over without being read from the store, so this
    /// is the quicker way for who waits anyway.
    ///
    /// # Errors
    /// [`Refused`], with the problems of `POST /v1/requests/{kind}`. An operation that is accepted goes on whatever becomes
    /// of the waiting.
    pub async fn submit_and_wait(
        &self,
        kind: &str,
        content: Content,
        options: SubmitOptions,
        wait: Duration,
    ) -> Result<(Operation, Option<Outcome>), Refused> {
        let (operation, key) = self.check(kind, &content, options)?;
        let awaiting = self.0.engine.outcomes.expect(operation.id);
        let operation = self.accept(operation, key, content).await?;
        let outcome = self.wait(operation.id, wait, Some(awaiting)).await?;
        Ok((operation, outcome))
    }

    async fn accept(
        &self,
        operation: Operation,
        key: Option<IdempotencyKey>,
        content: Content,
    ) -> Result<Operation, Refused> {
        let Inner { engine, config, shutdown, .. } = &*self.0;
        if shutdown.is_cancelled() {
            return Err(Problem::new("stopped", 503, "Stopped", "the requestor has been shut down").into());
        }
        let room = Room { open_max: config.quotas.open_max, bytes_max: config.quotas.bytes_max };
        let new = NewOperation { operation: operation.clone(), request: content, key, room };
        match engine.accept(new).await? {
            Created::New => Ok(operation),
            Created::Before(operation) => Ok(*operation),
            Created::OtherPayload => Err(idempotency::reused().into()),
            Created::TooManyOpen => Err(Error::over_quota("open", room.open_max, 0).into()),
            Created::TooManyBytes => Err(Error::over_quota("bytes", room.bytes_max, 0).into()),
        }
    }

    /// How the operation ended, as soon as it has; none if it has not within `wait`, or until the shutdown. A canceled
    /// operation has failed with the problem `canceled`.
    ///
    /// # Errors
    /// [`Refused`] when there is no such operation, or the store cannot be read.
    pub async fn outcome(&self, id: OperationId, wait: Duration) -> Result<Option<Outcome>, Refused> {
        self.wait(id, wait, None).await
    }

    async fn wait(
        &self,
        id: OperationId,
        wait: Duration,
        awaiting: Option<Awaiting>,
    ) -> Result<Option<Outcome>, Refused> {
        let Inner { engine, shutdown, .. } = &*self.0;
        let waited = engine.wait(&Scope::All, id, (wait, awaiting), shutdown).await?;
        let Some(Seen { operation, result }) = waited else { return Err(self.missing(id).await) };
        if let Some(problem) = operation.error() {
            return Ok(Some(Outcome::Failed(problem.clone())));
        }
        if !operation.has_ended() {
            return Ok(None);
        }
        let result = match result {
            Some(result) => Some(result),
            None => engine.store.result(Scope::All, id).await?,
        };
        match result {
            Some(content) => Ok(Some(Outcome::Succeeded(content))),
            None => Err(self.missing(id).await),
        }
    }

    /// What is known of the operation now.
    ///
    /// # Errors
    /// [`Refused`] when there is no such operation, or the store cannot be read.
    pub async fn operation(&self, id: OperationId) -> Result<Operation, Refused> {
        match self.0.engine.store.get(Scope::All, id).await? {
            Some(operation) => Ok(operation),
            None => Err(self.missing(id).await),
        }
    }

    /// Asks the providers not to carry the operation out. Only their answer ends it, as canceled if its effect has not
    /// happened and will not.
    ///
    /// # Errors
    /// [`Refused`] when there is no such operation, or the store cannot be written.
    pub async fn cancel(&self, id: OperationId) -> Result<Operation, Refused> {
        let engine = &self.0.engine;
        let applied = engine.store.apply_in(Scope::All, id, Event::Cancel, Timestamp::now()).await?;
        let Some(applied) = applied else { return Err(self.missing(id).await) };
        if applied.change != Change::None {
            engine.gateway.changed(&applied.operation, &applied.change);
        }
        if applied.change == Change::CancelRequested {
            engine.gateway.cancel(&applied.operation);
        }
        Ok(applied.operation)
    }

    /// Returns when it has ended after its shutdown. The store is closed when this and all its clones are dropped.
    ///
    /// # Errors
    /// That it ended since its store can no longer be trusted.
    pub async fn ended(&self) -> anyhow::Result<()> {
        self.0.tasks.wait().await;
        match self.0.engine.store.failed().now_or_never() {
            Some(()) => anyhow::bail!("the store can no longer be trusted; see the log"),
            None => Ok(()),
        }
    }

    fn check(
        &self,
        name: &str,
        content: &Content,
        options: SubmitOptions,
    ) -> Result<(Operation, Option<IdempotencyKey>), Refused> {
        let Inner { engine, config, .. } = &*self.0;
        let SubmitOptions { timeout: given, priority, traceparent, idempotency_key } = options;
        let kind = engine.kinds.get(name)?;
        let timeout = given.unwrap_or(kind.timeout);
        if timeout.is_zero() || timeout > config.operations.timeout_max {
            let longest = config.operations.timeout_max.as_secs();
            return Err(Error::bad_request(format!("timeout is more than 0 and at most {longest}s")).into());
        }
        if priority.is_some_and(|priority| priority > 9) {
            return Err(Error::bad_request("priority is a number from 0 to 9").into());
        }
        if content.content_type != JSON {
            return Err(Error::unsupported_media_type(&content.content_type).into());
        }
        let limit = config.http.body_bytes_max;
        if content.body.len() > limit {
            return Err(Error::too_large(limit).into());
        }
        kind.validate(&shared::json::read::<Value>(&content.body).map_err(Problem::from)?)?;
        let key = idempotency_key.map(|key| {
            let given = given.map_or([0; 16], |timeout| timeout.as_nanos().to_be_bytes());
            let fingerprint = idempotency::fingerprint(&[name.as_bytes(), &content.body, &given, priority.as_slice()]);
            match (1..=KEY_BYTES_MAX).contains(&key.len()) {
                true => Ok(IdempotencyKey { key, fingerprint }),
                false => Err(Error::bad_request(format!("an idempotency key has 1 to {KEY_BYTES_MAX} bytes"))),
            }
        });
        let operation = Operation::new(name, Timestamp::now(), timeout, config.redrive.unconfirmed);
        let mut operation = operation.through(&kind.steps);
        operation.priority = priority;
        operation.traceparent = traceparent.filter(|text| is_traceparent(text));
        Ok((operation, key.transpose()?))
    }

    async fn missing(&self, id: OperationId) -> Refused {
        match self.0.engine.store.was_forgotten(Scope::All, id).await {
            Ok(true) => Error::gone().into(),
            Ok(false) => Error::not_found().into(),
            Err(error) => error.into(),
        }
    }
}
