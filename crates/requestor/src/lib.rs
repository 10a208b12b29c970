//! The requestor: HTTP in front, RabbitMQ behind, and a record of every operation in between.
#![forbid(unsafe_code)]

/// Who may ask, and for how much at once.
pub mod callers;
/// The configuration and its annotated defaults.
pub mod config;
/// What an operation is and how it changes.
pub mod operation;
/// Settings that decide how operations change.
pub mod rules;

/// What is promised to callers and providers, as documents.
mod contract;
/// Sends requests and takes what comes back.
mod gateway;
mod http;
mod kinds;
mod pace;
/// Where operations are kept.
pub mod store;
mod sweeper;
mod watch;
/// Sends outcomes to who wants them.
pub mod webhook;

/// The command line.
pub mod cli;

use crate::config::Config;
use anyhow::Context;
use gateway::Gateway;
use kinds::Kinds;
use pace::Pace;
use std::net::TcpListener;
use std::sync::Arc;
use store::Store;
use tokio_util::sync::CancellationToken;
use watch::Watch;
use webhook::{Deliverer, Secrets, Targets};

/// Runs the requestor on `listener` until `shutdown`, and returns when what was under way has ended.
///
/// # Errors
/// What keeps it from starting, or that its store can no longer be trusted.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let kinds = Kinds::load(&config)?;
    // On the heap: it holds all that a session does.
    Box::pin(serve(config, kinds, listener, shutdown)).await
}

/// As [`run`], with kinds that are loaded already.
async fn serve(config: Config, kinds: Kinds, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    shared::telemetry::init_metrics();
    let watch = Watch::default();
    let committed = watch.clone();
    let committed = move |changes| committed.notify(changes);
    let (url, connections_max) = (config.store.url.expose(), config.store.connections_max);
    let store = Store::open(url, connections_max, config.rules(), committed).await.context("store")?;
    kinds.restore(store.announced().await.context("store")?);
    kinds.check_references()?;
    let bounds = (config.http.retry_after_min, config.http.retry_after_max);
    let pace = Pace::new(kinds.clone(), bounds);
    pace.warm_up(&store).await.context("store")?;
    let (gateway, queues) = Gateway::new(&config, kinds.clone(), store.clone(), pace.clone());
    tracing::info!(listen = %listener.local_addr()?, group = config.group, store = %config.store.url, "requestor ready");

    let targets = Arc::new(Targets::new(&config.webhooks)?);
    let secrets = Arc::new(Secrets::new(&config.webhooks.secrets, &config.callers));
    let webhooks = (secrets, targets);
    let deliverer = Deliverer::new(&config.webhooks, webhooks.clone(), store.clone()).context("webhooks")?;
    let parts = (store.clone(), gateway.clone(), watch.clone(), pace.clone());
    let app = http::App::new(&config, kinds, parts, webhooks, shutdown.clone());
    // The broker is served until the last HTTP request has ended, so that what they accept is still sent.
    let http_ended = CancellationToken::new();
    let server = async {
        let (limits, tls) = (&config.http.limits, &config.http.tls);
        let served = shared::http::serve(listener, http::router(app, &config), limits, tls, &shutdown).await;
        http_ended.cancel();
        served
    };
    let background = async {
        let sweeper = sweeper::run(&store, &gateway, &config, &http_ended);
        let webhooks = async {
            if let Some(deliverer) = &deliverer {
                deliverer.run(&shutdown).await;
            }
        };
        let watch = http_ended.run_until_cancelled(watch.run());
        let pace = pace.look(&store, &http_ended);
        tokio::join!(gateway.run(&config, queues, &http_ended), sweeper, webhooks, watch, pace)
    };
    let served = tokio::select! {
        (served, _) = async { tokio::join!(server, background) } => served,
        () = store.failed() => anyhow::bail!("the store can no longer be trusted; see the log"),
    };
    store.close().await;
    served
}
