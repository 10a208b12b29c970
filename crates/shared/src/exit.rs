use serde::Serialize;
use std::process::ExitCode;

/// The exit code for a configuration or a command line that cannot be used.
pub const BAD_CONFIGURATION: u8 = 2;

/// Tells why the program ends, in one line on standard error.
#[expect(clippy::print_stderr, reason = "what is said before logging starts, or after it")]
pub fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

/// Runs a program to its end and turns its result into an exit code.
pub fn run(program: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    crate::crash::init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into(), 1),
    };
    let result = runtime.block_on(program);
    // A blocking call that was abandoned, such as a long computation, must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Prints a configuration as JSON on standard output.
///
/// # Errors
/// When it cannot be written.
#[expect(clippy::print_stdout, reason = "the output of a command")]
pub fn print(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
