//! `make bench`: the pair and hand-written loops on the same broker, one after the other, so that every figure is a ratio.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a measurement is there to be read")]

mod bare;
mod growth;
mod matrix;
mod page;
mod plot;
mod runs;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything, prints the table, and writes target/bench/results.json.
    Run(matrix::Settings),
    /// Measures how cost grows, prints the tables, and writes target/bench/growth.json.
    Growth(growth::Settings),
    /// Writes docs/performance.md and its plots from results.
    Page {
        /// Written by `run`.
        #[arg(long, default_value = "target/bench/results.json")]
        results: PathBuf,
        /// Written by `growth`.
        #[arg(long, default_value = "target/bench/growth.json")]
        growth: PathBuf,
        /// Where to.
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
    },
    /// A server by hand, until it is killed.
    #[command(hide = true)]
    BareServer {
        #[arg(value_enum)]
        way: bare::Way,
        url: String,
    },
    /// A client by hand: prints what it measured as JSON.
    #[command(hide = true)]
    BareClient {
        #[arg(value_enum)]
        way: bare::Way,
        url: String,
        #[command(flatten)]
        load: bare::Load,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(settings) => Box::pin(matrix::run(settings)).await,
        Command::Growth(settings) => Box::pin(growth::run(settings)).await,
        Command::Page { results, growth, docs } => page::write(&results, &growth, &docs),
        Command::BareServer { way, url } => bare::serve(way, &url).await,
        Command::BareClient { way, url, load } => bare::ask(way, &url, &load).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
