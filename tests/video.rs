//! Videos by ffmpeg, from a source to a stream that can be played.

use harness::broker::Broker;
use harness::pair::Pair;
use harness::process::{Service, command};
use harness::{eventually, ffmpeg};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use url::Url;

/// Two seconds of a small picture.
fn tiny(codec: &str) -> Value {
    let picture = json!({"seconds": 2, "width": 320, "height": 180, "framesPerSecond": 25});
    json!({"source": {"test": picture}, "codec": codec, "segmentSeconds": 1})
}

/// Minutes of work, whose processes can be told from those of other tests by the video's length.
fn endless(seconds: f64) -> Value {
    json!({"source": {"test": {"seconds": seconds, "width": 1920, "height": 1080, "framesPerSecond": 60}}})
}

/// The processes that render a video of that length.
fn rendering(seconds: f64) -> Vec<PathBuf> {
    let wanted = format!("testsrc2=duration={seconds}:");
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let line = |process: &PathBuf| std::fs::read(process.join("cmdline")).unwrap_or_default();
    processes.filter(|process| String::from_utf8_lossy(&line(process)).contains(&wanted)).collect()
}

async fn renders(seconds: f64) {
    eventually("ffmpeg runs", async || match rendering(seconds).len() {
        0 => Err("it does not".into()),
        _ => Ok(()),
    })
    .await;
}

async fn renders_no_more(seconds: f64) {
    eventually("no ffmpeg is left", async || match rendering(seconds) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
}

async fn pair() -> Pair {
    ffmpeg::install_if_missing().await;
    Pair::start().await
}

fn file(url: &Value) -> PathBuf {
    Url::parse(url.as_str().unwrap()).unwrap().to_file_path().unwrap()
}

/// The first video in a file: its codec, width, height and seconds.
fn probe(file: &Path) -> (String, u64, u64, f64) {
    let show = ["-v", "error", "-select_streams", "v:0", "-of", "json", "-show_entries"];
    let mut command = Command::new("ffprobe");
    let output = command.args(show).arg("stream=codec_name,width,height:format=duration").arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let probed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stream = &probed["streams"][0];
    let size = |side: &str| stream[side].as_u64().unwrap();
    let seconds = probed["format"]["duration"].as_str().unwrap().parse().unwrap();
    (stream["codec_name"].as_str().unwrap().to_owned(), size("width"), size("height"), seconds)
}

fn assert_tiny(file: &Path, codec: &str) {
    let (found, width, height, seconds) = probe(file);
    assert_eq!((found.as_str(), width, height), (codec, 320, 180));
    assert!((1.9..2.2).contains(&seconds), "{seconds} s");
}

async fn done(pair: &Pair, kind: &str, request: &Value) -> Value {
    let id = pair.submit(kind, request).await;
    pair.result(&id).await
}

async fn refused(pair: &Pair, kind: &str, request: &Value) -> String {
    let id = pair.submit(kind, request).await;
    let operation = pair.ended(&id).await;
    assert_eq!(operation["error"]["type"], "urn:problem-type:arr:invalid-request", "{operation}");
    operation["error"]["detail"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reply_of_each_step_is_the_request_of_the_next() {
    let pair = pair().await;
    for codec in ["h264", "av1"] {
        let captured = done(&pair, "video.capture", &tiny(codec)).await;
        assert_tiny(&file(&captured["url"]), "h264");
        let compressed = done(&pair, "video.compress", &captured).await;
        assert_tiny(&file(&compressed["url"]), codec);
        let stream = done(&pair, "video.deliver", &compressed).await;
        assert_eq!((&stream["segments"], &stream["codec"]), (&json!(2), &json!(codec)), "{stream}");
        assert_eq!((&stream["width"], &stream["height"]), (&json!(320), &json!(180)));
        let playlist = file(&stream["playlistUrl"]);
        assert_tiny(&playlist, codec);
        let listed = std::fs::read_to_string(&playlist).unwrap();
        let segments = listed.lines().filter(|line| line.ends_with(".m4s"));
        let sizes = segments.map(|name| playlist.with_file_name(name).metadata().unwrap().len());
        assert_eq!(stream["bytes"], sizes.sum::<u64>());
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_is_the_three_steps_as_one_operation() {
    let pair = pair().await;
    let id = pair.submit("video.publish", &tiny("h264")).await;
    let stream = pair.result(&id).await;
    assert_eq!((&stream["segments"], &stream["codec"]), (&json!(2), &json!("h264")), "{stream}");
    let playlist = file(&stream["playlistUrl"]);
    assert_tiny(&playlist, "h264");
    // Each step has a name of its own for what it makes.
    assert!(playlist.ends_with(format!("operations/{id}.3/stream.m3u8")), "{stream}");
    let operations = playlist.ancestors().nth(2).unwrap();
    assert_tiny(&operations.join(&id).join("captured.mkv"), "h264");
    assert_tiny(&operations.join(format!("{id}.2/compressed.mp4")), "h264");
    let operation = pair.operation(&id).await;
    assert_eq!((&operation["position"], &operation["stepKind"]), (&json!(3), &json!("video.deliver")), "{operation}");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_ffmpeg_is_left_when_the_operation_is_canceled() {
    let pair = pair().await;
    let id = pair.submit("video.publish", &endless(599.104)).await;
    renders(599.104).await;
    let response = pair.request("DELETE", &format!("/v1/operations/{id}")).send().await.unwrap();
    assert_eq!(response.status(), 202);
    let operation = pair.ended(&id).await;
    assert_eq!(operation["status"], "Canceled", "{operation}");
    renders_no_more(599.104).await;
    assert!(!pair.folder.path().join("objects/operations").join(&id).exists());
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_file_is_taken_by_its_url_and_nothing_else_is() {
    let pair = pair().await;
    let uploads = pair.folder.path().join("objects/uploads");
    std::fs::create_dir_all(&uploads).unwrap();
    let film = uploads.join("my film.mp4");
    let source = ["-v", "error", "-f", "lavfi", "-i", "testsrc2=duration=2:size=320x180:rate=25"];
    assert!(Command::new("ffmpeg").args(source).arg(&film).status().unwrap().success());
    let url = |file: &Path| Url::from_file_path(file.canonicalize().unwrap()).unwrap().to_string();
    let taken = done(&pair, "video.capture", &json!({"source": {"url": url(&film)}})).await;
    assert_ne!(file(&taken["url"]), film);
    assert_tiny(&file(&taken["url"]), "h264");

    // A playlist could make ffmpeg read any file of the machine.
    let playlist = uploads.join("list.mp4");
    let text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n", film.display());
    std::fs::write(&playlist, text).unwrap();
    let large = uploads.join("large.mkv");
    let source = ["-v", "error", "-f", "lavfi", "-i", "testsrc2=duration=0.1:size=2048x1152:rate=25"];
    assert!(Command::new("ffmpeg").args(source).arg(&large).status().unwrap().success());
    let outside = pair.folder.path().join("outside.mp4");
    std::fs::copy(&film, &outside).unwrap();
    let objects = url(&pair.folder.path().join("objects"));
    for (url, says) in [
        (url(&playlist), "no video that can be read"),
        (url(&large), "2048 x 1152"),
        (format!("{objects}/uploads/none.mp4"), "there is no such object"),
        (format!("{objects}/../outside.mp4"), "names no object"),
        (format!("{objects}/%2e%2e/outside.mp4"), "names no object"),
        (url(&outside), "not in this provider's object store"),
        ("http://127.0.0.1:1/film.mp4".to_owned(), "not in this provider's object store"),
    ] {
        let detail = refused(&pair, "video.capture", &json!({"source": {"url": url}})).await;
        assert!(detail.contains(says), "{url}: {detail}");
        let detail = refused(&pair, "video.compress", &json!({"url": url})).await;
        assert!(detail.contains(says), "{url}: {detail}");
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_video_can_be_is_refused_at_once() {
    let pair = pair().await;
    for (member, value) in [
        ("seconds", json!(601)),
        ("width", json!(1922)),
        ("height", json!(181)),
        ("framesPerSecond", json!(0)),
        ("colour", json!("red")),
    ] {
        let mut request = tiny("h264");
        request["source"]["test"][member] = value;
        let response = pair.try_submit("video.capture", &request).await.unwrap();
        assert_eq!(response.status(), 422, "{request}");
    }
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_how_much_of_the_video_is_done() {
    let pair = pair().await;
    let picture = json!({"seconds": 30, "width": 1280, "height": 720, "framesPerSecond": 25});
    let id = pair.submit("video.capture", &json!({"source": {"test": picture}})).await;
    eventually("its progress is seen", async || {
        let operation = pair.operation(&id).await;
        let percent = operation["percentComplete"].as_f64().unwrap_or_default();
        let message = operation["message"].as_str().unwrap_or_default();
        let done = message.strip_prefix("rendering: ").and_then(|rest| rest.strip_suffix(" of 30.0 s"));
        let Some(done) = done.and_then(|done| done.parse::<f64>().ok()).filter(|done| *done > 0.0) else {
            return Err(operation.to_string());
        };
        assert!((percent - done / 30.0 * 95.0).abs() < 0.5, "{operation}");
        Ok(())
    })
    .await;
    pair.result(&id).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_ffmpeg_is_left_after_the_deadline_nor_when_the_provider_stops() {
    ffmpeg::install_if_missing().await;
    let mut pair = Pair::prepare().await;
    pair.provider_config.drain = Duration::ZERO;
    pair.start_requestor();
    pair.start_provider();
    let body = endless(599.101).to_string();
    let request = pair.post("video.capture").header("operation-timeout", "8s").body(body);
    let accepted: Value = request.send().await.unwrap().json().await.unwrap();
    renders(599.101).await;
    let operation = pair.ended(accepted["id"].as_str().unwrap()).await;
    assert_eq!(operation["error"]["type"], "urn:problem-type:arr:deadline-exceeded", "{operation}");
    renders_no_more(599.101).await;

    let request = pair.post("video.capture").header("operation-timeout", "20s").body(endless(599.102).to_string());
    let accepted: Value = request.send().await.unwrap().json().await.unwrap();
    renders(599.102).await;
    pair.stop_provider().await;
    assert_eq!(rendering(599.102), Vec::<PathBuf>::new());
    pair.ended(accepted["id"].as_str().unwrap()).await;
    // What was given back is thrown away.
    pair.start_provider();
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_when_the_provider_is_killed() {
    ffmpeg::install_if_missing().await;
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    let temporary = pair.folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let temporary = temporary.to_str().unwrap();
    let service = Service::provider(&pair.host.url, pair.folder.path()).with("TMPDIR", temporary);
    let mut provider = service.start().await;
    let request = pair.post("video.capture").header("operation-timeout", "10s").body(endless(599.103).to_string());
    let accepted: Value = request.send().await.unwrap().json().await.unwrap();
    renders(599.103).await;
    provider.kill();
    renders_no_more(599.103).await;
    pair.ended(accepted["id"].as_str().unwrap()).await;
    let folders = || std::fs::read_dir(temporary).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let left = folders();
    assert_eq!(left.len(), 1, "{left:?}");
    let mut next = service.start().await;
    assert!(!left[0].exists());
    assert_eq!(folders().len(), 1, "one of the new process");
    assert!(next.terminate().await.success());
    assert_eq!(folders(), Vec::<PathBuf>::new());
    pair.start_provider();
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_ffmpeg_videos_are_not_served_and_the_log_says_so() {
    let host = Broker::shared().await.virtual_host().await;
    let folder = tempfile::tempdir().unwrap();
    // A folder without programs.
    let path = folder.path().to_str().unwrap();
    let provider = Service::provider(&host.url, folder.path()).with("PATH", path);
    let mut process = provider.start().await;
    let log = provider.log();
    assert!(log.contains("video.deliver are not served: there is no ffmpeg: install it"), "{log}");
    eventually("it serves the rest", async || match host.queues().await {
        queues if queues.iter().any(|name| name == "arr.request.echo") => Ok(queues),
        queues => Err(format!("{queues:?}")),
    })
    .await;
    assert!(process.terminate().await.success());
    let queues = host.queues().await;
    assert!(!queues.iter().any(|name| name.contains("video")), "{queues:?}");

    let variables = [("PATH", path), ("PROVIDER_KINDS", "video.compress"), ("PROVIDER_HTTP__LISTEN", "127.0.0.1:0")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let output = command("provider", &variables).arg("serve").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("video.compress cannot be served: there is no ffmpeg: install it"), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    host.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_objects_are_deleted_and_uploads_are_not() {
    ffmpeg::install_if_missing().await;
    let mut pair = Pair::prepare().await;
    let objects = pair.folder.path().join("objects");
    let [old, new, upload] =
        ["operations/1/captured.mkv", "operations/2/captured.mkv", "uploads/film.mp4"].map(|name| objects.join(name));
    for (file, hours) in [(&old, 97), (&new, 95), (&upload, 97)] {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let made = std::fs::File::create(file).unwrap();
        made.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    }
    pair.start_requestor();
    pair.start_provider();
    eventually("the old object is deleted", async || if old.exists() { Err("it is there".into()) } else { Ok(()) })
        .await;
    assert!(new.exists() && upload.exists());
    pair.finish().await;
}
