use super::Gateway;
use crate::operation::{Event, Operation, after};
use crate::rules::{doubled, half_jittered};
use crate::store::{RequestId, Sent};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use shared::amqp::{PublishError, Status};
use shared::crash;
use shared::message::{
    Cancel, Content, Message, Outcome, Reply, Request, ReturnAddress, Unreadable, request_message_id,
};
use shared::problem::Problem;
use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often it is noted which requests were sent, and of how many at once at the latest.
const NOTE_SENT_EVERY: Duration = Duration::from_millis(200);
const NOTE_SENT_MAX: usize = 256;
/// The first pause after the broker had no queue for a request.
const UNROUTABLE_MIN: Duration = Duration::from_secs(1);
/// How often in a row the broker must be unable to take a request before the operation fails. A broker that has just
/// been set up otherwise gets a chance.
const INVALID_MAX: u32 = 3;

/// A request that is on its way, and in the end what became of it.
pub(super) struct Pending(BoxFuture<'static, (Sent, Result<(), PublishError>)>);

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

impl Gateway {
    /// Whether the broker is away or takes what there is to send.
    pub(crate) fn keeps_up(&self) -> bool {
        self.0.publisher.has_room() || self.broker() != Status::Connected
    }

    /// Returns when it is noted of all these requests that they were sent, or when they need not be sent any more.
    pub(crate) async fn noted(&self, requests: &[RequestId]) {
        let mut noted = self.0.noted.subscribe();
        while requests.iter().any(|request| self.sending().contains(request)) {
            // The gateway has the sender, so there is no error.
            let _ = noted.changed().await;
        }
    }

    /// Sends the request of `operation`, if that can be done now. If not, the sweeper does it later.
    ///
    /// Returns whether there may be room for another.
    pub(crate) fn dispatch(&self, operation: &Operation, content: Content, now: Timestamp) -> bool {
        if self.broker() != Status::Connected {
            return false;
        }
        let id = RequestId::of(operation);
        if !self.sending().insert(id) {
            return true;
        }
        let message = self.message(operation, content, now).map_err(|_| PublishError::Invalid);
        let confirm = match message.and_then(|message| self.0.publisher.try_publish(message)) {
            Ok(confirm) => confirm.boxed(),
            Err(PublishError::Full) => {
                self.sending().remove(&id);
                return false;
            }
            // Its own fault: it is tried again later, and those behind it are sent now.
            Err(error) => {
                tracing::warn!(operation = %operation.id, %error, "request not sent");
                std::future::ready(Err(error)).boxed()
            }
        };
        // When it is sent again depends on what becomes of it.
        let sent = Sent { request: id, sends: operation.sends + 1, sent_at: now, next_send_at: now };
        let _ = self.0.confirms.send(Pending(confirm.map(move |result| (sent, result)).boxed()));
        true
    }

    /// A plain RPC server is asked through its own queue. It says nothing of steps, so the correlation id does, which it
    /// echoes.
    fn message(&self, operation: &Operation, content: Content, now: Timestamp) -> Result<Message, Unreadable> {
        let mut request = self.request(operation, content);
        let Some(queue) = self.0.kinds.queue(&operation.asks) else {
            return request.to_message(operation.id, &self.0.group, now);
        };
        request.correlation_id = request_message_id(operation.id, operation.step);
        let message = request.to_message(operation.id, &self.0.group, now)?;
        Ok(Message { exchange: "", routing_key: queue.into(), ..message })
    }

    fn request(&self, operation: &Operation, content: Content) -> Request {
        Request {
            operation: Some(operation.id),
            correlation_id: operation.id.to_string(),
            kind: operation.asks.clone(),
            step: operation.step,
            attempt: operation.attempt,
            deadline: Some(operation.deadline),
            expiration: None,
            reply_to: Some(ReturnAddress::Group(self.0.group.clone())),
            priority: operation.priority,
            traceparent: operation.traceparent.clone(),
            content,
        }
    }

    /// Tells the providers of `operation` that it is to be canceled. Whether that arrives is not waited for: until they
    /// answer, the sweeper sends it again.
    pub(crate) fn cancel(&self, operation: &Operation) {
        let cancel = Cancel {
            operation: operation.id,
            kind: operation.asks.clone(),
            step: operation.step,
            attempt: operation.attempt,
            deadline: operation.deadline,
            reply_to: ReturnAddress::Group(self.0.group.clone()),
        };
        if let Ok(message) = cancel.to_message() {
            self.0.publisher.hint(message);
        }
    }

    /// Notes which requests were sent, many at a time and not at once: after a crash a few are sent again.
    pub(super) async fn note_sent(&self, mut confirms: mpsc::UnboundedReceiver<Pending>) {
        let (mut pending, mut sent) = (FuturesUnordered::new(), Vec::new());
        let mut tick = tokio::time::interval(NOTE_SENT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(Pending(confirm)) = confirms.recv() => pending.push(confirm),
                Some((one, result)) = pending.next() => {
                    crash::point("requestor.published");
                    let next_send_at = after(Timestamp::now(), self.pause(one.sends, &result));
                    sent.push(Sent { next_send_at, ..one });
                    self.count(one.request, &result).await;
                    if sent.len() >= NOTE_SENT_MAX {
                        self.note(std::mem::take(&mut sent)).await;
                    }
                }
                _ = tick.tick(), if !sent.is_empty() => self.note(std::mem::take(&mut sent)).await,
            }
        }
    }

    async fn note(&self, mut sent: Vec<Sent>) {
        {
            let sending = self.sending();
            sent.retain(|sent| sending.contains(&sent.request));
        }
        if !sent.is_empty() {
            let requests: Vec<_> = sent.iter().map(|sent| sent.request).collect();
            if let Err(error) = self.0.store.sent(sent).await {
                tracing::warn!(%error, "cannot note which requests were sent; they are sent again");
            }
            let mut sending = self.sending();
            for request in requests {
                sending.remove(&request);
            }
        }
        self.0.noted.send_replace(());
    }

    /// Ends an operation whose request the broker has been unable to take several times in a row.
    async fn count(&self, request: RequestId, result: &Result<(), PublishError>) {
        let error = match result {
            Err(error @ (PublishError::Invalid | PublishError::TooLarge(_))) => error,
            Err(PublishError::Unroutable) => return metrics::counter!("arr_unroutable_total").increment(1),
            _ => {
                self.invalid().remove(&request);
                return;
            }
        };
        let times = {
            let mut invalid = self.invalid();
            let times = invalid.entry(request).or_default();
            *times += 1;
            *times
        };
        if times < INVALID_MAX {
            return;
        }
        let problem = Problem::new(
            "unpublishable",
            500,
            "The request cannot be sent",
            format!("the broker could not take the request {times} times in a row: {error}"),
        );
        let reply = Event::Reply(Reply::new(request.step, request.attempt, Outcome::Failed(problem)));
        match self.0.store.apply(request.id, reply, Timestamp::now()).await {
            Ok(applied) => {
                self.invalid().remove(&request);
                if let Some(applied) = applied {
                    self.changed(&applied.operation, &applied.change);
                }
            }
            // It is sent, and fails, once more.
            Err(error) => tracing::warn!(operation = %request.id, %error, "cannot end what cannot be sent"),
        }
    }

    /// How long to wait for news before sending again: exponential with half jitter, so that what was sent
    /// together is not sent again together.
    fn pause(&self, sends: u32, result: &Result<(), PublishError>) -> Duration {
        let (first, longest) = match result {
            Ok(()) => (self.0.redrive.waiting, self.0.redrive.waiting_max),
            Err(_) => (UNROUTABLE_MIN, self.0.redrive.unroutable_max),
        };
        half_jittered(doubled(first, longest, sends.saturating_sub(1)))
    }

    pub(super) fn sending(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.0.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn invalid(&self) -> MutexGuard<'_, std::collections::HashMap<RequestId, u32>> {
        self.0.invalid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
