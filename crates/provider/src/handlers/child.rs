//! A child process with limits, stopped politely: what `video` and `command` handlers have in common.
//!
//! A child has a process group of its own. The group gets SIGTERM, then SIGKILL, when nobody wants its work any more,
//! and SIGKILL when its handler is dropped; when this process is killed, the child is too.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

/// How long a child may take to end after SIGTERM. Less than the worker waits for a handler that was cancelled.
const TERMINATE_GRACE: Duration = Duration::from_millis(800);
/// How long what a child has written may take to be read after its end, should a process that it left behind, and
/// that has a group of its own, hold the pipe open.
const REMAINDER_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of the end of standard error is kept to explain a failure, in bytes.
const ERROR_TAIL: usize = 2048;
/// Lines of standard error that are logged of one run; the rest is only counted.
const LOGGED_LINES_MAX: usize = 100;
/// Bytes of such a line that are logged.
const LOGGED_LINE_MAX: usize = 1024;

/// What to run, and within which limits.
#[derive(Debug)]
pub(crate) struct Program {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Where it runs; here if none.
    pub(crate) folder: Option<PathBuf>,
    /// All of its environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// How long it may run.
    pub(crate) timeout: Duration,
    /// The longest line that it may write on standard output, in bytes.
    pub(crate) line_bytes_max: usize,
    /// What it may write on standard output altogether, in bytes.
    pub(crate) output_bytes_max: u64,
    /// Further limits, where the system's tools can set them.
    pub(crate) limits: Limits,
    /// What its standard error is logged as; not logged if none.
    pub(crate) log_as: Option<String>,
}

/// Limits that the system keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    /// Added to its niceness, 0 to 19.
    pub(crate) nice: u8,
    /// Address space, in bytes.
    pub(crate) memory_bytes_max: Option<u64>,
    /// The size of each file that it writes, in bytes.
    pub(crate) file_bytes_max: Option<u64>,
}

/// How a child ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The end of what it wrote on standard error.
    pub(crate) error_tail: String,
}

/// Why a child did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    #[error("cannot start {program}: {error}")]
    NotStarted { program: String, error: std::io::Error },
    #[error("cancelled")]
    Cancelled,
    #[error("it took longer than {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error("it wrote a line of more than {0} bytes on standard output")]
    LineTooLong(usize),
    #[error("it wrote more than {0} bytes on standard output")]
    OutputTooLong(u64),
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
}

/// Runs `program` to its end: `input` goes to its standard input, each line of its standard output to `line`.
///
/// # Errors
/// Why it was stopped; nothing of its process group is left then.
pub(crate) async fn run(
    program: &Program,
    input: &[u8],
    cancelled: &CancellationToken,
    line: impl FnMut(&[u8]),
) -> Result<Ended, Stopped> {
    let name = program.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut child = command(program).spawn().map_err(|error| Stopped::NotStarted { program: name, error })?;
    let mut group = Group::of(&child);
    let result = tokio::select! {
        result = attend(&mut child, &group, program, input, line) => result,
        () = cancelled.cancelled() => Err(Stopped::Cancelled),
        () = tokio::time::sleep(program.timeout) => Err(Stopped::TimedOut(program.timeout)),
    };
    if result.is_err() {
        group.signal(Signal::SIGTERM);
        let _ = tokio::time::timeout(TERMINATE_GRACE, child.wait()).await;
        group.signal(Signal::SIGKILL);
        child.wait().await?;
    }
    // Nothing is left of it, and its number may become another's.
    group.0 = None;
    result
}

/// Feeds and reads a child until it ends, all at once: none of its pipes may block another.
async fn attend(
    child: &mut Child,
    group: &Group,
    program: &Program,
    input: &[u8],
    line: impl FnMut(&[u8]),
) -> Result<Ended, Stopped> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut talk = std::pin::pin!(async {
        let told = async { Ok(tokio::join!(feed(stdin, input), keep_tail(stderr, program)).1) };
        // What it should not have written ends it at once.
        tokio::try_join!(read_lines(stdout, program, line), told).map(|((), tail)| tail)
    });
    let (status, said) = tokio::select! {
        said = &mut talk => {
            let error_tail = said?;
            (child.wait().await?, Some(error_tail))
        }
        status = child.wait() => (status?, None),
    };
    // What it has left behind would hold the pipes open.
    group.signal(Signal::SIGKILL);
    let error_tail = match said {
        Some(tail) => tail,
        None => tokio::time::timeout(REMAINDER_TIMEOUT, talk).await.unwrap_or_else(|_| Ok(String::new()))?,
    };
    Ok(Ended { status, error_tail })
}

/// Writes the input. A child need not read it.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input).await;
    }
}

async fn read_lines(
    stdout: Option<impl AsyncRead + Unpin>,
    program: &Program,
    mut line: impl FnMut(&[u8]),
) -> Result<(), Stopped> {
    let Some(stdout) = stdout else { return Ok(()) };
    let (mut stdout, mut text, mut total) = (BufReader::new(stdout), Vec::new(), 0);
    loop {
        let available = stdout.fill_buf().await?;
        let (taken, complete) = match available.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (available.len(), available.is_empty()),
        };
        let at_end = available.is_empty();
        text.extend_from_slice(&available[..taken]);
        stdout.consume(taken);
        total += taken as u64;
        if total > program.output_bytes_max {
            return Err(Stopped::OutputTooLong(program.output_bytes_max));
        }
        if text.len() > program.line_bytes_max {
            return Err(Stopped::LineTooLong(program.line_bytes_max));
        }
        if complete {
            let trimmed = text.trim_ascii();
            if !trimmed.is_empty() {
                line(trimmed);
            }
            text.clear();
        }
        if at_end {
            return Ok(());
        }
    }
}

/// Reads standard error to its end, logs some of it, and returns its tail.
async fn keep_tail(stderr: Option<impl AsyncRead + Unpin>, program: &Program) -> String {
    let Some(stderr) = stderr else { return String::new() };
    let (mut stderr, mut tail, mut lines) = (BufReader::new(stderr), Vec::new(), 0_usize);
    // A line without end is read in pieces; a child that cannot be read any more has said what it had to say.
    while let Ok(piece) = stderr.fill_buf().await
        && !piece.is_empty()
    {
        let taken = piece.iter().position(|byte| *byte == b'\n').map_or(piece.len(), |end| end + 1);
        let text = &piece[..taken.min(LOGGED_LINE_MAX)];
        lines += 1;
        if let Some(name) = program.log_as.as_ref().filter(|_| lines <= LOGGED_LINES_MAX) {
            tracing::info!(command = name, "{}", String::from_utf8_lossy(text).trim_end());
        }
        tail.extend_from_slice(text);
        tail.drain(..tail.len().saturating_sub(ERROR_TAIL));
        stderr.consume(taken);
    }
    if let Some(name) = program.log_as.as_ref().filter(|_| lines > LOGGED_LINES_MAX) {
        tracing::info!(command = name, lines = lines - LOGGED_LINES_MAX, "more lines on standard error, not logged");
    }
    String::from_utf8_lossy(tail.trim_ascii()).into_owned()
}

/// The process group of a child; gone when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It fails when nothing of the group is left.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// The command, wrapped in the system's tools for what needs them.
fn command(program: &Program) -> Command {
    let mut words = wrappers(&program.limits).into_iter().map(OsString::from).chain(program.command.iter().cloned());
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).env_clear().envs(program.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(folder) = &program.folder {
        command.current_dir(folder);
    }
    command.process_group(0).kill_on_drop(true);
    command
}

/// What stands before a command: util-linux and coreutils set what only a child can set for itself. Each replaces
/// itself by the next, so that the child is still one process.
fn wrappers(limits: &Limits) -> Vec<String> {
    static TOOLS: OnceLock<[bool; 3]> = OnceLock::new();
    let [setpriv, nice, prlimit] = *TOOLS.get_or_init(|| {
        [&["setpriv", "--pdeathsig", "KILL"][..], &["nice"], &["prlimit", "--core=0"]].map(|tool| {
            let works = works(tool);
            if !works {
                tracing::warn!(tool = tool[0], "not there or of another kind: children run without what it does");
            }
            works
        })
    });
    let mut words = Vec::new();
    if setpriv {
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
    }
    if nice && limits.nice > 0 {
        words.extend(["nice".into(), "-n".into(), limits.nice.to_string(), "--".into()]);
    }
    if prlimit {
        words.extend(["prlimit".into(), "--core=0".into()]);
        words.extend(limits.memory_bytes_max.map(|bytes| format!("--as={bytes}")));
        words.extend(limits.file_bytes_max.map(|bytes| format!("--fsize={bytes}")));
        words.push("--".into());
    }
    words
}

fn works(tool: &[&str]) -> bool {
    let mut command = std::process::Command::new(tool[0]);
    command.args(&tool[1..]).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
