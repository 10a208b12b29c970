//! `video.capture`, `video.compress`, `video.deliver`: from a source to a stream that can be played, in three steps.
//!
//! The reply of a step is the request of the next, so that a pipeline, `video.publish`, joins them. Videos travel by
//! claim check: a message has the URL of an object, never its content.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes a video into the object store.
pub const CAPTURE: &str = "video.capture";
/// Makes it small.
pub const COMPRESS: &str = "video.compress";
/// Cuts it into a stream.
pub const DELIVER: &str = "video.deliver";

/// The longest video, in seconds.
pub const MAX_SECONDS: f64 = 600.0;
/// The largest width, in pixels.
pub const MAX_WIDTH: u32 = 1920;
/// The largest height, in pixels.
pub const MAX_HEIGHT: u32 = 1080;
/// The most frames in a second.
pub const MAX_FRAMES_PER_SECOND: u32 = 60;
/// The smallest width and height that all encoders take, in pixels.
pub const MIN_SIZE: u32 = 64;
/// The longest segment of a stream, in seconds.
pub const MAX_SEGMENT_SECONDS: u32 = 10;
/// The longest URL of an object, in characters.
pub const MAX_URL: usize = 2048;

/// What to publish, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Capture {
    /// Where the video comes from.
    pub source: Source,
    /// What the next step compresses it to; H.264 unless given.
    #[serde(default)]
    pub codec: Codec,
    /// How long a segment of the stream is, in whole seconds from 1 to 10; 4 unless given.
    #[serde(default = "default_segment_seconds")]
    #[schemars(range(min = 1, max = MAX_SEGMENT_SECONDS))]
    pub segment_seconds: u32,
}

/// Where a video comes from: `{"test": {…}}` or `{"url": "…"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum Source {
    /// A moving test picture with a tone, rendered on the spot.
    Test(TestPicture),
    /// An uploaded file (MP4, MOV, Matroska, WEBM, AVI or MPEG-TS), by its URL in the provider's object store; at most
    /// 10 minutes of at most 1920 × 1080 pixels.
    Url(#[schemars(length(min = 1, max = MAX_URL))] String),
}

/// What the test picture is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TestPicture {
    /// How long it is, in seconds from 0.1 to 600.
    #[schemars(range(min = 0.1, max = MAX_SECONDS))]
    pub seconds: f64,
    /// Width in pixels, even, from 64 to 1920; 1280 unless given.
    #[serde(default = "default_width")]
    #[schemars(range(min = MIN_SIZE, max = MAX_WIDTH), extend("multipleOf" = 2))]
    pub width: u32,
    /// Height in pixels, even, from 64 to 1080; 720 unless given.
    #[serde(default = "default_height")]
    #[schemars(range(min = MIN_SIZE, max = MAX_HEIGHT), extend("multipleOf" = 2))]
    pub height: u32,
    /// Frames in a second, from 1 to 60; 25 unless given.
    #[serde(default = "default_frames_per_second")]
    #[schemars(range(min = 1, max = MAX_FRAMES_PER_SECOND))]
    pub frames_per_second: u32,
}

/// How a video is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Plays everywhere.
    #[default]
    H264,
    /// Smaller, and takes longer to make.
    Av1,
}

/// A video in the object store, to be made small. The reply of `video.capture`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Compress {
    /// The video, by its URL in the provider's object store.
    #[schemars(length(min = 1, max = MAX_URL))]
    pub url: String,
    /// What to compress it to; H.264 unless given.
    #[serde(default)]
    pub codec: Codec,
    /// A new segment can begin this often, in whole seconds from 1 to 10; 4 unless given.
    #[serde(default = "default_segment_seconds")]
    #[schemars(range(min = 1, max = MAX_SEGMENT_SECONDS))]
    pub segment_seconds: u32,
}

/// A compressed video in the object store, to be cut into a stream. The reply of `video.compress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Deliver {
    /// The video, by its URL in the provider's object store; H.264 or AV1.
    #[schemars(length(min = 1, max = MAX_URL))]
    pub url: String,
    /// How long a segment is, in whole seconds from 1 to 10; 4 unless given. It ends where the video lets it.
    #[serde(default = "default_segment_seconds")]
    #[schemars(range(min = 1, max = MAX_SEGMENT_SECONDS))]
    pub segment_seconds: u32,
}

/// A stream (HTTP Live Streaming, RFC 8216) that can be played. The reply of `video.deliver`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Stream {
    /// The playlist, by its URL in the provider's object store; its segments are beside it.
    pub playlist_url: String,
    /// How many segments there are.
    pub segments: u32,
    /// How long it is, in seconds.
    pub seconds: f64,
    /// What it is compressed with.
    pub codec: Codec,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The size of all segments together, in bytes.
    pub bytes: u64,
}

fn default_segment_seconds() -> u32 {
    4
}

fn default_width() -> u32 {
    1280
}

fn default_height() -> u32 {
    720
}

fn default_frames_per_second() -> u32 {
    25
}
