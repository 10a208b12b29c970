//! ffmpeg and ffprobe as child processes.

use crate::config::VideoConfig;
use crate::context::Context;
use crate::handler::Failure;
use crate::handlers::child::{self, Ended, Limits, Program, Stopped};
use serde::Deserialize;
use shared::problem::Problem;
use shared::schema::video::{Codec, MAX_HEIGHT, MAX_SECONDS, MAX_WIDTH};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The containers that uploaded files may have. Others, such as playlists, may make ffmpeg read further files.
const CONTAINERS: &str = "mov,mp4,matroska,webm,avi,mpegts";
/// The longest line that ffmpeg and ffprobe write on standard output is about 100 bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Four reports a second, of about 300 bytes each, for an hour.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// How long ffprobe may take to look at a file.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than allowed a video may be: encoders fill their last frames.
const SECONDS_TOLERANCE: f64 = 1.0;

/// The programs, and how they are run.
#[derive(Debug)]
pub(super) struct Ffmpeg {
    config: VideoConfig,
    av1: bool,
    environment: Vec<(OsString, OsString)>,
    slots: Semaphore,
}

/// What a video is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Probed {
    pub(super) seconds: f64,
    pub(super) codec: String,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) frames_per_second: f64,
}

impl Ffmpeg {
    /// # Errors
    /// What is not installed.
    pub(super) fn find(config: &VideoConfig) -> Result<Self, String> {
        let encoders = said_by("ffmpeg", "-encoders")?;
        said_by("ffprobe", "-version")?;
        if !encoders.contains(" libx264 ") {
            return Err("this ffmpeg was built without libx264: install a full one, as Debian's is".into());
        }
        let mut environment = shared::config::environment_for_child(|name| name == "PATH");
        // Or it greets at length where errors belong.
        environment.push(("SVT_LOG".into(), "1".into()));
        let (av1, slots) = (encoders.contains(" libsvtav1 "), Semaphore::new(config.processes_max));
        Ok(Self { config: config.clone(), av1, environment, slots })
    }

    /// # Errors
    /// That this ffmpeg cannot encode it.
    pub(super) fn check(&self, codec: Codec) -> Result<(), Failure> {
        match codec {
            Codec::Av1 if !self.av1 => Err(Failure::invalid("/codec", "this provider's ffmpeg has no libsvtav1")),
            _ => Ok(()),
        }
    }

    /// The largest file that may be read or written, in bytes.
    pub(super) fn file_bytes_max(&self) -> u64 {
        self.config.file_bytes_max
    }

    /// How many threads an encoder may use.
    pub(super) fn threads(&self) -> u16 {
        self.config.threads
    }

    /// Waits for its turn: each job takes several cores, and space for its files.
    pub(super) async fn slot(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.slots.acquire().await.map_err(|_| stopped())
    }

    /// Runs ffmpeg in `folder`, and reports from 0 to 95 % how much of `seconds` has been `doing`.
    pub(super) async fn run(
        &self,
        folder: &Path,
        arguments: &[&str],
        seconds: f64,
        doing: &str,
        context: &Context,
    ) -> Result<(), Failure> {
        let mut command = words(&["ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-nostats", "-y"]);
        command.extend(words(&["-progress", "pipe:1", "-stats_period", "0.25"]));
        command.extend(words(arguments));
        context.progress(0.0, doing);
        let ended = self.child(folder, command, self.config.timeout, context, |line| {
            if let Some(done) = out_time(line) {
                let percent = (done / seconds * 95.0).clamp(0.0, 95.0);
                context.progress(percent, format!("{doing}: {done:.1} of {seconds:.1} s"));
            }
        });
        let ended = ended.await?;
        if ended.status.success() { Ok(()) } else { Err(failure("ffmpeg", &ended)) }
    }

    /// What the first video in `file` is.
    ///
    /// # Errors
    /// Permanent, at the JSON pointer of its URL, if it is no video or larger than videos may be.
    pub(super) async fn probe(&self, file: &Path, pointer: &str, context: &Context) -> Result<Probed, Failure> {
        let mut command = words(&["ffprobe", "-hide_banner", "-loglevel", "error", "-of", "json"]);
        command.extend(words(&["-protocol_whitelist", "file", "-format_whitelist", CONTAINERS]));
        command.extend(words(&["-select_streams", "v:0"]));
        command.extend(words(&["-show_entries", "stream=codec_name,width,height,avg_frame_rate:format=duration"]));
        command.push(file.into());
        let mut output = Vec::new();
        let folder = file.parent().unwrap_or(file);
        let ended = self.child(folder, command, PROBE_TIMEOUT, context, |line| output.extend_from_slice(line)).await?;
        if !ended.status.success() {
            return Err(Failure::invalid(pointer, format!("no video that can be read: {}", ended.error_tail)));
        }
        let probed = Probed::read(&output).ok_or_else(|| {
            Failure::invalid(pointer, "it has no video, or does not say how large and how long it is")
        })?;
        let fits = probed.seconds <= MAX_SECONDS + SECONDS_TOLERANCE
            && probed.width <= MAX_WIDTH
            && probed.height <= MAX_HEIGHT;
        if fits {
            return Ok(probed);
        }
        let Probed { seconds, width, height, .. } = probed;
        let most = format!("more than {MAX_SECONDS} s of {MAX_WIDTH} x {MAX_HEIGHT}");
        Err(Failure::invalid(pointer, format!("{seconds:.1} s of {width} x {height} pixels are {most}")))
    }

    async fn child(
        &self,
        folder: &Path,
        command: Vec<OsString>,
        timeout: Duration,
        context: &Context,
        line: impl FnMut(&[u8]),
    ) -> Result<Ended, Failure> {
        let program = Program {
            command,
            folder: Some(folder.to_owned()),
            environment: self.environment.clone(),
            timeout,
            line_bytes_max: LINE_BYTES_MAX,
            output_bytes_max: OUTPUT_BYTES_MAX,
            limits: Limits {
                nice: self.config.nice,
                memory_bytes_max: Some(self.config.memory_bytes_max),
                file_bytes_max: Some(self.config.file_bytes_max),
            },
            log_as: None,
        };
        child::run(&program, &[], context.cancelled(), line).await.map_err(|reason| match reason {
            Stopped::Cancelled => stopped(),
            Stopped::NotStarted { .. } => {
                Failure::Transient(Problem::new("video-failed", 503, "ffmpeg cannot be started", reason.to_string()))
            }
            _ => Failure::Permanent(Problem::new("video-failed", 500, "ffmpeg was stopped", reason.to_string())),
        })
    }
}

/// What opens a file that others have made.
pub(super) fn input(file: &str) -> [&str; 6] {
    ["-protocol_whitelist", "file", "-format_whitelist", CONTAINERS, "-i", file]
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn said_by(program: &str, argument: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    match command.args(["-hide_banner", argument]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(format!("{program} does not work ({}): install it again", output.status)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("there is no {program}: install it (on Debian: apt-get install ffmpeg)"))
        }
        Err(error) => Err(format!("{program} cannot be started: {error}")),
    }
}

/// The seconds that are done, from a line such as `out_time_us=1500000`.
fn out_time(line: &[u8]) -> Option<f64> {
    let text = line.strip_prefix(b"out_time_us=")?;
    let microseconds: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some((microseconds / 1e6).max(0.0))
}

/// A program that ended by itself and says why failed for good; one that the system killed may have been too large.
fn failure(program: &str, ended: &Ended) -> Failure {
    let detail = format!("{program} ended with {}: {}", ended.status, ended.error_tail);
    let problem = Problem::new("video-failed", 500, "The video cannot be made", detail);
    if ended.status.signal().is_some() { Failure::Transient(problem) } else { Failure::Permanent(problem) }
}

fn stopped() -> Failure {
    Failure::stopped("the work was stopped before its end")
}

impl Probed {
    fn read(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Output {
            streams: Vec<Stream>,
            format: Format,
        }
        #[derive(Deserialize)]
        struct Stream {
            codec_name: String,
            width: u32,
            height: u32,
            avg_frame_rate: String,
        }
        #[derive(Deserialize)]
        struct Format {
            duration: String,
        }
        let Output { streams, format } = serde_json::from_slice(json).ok()?;
        let stream = streams.into_iter().next()?;
        let (frames, seconds) = stream.avg_frame_rate.split_once('/')?;
        let frames_per_second: f64 = frames.parse::<f64>().ok()? / seconds.parse::<f64>().ok()?;
        Some(Self {
            seconds: format.duration.parse().ok().filter(|seconds: &f64| *seconds > 0.0)?,
            codec: stream.codec_name,
            width: stream.width,
            height: stream.height,
            frames_per_second: if frames_per_second.is_normal() { frames_per_second } else { 25.0 },
        })
    }
}
