//! Keeps both sides' numbers of messages right when a message was dropped or passed twice.

use super::frames::{ACK, CHANNEL_OPEN, HEAD, Method, NACK, Unit, long_number};
use bytes::BytesMut;
use std::collections::{BTreeMap, HashMap};

/// Where an acknowledgement has its delivery tag, and then its bits.
const TAG: usize = HEAD + 4;
const BITS: usize = TAG + 8;
const MULTIPLE: u8 = 1;

/// The numbers of the messages of one connection, by channel and way.
///
/// Messages taken with `basic.get` are numbered together with deliveries and not known here; no service uses it.
#[derive(Debug, Default)]
pub(super) struct Tags(HashMap<u16, Channel>);

#[derive(Debug, Default)]
struct Channel {
    published: Numbers,
    delivered: Numbers,
}

/// Whoever sends messages numbers them from 1 and so does whoever receives them. Those numbers differ once one was
/// dropped or passed twice.
#[derive(Debug, Default)]
struct Numbers {
    sent: u64,
    received: u64,
    /// The receiver's number of what it has not acknowledged, and the sender's.
    open: BTreeMap<u64, u64>,
    differ: bool,
}

impl Tags {
    /// What passes in place of `unit`, which is passed `copies` times.
    pub(super) fn translate(&mut self, unit: Unit, method: Option<Method>, copies: usize) -> BytesMut {
        if unit.id == Some(CHANNEL_OPEN) {
            self.0.remove(&unit.channel);
        }
        let Some(method) = method else { return unit.bytes };
        let channel = self.0.entry(unit.channel).or_default();
        match method {
            Method::Publish => {
                channel.published.passed(copies);
                unit.bytes.repeat(copies).as_slice().into()
            }
            Method::Deliver => channel.delivered.passed(copies).flat_map(|tag| renumbered(&unit, tag)).collect(),
            Method::Settle => acknowledge(&mut channel.delivered, &unit, copies),
            Method::Confirm => acknowledge(&mut channel.published, &unit, copies),
        }
    }
}

/// A delivery with another tag, which comes after the consumer's.
fn renumbered(unit: &Unit, tag: u64) -> BytesMut {
    let at = TAG + 1 + usize::from(unit.bytes[TAG]);
    let mut bytes = unit.bytes.clone();
    bytes[at..at + 8].copy_from_slice(&tag.to_be_bytes());
    bytes
}

/// An acknowledgement, unchanged where numbers do not differ, else one for each message.
fn acknowledge(numbers: &mut Numbers, unit: &Unit, copies: usize) -> BytesMut {
    let takes_multiple = matches!(unit.id, Some(ACK | NACK));
    let multiple = takes_multiple && unit.bytes[BITS] & MULTIPLE != 0;
    numbers.differ |= copies == 0;
    let acknowledged = numbers.acknowledged(long_number(&unit.bytes, TAG), multiple);
    if !numbers.differ {
        return unit.bytes.repeat(copies).as_slice().into();
    }
    let mut all = BytesMut::new();
    for tag in acknowledged {
        let mut bytes = unit.bytes.clone();
        bytes[TAG..BITS].copy_from_slice(&tag.to_be_bytes());
        if takes_multiple {
            bytes[BITS] &= !MULTIPLE;
        }
        all.extend_from_slice(&bytes.repeat(copies));
    }
    all
}

impl Numbers {
    /// A message that passes `copies` times: the receiver's numbers of it.
    fn passed(&mut self, copies: usize) -> std::ops::RangeInclusive<u64> {
        self.sent += 1;
        self.differ |= copies != 1;
        let first = self.received + 1;
        self.received += copies as u64;
        self.open.extend((first..=self.received).map(|number| (number, self.sent)));
        first..=self.received
    }

    /// What the sender is told when the receiver acknowledges `number`, with all before it if `multiple`: those of
    /// its messages of which no copy is open any more.
    fn acknowledged(&mut self, number: u64, multiple: bool) -> Vec<u64> {
        let mut sent: Vec<u64> = match number {
            // RabbitMQ: 0 with multiple means all.
            0 => std::mem::take(&mut self.open).into_values().collect(),
            _ if multiple => {
                let later = self.open.split_off(&(number + 1));
                std::mem::replace(&mut self.open, later).into_values().collect()
            }
            _ => self.open.remove(&number).into_iter().collect(),
        };
        sent.dedup();
        let beside = |number: u64, sent: u64| self.open.get(&number) == Some(&sent);
        sent.retain(|sent| !beside(number + 1, *sent) && !beside(number.saturating_sub(1), *sent));
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn a_message_that_passed_twice_is_acknowledged_with_its_last_copy() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.passed(1), 1..=1);
        assert_eq!(numbers.passed(2), 2..=3);
        assert_eq!(numbers.passed(1), 4..=4);
        assert!(numbers.acknowledged(3, false).is_empty());
        assert_eq!(numbers.acknowledged(2, true), [1, 2]);
        assert_eq!(numbers.acknowledged(4, false), [3]);
    }

    #[test]
    fn a_message_that_was_dropped_is_never_acknowledged() {
        let mut numbers = Numbers::default();
        for copies in [1, 0, 1] {
            assert_eq!(numbers.passed(copies).count(), copies);
        }
        assert!(numbers.differ);
        assert_eq!(numbers.acknowledged(2, true), [1, 3]);
    }
}
