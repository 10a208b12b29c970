//! Accepts operations and drives each to its outcome, whoever asks: the HTTP side, or the program that this is part of.

use crate::backlog;
use crate::config::Config;
use crate::gateway::{self, Gateway, Queues, Tell};
use crate::kinds::Kinds;
use crate::outcomes::{Awaiting, Outcomes, Seen};
use crate::pace::Pace;
use crate::store::{Changed, Created, NewOperation, Scope, Store, StoreError};
use crate::sweeper;
use crate::watch::Watch;
use crate::webhook::{Deliverer, Secrets, Targets};
use anyhow::Context;
use jiff::Timestamp;
use shared::message::OperationId;
use shared::{crash, database};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A waiter reads the record at least this often, in case a wake-up is lost.
const WAIT_POLL: Duration = Duration::from_secs(2);

/// Longer than any operation takes, and short enough for a clock.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// All but a face. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub(crate) kinds: Kinds,
    pub(crate) store: Store,
    pub(crate) gateway: Gateway,
    pub(crate) watch: Watch,
    pub(crate) outcomes: Outcomes,
    pub(crate) pace: Pace,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) targets: Arc<Targets>,
}

/// What an engine does beside accepting, for [`Engine::run`].
#[derive(Debug)]
pub(crate) struct Background {
    queues: Queues,
    deliverer: Option<Deliverer>,
}

impl Engine {
    /// Opens the store, and makes all the rest.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub(crate) async fn open(config: &Config, kinds: Kinds) -> anyhow::Result<(Self, Background)> {
        shared::telemetry::init_metrics();
        let watch = Watch::default();
        let (tell, told) = gateway::hints();
        let (url, connections_max) = (config.store.url.expose(), config.store.connections_max);
        let committed = committed(watch.clone(), tell, database::is_postgres(url));
        let store = Store::open(url, connections_max, config.rules(), committed).await.context("store")?;
        kinds.restore(store.announced().await.context("store")?);
        kinds.check_references()?;
        let bounds = (config.http.retry_after_min, config.http.retry_after_max);
        let pace = Pace::new(kinds.clone(), bounds);
        pace.warm_up(&store).await.context("store")?;
        let outcomes = Outcomes::default();
        let (gateway, queues) =
            Gateway::new(config, kinds.clone(), store.clone(), (pace.clone(), outcomes.clone(), watch.clone()), told);
        let targets = Arc::new(Targets::new(&config.webhooks)?);
        let secrets = Arc::new(Secrets::new(&config.webhooks.secrets, &config.callers));
        let webhooks = (Arc::clone(&secrets), Arc::clone(&targets));
        let deliverer = Deliverer::new(&config.webhooks, webhooks, store.clone()).context("webhooks")?;
        let engine = Self { kinds, store, gateway, watch, outcomes, pace, secrets, targets };
        Ok((engine, Background { queues, deliverer }))
    }

    /// Drives operations until `ended`, when nothing more is accepted; webhooks are begun until `shutdown` only.
    ///
    /// # Errors
    /// That the store can no longer be trusted.
    pub(crate) async fn run(
        &self,
        config: &Config,
        background: Background,
        shutdown: &CancellationToken,
        ended: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Background { queues, deliverer } = background;
        let work = async {
            let webhooks = async {
                if let Some(deliverer) = &deliverer {
                    deliverer.run(shutdown).await;
                }
            };
            let sweeper = sweeper::run(&self.store, &self.gateway, config, ended);
            let watch = ended.run_until_cancelled(self.watch.run());
            let pace = self.pace.look(&self.store, ended);
            let backlog = backlog::run(&self.store, &self.kinds, ended);
            tokio::join!(self.gateway.run(config, queues, ended), sweeper, webhooks, watch, pace, backlog)
        };
        tokio::select! {
            _ = work => Ok(()),
            () = self.store.failed() => anyhow::bail!("the store can no longer be trusted; see the log"),
        }
    }

    /// Stores a request, and sends it if it is new. While more are stored than can be sent, further ones are refused, but not
    /// while the broker is away: then they wait in the store for it.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was accepted.
    pub(crate) async fn accept(&self, new: NewOperation) -> Result<Created, StoreError> {
        if !self.gateway.keeps_up() {
            return Err(StoreError::Busy);
        }
        let (operation, content) = (new.operation.clone(), new.request.clone());
        crash::point("requestor.create");
        let created = self.store.create(new).await?;
        if created == Created::New {
            crash::point("requestor.created");
            metrics::counter!("arr_operations_accepted_total", "kind" => operation.kind.clone()).increment(1);
            self.gateway.dispatch(&operation, content, Timestamp::now());
            crash::point("requestor.accepted");
        }
        Ok(created)
    }

    /// The operation when it has ended, or when `wait` is over or `shutdown` begins, whichever is first. Who has been
    /// `awaiting` its outcome since before it was stored need not look whether it has ended.
    pub(crate) async fn wait(
        &self,
        scope: &Scope,
        id: OperationId,
        (wait, awaiting): (Duration, Option<Awaiting>),
        shutdown: &CancellationToken,
    ) -> Result<Option<Seen>, StoreError> {
        let until = Instant::now() + wait.min(WAIT_MAX);
        let awaiting = awaiting.filter(|awaiting| awaiting.id() == id);
        let mut look = awaiting.is_none();
        // Before reading, so that no outcome in between is missed.
        let mut awaiting = awaiting.unwrap_or_else(|| self.outcomes.expect(id));
        loop {
            if look {
                let operation = self.store.get(scope.clone(), id).await?;
                let ended = operation.as_ref().is_none_or(|operation| operation.has_ended());
                if ended || Instant::now() >= until || shutdown.is_cancelled() {
                    return Ok(operation.map(|operation| Seen { operation, result: None }));
                }
            }
            look = true;
            tokio::select! {
                seen = awaiting.outcome() => if seen.is_some() {
                    return Ok(seen);
                },
                () = tokio::time::sleep_until(until.min(Instant::now() + WAIT_POLL)) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }
}

/// What is done after each commit. Other instances are told where there may be some.
fn committed(watch: Watch, tell: Tell, is_shared: bool) -> impl Fn(Vec<Changed>) + Send + Sync + 'static {
    move |changes| {
        if is_shared && !changes.is_empty() {
            let _ = tell.try_send(changes.clone());
        }
        watch.notify(changes);
    }
}
