//! Room for headers that are nested as deeply as a frame allows.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the standard library takes as the size of threads' stacks.
const VARIABLE: &str = "RUST_MIN_STACK";
/// Stacks of threads, in bytes.
///
/// lapin reads headers by recursion, without a limit, on a thread of its own that ends the process when its stack does.
/// A frame of 128 KiB holds 26,000 levels: 256 MiB were not enough for them in a debug build of the requestor, this was.
/// Only what is touched of it is ever allocated.
const BYTES: &str = "536870912";

/// Replaces this process by itself with larger stacks, unless that was done or somebody has chosen their size.
///
/// To be called first in `main`, while there is nothing to lose. Returns if it is of no use or cannot be done.
pub fn enlarge() {
    let mut arguments = std::env::args_os();
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let (Some(name), Ok(program)) = (arguments.next(), std::env::current_exe()) else { return };
    let error = Command::new(program).arg0(name).args(arguments).env(VARIABLE, BYTES).exec();
    // Reached only if there is no other process in its place; logging is not set up yet, and it can serve without.
    drop(error);
}
