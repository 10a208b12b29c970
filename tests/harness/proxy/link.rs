//! One connection through the relay.

use super::frames::{Frames, Unit};
use super::rules::{Action, Rules};
use super::tags::Tags;
use super::{Direction, Ending, Traffic};
use bytes::BytesMut;
use rand::RngExt;
use std::io;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Duration;

/// A connection that passes through the relay now.
#[derive(Debug)]
pub struct Link {
    number: u64,
    to_broker: watch::Sender<Traffic>,
    to_service: watch::Sender<Traffic>,
    ending: watch::Sender<Option<Ending>>,
}

impl Link {
    pub(super) fn new(number: u64, to_broker: Traffic, to_service: Traffic) -> Self {
        let (to_broker, to_service) = (watch::Sender::new(to_broker), watch::Sender::new(to_service));
        Self { number, to_broker, to_service, ending: watch::Sender::new(None) }
    }

    /// The how manieth connection it is, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// From now on lets what goes to `direction` through in this way.
    pub fn shape(&self, direction: Direction, traffic: Traffic) {
        self.traffic(direction).send_replace(traffic);
    }

    /// Ends the connection on both sides.
    pub fn end(&self, ending: Ending) {
        self.ending.send_replace(Some(ending));
    }

    fn traffic(&self, direction: Direction) -> &watch::Sender<Traffic> {
        match direction {
            Direction::ToBroker => &self.to_broker,
            Direction::ToService => &self.to_service,
        }
    }

    /// Passes everything on until both sides have ended it, or it is ended here.
    pub(super) async fn relay(&self, mut client: TcpStream, mut server: TcpStream, rules: &Rules) {
        // Each piece that is written leaves at once.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let tags = Mutex::default();
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Pump::new(Direction::ToBroker, self, rules, &tags, to_server);
        let down = Pump::new(Direction::ToService, self, rules, &tags, to_client);
        let mut ended = self.ending.subscribe();
        let ending = tokio::select! {
            both = async { tokio::try_join!(up.run(from_client), down.run(from_server)) } => both.err(),
            Ok(ending) = ended.wait_for(Option::is_some) => *ending,
        };
        for socket in [&mut client, &mut server] {
            let _ = match ending {
                Some(Ending::Reset) => socket.set_zero_linger(),
                Some(Ending::Finish) | None => socket.shutdown().await,
            };
        }
    }
}

/// Passes on what goes in one direction.
struct Pump<'a> {
    direction: Direction,
    traffic: watch::Receiver<Traffic>,
    rules: &'a Rules,
    tags: &'a Mutex<Tags>,
    writer: WriteHalf<'a>,
}

impl<'a> Pump<'a> {
    fn new(direction: Direction, link: &Link, rules: &'a Rules, tags: &'a Mutex<Tags>, writer: WriteHalf<'a>) -> Self {
        Self { direction, traffic: link.traffic(direction).subscribe(), rules, tags, writer }
    }

    /// Returns when the sender has ended its side, or when this direction was closed.
    async fn run(mut self, mut reader: ReadHalf<'_>) -> Result<(), Ending> {
        let (mut frames, mut closed) = (Frames::default(), self.traffic.clone());
        loop {
            let read = tokio::select! {
                read = reader.read_buf(&mut frames.buffer) => read.map_err(reset)?,
                _ = closed.wait_for(|traffic| traffic.closed) => 0,
            };
            if read == 0 {
                break;
            }
            self.pass_all(&mut frames).await?;
        }
        let _ = self.writer.shutdown().await;
        // Whoever writes to a direction that was closed here learns nothing of it.
        tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.map(drop).map_err(reset)
    }

    /// Passes on what is complete.
    async fn pass_all(&mut self, frames: &mut Frames) -> Result<(), Ending> {
        let mut ready = BytesMut::new();
        while let Some(unit) = frames.next().map_err(reset)? {
            let method = unit.method(self.direction);
            let action = method.and_then(|method| self.rules.judge(method));
            if let Some(Action::DropAndCut | Action::Delay(_)) = action {
                self.send(&ready).await.map_err(reset)?;
                ready.clear();
            }
            match action {
                Some(Action::DropAndCut) => return Err(Ending::Finish),
                Some(Action::Delay(pause)) => tokio::time::sleep(pause).await,
                _ => {}
            }
            ready.extend_from_slice(&self.translate(unit, action));
        }
        self.send(&ready).await.map_err(reset)
    }

    fn translate(&self, unit: Unit, action: Option<Action>) -> BytesMut {
        let copies = match action {
            Some(Action::Drop | Action::DropAndCut) => 0,
            Some(Action::Duplicate) => 2,
            Some(Action::Delay(_)) | None => 1,
        };
        let method = unit.method(self.direction);
        self.tags.lock().unwrap().translate(unit, method, copies)
    }

    /// Writes `bytes` as slowly and in as small pieces as is asked for at the time.
    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let free = self.traffic.wait_for(|traffic| !traffic.held || traffic.closed).await;
            let traffic = *free.map_err(io::Error::other)?;
            if traffic.closed {
                return Ok(());
            }
            let (piece, rest) = bytes.split_at(traffic.slice.unwrap_or(usize::MAX).clamp(1, bytes.len()));
            pause(&traffic, piece.len()).await;
            self.writer.write_all(piece).await?;
            bytes = rest;
        }
        Ok(())
    }
}

async fn pause(traffic: &Traffic, bytes: usize) {
    let mut pause = Duration::ZERO;
    if let Some((least, most)) = traffic.delay {
        pause += rand::rng().random_range(least..=most);
    }
    if let Some(rate) = traffic.bytes_per_second {
        pause += Duration::from_secs_f64(bytes as f64 / f64::from(rate));
    }
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// One side was reset, or speaks something else: so is the other.
fn reset(_: io::Error) -> Ending {
    Ending::Reset
}
