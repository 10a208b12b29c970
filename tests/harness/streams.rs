use super::caller::Caller;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// What the library would reserve for each socket is too much for ten thousand.
const READ_BUFFER: usize = 1024;

/// A connection to a requestor, which may end after some bytes were read, with a reset.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    left: usize,
}

/// Where a reader wants to go on from, and after how many bytes its connection is cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Begin {
    /// The last number that it has had.
    pub after: Option<u64>,
    /// Cut after so many bytes, the response's head included.
    pub cut_after: Option<usize>,
}

impl Connection {
    async fn open(caller: &Caller, begin: Begin) -> io::Result<Self> {
        let stream = TcpStream::connect(address(caller)).await?;
        if begin.cut_after.is_some() {
            stream.set_zero_linger()?;
        }
        Ok(Self { stream, left: begin.cut_after.unwrap_or(usize::MAX) })
    }
}

fn address(caller: &Caller) -> &str {
    caller.base.trim_start_matches("http://")
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let size = into.remaining().min(self.left);
        let mut limited = ReadBuf::new(into.initialize_unfilled_to(size));
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut limited))?;
        let read = limited.filled().len();
        into.advance(read);
        self.left -= read;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// An event as a stream tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Where to go on after it; with server-sent events as the stream says.
    pub id: Option<u64>,
    /// Its type.
    pub event: String,
    /// The whole.
    pub document: Value,
}

/// A stream of server-sent events, spoken in HTTP/1.0 so that the body is what comes until the end.
#[derive(Debug)]
pub struct ServerSent {
    reader: BufReader<Connection>,
    /// The response's status.
    pub status: u16,
    /// The response's head.
    pub head: String,
    /// The pause that the stream has asked for.
    pub retry: Option<u64>,
}

impl ServerSent {
    /// Asks for the stream at `path`.
    ///
    /// # Errors
    /// When the connection cannot be made, or ends before the response's head has.
    pub async fn open(caller: &Caller, path: &str, begin: Begin) -> io::Result<Self> {
        let mut connection = Connection::open(caller, begin).await?;
        let last = begin.after.map(|after| format!("Last-Event-ID: {after}\r\n")).unwrap_or_default();
        let (host, key) = (address(caller), caller.key());
        let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let head = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: text/event-stream\r\n{key}{last}\r\n");
        connection.write_all(head.as_bytes()).await?;
        let mut opened = Self { reader: BufReader::new(connection), status: 0, head: String::new(), retry: None };
        loop {
            let line = opened.line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                break;
            }
            opened.head.push_str(&line.to_ascii_lowercase());
            opened.head.push('\n');
        }
        opened.status = opened.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Ok(opened)
    }

    /// The next event, or none at the end of the stream.
    ///
    /// # Errors
    /// When the connection is cut.
    ///
    /// # Panics
    /// When the stream does not have the form of server-sent events.
    pub async fn next(&mut self) -> io::Result<Option<Told>> {
        let (mut id, mut event, mut data) = (None, String::new(), String::new());
        while let Some(line) = self.line().await? {
            match line.split_once(':') {
                None if line.is_empty() && data.is_empty() => {}
                None if line.is_empty() => {
                    let document = serde_json::from_str(&data).unwrap();
                    return Ok(Some(Told { id, event, document }));
                }
                Some(("", _)) => {}
                Some(("id", number)) => id = Some(number.trim().parse().unwrap()),
                Some(("event", name)) => event = name.trim().to_owned(),
                Some(("data", text)) => data.push_str(text.trim()),
                Some(("retry", pause)) => self.retry = Some(pause.trim().parse().unwrap()),
                _ => panic!("not a line of a stream: {line}"),
            }
        }
        Ok(None)
    }

    /// All events to the end of the stream.
    ///
    /// # Panics
    /// When the connection is cut before.
    pub async fn rest(&mut self) -> Vec<Told> {
        let mut all = Vec::new();
        while let Some(told) = self.next().await.unwrap() {
            all.push(told);
        }
        all
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        match self.reader.read_line(&mut line).await? {
            0 => Ok(None),
            _ if !line.ends_with('\n') => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned())),
        }
    }
}

/// A WebSocket.
#[derive(Debug)]
pub struct Socket(WebSocketStream<Connection>);

/// How a WebSocket ended in order: code and reason.
pub type Closed = (u16, String);

impl Socket {
    /// Opens the stream at `path`, and says from where on it wants to hear.
    ///
    /// # Errors
    /// When the connection cannot be made, is cut, or is refused.
    pub async fn open(caller: &Caller, path: &str, begin: Begin) -> tungstenite::Result<Self> {
        let connection = Connection::open(caller, begin).await?;
        let mut request = format!("ws://{}{path}", address(caller)).into_client_request()?;
        if let Some(key) = caller.key() {
            request.headers_mut().insert("authorization", format!("Bearer {key}").parse()?);
        }
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, connection, Some(config)).await?;
        let mut socket = Self(socket);
        if let Some(since) = begin.after {
            socket.say(&json!({ "since": since })).await?;
        }
        Ok(socket)
    }

    /// Says something.
    ///
    /// # Errors
    /// When the connection is cut.
    pub async fn say(&mut self, document: &Value) -> tungstenite::Result<()> {
        self.0.send(Message::text(document.to_string())).await
    }

    /// The next event, or how the socket was closed.
    ///
    /// # Errors
    /// When the connection is cut.
    ///
    /// # Panics
    /// When a message is no event.
    pub async fn next(&mut self) -> tungstenite::Result<Result<Value, Closed>> {
        loop {
            match self.0.next().await.ok_or(tungstenite::Error::ConnectionClosed)?? {
                Message::Text(text) => return Ok(Ok(serde_json::from_str(&text).unwrap())),
                Message::Close(frame) => {
                    let frame =
                        frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                    // Says that it has understood.
                    let _ = self.0.close(None).await;
                    return Ok(Err(frame));
                }
                _ => {}
            }
        }
    }

    /// All events to the end, and how the socket was closed.
    ///
    /// # Panics
    /// When the connection is cut before.
    pub async fn rest(&mut self) -> (Vec<Value>, Closed) {
        let mut all = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Ok(document) => all.push(document),
                Err(closed) => return (all, closed),
            }
        }
    }
}
