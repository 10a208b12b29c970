//! The requestor's command line.
#![forbid(unsafe_code)]

use clap::Parser;
use requestor::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    shared::stack::enlarge();
    cli::main(cli::Arguments::parse())
}
