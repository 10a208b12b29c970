//! The few frames of which there are thousands a second, written to and read from plain bytes. What is rare goes through
//! `amq-protocol`.

use amq_protocol::frame::{AMQPFrame, WriteContext, gen_frame, parse_frame};
use amq_protocol::protocol::AMQPClass;
use std::borrow::Cow;

/// Frame types, and what each frame ends with (AMQP 0-9-1, 4.2.3).
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const END: u8 = 0xce;
/// Type, channel and size before a frame's payload, and the end behind it.
const HEAD_BYTES: usize = 7;
pub(super) const FRAME_BYTES: usize = HEAD_BYTES + 1;

/// The one channel that a line has.
const CHANNEL: u16 = 1;
const BASIC: u16 = 60;
const PUBLISH: u16 = 40;
const RETURN: u16 = 50;
const DELIVER: u16 = 60;
const ACK: u16 = 80;

/// The other side does not speak AMQP 0-9-1 as we know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent what is no frame of AMQP 0-9-1")]
pub(super) struct Malformed;

/// Those properties of a message that a call needs; an empty one is not there. Headers are neither sent nor read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// The media type.
    pub content_type: &'a [u8],
    /// How the payload is compressed.
    pub content_encoding: &'a [u8],
    /// Which request a reply answers.
    pub correlation_id: &'a [u8],
    /// Where the reply goes.
    pub reply_to: &'a [u8],
    /// For how long anybody wants it, in milliseconds.
    pub expiration: &'a [u8],
    /// `type`.
    pub message_type: &'a [u8],
}

/// A message to be published, not persistent and not confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The exchange; empty for the default exchange.
    pub exchange: &'a [u8],
    /// The routing key.
    pub routing_key: &'a [u8],
    /// Whether the broker returns it when no queue takes it.
    pub mandatory: bool,
    /// Its properties.
    pub properties: Properties<'a>,
    /// Its payload.
    pub body: &'a [u8],
}

/// A message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// How it came.
    pub origin: Origin<'a>,
    /// Its properties.
    pub properties: Properties<'a>,
    /// Its payload.
    pub body: Cow<'a, [u8]>,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// To one of our consumers.
    Delivered {
        /// The consumer's tag.
        consumer: &'a [u8],
        /// What it is acknowledged by.
        tag: u64,
    },
    /// No queue took it.
    Returned,
}

/// What the broker says.
#[derive(Debug, PartialEq)]
pub(super) enum Event<'a> {
    Message(Incoming<'a>),
    /// A message whose payload is larger than it may be. It is not kept.
    TooLarge(Incoming<'a>),
    Method(AMQPClass),
}

/// Writes a message, in frames of at most `frame_max` bytes. What should be a short string and is not is cut.
pub fn publish(out: &mut Vec<u8>, frame_max: usize, message: &Outgoing<'_>) {
    frame(out, METHOD, |out| {
        out.extend_from_slice(&BASIC.to_be_bytes());
        out.extend_from_slice(&PUBLISH.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        short(out, message.exchange);
        short(out, message.routing_key);
        out.push(message.mandatory.into());
    });
    frame(out, HEADER, |out| {
        out.extend_from_slice(&BASIC.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(message.body.len() as u64).to_be_bytes());
        write_properties(out, &message.properties);
    });
    for chunk in message.body.chunks(frame_max.saturating_sub(FRAME_BYTES).max(1)) {
        frame(out, BODY, |out| out.extend_from_slice(chunk));
    }
}

/// Acknowledges a delivery, or all up to it.
pub fn ack(out: &mut Vec<u8>, tag: u64, multiple: bool) {
    frame(out, METHOD, |out| {
        out.extend_from_slice(&BASIC.to_be_bytes());
        out.extend_from_slice(&ACK.to_be_bytes());
        out.extend_from_slice(&tag.to_be_bytes());
        out.push(multiple.into());
    });
}

pub(super) fn heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(&[HEARTBEAT, 0, 0, 0, 0, 0, 0, END]);
}

/// Writes any other method.
pub(super) fn method(out: &mut Vec<u8>, channel: u16, class: AMQPClass) -> anyhow::Result<()> {
    let frame = AMQPFrame::Method(channel, class);
    let written = gen_frame(&frame)(WriteContext::from(Vec::new()));
    let (bytes, _) = written.map_err(|error| anyhow::anyhow!("cannot write {frame:?}: {error:?}"))?.into_inner();
    out.extend_from_slice(&bytes);
    Ok(())
}

fn frame(out: &mut Vec<u8>, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let [high, low] = CHANNEL.to_be_bytes();
    out.extend_from_slice(&[kind, high, low, 0, 0, 0, 0]);
    let start = out.len();
    payload(out);
    let size = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start - 4..start].copy_from_slice(&size.to_be_bytes());
    out.push(END);
}

fn short(out: &mut Vec<u8>, text: &[u8]) {
    let text = &text[..text.len().min(255)];
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

/// The bits of the property flags, in the order in which properties are written.
fn write_properties(out: &mut Vec<u8>, properties: &Properties<'_>) {
    let fields = [
        (15, properties.content_type),
        (14, properties.content_encoding),
        (10, properties.correlation_id),
        (9, properties.reply_to),
        (8, properties.expiration),
        (5, properties.message_type),
    ];
    let present = fields.iter().filter(|(_, text)| !text.is_empty());
    let flags = present.clone().fold(0_u16, |flags, (bit, _)| flags | 1 << bit);
    out.extend_from_slice(&flags.to_be_bytes());
    present.for_each(|(_, text)| short(out, text));
}

/// How much may come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) frame_max: usize,
    pub(super) body_max: usize,
}

/// Reads the next that is complete in `bytes`, and how many bytes are done with: also of heartbeats and of payloads that
/// were too large.
pub(super) fn next(bytes: &[u8], limits: Limits) -> Result<(usize, Option<Event<'_>>), Malformed> {
    let mut done = 0;
    while let Some(frame) = Frame::read(&bytes[done..], limits)? {
        let start = done;
        match frame.kind {
            METHOD => match content(frame.payload)? {
                Some(origin) => {
                    let rest = &bytes[start + frame.length..];
                    let Some((used, event)) = message(origin, rest, limits)? else { return Ok((start, None)) };
                    return Ok((start + frame.length + used, Some(event)));
                }
                None => {
                    let method = parse_frame(&bytes[start..start + frame.length]).map_err(|_| Malformed)?;
                    let (_, AMQPFrame::Method(_, class)) = method else { return Err(Malformed) };
                    return Ok((start + frame.length, Some(Event::Method(class))));
                }
            },
            HEARTBEAT | BODY => done += frame.length,
            _ => return Err(Malformed),
        }
    }
    Ok((done, None))
}

/// Reads what a method says of the message behind it, if there is one.
fn content(payload: &[u8]) -> Result<Option<Origin<'_>>, Malformed> {
    let mut reader = Reader(payload);
    match (reader.u16()?, reader.u16()?) {
        (BASIC, DELIVER) => {
            let (consumer, tag) = (reader.short()?, reader.u64()?);
            Ok(Some(Origin::Delivered { consumer, tag }))
        }
        (BASIC, RETURN) => Ok(Some(Origin::Returned)),
        _ => Ok(None),
    }
}

/// Reads header and payload, if they are complete.
fn message<'a>(origin: Origin<'a>, bytes: &'a [u8], limits: Limits) -> Result<Option<(usize, Event<'a>)>, Malformed> {
    let Some((mut done, header)) = past_heartbeats(bytes, HEADER, limits)? else { return Ok(None) };
    let mut reader = Reader(header);
    reader.take(4)?;
    let size = usize::try_from(reader.u64()?).map_err(|_| Malformed)?;
    let properties = read_properties(reader)?;
    let mut incoming = Incoming { origin, properties, body: Cow::Borrowed(&[]) };
    if size > limits.body_max {
        return Ok(Some((done, Event::TooLarge(incoming))));
    }
    while incoming.body.len() < size {
        let Some((used, part)) = past_heartbeats(&bytes[done..], BODY, limits)? else { return Ok(None) };
        done += used;
        if incoming.body.is_empty() {
            incoming.body = Cow::Borrowed(part);
        } else {
            incoming.body.to_mut().extend_from_slice(part);
        }
    }
    if incoming.body.len() > size {
        return Err(Malformed);
    }
    Ok(Some((done, Event::Message(incoming))))
}

/// The payload of the next frame, which must be of `kind`, and where it ends.
fn past_heartbeats(bytes: &[u8], kind: u8, limits: Limits) -> Result<Option<(usize, &[u8])>, Malformed> {
    let mut done = 0;
    while let Some(frame) = Frame::read(&bytes[done..], limits)? {
        done += frame.length;
        match frame.kind {
            HEARTBEAT => {}
            found if found == kind => return Ok(Some((done, frame.payload))),
            _ => return Err(Malformed),
        }
    }
    Ok(None)
}

fn read_properties<'a>(mut reader: Reader<'a>) -> Result<Properties<'a>, Malformed> {
    let flags = reader.u16()?;
    let has = |bit: u16| flags & (1 << bit) != 0;
    let mut properties = Properties::default();
    if has(15) {
        properties.content_type = reader.short()?;
    }
    if has(14) {
        properties.content_encoding = reader.short()?;
    }
    if has(13) {
        let size = reader.u32()? as usize;
        reader.take(size)?;
    }
    for bit in [12, 11] {
        if has(bit) {
            reader.take(1)?;
        }
    }
    for (bit, field) in
        [(10, &mut properties.correlation_id), (9, &mut properties.reply_to), (8, &mut properties.expiration)]
    {
        if has(bit) {
            *field = reader.short()?;
        }
    }
    if has(7) {
        reader.short()?;
    }
    if has(6) {
        reader.take(8)?;
    }
    if has(5) {
        properties.message_type = reader.short()?;
    }
    Ok(properties)
}

struct Frame<'a> {
    kind: u8,
    payload: &'a [u8],
    length: usize,
}

impl<'a> Frame<'a> {
    fn read(bytes: &'a [u8], limits: Limits) -> Result<Option<Self>, Malformed> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [kind, _, _, size @ ..] = *head;
        let size = u32::from_be_bytes(size) as usize;
        if size + FRAME_BYTES > limits.frame_max {
            return Err(Malformed);
        }
        match rest.split_at_checked(size) {
            Some((payload, [END, ..])) => Ok(Some(Self { kind, payload, length: size + FRAME_BYTES })),
            Some((_, [])) | None => Ok(None),
            Some(_) => Err(Malformed),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let [length] = self.array()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests;
