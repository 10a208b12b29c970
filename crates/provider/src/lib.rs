//! The provider: takes requests from RabbitMQ, does the work in handlers, and replies.
//!
//! A handler says what kind of effect it has, and the worker does the rest:
//!
//! | effect | registered by | repeats and crashes |
//! |---|---|---|
//! | pure: running it twice harms nothing | [`Builder::handle`], [`Builder::handle_raw`] | run again |
//! | transactional: in the ledger's own database | [`Builder::handle_transactional`] | effect and outcome are one commit; a repeat is answered from the ledger |
//! | external: a payment, an e-mail, another service | [`Builder::handle_external`] | the handler asks for [`Context::intent`] before its effect and has it with the idempotency key that it gets; until the outcome is recorded, a repeat has the effect again with the same key |
//!
//! A provider of your own is a `main` of ten lines:
//!
//! ```no_run
//! use provider::{Config, Context, Failure, Provider};
//!
//! #[derive(serde::Deserialize)]
//! struct Resize { width: u32 }
//!
//! #[derive(serde::Serialize)]
//! struct Resized { width: u32, height: u32 }
//!
//! async fn resize(request: Resize, context: Context) -> Result<Resized, Failure> {
//!     context.progress(50.0, "resizing");
//!     Ok(Resized { width: request.width, height: request.width / 2 })
//! }
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//!     let shutdown = provider::shutdown_on_signal()?;
//!     Provider::builder(Config::load(None)?).handle("image.resize", resize).build()?.run(shutdown).await
//! }
//! ```
#![forbid(unsafe_code)]

/// The configuration and its annotated defaults.
pub mod config;
mod context;
mod handler;
mod handlers;
mod ledger;
mod worker;

pub use config::Config;
pub use context::Context;
pub use handler::Failure;
pub use ledger::{PostgresTransaction, Transaction};
/// The database library of transactional handlers on SQLite.
pub use rusqlite;
/// The library that makes a JSON Schema of a type, for [`Builder::describe`].
pub use schemars;
pub use shared::message::Content;
pub use shared::problem::Problem;
/// The database library of transactional handlers on PostgreSQL.
pub use sqlx;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use handler::{Forms, Handler};
use ledger::{Ledger, Prepare};
use rusqlite::Connection;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::amqp::{self, Status, Supervisor};
use shared::schema::{self, Schemas};
use sqlx::PgConnection;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use worker::Worker;

/// How often the ledger forgets what is past its retention.
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// A provider that is ready to run.
#[derive(Debug)]
pub struct Provider {
    config: Config,
    handlers: BTreeMap<String, Handler>,
    schemas: BTreeMap<String, Schemas>,
    version: String,
    prepare: Prepare,
    objects: Option<handlers::video::Objects>,
}

/// Collects handlers.
#[derive(Debug)]
pub struct Builder(Provider);

impl Provider {
    /// A provider without handlers.
    #[must_use]
    pub fn builder(config: Config) -> Builder {
        Builder(Self {
            config,
            handlers: BTreeMap::new(),
            schemas: BTreeMap::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            prepare: Prepare::default(),
            objects: None,
        })
    }

    /// A provider of those kinds that come with the product and that `config.kinds` names.
    ///
    /// # Errors
    /// Which kind does not come with the product.
    pub fn built_in(config: Config) -> anyhow::Result<Self> {
        let wanted = config.kinds.clone();
        let inventory = config.orders.inventory.clone();
        let payments = config.payments.clone();
        let mut builder = Self::builder(config)
            .handle_raw(schema::ECHO, handlers::echo::echo)
            .handle(schema::risk::KIND, handlers::risk::analyze)
            .handle_transactional(schema::order::KIND, handlers::order::place)
            .handle_transactional_on_postgres(schema::order::KIND, handlers::order::place_on_postgres)
            .with_commands()?
            .with_video(&wanted)?;
        if payments.url.is_empty() {
            let named = wanted.iter().any(|kind| kind == schema::payment::KIND);
            anyhow::ensure!(!named, "kinds: {:?} needs payments.url", schema::payment::KIND);
            if wanted == ["all"] {
                tracing::info!("{} is not offered: payments.url is empty", schema::payment::KIND);
            }
        } else {
            builder = builder.handle_external(schema::payment::KIND, handlers::payment::charge(&payments)?);
        }
        let provider = &mut builder.0;
        for (kind, schemas) in schema::built_in() {
            provider.schemas.entry(kind.to_owned()).or_insert(schemas);
        }
        if wanted != ["all"] {
            let known = provider.handlers.keys().cloned().collect::<Vec<_>>().join(", ");
            if let Some(unknown) = wanted.iter().find(|kind| !provider.handlers.contains_key(*kind)) {
                anyhow::bail!("kinds: {unknown:?} is not built in; choose from {known}, or \"all\"");
            }
            provider.handlers.retain(|kind, _| wanted.contains(kind));
        }
        if provider.handlers.contains_key(schema::order::KIND) {
            let articles = inventory.clone();
            builder = builder
                .prepare_ledger(move |connection| handlers::order::prepare(connection, &inventory))
                .prepare_ledger_on_postgres(|connection| {
                    Box::pin(handlers::order::prepare_on_postgres(connection, articles))
                });
        }
        builder.build()
    }

    /// Starts logging unless that was done, listens on `http.listen` and serves until `shutdown`.
    ///
    /// # Errors
    /// As [`Provider::run_on`], and when it cannot listen.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        shared::telemetry::init_logs(&self.config.log)?;
        let listener = shared::http::bind(self.config.http.listen)?;
        // On the heap: it holds all that a session does.
        Box::pin(self.run_on(listener, shutdown)).await
    }

    /// Serves until `shutdown`, and returns when what was under way has ended or was given back. Health and metrics
    /// are on `listener`.
    ///
    /// # Errors
    /// What keeps it from starting, or that its ledger can no longer be trusted.
    pub async fn run_on(self, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
        shared::telemetry::init_metrics();
        let Self { config, handlers, schemas, version, prepare, objects } = self;
        let announcements = worker::announcing::announcements(&config, &version, &handlers, schemas);
        let ledger = match handlers.values().any(Handler::has_effect) || !prepare.is_empty() {
            true => Some(Ledger::open(&config.ledger, &handlers, prepare).await.context("ledger")?),
            false => None,
        };
        tracing::info!(listen = %listener.local_addr()?, group = config.group, "provider ready");
        let (publisher, mut queue) = amqp::publisher(&config.broker);
        let worker = Worker::new(config.clone(), handlers, announcements, ledger.clone(), publisher, shutdown.clone());
        let status = Status::channel();
        let routes = shared::http::health_routes(status.subscribe());
        let name = format!("provider {}", config.group);
        let ended = CancellationToken::new();
        let sessions = async {
            let mut supervisor = Supervisor::new(&config.broker, name, &status, &shutdown);
            while let Some(session) = supervisor.open().await {
                let result = supervisor.guard(&session, Box::pin(worker.serve(&session, &mut queue))).await;
                if supervisor.close(session, result).await {
                    break;
                }
            }
        };
        let work = async {
            tokio::join!(Box::pin(sessions), Box::pin(worker.serve_calls()));
            ended.cancel();
        };
        let health = shared::http::serve(listener, routes, &config.http.limits, &config.http.tls, &ended);
        tokio::select! {
            ((), served) = async { tokio::join!(work, health) } => served,
            () = keep(ledger.as_ref(), config.ledger.retention) => {
                anyhow::bail!("the ledger can no longer be trusted; see the log")
            }
            () = tidy(objects) => Ok(()),
        }
    }
}

impl Builder {
    /// Serves `kind` by a function of a typed request, whose effect is `Pure`: running it twice harms nothing.
    #[must_use]
    pub fn handle<Q, P, F>(self, kind: &str, function: impl Fn(Q, Context) -> F + Send + Sync + 'static) -> Self
    where
        Q: DeserializeOwned + Send,
        P: Serialize,
        F: Future<Output = Result<P, Failure>> + Send + 'static,
    {
        self.with(kind, Handler::Pure(handler::typed(function)))
    }

    /// Serves `kind` by a function of the bytes as they came, whose effect is `Pure`.
    #[must_use]
    pub fn handle_raw<F>(self, kind: &str, function: impl Fn(Content, Context) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Content, Failure>> + Send + 'static,
    {
        self.with(kind, Handler::Pure(handler::raw(function)))
    }

    /// Serves `kind` by a function whose effect is `Transactional`: it happens in the ledger's database, in the
    /// commit that records the outcome, so a repeated request changes nothing and gets the same answer. This is the form
    /// for a ledger in SQLite; a kind may have both. The function may be run once more after what it did was undone.
    #[must_use]
    pub fn handle_transactional<Q, P>(
        mut self,
        kind: &str,
        function: impl Fn(Q, &Transaction<'_>) -> Result<P, Failure> + Send + Sync + 'static,
    ) -> Self
    where
        Q: DeserializeOwned,
        P: Serialize,
    {
        self.forms(kind).sqlite = Some(handler::transactional(function));
        self
    }

    /// As [`Builder::handle_transactional`], for a ledger in PostgreSQL, which any number of instances share. The function
    /// has 15 s, and holds one of `ledger.connections_max` connections.
    #[must_use]
    pub fn handle_transactional_on_postgres<Q, P>(
        mut self,
        kind: &str,
        function: impl for<'t> Fn(Q, &'t mut PostgresTransaction) -> BoxFuture<'t, Result<P, Failure>>
        + Send
        + Sync
        + 'static,
    ) -> Self
    where
        Q: DeserializeOwned,
        P: Serialize + 'static,
    {
        self.forms(kind).postgres = Some(handler::transactional_on_postgres(function));
        self
    }

    /// Serves `kind` by a function whose effect is `External`: it happens in another system. The function calls
    /// [`Context::intent`] just before the effect and has it with the idempotency key that it gets. The outcome is
    /// recorded before it is replied, and a repeated request gets the same answer; until there is one, it has the
    /// effect again with the same key.
    #[must_use]
    pub fn handle_external<Q, P, F>(
        self,
        kind: &str,
        function: impl Fn(Q, Context) -> F + Send + Sync + 'static,
    ) -> Self
    where
        Q: DeserializeOwned + Send,
        P: Serialize,
        F: Future<Output = Result<P, Failure>> + Send + 'static,
    {
        self.with(kind, Handler::External(handler::typed(function)))
    }

    /// Says what requests and results of `kind` look like. The schemas are announced, so that requestors check requests
    /// before they accept them, and show callers what to send.
    #[must_use]
    pub fn describe<Q: JsonSchema, P: JsonSchema>(mut self, kind: &str) -> Self {
        self.0.schemas.insert(kind.to_owned(), Schemas::of::<Q, P>());
        self
    }

    /// The version that is announced, in at most 64 visible characters; that of this crate unless given. Where providers
    /// of a kind announce different schemas, those of the newest version hold.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.0.version);
        self
    }

    /// Runs `prepare` in the ledger's database at every start, to create the tables that a handler needs, if it is SQLite.
    #[must_use]
    pub fn prepare_ledger(mut self, prepare: impl Fn(&Connection) -> rusqlite::Result<()> + Send + 'static) -> Self {
        self.0.prepare.sqlite.push(Box::new(prepare));
        self
    }

    /// As [`Builder::prepare_ledger`], if the ledger is in PostgreSQL: in one transaction, and one instance at a time.
    #[must_use]
    pub fn prepare_ledger_on_postgres(
        mut self,
        prepare: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<()>> + Send + 'static,
    ) -> Self {
        self.0.prepare.postgres.push(Box::new(prepare));
        self
    }

    /// The provider.
    ///
    /// # Errors
    /// Which name cannot be a kind, or that there are no handlers.
    pub fn build(self) -> anyhow::Result<Provider> {
        anyhow::ensure!(!self.0.handlers.is_empty(), "a provider needs at least one handler");
        for kind in self.0.handlers.keys() {
            anyhow::ensure!(shared::topology::is_kind(kind), "{kind:?} cannot name a kind: use a-z, 0-9, . - _");
        }
        let version = &self.0.version;
        let plain = version.len() <= 64 && version.bytes().all(|byte| byte.is_ascii_graphic());
        anyhow::ensure!(plain, "version {version:.80?}: use at most 64 visible characters");
        Ok(self.0)
    }

    /// The kinds of the sections `[commands."kind"]`.
    fn with_commands(mut self) -> anyhow::Result<Self> {
        for (kind, config) in self.0.config.commands.clone() {
            let command = handlers::command::Command::open(&kind, &config)?;
            self.0.schemas.insert(kind.clone(), command.schemas());
            let run = handler::raw(move |content, context| Arc::clone(&command).handle(content, context));
            self = match config.effect {
                config::Effect::Pure => self.with(&kind, Handler::Pure(run)),
                config::Effect::External => self.with(&kind, Handler::External(run)),
            };
        }
        Ok(self)
    }

    /// The kinds that need ffmpeg, if it is there; an error if it is not and they are `wanted` by name.
    fn with_video(mut self, wanted: &[String]) -> anyhow::Result<Self> {
        use schema::video::{CAPTURE, COMPRESS, DELIVER};
        let named = wanted.iter().find(|kind| [CAPTURE, COMPRESS, DELIVER].contains(&kind.as_str()));
        if named.is_none() && wanted != ["all"] {
            return Ok(self);
        }
        match (handlers::video::Video::open(&self.0.config)?, named) {
            (Err(missing), Some(kind)) => anyhow::bail!("kinds: {kind} cannot be served: {missing}"),
            (Err(missing), None) => {
                tracing::warn!("{CAPTURE}, {COMPRESS} and {DELIVER} are not served: {missing}");
                Ok(self)
            }
            (Ok(video), _) => {
                self.0.objects = Some(video.objects());
                let (first, second) = (Arc::clone(&video), Arc::clone(&video));
                Ok(self
                    .handle(CAPTURE, move |request, context| Arc::clone(&first).capture(request, context))
                    .handle(COMPRESS, move |request, context| Arc::clone(&second).compress(request, context))
                    .handle(DELIVER, move |request, context| Arc::clone(&video).deliver(request, context)))
            }
        }
    }

    /// The forms of a transactional handler of `kind`.
    fn forms(&mut self, kind: &str) -> &mut Forms {
        let handler =
            self.0.handlers.entry(kind.to_owned()).or_insert_with(|| Handler::Transactional(Forms::default()));
        if !matches!(handler, Handler::Transactional(_)) {
            *handler = Handler::Transactional(Forms::default());
        }
        match handler {
            Handler::Transactional(forms) => forms,
            Handler::Pure(_) | Handler::External(_) => unreachable!("it was made transactional"),
        }
    }

    fn with(mut self, kind: &str, handler: Handler) -> Self {
        self.0.handlers.insert(kind.to_owned(), handler);
        self
    }
}

/// A token that is cancelled by SIGTERM or SIGINT, for [`Provider::run`].
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    shared::shutdown::token()
}

/// Keeps the ledger small. Returns when it can no longer be trusted.
async fn keep(ledger: Option<&Ledger>, retention: Duration) {
    let Some(ledger) = ledger else { return std::future::pending().await };
    let purge = async {
        loop {
            if let Err(error) = ledger.purge(jiff::Timestamp::now(), retention).await {
                tracing::warn!(%error, "cannot purge the ledger now");
            }
            tokio::time::sleep(PURGE_EVERY).await;
        }
    };
    tokio::select! {
        () = purge => {}
        () = ledger.failed() => {}
    }
}

/// Keeps the object store small. Never returns.
async fn tidy(objects: Option<handlers::video::Objects>) {
    match objects {
        Some(objects) => objects.keep().await,
        None => std::future::pending().await,
    }
}
