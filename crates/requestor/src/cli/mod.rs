//! The command line: `serve`, and a small client of the HTTP interface.

/// `requestor bench`.
pub mod bench;
mod client;
mod show;
mod stream;

use crate::callers::key;
use crate::config::Config;
use crate::kinds::Kinds;
use anyhow::Context;
use clap::{Parser, Subcommand};
use client::Client;
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

/// Takes requests over HTTP, sends them over RabbitMQ, and keeps each operation until its outcome is known.
#[derive(Debug, Parser)]
#[command(name = "requestor", version, about)]
pub struct Arguments {
    /// A configuration file; only the keys that differ from the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve,
    /// Submit a request, and wait for its outcome if asked to.
    Submit {
        /// What to ask for, such as order.place.
        kind: String,
        /// The request as JSON; @FILE reads a file, - standard input.
        #[arg(value_name = "JSON")]
        request: String,
        /// Wait for the outcome; the exit code is 1 if it is a failure.
        #[arg(long)]
        wait: bool,
        /// Give up after this time, such as 30s; the kind's own timeout unless given.
        #[arg(long, value_name = "DURATION")]
        timeout: Option<String>,
        /// Submitted again with the same key, the same request is not accepted a second time.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show one operation.
    Status {
        /// The operation's id.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show operations, newest first.
    List {
        /// Only this kind.
        #[arg(long)]
        kind: Option<String>,
        /// Only this status: `NotStarted`, Running, Succeeded, Failed or Canceled.
        #[arg(long)]
        status: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what can be asked for, and who serves it; or all that is known of one kind, with its schemas.
    Kinds {
        /// Only this kind.
        kind: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Ask for an operation to be canceled. It ends as Canceled only if its effect has not happened.
    Cancel {
        /// The operation's id.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Attempt a failed operation again, under the same id.
    Retry {
        /// The operation's id.
        id: String,
        /// Give up after this time, such as 30s; the kind's own timeout unless given.
        #[arg(long, value_name = "DURATION")]
        timeout: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what has happened to an operation.
    Events {
        /// The operation's id.
        id: String,
        /// Go on with what happens to it, until it has ended. With --json, one document a line.
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show the open operations, then all that happens, until Ctrl-C. With --json, one document a line.
    Watch {
        #[command(flatten)]
        remote: Remote,
    },
    /// Measure how fast a running stack is.
    Bench {
        #[command(flatten)]
        arguments: bench::Arguments,
        #[command(flatten)]
        remote: Remote,
    },
    /// API keys for the callers of the configuration.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Ask the requestor that runs with this configuration whether it is healthy.
    Healthcheck,
    /// Print the effective configuration, with secrets hidden.
    Config,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Print a new key, which is kept nowhere, and the hash of it, for `key_hashes` of its caller.
    New,
}

/// Which requestor to talk to, and how to show what it says.
#[derive(Debug, clap::Args)]
struct Remote {
    /// The requestor's base URL; where this configuration listens unless given.
    #[arg(long, env = "ARR_URL")]
    url: Option<String>,
    /// The API key; better given in the environment, where other users of the machine do not see it.
    #[arg(long, env = "ARR_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Print one JSON document, for machines.
    #[arg(long)]
    json: bool,
}

/// Runs the command that `arguments` name.
#[must_use]
pub fn main(arguments: Arguments) -> ExitCode {
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return shared::exit::fail(&error, shared::exit::BAD_CONFIGURATION),
    };
    match arguments.command {
        Command::Serve => serve(config),
        Command::Config => shared::exit::run(async { shared::exit::print(&config) }),
        Command::Key { command: KeyCommand::New } => shared::exit::run(async { show::key(&key::new()?) }),
        Command::Healthcheck => shared::exit::run(shared::http::check(config.http.listen, config.http.tls.is_on())),
        Command::Bench { arguments, remote } => {
            shared::exit::run(async move { Box::pin(bench::run(arguments, config, &remote)).await })
        }
        Command::Submit { kind, request, wait, timeout, idempotency_key, remote } => shared::exit::run(async move {
            let client = remote.client(&config)?;
            let accepted =
                client.submit(&kind, read_argument(&request)?, timeout.as_deref(), idempotency_key.as_deref()).await?;
            match wait {
                true => show::outcome(&client, &accepted, remote.json).await,
                false => show::operation(&accepted, remote.json),
            }
        }),
        Command::Status { id, remote } => shared::exit::run(async move {
            let operation = remote.client(&config)?.operation(&id, 0).await?;
            show::operation(&operation, remote.json)
        }),
        Command::Cancel { id, remote } => shared::exit::run(async move {
            let operation = remote.client(&config)?.cancel(&id).await?;
            show::operation(&operation, remote.json)
        }),
        Command::Retry { id, timeout, remote } => shared::exit::run(async move {
            let operation = remote.client(&config)?.retry(&id, timeout.as_deref()).await?;
            show::operation(&operation, remote.json)
        }),
        Command::Events { id, follow: true, remote } => shared::exit::run(async move {
            let show = |event: &Value| show::event(event, remote.json);
            stream::follow(&remote.client(&config)?, &["v1", "operations", &id, "events"], show).await
        }),
        Command::Watch { remote } => shared::exit::run(async move {
            let show = |event: &Value| show::event_of_all(event, remote.json);
            stream::follow(&remote.client(&config)?, &["v1", "events"], show).await
        }),
        Command::Events { id, follow: false, remote } => shared::exit::run(async move {
            let events = remote.client(&config)?.events(&id).await?;
            show::events(events, remote.json)
        }),
        Command::Kinds { kind, remote } => shared::exit::run(async move {
            let found = remote.client(&config)?.kinds(kind.as_deref()).await?;
            show::kinds(&found, remote.json || kind.is_some())
        }),
        Command::List { kind, status, limit, remote } => shared::exit::run(async move {
            let page = remote.client(&config)?.list(kind.as_deref(), status.as_deref(), limit).await?;
            show::list(&page, remote.json)
        }),
    }
}

fn serve(mut config: Config) -> ExitCode {
    let mut prepare = || {
        shared::telemetry::init_logs(&config.log)?;
        config.fit_machine()?;
        anyhow::Ok((Kinds::load(&config)?, shared::http::bind(config.http.listen)?))
    };
    match prepare() {
        Ok((kinds, listener)) => shared::exit::run(async {
            let shutdown = shared::shutdown::token()?;
            Box::pin(crate::serve(config, kinds, listener, shutdown)).await
        }),
        Err(error) => shared::exit::fail(&error, shared::exit::BAD_CONFIGURATION),
    }
}

impl Remote {
    fn base_url(&self, config: &Config) -> String {
        let configured = || format!("{}://{}", config.http.scheme(), shared::http::reachable(config.http.listen));
        self.url.clone().unwrap_or_else(configured)
    }

    fn client(&self, config: &Config) -> anyhow::Result<Client> {
        Client::new(&self.base_url(config), self.key.as_deref())
    }
}

fn read_argument(argument: &str) -> anyhow::Result<String> {
    if argument == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    match argument.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")),
        None => Ok(argument.to_owned()),
    }
}
