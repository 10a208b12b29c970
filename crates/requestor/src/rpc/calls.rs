//! The calls under way: each a place in a slab, whose number is in the correlation id.

use shared::amqp::line::{self, Incoming, Origin, Outbox, Outgoing, Properties};
use shared::message::{Content, ERROR, REPLY, UNNAMED};
use shared::problem::Problem;
use shared::topology::{CALL, DIRECT_REPLY};
use slab::Slab;
use std::io::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::time::Instant;

/// Bytes that may wait for a connection that takes nothing, such as during a resource alarm.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What becomes of a call that was sent.
#[derive(Debug)]
pub(super) enum Fate {
    Succeeded(Content),
    Failed(Problem),
    Unroutable,
    TooLarge,
    Interrupted(Arc<str>),
}

/// Why a call is not sent now.
pub(super) enum NotSent {
    Away,
    Full,
}

/// All calls of a client.
#[derive(Debug, Default)]
pub(super) struct Calls {
    table: Mutex<Table>,
    pub(super) outbox: Outbox,
}

#[derive(Debug, Default)]
struct Table {
    places: Slab<Place>,
    /// Tells a call from an earlier one in the same place. Never given twice while a reply could still come.
    serial: u32,
    /// The most bytes of a frame, while there is a connection.
    frame_max: Option<usize>,
}

#[derive(Debug)]
struct Place {
    serial: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Ended(Fate),
    Taken,
}

/// A call that was sent. Its place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    calls: &'a Calls,
    place: usize,
}

impl Calls {
    /// From now on calls are sent.
    pub(super) fn open(&self, frame_max: usize) {
        self.table().frame_max = Some(frame_max);
    }

    /// From now on no calls are sent, and those that were are interrupted.
    pub(super) fn interrupt(&self, why: &str) {
        let (why, mut wakers): (Arc<str>, _) = (why.into(), Vec::new());
        let mut table = self.table();
        table.frame_max = None;
        // Under the table's lock, so that nothing comes in between that is meant for the next connection.
        self.outbox.clear();
        for (_, place) in &mut table.places {
            wakers.extend(place.end(Fate::Interrupted(Arc::clone(&why))));
        }
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Sends a call, if that can be done now.
    pub(super) fn begin(&self, kind: &str, content: &Content, deadline: Instant) -> Result<Pending<'_>, NotSent> {
        let mut table = self.table();
        let Some(frame_max) = table.frame_max else { return Err(NotSent::Away) };
        if self.outbox.waiting() > WAITING_BYTES_MAX {
            return Err(NotSent::Full);
        }
        table.serial = table.serial.wrapping_add(1);
        let serial = table.serial;
        let place = table.places.insert(Place { serial, state: State::Waiting(None) });
        let (correlation_id, mut expiration) = (Correlation { place: place as u32, serial }.write(), Digits::default());
        // What is left is more than nothing, or the broker would not even try a waiting provider.
        let left = deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
        let _ = write!(expiration, "{left}");
        let properties = Properties {
            content_type: content.content_type.as_bytes(),
            correlation_id: &correlation_id,
            reply_to: DIRECT_REPLY.as_bytes(),
            expiration: expiration.bytes(),
            ..Properties::default()
        };
        let message = Outgoing {
            exchange: CALL.as_bytes(),
            routing_key: kind.as_bytes(),
            mandatory: true,
            properties,
            body: &content.body,
        };
        self.outbox.add(|out| line::publish(out, frame_max, &message));
        Ok(Pending { calls: self, place })
    }

    /// Takes what comes, all at once; `messages` hands over each, and whether it is complete.
    pub(super) fn take(&self, wakers: &mut Vec<Waker>, messages: impl FnOnce(&mut dyn FnMut(Incoming<'_>, bool))) {
        let mut table = self.table();
        messages(&mut |message, complete| {
            let found = Correlation::read(message.properties.correlation_id);
            let place = found.and_then(|id| {
                let place = table.places.get_mut(id.place as usize)?;
                (place.serial == id.serial).then_some(place)
            });
            // Otherwise it answers a call that was given up.
            if let Some(place) = place
                && matches!(place.state, State::Waiting(_))
            {
                wakers.extend(place.end(fate(&message, complete)));
            }
        });
        drop(table);
        wakers.drain(..).for_each(Waker::wake);
    }

    pub(super) fn len(&self) -> usize {
        self.table().places.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Ends the call unless it has ended; whom to wake.
    fn end(&mut self, fate: Fate) -> Option<Waker> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Waiting(waker) => {
                self.state = State::Ended(fate);
                waker
            }
            ended => {
                self.state = ended;
                None
            }
        }
    }
}

impl Future for Pending<'_> {
    type Output = Fate;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Fate> {
        let mut table = self.calls.table();
        let Some(place) = table.places.get_mut(self.place) else { return Poll::Pending };
        match std::mem::replace(&mut place.state, State::Taken) {
            State::Ended(fate) => Poll::Ready(fate),
            State::Waiting(waker) => {
                let waker = waker.filter(|waker| waker.will_wake(context.waker()));
                place.state = State::Waiting(Some(waker.unwrap_or_else(|| context.waker().clone())));
                Poll::Pending
            }
            State::Taken => Poll::Pending,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.calls.table().places.try_remove(self.place);
    }
}

/// What a message says of the call that it answers. A reply without `type` is a plain RPC server's.
fn fate(message: &Incoming<'_>, complete: bool) -> Fate {
    let Properties { content_type, content_encoding, message_type, .. } = message.properties;
    if message.origin == Origin::Returned {
        return Fate::Unroutable;
    }
    if !complete {
        return Fate::TooLarge;
    }
    if message_type == ERROR.as_bytes() {
        return Fate::Failed(Problem::from_body(&message.body));
    }
    if !(message_type.is_empty() || message_type == REPLY.as_bytes()) || !content_encoding.is_empty() {
        let detail = "the reply has a type or an encoding that is not known here";
        return Fate::Failed(Problem::new("provider-error", 500, "The provider's reply cannot be read", detail));
    }
    let content_type = match content_type {
        [] => UNNAMED.to_owned(),
        given => String::from_utf8_lossy(given).into_owned(),
    };
    Fate::Succeeded(Content { content_type, body: message.body.to_vec().into() })
}

/// Names a call: 16 hexadecimal digits, short and readable in a broker's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Correlation {
    place: u32,
    serial: u32,
}

impl Correlation {
    fn write(self) -> [u8; 16] {
        let number = u64::from(self.place) << 32 | u64::from(self.serial);
        std::array::from_fn(|digit| b"0123456789abcdef"[(number >> (60 - 4 * digit)) as usize & 15])
    }

    fn read(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 16] = text.try_into().ok()?;
        let mut number = 0_u64;
        for digit in digits {
            number = number << 4 | u64::from(char::from(*digit).to_digit(16)?);
        }
        Some(Self { place: (number >> 32) as u32, serial: number as u32 })
    }
}

/// A number as text, on the stack.
#[derive(Default)]
struct Digits {
    bytes: [u8; 20],
    length: usize,
}

impl Digits {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Digits {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let written = (&mut self.bytes[self.length..]).write(text)?;
        self.length += written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::time::Duration;

    fn begin(calls: &Calls) -> Pending<'_> {
        let deadline = Instant::now() + Duration::from_secs(1);
        calls.begin("echo", &Content::json("1"), deadline).unwrap_or_else(|_| panic!("not sent"))
    }

    fn reply(calls: &Calls, to: &Pending<'_>, serial: u32, body: &'static [u8]) {
        let correlation_id = Correlation { place: to.place as u32, serial }.write();
        let properties = Properties { correlation_id: &correlation_id, ..Properties::default() };
        let origin = Origin::Delivered { consumer: b"", tag: 1 };
        calls.take(&mut Vec::new(), |take| take(Incoming { origin, properties, body: body.into() }, true));
    }

    #[tokio::test]
    async fn a_call_takes_its_own_reply_only_and_its_place_is_free_again() {
        let calls = Calls::default();
        assert!(calls.begin("echo", &Content::json("1"), Instant::now()).is_err(), "there is no connection");
        calls.open(4096);
        let (first, mut second) = (begin(&calls), begin(&calls));
        drop(first);
        let mut third = begin(&calls);
        assert_eq!((calls.len(), third.place), (2, 0), "the first one's place");
        reply(&calls, &third, 1, b"to the first");
        assert!((&mut third).now_or_never().is_none());
        reply(&calls, &third, 3, b"to the third");
        reply(&calls, &third, 3, b"once more");
        assert!(matches!(third.await, Fate::Succeeded(Content { body, .. }) if body == "to the third"));
        calls.interrupt("cut");
        assert!(matches!((&mut second).now_or_never(), Some(Fate::Interrupted(why)) if &*why == "cut"));
        drop(second);
        assert_eq!((calls.len(), calls.outbox.waiting()), (0, 0));
    }

    #[test]
    fn a_correlation_id_is_read_as_it_was_written_and_nothing_else_is() {
        let id = Correlation { place: 1023, serial: u32::MAX };
        assert_eq!(id.write(), *b"000003ffffffffff");
        assert_eq!(Correlation::read(&id.write()), Some(id));
        for other in [&b""[..], b"000003fffffffff", b"000003ffffffffffff", b"000003fffffffffg", b"+00003ffffffffff"] {
            assert_eq!(Correlation::read(other), None);
        }
    }
}
