//! AMQP 0-9-1 frames, and which of them belong together.

use super::Direction;
use bytes::BytesMut;
use std::collections::HashMap;
use std::io;

/// The frame's type, channel and size come before its payload, an end mark after it.
pub(super) const HEAD: usize = 7;
const END: usize = 1;
/// `AMQP` and the version: how a connection begins, and how a broker refuses another protocol.
const PROTOCOL_HEADER: usize = 8;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Class and method of `channel.open`, with which a channel's numbers begin anew.
pub(super) const CHANNEL_OPEN: (u16, u16) = (20, 10);
const PUBLISH: (u16, u16) = (60, 40);
const RETURN: (u16, u16) = (60, 50);
const DELIVER: (u16, u16) = (60, 60);
const GET_OK: (u16, u16) = (60, 71);
pub(super) const ACK: (u16, u16) = (60, 80);
const REJECT: (u16, u16) = (60, 90);
pub(super) const NACK: (u16, u16) = (60, 120);

/// What rules can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `basic.publish` with its content, from the service.
    Publish,
    /// `basic.deliver` with its content, from the broker.
    Deliver,
    /// `basic.ack`, `basic.nack` or `basic.reject` of deliveries, from the service.
    Settle,
    /// `basic.ack` or `basic.nack` of published messages, from the broker.
    Confirm,
}

/// What passes at once: a method with its content, or another frame.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) channel: u16,
    /// Class and method, unless it is a heartbeat or a protocol header.
    pub(super) id: Option<(u16, u16)>,
    pub(super) bytes: BytesMut,
}

impl Unit {
    /// What rules call it.
    pub(super) fn method(&self, direction: Direction) -> Option<Method> {
        match (direction, self.id?) {
            (Direction::ToBroker, PUBLISH) => Some(Method::Publish),
            (Direction::ToService, DELIVER) => Some(Method::Deliver),
            (Direction::ToBroker, ACK | NACK | REJECT) => Some(Method::Settle),
            (Direction::ToService, ACK | NACK) => Some(Method::Confirm),
            _ => None,
        }
    }
}

/// Takes a stream of bytes apart.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What was read and not taken yet.
    pub(super) buffer: BytesMut,
    /// Methods whose content is not complete, and the bytes of it that are missing once that is known.
    incomplete: HashMap<u16, (Unit, Option<u64>)>,
}

impl Frames {
    /// The next that is complete.
    pub(super) fn next(&mut self) -> io::Result<Option<Unit>> {
        while let Some(frame) = self.frame()? {
            if let Some(unit) = self.assemble(frame) {
                return Ok(Some(unit));
            }
        }
        Ok(None)
    }

    fn frame(&mut self) -> io::Result<Option<BytesMut>> {
        let size = match self.buffer[..] {
            [b'A', ..] => PROTOCOL_HEADER,
            [METHOD | HEADER | BODY | HEARTBEAT, _, _, a, b, c, d, ..] => {
                HEAD + END + u32::from_be_bytes([a, b, c, d]) as usize
            }
            [METHOD | HEADER | BODY | HEARTBEAT, ..] | [] => return Ok(None),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not AMQP 0-9-1")),
        };
        Ok((self.buffer.len() >= size).then(|| self.buffer.split_to(size)))
    }

    fn assemble(&mut self, frame: BytesMut) -> Option<Unit> {
        let channel = number(&frame, 1);
        let part = match frame[0] {
            METHOD => {
                let id = (number(&frame, HEAD), number(&frame, HEAD + 2));
                let unit = Unit { channel, id: Some(id), bytes: frame };
                if !matches!(id, PUBLISH | RETURN | DELIVER | GET_OK) {
                    return Some(unit);
                }
                self.incomplete.insert(channel, (unit, None));
                return None;
            }
            HEADER | BODY => self.incomplete.get_mut(&channel),
            _ => None,
        };
        let Some((unit, missing)) = part else { return Some(Unit { channel, id: None, bytes: frame }) };
        let left = match missing {
            // The content's size, after class and weight.
            None => long_number(&frame, HEAD + 4),
            Some(missing) => missing.saturating_sub((frame.len() - HEAD - END) as u64),
        };
        unit.bytes.extend_from_slice(&frame);
        *missing = Some(left);
        if left == 0 { self.incomplete.remove(&channel).map(|(unit, _)| unit) } else { None }
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The eight bytes at `at`, such as a delivery tag.
pub(super) fn long_number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}
