//! Points at which a test kills the process, as the worst moment of a real crash would. Not in release builds.

/// Arms the points that `FAILPOINTS` names, such as `requestor.created=1%return`; `return` aborts the process.
/// Does nothing in release builds.
pub fn init() {
    #[cfg(debug_assertions)]
    {
        // A second scenario would wait for the end of the first, which lasts as long as the process.
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    }
}

/// Aborts the process if `FAILPOINTS` says so. Compiled to nothing in release builds.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    if fail::eval(name, |_| ()).is_some() {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "crash point {name}");
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}
