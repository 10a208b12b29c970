//! `video.capture`, `video.compress`, `video.deliver`: ffmpeg does the work, the object store holds the videos.
//!
//! The effect is pure: what a request makes has a name that derives from the request's identity, so that a repeat
//! writes the same again.

mod ffmpeg;
mod objects;
mod workplace;

use crate::config::Config;
use crate::context::Context;
use crate::handler::Failure;
use anyhow::Context as _;
use ffmpeg::Ffmpeg;
pub(crate) use objects::Objects;
use shared::problem::Problem;
use shared::schema::video::{
    Capture, Codec, Compress, Deliver, MAX_FRAMES_PER_SECOND, MAX_HEIGHT, MAX_SECONDS, MAX_SEGMENT_SECONDS, MAX_WIDTH,
    MIN_SIZE, Source, Stream, TestPicture,
};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use workplace::Workplace;

/// What has been received.
const INPUT: &str = "input";
/// The results' names, in the folder and in the object store.
const CAPTURED: &str = "captured.mkv";
const COMPRESSED: &str = "compressed.mp4";
const PLAYLIST: &str = "stream.m3u8";

/// What the handlers of the three kinds share.
#[derive(Debug)]
pub(crate) struct Video {
    ffmpeg: Ffmpeg,
    objects: Objects,
    workplace: Workplace,
}

impl Video {
    /// None and the reason if ffmpeg is not installed.
    ///
    /// # Errors
    /// Why there is no object store, or no temporary folder.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Result<Arc<Self>, String>> {
        match Ffmpeg::find(&config.video) {
            Ok(ffmpeg) => {
                let workplace = Workplace::open().context("no temporary folder can be made")?;
                Ok(Ok(Arc::new(Self { ffmpeg, objects: Objects::open(&config.objects)?, workplace })))
            }
            Err(missing) => Ok(Err(missing)),
        }
    }

    pub(crate) fn objects(&self) -> Objects {
        self.objects.clone()
    }

    /// `video.capture`: a test picture or an uploaded file becomes an object of the operation's own.
    pub(crate) async fn capture(self: Arc<Self>, request: Capture, context: Context) -> Result<Compress, Failure> {
        self.ffmpeg.check(request.codec)?;
        check_segment(request.segment_seconds)?;
        let _slot = self.ffmpeg.slot().await?;
        let folder = self.folder()?;
        match &request.source {
            Source::Test(picture) => self.render(picture, folder.path(), &context).await?,
            Source::Url(url) => self.take(url, folder.path(), &context).await?,
        }
        let url = self.store(folder.path(), CAPTURED, &context).await?;
        Ok(Compress { url, codec: request.codec, segment_seconds: request.segment_seconds })
    }

    async fn render(&self, picture: &TestPicture, folder: &Path, context: &Context) -> Result<(), Failure> {
        check_picture(picture)?;
        let TestPicture { seconds, width, height, frames_per_second } = picture;
        let image = format!("testsrc2=duration={seconds}:size={width}x{height}:rate={frames_per_second}");
        let threads = self.ffmpeg.threads().to_string();
        let tone = format!("sine=frequency=440:duration={seconds}");
        let mut arguments = vec!["-f", "lavfi", "-i", &image, "-f", "lavfi", "-i", &tone];
        // Quick to make and hardly worse than the original: the next step makes it small.
        arguments.extend(["-c:v", "libx264", "-preset", "ultrafast", "-crf", "10", "-pix_fmt", "yuv420p"]);
        arguments.extend(["-c:a", "pcm_s16le", "-threads", &threads, CAPTURED]);
        self.ffmpeg.run(folder, &arguments, *seconds, "rendering", context).await
    }

    async fn take(&self, url: &str, folder: &Path, context: &Context) -> Result<(), Failure> {
        let pointer = "/source/url";
        let seconds = self.fetch(url, pointer, folder, context).await?.seconds;
        let limit = MAX_SECONDS.to_string();
        let mut arguments = ffmpeg::input(INPUT).to_vec();
        arguments.extend(["-map", "0:v:0", "-map", "0:a:0?", "-c", "copy", "-t", &limit, CAPTURED]);
        self.ffmpeg.run(folder, &arguments, seconds, "taking", context).await
    }

    /// `video.compress`: makes a video small.
    pub(crate) async fn compress(self: Arc<Self>, request: Compress, context: Context) -> Result<Deliver, Failure> {
        self.ffmpeg.check(request.codec)?;
        check_segment(request.segment_seconds)?;
        let _slot = self.ffmpeg.slot().await?;
        let folder = self.folder()?;
        let video = self.fetch(&request.url, "/url", folder.path(), &context).await?;
        // A segment can begin at a key frame only.
        let key_frames = (f64::from(request.segment_seconds) * video.frames_per_second).round().max(1.0).to_string();
        let mut arguments = ffmpeg::input(INPUT).to_vec();
        arguments.extend(["-map", "0:v:0", "-map", "0:a:0?"]);
        let (threads, parallelism) = (self.ffmpeg.threads().to_string(), format!("lp={}", self.ffmpeg.threads()));
        arguments.extend(match request.codec {
            Codec::H264 => ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-threads", &threads],
            Codec::Av1 => ["-c:v", "libsvtav1", "-preset", "8", "-crf", "35", "-svtav1-params", &parallelism],
        });
        arguments.extend(["-g", &key_frames, "-pix_fmt", "yuv420p"]);
        arguments.extend(["-c:a", "aac", "-movflags", "+faststart", COMPRESSED]);
        self.ffmpeg.run(folder.path(), &arguments, video.seconds, "compressing", &context).await?;
        let url = self.store(folder.path(), COMPRESSED, &context).await?;
        Ok(Deliver { url, segment_seconds: request.segment_seconds })
    }

    /// `video.deliver`: cuts a video into segments, and lists them.
    pub(crate) async fn deliver(self: Arc<Self>, request: Deliver, context: Context) -> Result<Stream, Failure> {
        check_segment(request.segment_seconds)?;
        let _slot = self.ffmpeg.slot().await?;
        let folder = self.folder()?;
        let video = self.fetch(&request.url, "/url", folder.path(), &context).await?;
        let codec = match video.codec.as_str() {
            "h264" => Codec::H264,
            "av1" => Codec::Av1,
            other => return Err(Failure::invalid("/url", format!("a stream of {other} plays hardly anywhere"))),
        };
        let length = request.segment_seconds.to_string();
        let mut arguments = ffmpeg::input(INPUT).to_vec();
        arguments.extend(["-map", "0:v:0", "-map", "0:a:0?", "-c", "copy", "-f", "hls", "-hls_time", &length]);
        arguments.extend(["-hls_playlist_type", "vod", "-hls_flags", "independent_segments"]);
        arguments.extend(["-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "head.mp4"]);
        arguments.extend(["-hls_segment_filename", "segment%05d.m4s", PLAYLIST]);
        self.ffmpeg.run(folder.path(), &arguments, video.seconds, "cutting", &context).await?;
        let (segments, bytes) = self.store_segments(folder.path(), &context).await?;
        // Last, so that whoever has the playlist has all that it lists.
        let playlist_url = self.store(folder.path(), PLAYLIST, &context).await?;
        let ffmpeg::Probed { seconds, width, height, .. } = video;
        Ok(Stream { playlist_url, segments, seconds, codec, width, height, bytes })
    }

    /// Stores what the playlist lists; how many segments there are, and their bytes.
    async fn store_segments(&self, folder: &Path, context: &Context) -> Result<(u32, u64), Failure> {
        let (mut segments, mut bytes) = (0, 0);
        self.store(folder, "head.mp4", context).await?;
        loop {
            let file = format!("segment{segments:05}.m4s");
            let Ok(found) = tokio::fs::metadata(folder.join(&file)).await else { return Ok((segments, bytes)) };
            self.store(folder, &file, context).await?;
            (segments, bytes) = (segments + 1, bytes + found.len());
        }
    }

    fn folder(&self) -> Result<TempDir, Failure> {
        self.workplace.folder().map_err(|error| {
            let detail = format!("no temporary folder can be made: {error}");
            Failure::Transient(Problem::new("video-failed", 503, "The video cannot be made now", detail))
        })
    }

    /// Copies the object at `url` to the folder, and looks what it is.
    async fn fetch(
        &self,
        url: &str,
        pointer: &str,
        folder: &Path,
        context: &Context,
    ) -> Result<ffmpeg::Probed, Failure> {
        context.progress(0.0, "fetching");
        let file = folder.join(INPUT);
        self.objects.download(url, pointer, &file, self.ffmpeg.file_bytes_max()).await?;
        self.ffmpeg.probe(&file, pointer, context).await
    }

    /// Stores a file of the folder as an object of this request; its URL.
    async fn store(&self, folder: &Path, file: &str, context: &Context) -> Result<String, Failure> {
        context.progress(95.0, "storing");
        let name = Objects::name(&place(context.identity()), file);
        self.objects.upload(&folder.join(file), &name).await?;
        Ok(self.objects.url(&name))
    }
}

/// The folder of a request's objects. A foreign client's name for its request may be anything.
fn place(identity: &str) -> String {
    match identity.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.') {
        true => identity.to_owned(),
        false => format!("foreign-{:016x}", BuildHasherDefault::<DefaultHasher>::default().hash_one(identity)),
    }
}

fn check_picture(picture: &TestPicture) -> Result<(), Failure> {
    within("/source/test/seconds", picture.seconds, 0.1..=MAX_SECONDS)?;
    within("/source/test/width", picture.width, MIN_SIZE..=MAX_WIDTH)?;
    within("/source/test/height", picture.height, MIN_SIZE..=MAX_HEIGHT)?;
    within("/source/test/framesPerSecond", picture.frames_per_second, 1..=MAX_FRAMES_PER_SECOND)?;
    if picture.width % 2 == 1 || picture.height % 2 == 1 {
        return Err(Failure::invalid("/source/test", "width and height must be even"));
    }
    Ok(())
}

fn check_segment(seconds: u32) -> Result<(), Failure> {
    within("/segmentSeconds", seconds, 1..=MAX_SEGMENT_SECONDS)
}

/// The requestor checks the schema, but not every request comes from one.
fn within<T: PartialOrd + std::fmt::Display>(pointer: &str, value: T, range: RangeInclusive<T>) -> Result<(), Failure> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(Failure::invalid(pointer, format!("{value} is not from {} to {}", range.start(), range.end()))),
    }
}
