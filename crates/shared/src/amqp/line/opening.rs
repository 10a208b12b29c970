//! Opening a line, and what is said before it is used: the handshake, and declarations one by one.

use super::codec::{self, Event, Limits};
use super::{Line, READ_BYTES, over};
use amq_protocol::protocol::{AMQPClass, basic, channel, connection, exchange, queue};
use amq_protocol::types::{AMQPValue, FieldTable, LongString};
use bytes::{Buf, BytesMut};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// The largest frame that we offer; RabbitMQ's default.
const FRAME_MAX: u32 = 131_072;
/// The smallest that AMQP 0-9-1 allows.
const FRAME_MIN: usize = 4096;
/// Nothing large comes before a line is used.
const LIMITS: Limits = Limits { frame_max: FRAME_MAX as usize, body_max: 0 };

impl Line {
    /// Connects, logs in, and opens a channel.
    pub(in crate::amqp) async fn open(uri: &AMQPUri, name: &str) -> anyhow::Result<Self> {
        let authority = &uri.authority;
        let stream = TcpStream::connect((authority.host.as_str(), authority.port)).await?;
        stream.set_nodelay(true)?;
        let mut line = match uri.scheme {
            AMQPScheme::AMQP => {
                let (read, write) = stream.into_split();
                Self::on(Box::new(read), Box::new(write))
            }
            AMQPScheme::AMQPS => {
                let server = ServerName::try_from(authority.host.clone())?;
                let (read, write) = tokio::io::split(tls()?.connect(server, stream).await?);
                Self::on(Box::new(read), Box::new(write))
            }
        };
        line.log_in(uri, name).await?;
        let open = AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {}));
        line.ask(1, open).await?;
        Ok(line)
    }

    fn on(
        read: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        write: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    ) -> Self {
        let (heartbeat, opened) = (Duration::MAX, Instant::now());
        Self { read, write, frame_max: FRAME_MAX as usize, heartbeat, buffer: BytesMut::new(), opened }
    }

    async fn log_in(&mut self, uri: &AMQPUri, name: &str) -> anyhow::Result<()> {
        use connection::AMQPMethod::{Open, StartOk, Tune, TuneOk};
        self.write.write_all(b"AMQP\0\0\x09\x01").await?;
        self.answer().await?;
        let user = &uri.authority.userinfo;
        let start_ok = connection::StartOk {
            client_properties: client_properties(name),
            mechanism: "PLAIN".into(),
            response: LongString::from(format!("\0{}\0{}", user.username, user.password)),
            locale: "en_US".into(),
        };
        let tuned = self.ask(0, AMQPClass::Connection(StartOk(start_ok))).await?;
        let AMQPClass::Connection(Tune(tune)) = tuned else { anyhow::bail!("the broker did not accept the user") };
        let smaller = |offered: u32, ours: u32| if offered == 0 { ours } else { offered.min(ours) };
        let frame_max = smaller(tune.frame_max, uri.query.frame_max.unwrap_or(FRAME_MAX).min(FRAME_MAX));
        let heartbeat = smaller(tune.heartbeat.into(), uri.query.heartbeat.unwrap_or(tune.heartbeat).max(1).into());
        self.frame_max = usize::try_from(frame_max)?.max(FRAME_MIN);
        self.heartbeat = Duration::from_secs(heartbeat.into());
        let (channel_max, heartbeat) = (tune.channel_max, u16::try_from(heartbeat)?);
        let tune_ok = connection::TuneOk { channel_max, frame_max, heartbeat };
        self.tell(0, AMQPClass::Connection(TuneOk(tune_ok))).await?;
        let open = connection::Open { virtual_host: short(&uri.vhost)? };
        self.ask(0, AMQPClass::Connection(Open(open))).await?;
        Ok(())
    }

    /// Checks that messages may be published to the default exchange: if not, the broker says so before it answers what
    /// is asked next.
    ///
    /// # Errors
    /// That the line is over.
    pub async fn check_default_exchange(&mut self) -> anyhow::Result<()> {
        let message = codec::Outgoing {
            exchange: b"",
            routing_key: b"arr.nowhere",
            mandatory: false,
            properties: codec::Properties::default(),
            body: b"",
        };
        let mut bytes = Vec::new();
        codec::publish(&mut bytes, self.frame_max, &message);
        self.write.write_all(&bytes).await?;
        self.prefetch(1).await
    }

    /// Declares a durable direct exchange.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn declare_exchange(&mut self, name: &str) -> anyhow::Result<()> {
        let declare = exchange::Declare {
            exchange: short(name)?,
            kind: "direct".into(),
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            nowait: false,
            arguments: FieldTable::default(),
        };
        self.ask(1, AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare))).await.map(drop)
    }

    /// Declares a durable queue and binds it.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn declare_queue(
        &mut self,
        name: &str,
        exchange: &str,
        key: &str,
        arguments: FieldTable,
    ) -> anyhow::Result<()> {
        let declare = queue::Declare {
            queue: short(name)?,
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments,
        };
        self.ask(1, AMQPClass::Queue(queue::AMQPMethod::Declare(declare))).await?;
        let bind = queue::Bind {
            queue: short(name)?,
            exchange: short(exchange)?,
            routing_key: short(key)?,
            nowait: false,
            arguments: FieldTable::default(),
        };
        self.ask(1, AMQPClass::Queue(queue::AMQPMethod::Bind(bind))).await.map(drop)
    }

    /// Has the broker deliver at most `prefetch` messages to each consumer before they are acknowledged.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn prefetch(&mut self, prefetch_count: u16) -> anyhow::Result<()> {
        let qos = basic::Qos { prefetch_count, global: false };
        self.ask(1, AMQPClass::Basic(basic::AMQPMethod::Qos(qos))).await.map(drop)
    }

    /// Consumes `queue` as `consumer`. This comes last, since deliveries may come at once and are taken by the line's
    /// [`Receiver`](super::Receiver) only; so the broker does not answer, and what it has against it ends the line.
    ///
    /// # Errors
    /// That the line is over.
    pub async fn consume(&mut self, queue: &str, consumer: &str, no_ack: bool) -> anyhow::Result<()> {
        let consume = basic::Consume {
            queue: short(queue)?,
            consumer_tag: short(consumer)?,
            no_local: false,
            no_ack,
            exclusive: false,
            nowait: true,
            arguments: FieldTable::default(),
        };
        self.tell(1, AMQPClass::Basic(basic::AMQPMethod::Consume(consume))).await
    }

    async fn ask(&mut self, channel: u16, method: AMQPClass) -> anyhow::Result<AMQPClass> {
        self.tell(channel, method).await?;
        self.answer().await
    }

    async fn tell(&mut self, channel: u16, method: AMQPClass) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        codec::method(&mut bytes, channel, method)?;
        self.write.write_all(&bytes).await?;
        Ok(self.write.flush().await?)
    }

    /// The next method. It waits for as long as it takes: who opens a line sets a limit to all of it.
    async fn answer(&mut self) -> anyhow::Result<AMQPClass> {
        loop {
            let (used, event) = codec::next(&self.buffer, LIMITS)?;
            let method = match event {
                Some(Event::Method(method)) => Some(method),
                Some(_) => anyhow::bail!("the broker delivered before it was asked to"),
                None => None,
            };
            self.buffer.advance(used);
            if let Some(method) = method {
                over(&method)?;
                return Ok(method);
            }
            self.buffer.reserve(READ_BYTES);
            anyhow::ensure!(self.read.read_buf(&mut self.buffer).await? > 0, "the broker closed the connection");
        }
    }
}

fn client_properties(name: &str) -> FieldTable {
    let mut capabilities = FieldTable::default();
    for capability in ["consumer_cancel_notify", "authentication_failure_close", "basic.nack"] {
        capabilities.insert(capability.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    properties.insert("connection_name".into(), AMQPValue::LongString(name.into()));
    properties
}

fn short(text: &str) -> anyhow::Result<amq_protocol::types::ShortString> {
    amq_protocol::types::ShortString::try_new(text).map_err(|_| anyhow::anyhow!("{text:.40}… is too long for a name"))
}

/// The system's certificates, as lapin trusts them.
fn tls() -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
