//! A line: one connection with one channel, for calls, which may be lost and should be cheap.
//!
//! lapin spends some 45 µs of a processor on a round trip, most of it on waking tasks and threads for single frames. Here
//! a task takes all that has come at once, and what is sent meanwhile is written at once. Nothing is confirmed. All
//! that must not be lost goes through a [`Session`](super::Session).

mod codec;
mod opening;

pub use codec::{Incoming, Origin, Outgoing, Properties, ack, publish};

use amq_protocol::protocol::{AMQPClass, basic, channel, connection};
use bytes::{Buf, BytesMut};
use codec::{Event, Limits};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

/// As much as is read at once.
const READ_BYTES: usize = 128 * 1024;
/// A buffer that a burst has made larger than this is given back.
const KEPT_BYTES: usize = 1024 * 1024;

/// A connection with an open channel, on which nothing is consumed yet.
pub struct Line {
    read: Box<dyn AsyncRead + Send + Unpin>,
    write: Box<dyn AsyncWrite + Send + Unpin>,
    frame_max: usize,
    heartbeat: Duration,
    buffer: BytesMut,
    /// When it was opened.
    pub opened: Instant,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("frame_max", &self.frame_max).finish_non_exhaustive()
    }
}

/// What waits to be written: frames, put here by anybody and written by the line's [`Sender`]. It outlasts lines.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: Mutex<Vec<u8>>,
    bell: Notify,
}

impl Outbox {
    /// Adds what `write` writes, whole frames, and returns what it returns.
    pub fn add<T>(&self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut frames = self.frames();
        let was_empty = frames.is_empty();
        let result = write(&mut frames);
        // Who writes takes all there is, so that the first of many is enough to wake it.
        if was_empty && !frames.is_empty() {
            drop(frames);
            self.bell.notify_one();
        }
        result
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.frames().len()
    }

    /// Forgets what waits: it was meant for a line that is over.
    pub fn clear(&self) {
        self.frames().clear();
    }

    fn frames(&self) -> MutexGuard<'_, Vec<u8>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, into: &mut Vec<u8>) {
        into.clear();
        std::mem::swap(&mut *self.frames(), into);
    }
}

/// The reading half of a line.
#[derive(Debug)]
pub struct Receiver {
    read: Stream<Box<dyn AsyncRead + Send + Unpin>>,
    buffer: BytesMut,
    limits: Limits,
    silence_max: Duration,
    last: Instant,
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
}

/// The writing half of a line.
#[derive(Debug)]
pub struct Sender {
    write: Stream<Box<dyn AsyncWrite + Send + Unpin>>,
    beat: tokio::time::Interval,
}

struct Stream<T>(T);

impl<T> std::fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

impl Line {
    /// The most bytes of a frame.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.frame_max
    }

    /// Its halves; messages of more than `body_max` bytes are told and not kept.
    #[must_use]
    pub fn split(self, body_max: usize) -> (Receiver, Sender) {
        let Self { read, write, frame_max, heartbeat, buffer, .. } = self;
        // A lost peer is noticed after two and a half heartbeats, as lapin does.
        let (silence_max, last) = (heartbeat * 5 / 2, Instant::now());
        let limits = Limits { frame_max, body_max };
        let timer = Box::pin(tokio::time::sleep(silence_max));
        let mut beat = tokio::time::interval(heartbeat / 2);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        (
            Receiver { read: Stream(read), buffer, limits, silence_max, last, timer },
            Sender { write: Stream(write), beat },
        )
    }
}

impl Receiver {
    /// Waits until something has come.
    ///
    /// # Errors
    /// That the line is over, and why.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(READ_BYTES);
        loop {
            tokio::select! {
                biased;
                read = self.read.0.read_buf(&mut self.buffer) => {
                    anyhow::ensure!(read? > 0, "the broker closed the connection");
                    self.last = Instant::now();
                    return Ok(());
                }
                // Moved only when it has run out, since there are thousands of reads between two beats.
                () = &mut self.timer => {
                    let until = self.last + self.silence_max;
                    anyhow::ensure!(until > Instant::now(), "the broker was silent for {:?}", self.silence_max);
                    self.timer.as_mut().reset(until);
                }
            }
        }
    }

    /// Tells `take` of all messages that are complete; and whether each is, or is too large to be.
    ///
    /// # Errors
    /// That the line is over, and why.
    pub fn messages(&mut self, mut take: impl FnMut(Incoming<'_>, bool)) -> anyhow::Result<()> {
        let mut done = 0;
        let result = loop {
            match codec::next(&self.buffer[done..], self.limits) {
                Ok((used, Some(event))) => {
                    done += used;
                    match event {
                        Event::Message(message) => take(message, true),
                        Event::TooLarge(message) => take(message, false),
                        Event::Method(method) => {
                            if let Err(error) = over(&method) {
                                break Err(error);
                            }
                        }
                    }
                }
                Ok((used, None)) => {
                    done += used;
                    break Ok(());
                }
                Err(malformed) => break Err(malformed.into()),
            }
        };
        self.buffer.advance(done);
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES {
            self.buffer = BytesMut::new();
        }
        result
    }
}

/// An error if a method says that the line is over, or that nothing will be delivered any more.
fn over(method: &AMQPClass) -> anyhow::Result<()> {
    match method {
        AMQPClass::Connection(connection::AMQPMethod::Close(close)) => {
            anyhow::bail!("the broker closed the connection: {}", close.reply_text)
        }
        AMQPClass::Channel(channel::AMQPMethod::Close(close)) => {
            anyhow::bail!("the broker closed the channel: {}", close.reply_text)
        }
        AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)) => anyhow::bail!("closed"),
        AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)) => {
            anyhow::bail!("the broker cancelled the consumer {}", cancel.consumer_tag)
        }
        _ => Ok(()),
    }
}

impl Sender {
    /// Writes what comes through `outbox`, and heartbeats; never returns but with an error.
    ///
    /// # Errors
    /// That the line is over, and why.
    pub async fn run(&mut self, outbox: &Outbox) -> anyhow::Result<()> {
        let mut frames = Vec::new();
        loop {
            tokio::select! {
                () = outbox.bell.notified() => {
                    // Others that are about to send are let in first, so that all is one write.
                    tokio::task::yield_now().await;
                }
                _ = self.beat.tick() => outbox.add(codec::heartbeat),
            }
            loop {
                outbox.take(&mut frames);
                if frames.is_empty() {
                    break;
                }
                self.write.0.write_all(&frames).await?;
            }
            if frames.capacity() > KEPT_BYTES {
                frames = Vec::new();
            }
            self.write.0.flush().await?;
        }
    }
}

/// Asks the broker to stop delivering to `consumer`.
pub fn cancel(out: &mut Vec<u8>, consumer: &str) {
    let cancel = basic::Cancel { consumer_tag: consumer.into(), nowait: true };
    // A kind is a short string, so that this can be written.
    let _ = codec::method(out, 1, AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)));
}

/// Says goodbye: the broker answers when it has read all before this, and then the line is over.
pub fn close(out: &mut Vec<u8>) {
    let close = connection::Close { reply_code: 200, reply_text: "goodbye".into(), class_id: 0, method_id: 0 };
    let _ = codec::method(out, 0, AMQPClass::Connection(connection::AMQPMethod::Close(close)));
}
