//! The provider of the kinds that come with the product.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use provider::{Config, Provider};
use std::path::PathBuf;
use std::process::ExitCode;

// A tenth less CPU for each operation than with glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes requests from RabbitMQ, does the work, and replies.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
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
    /// Print the effective configuration, with secrets hidden.
    Config,
    /// Ask the provider that runs with this configuration whether it is healthy.
    Healthcheck,
}

fn main() -> ExitCode {
    shared::stack::enlarge();
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return shared::exit::fail(&error, shared::exit::BAD_CONFIGURATION),
    };
    match arguments.command {
        Command::Serve => serve(config),
        Command::Config => shared::exit::run(async { shared::exit::print(&config) }),
        Command::Healthcheck => shared::exit::run(shared::http::check(config.http.listen, config.http.tls.is_on())),
    }
}

fn serve(mut config: Config) -> ExitCode {
    let prepare = || {
        shared::telemetry::init_logs(&config.log)?;
        config.http.tls.validate()?;
        config.http.limits.fit_descriptors()?;
        let listener = shared::http::bind(config.http.listen)?;
        anyhow::Ok((Provider::built_in(config)?, listener))
    };
    match prepare() {
        Ok((provider, listener)) => {
            shared::exit::run(async { Box::pin(provider.run_on(listener, provider::shutdown_on_signal()?)).await })
        }
        Err(error) => shared::exit::fail(&error, shared::exit::BAD_CONFIGURATION),
    }
}
