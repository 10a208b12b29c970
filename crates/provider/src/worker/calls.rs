//! Calls: requests of pure kinds from who keeps no record. They come over a line of their own and are answered straight to
//! the connection that asks; nothing of them is stored, confirmed or reported.
//!
//! What is ready when it is first polled is answered in the batch in which it came: one write and one acknowledgement
//! for all of it. Anything else becomes a task.

use super::execution::sleep_until_or_forever;
use super::{GIVE_BACK_TIMEOUT, Worker};
use crate::context::Context as CallContext;
use crate::handler::{AsyncFn, Failure, Handler};
use crate::ledger::panicked;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use metrics::{Counter, Histogram};
use shared::amqp::line::{self, Incoming, Line, Origin, Outbox, Outgoing, Properties};
use shared::amqp::{Status, Supervisor};
use shared::message::{Content, ERROR, Outcome, REPLY, Reply, UNNAMED};
use shared::problem::{self, Problem};
use shared::topology::{self, CALL, DIRECT_REPLY};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a batch is worked on where it came in. What is left of it then becomes tasks, so that handlers that compute
/// use other cores and hold up nobody behind them.
const INLINE_MAX: Duration = Duration::from_millis(1);
/// How long saying goodbye to the broker may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Handled = Result<Content, Failure>;
type Running = BoxFuture<'static, Handled>;

/// One line's calls.
#[derive(Debug)]
struct Calls {
    worker: Worker,
    kinds: Arc<HashMap<Vec<u8>, Kind>>,
    outbox: Outbox,
    frame_max: usize,
    /// Calls that became tasks and are not acknowledged yet.
    later: AtomicUsize,
    /// Told when one of them has ended.
    ended: Notify,
}

/// What calls of a kind need.
struct Kind {
    name: String,
    function: Arc<AsyncFn>,
    slots: Arc<Semaphore>,
    total: Counter,
    seconds: Histogram,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A call that has become a task.
struct Call {
    tag: u64,
    reply_to: Vec<u8>,
    correlation_id: Vec<u8>,
    received: Instant,
    expiration: Option<Duration>,
    cancelled: CancellationToken,
    seconds: Histogram,
}

/// A slot, or where to wait for one.
type Slot = Result<OwnedSemaphorePermit, Arc<Semaphore>>;

/// What is said to the broker of a batch.
#[derive(Debug, Default)]
struct Said {
    frames: Vec<u8>,
    /// What is done and not acknowledged.
    tags: Vec<u64>,
    began: Option<Instant>,
}

impl Worker {
    /// Serves calls until the shutdown, over as many lines as it takes; not at all if `calls.prefetch` is 0.
    pub(crate) async fn serve_calls(&self) {
        let (config, kinds) = (&self.0.config, Arc::new(self.called()));
        if config.calls.prefetch == 0 || kinds.is_empty() {
            return;
        }
        let (status, name) = (Status::channel(), format!("provider {} calls", config.group));
        let mut supervisor = Supervisor::new(&config.broker, name, &status, &self.0.shutdown);
        while let Some(line) = supervisor.line().await {
            let opened = line.opened;
            if let Err(error) = self.calls_on(line, &kinds).await {
                supervisor.lost(opened.elapsed(), &error).await;
            }
        }
    }

    fn called(&self) -> HashMap<Vec<u8>, Kind> {
        let pure = self.0.handlers.iter().filter_map(|(name, handler)| match handler {
            Handler::Pure(function) => Some((name, function)),
            Handler::Transactional(_) | Handler::External(_) => None,
        });
        let kinds = pure.filter_map(|(name, function)| {
            let kind = Kind {
                name: name.clone(),
                function: Arc::clone(function),
                slots: Arc::clone(&self.0.lanes.get(name)?.slots),
                total: metrics::counter!("arr_calls_total", "kind" => name.clone()),
                seconds: metrics::histogram!("arr_handler_seconds", "kind" => name.clone()),
            };
            Some((name.clone().into_bytes(), kind))
        });
        kinds.collect()
    }

    async fn take_calls(&self, line: &mut Line, kinds: &HashMap<Vec<u8>, Kind>) -> anyhow::Result<()> {
        // First, since without it no reply would get through, and calls that nobody answers are better not taken.
        line.check_default_exchange().await.map_err(|error| {
            error.context("calls are not served: give this user `amq\\.default` to write to, or set calls.prefetch = 0")
        })?;
        line.declare_exchange(CALL).await?;
        for kind in kinds.values() {
            let queue = topology::call_queue(&kind.name);
            line.declare_queue(&queue, CALL, &kind.name, topology::call_arguments()).await?;
        }
        line.prefetch(self.0.config.calls.prefetch).await?;
        for kind in kinds.values() {
            line.consume(&topology::call_queue(&kind.name), &kind.name, false).await?;
        }
        Ok(())
    }

    async fn calls_on(&self, mut line: Line, kinds: &Arc<HashMap<Vec<u8>, Kind>>) -> anyhow::Result<()> {
        let preparing = self.0.config.broker.in_time(self.take_calls(&mut line, kinds));
        let Some(prepared) = self.0.shutdown.run_until_cancelled(preparing).await else { return Ok(()) };
        prepared?;
        let calls = Arc::new(Calls {
            worker: self.clone(),
            kinds: Arc::clone(kinds),
            outbox: Outbox::default(),
            frame_max: line.frame_max(),
            later: AtomicUsize::new(0),
            ended: Notify::new(),
        });
        let (mut receiver, mut sender) = line.split(self.0.config.broker.message_bytes_max);
        let receive = async {
            let mut said = Said::default();
            loop {
                receiver.ready().await?;
                said.began = None;
                let result = receiver.messages(|message, complete| calls.take(&message, complete, &mut said));
                calls.say(&mut said);
                result?;
            }
        };
        tokio::select! {
            result = receive => if self.0.shutdown.is_cancelled() { Ok(()) } else { result },
            result = sender.run(&calls.outbox) => result,
            () = calls.leave() => Ok(()),
        }
    }
}

impl Calls {
    /// Answers a call at once, or begins it.
    fn take(self: &Arc<Self>, message: &Incoming<'_>, complete: bool, said: &mut Said) {
        let Origin::Delivered { consumer, tag } = message.origin else { return };
        // What comes after the shutdown is not begun, and goes back to the queue when the line is closed.
        let Some(kind) = self.kinds.get(consumer).filter(|_| !self.worker.0.shutdown.is_cancelled()) else { return };
        kind.total.increment(1);
        let properties = &message.properties;
        if !is_direct(properties.reply_to) {
            tracing::warn!(kind = kind.name, "a call without a direct reply-to address was dropped");
            metrics::counter!("arr_unreadable_total", "queue" => topology::call_queue(&kind.name)).increment(1);
            return said.tags.push(tag);
        }
        if let Some(problem) = unfit(message, complete) {
            self.reply(&mut said.frames, properties.reply_to, properties.correlation_id, failed(problem));
            return said.tags.push(tag);
        }
        let received = Instant::now();
        let began = *said.began.get_or_insert(received);
        let (content, expiration) = (content(message), milliseconds(properties.expiration));
        let cancelled = CancellationToken::new();
        let context = context(properties, expiration, cancelled.clone());
        let slot = Arc::clone(&kind.slots).try_acquire_owned().ok();
        let running = match slot {
            Some(_) if received.duration_since(began) < INLINE_MAX => match begin(&kind.function, content, context) {
                Begun::Ended(handled) => {
                    self.reply(&mut said.frames, properties.reply_to, properties.correlation_id, handled);
                    kind.seconds.record(received.elapsed());
                    return said.tags.push(tag);
                }
                Begun::Running(running) => running,
            },
            _ => {
                let function = Arc::clone(&kind.function);
                async move { function(content, context).await }.boxed()
            }
        };
        let (reply_to, correlation_id) = (properties.reply_to.to_vec(), properties.correlation_id.to_vec());
        let seconds = kind.seconds.clone();
        let call = Call { tag, reply_to, correlation_id, received, expiration, cancelled, seconds };
        let slot = slot.ok_or_else(|| Arc::clone(&kind.slots));
        self.later.fetch_add(1, Ordering::AcqRel);
        self.worker.0.jobs.spawn(Arc::clone(self).finish(call, slot, running));
    }

    /// Carries on with a call to its end, its deadline, or the end of this provider's patience.
    async fn finish(self: Arc<Self>, call: Call, slot: Slot, running: Running) {
        let work = async {
            let _slot = match slot {
                Ok(slot) => slot,
                Err(slots) => slots.acquire_owned().await.ok()?,
            };
            Some(AssertUnwindSafe(running).catch_unwind().await.unwrap_or_else(|_| failed(panicked())))
        };
        let handled = tokio::select! {
            handled = work => handled,
            () = sleep_until_or_forever(call.expiration.map(|left| call.received + left)) => {
                Some(failed(Problem::deadline_exceeded()))
            }
            // It goes back to the queue with the line.
            () = self.worker.0.stop.cancelled() => None,
        };
        call.cancelled.cancel();
        if let Some(handled) = handled {
            call.seconds.record(call.received.elapsed());
            self.outbox.add(|out| {
                self.reply(out, &call.reply_to, &call.correlation_id, handled);
                line::ack(out, call.tag, false);
            });
        }
        self.later.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify_one();
    }

    /// Sends the replies of a batch, and acknowledges what they answer: all at once, unless calls before them are still
    /// worked on.
    fn say(&self, said: &mut Said) {
        let Said { frames, tags, began } = said;
        *began = None;
        match (self.later.load(Ordering::Acquire), tags.last()) {
            (_, None) => {}
            (0, Some(last)) => line::ack(frames, *last, true),
            (_, Some(_)) => tags.iter().for_each(|tag| line::ack(frames, *tag, false)),
        }
        tags.clear();
        self.outbox.add(|out| out.append(frames));
    }

    /// After the shutdown: takes no more, waits for what is under way, and closes the line.
    async fn leave(&self) {
        self.worker.0.shutdown.cancelled().await;
        self.outbox.add(|out| self.kinds.values().for_each(|kind| line::cancel(out, &kind.name)));
        let ended = async {
            while self.later.load(Ordering::Acquire) > 0 {
                self.ended.notified().await;
            }
        };
        let _ = tokio::time::timeout(self.worker.0.config.drain + GIVE_BACK_TIMEOUT, ended).await;
        self.outbox.add(line::close);
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    }

    fn reply(&self, out: &mut Vec<u8>, reply_to: &[u8], correlation_id: &[u8], handled: Handled) {
        let bytes_max = self.worker.0.config.broker.message_bytes_max;
        let reply = Reply::new(
            1,
            1,
            match handled {
                Ok(content) => Outcome::Succeeded(content),
                Err(Failure::Permanent(problem) | Failure::Transient(problem) | Failure::TransientFor(_, problem)) => {
                    Outcome::Failed(problem)
                }
            },
        );
        let (message_type, content) = match reply.at_most(bytes_max).outcome {
            Outcome::Succeeded(content) => (REPLY, content),
            Outcome::Failed(problem) => {
                let content_type = problem::CONTENT_TYPE.to_owned();
                (ERROR, Content { content_type, body: problem.to_json().into() })
            }
        };
        let properties = Properties {
            content_type: content.content_type.as_bytes(),
            correlation_id,
            message_type: message_type.as_bytes(),
            ..Properties::default()
        };
        let (exchange, mandatory) = (&b""[..], false);
        let message = Outgoing { exchange, routing_key: reply_to, mandatory, properties, body: &content.body };
        line::publish(out, self.frame_max, &message);
    }
}

/// What a handler has come to when it was first polled.
enum Begun {
    Ended(Handled),
    Running(Running),
}

fn begin(function: &Arc<AsyncFn>, content: Content, context: CallContext) -> Begun {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        let mut running = function(content, context);
        // Nothing is woken: if it is not ready, the task that it becomes polls it again.
        match running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(handled) => Begun::Ended(handled),
            Poll::Pending => Begun::Running(running),
        }
    }));
    polled.unwrap_or_else(|_| Begun::Ended(failed(panicked())))
}

/// Whether a reply goes straight to a connection. The broker lets nobody declare a queue whose name begins with `amq.`.
fn is_direct(reply_to: &[u8]) -> bool {
    reply_to.strip_prefix(DIRECT_REPLY.as_bytes()).is_some_and(|rest| rest.starts_with(b"."))
}

fn failed(problem: Problem) -> Handled {
    Err(Failure::Permanent(problem))
}

/// Why a call is not carried out.
fn unfit(message: &Incoming<'_>, complete: bool) -> Option<Problem> {
    if !complete {
        let detail = "the call has more bytes than the provider's broker.message_bytes_max";
        return Some(Problem::new("too-large", 413, "Request too large", detail));
    }
    let encoding = message.properties.content_encoding;
    let detail = "the call is encoded; send it as it is";
    (!encoding.is_empty()).then(|| Problem::new("unsupported-media-type", 415, "Unsupported media type", detail))
}

fn content(message: &Incoming<'_>) -> Content {
    let content_type = match message.properties.content_type {
        [] => UNNAMED.to_owned(),
        given => String::from_utf8_lossy(given).into_owned(),
    };
    Content { content_type, body: message.body.to_vec().into() }
}

fn context(properties: &Properties<'_>, left: Option<Duration>, cancelled: CancellationToken) -> CallContext {
    let text = |bytes| String::from_utf8_lossy(bytes);
    let correlation_id = text(properties.correlation_id);
    let identity = format!("call:{}:{correlation_id}", text(properties.reply_to));
    let deadline = left.and_then(|left| Timestamp::now().checked_add(left).ok());
    CallContext::of_call(correlation_id.into_owned(), identity, deadline, cancelled)
}

fn milliseconds(text: &[u8]) -> Option<Duration> {
    std::str::from_utf8(text).ok()?.parse().ok().map(Duration::from_millis)
}
