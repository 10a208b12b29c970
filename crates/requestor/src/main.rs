//! The requestor's command line.
#![forbid(unsafe_code)]

use clap::Parser;
use requestor::cli;
use std::process::ExitCode;

// A tenth less CPU for each operation than with glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shared::stack::enlarge();
    cli::main(cli::Arguments::parse())
}
