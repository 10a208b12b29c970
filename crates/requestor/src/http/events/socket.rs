//! A log over WebSocket (RFC 6455): each event is a text message.

use super::follower::{Follower, Next};
use crate::callers::Slot;
use crate::http::App;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use futures_util::SinkExt;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// How long a new reader may take to say from where on it wants to hear before it is told from the start.
const SINCE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the peer may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// After so many signs of life without any from the peer it is taken for gone.
const SILENT_MAX: u32 = 2;

/// What a reader says is short, and read in between; with the library's buffers of 128 KiB, 10,000 readers would take
/// gigabytes.
const READ_BUFFER: usize = 1024;
/// What is written together.
const WRITE_BUFFER: usize = 8 * 1024;
/// The longest message of a reader.
const MESSAGE_MAX: usize = 1024;

/// What a reader may say, once.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    since: u64,
}

/// Why a socket is closed: its code and reason. None if there is nobody to be told.
type Closing = Option<(u16, &'static str)>;

/// A socket and the log that it tells.
struct Stream {
    app: App,
    socket: WebSocket,
    follower: Follower,
    /// Whether the reader may still say from where on it wants to hear.
    may_say: bool,
    heard_at: Instant,
}

pub(super) fn response(app: &App, follower: Follower, slot: Slot, upgrade: WebSocketUpgrade) -> Response {
    let app = app.clone();
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .on_upgrade(move |socket| async move {
            let may_say = !follower.has_position();
            let stream = Stream { app, socket, follower, may_say, heard_at: Instant::now() };
            stream.run().await;
            drop(slot);
        })
}

impl Stream {
    async fn run(mut self) {
        let closing = match self.begin().await {
            Ok(()) => self.serve().await,
            Err(closing) => closing,
        };
        let _ = timeout(CLOSE_TIMEOUT, self.close(closing)).await;
    }

    async fn close(&mut self, closing: Closing) -> Result<(), axum::Error> {
        // With it goes the answer to the peer's own close.
        let Some((code, reason)) = closing else { return self.socket.flush().await };
        self.socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
        // Until the peer has closed as well, so that it gets what was sent before.
        while let Some(message) = self.socket.recv().await {
            message?;
        }
        Ok(())
    }

    /// Lets a reader that came without a position say it.
    async fn begin(&mut self) -> Result<(), Closing> {
        if !self.may_say {
            return Ok(());
        }
        tokio::select! {
            message = self.socket.recv() => self.hear(message),
            () = tokio::time::sleep(SINCE_TIMEOUT) => Ok(()),
            () = self.app.0.shutdown.cancelled() => Ok(()),
        }
    }

    async fn serve(&mut self) -> Closing {
        let keep_alive = self.app.0.http.streams.keep_alive;
        let mut tick = interval(keep_alive);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        loop {
            let done = tokio::select! {
                next = self.follower.next() => match next {
                    Ok(Next::Piece(piece)) => self.send(piece.messages().map(Message::Text)).await,
                    Ok(Next::Ended) => Err(Some((close_code::NORMAL, "the operation has ended"))),
                    Ok(Next::Forgotten) => Err(Some((close_code::NORMAL, "the operation was forgotten"))),
                    Err(error) => {
                        tracing::warn!(%error, "the store failed an event stream");
                        Err(Some((close_code::AGAIN, "the store cannot be used now")))
                    }
                },
                message = self.socket.recv() => self.hear(message),
                _ = tick.tick() => match self.heard_at.elapsed() > keep_alive * SILENT_MAX {
                    true => Err(None),
                    false => self.send([Message::Ping(Default::default())].into_iter()).await,
                },
                () = self.app.0.shutdown.cancelled() => Err(Some((close_code::RESTART, "the service restarts"))),
            };
            if let Err(closing) = done {
                return closing;
            }
        }
    }

    /// How long a reader may take nothing of it is the server's to say, which sees the connection.
    async fn send(&mut self, messages: impl Iterator<Item = Message>) -> Result<(), Closing> {
        for message in messages {
            self.socket.feed(message).await.map_err(|_| None)?;
        }
        self.socket.flush().await.map_err(|_| None)
    }

    fn hear(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), Closing> {
        self.heard_at = Instant::now();
        match message {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Text(text))) if self.may_say => match serde_json::from_str(&text) {
                Ok(Since { since }) => {
                    self.may_say = false;
                    self.follower.seek(since);
                    Ok(())
                }
                Err(_) => Err(Some((close_code::POLICY, "say {\"since\": N} or nothing"))),
            },
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                Err(Some((close_code::POLICY, "nothing more is heard here")))
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => Err(None),
        }
    }
}
