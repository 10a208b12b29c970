//! Does harm, at random and from a seed: one lane to the processes, another to the connections and the broker, so that
//! two faults often coincide.

use crate::crash_points;
use crate::journal::Journal;
use crate::stack::{Side, Stack};
use harness::broker::Broker;
use harness::proxy::{Action, Direction, Ending, Method, Traffic, Which};
use jiff::Timestamp;
use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::ShortString;
use lapin::{Connection, ConnectionProperties};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How often each fault was done, by name.
#[derive(Debug)]
pub(crate) struct Faults {
    counts: Mutex<BTreeMap<String, u64>>,
    journal: Journal,
}

/// What is done to a process.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// kill -9.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Pause,
    /// kill -9, and the next process ends at some crash point.
    CrashPoint,
}

/// What is done to the connections between a service and the broker.
#[derive(Clone, Copy, Debug)]
enum Break {
    Cut(Ending),
    Refuse,
    /// Bytes vanish in both directions, and nobody is told.
    BlackHole,
    /// In one direction only.
    Hold(Direction),
    Close(Direction),
    Slow,
    Rule(Method, Action),
}

/// What is done to the broker.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Of what waits while the service that takes it is kept away.
    Purge(Side, &'static str),
    Delete(&'static str),
    Alarm,
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Wire {
    Break(Side, Break),
    Loss(Loss),
}

const HARMS: [Harm; 3] = [Harm::Kill, Harm::Pause, Harm::CrashPoint];
const BREAKS: [Break; 14] = [
    Break::Cut(Ending::Finish),
    Break::Cut(Ending::Reset),
    Break::Refuse,
    Break::BlackHole,
    Break::Hold(Direction::ToBroker),
    Break::Hold(Direction::ToService),
    Break::Close(Direction::ToBroker),
    Break::Close(Direction::ToService),
    Break::Slow,
    Break::Rule(Method::Publish, Action::DropAndCut),
    Break::Rule(Method::Deliver, Action::DropAndCut),
    Break::Rule(Method::Settle, Action::DropAndCut),
    Break::Rule(Method::Confirm, Action::DropAndCut),
    Break::Rule(Method::Publish, Action::Duplicate),
];
const LOSSES: [Loss; 8] = [
    Loss::Purge(Side::Provider, "arr.request."),
    Loss::Purge(Side::Requestor, "arr.reply."),
    Loss::Purge(Side::Provider, "arr.control."),
    Loss::Delete("arr.request."),
    Loss::Delete("arr.reply."),
    Loss::Delete("arr.control."),
    Loss::Alarm,
    Loss::Restart,
];
const SIDES: [Side; 2] = [Side::Requestor, Side::Provider];
/// How long is tried to lose something: a queue is empty until something is sent to it.
const LOSS_WITHIN: Duration = Duration::from_secs(15);
/// The pause in between.
const LOSS_EVERY: Duration = Duration::from_millis(10);
/// How long is waited for a message to lose: a service that is down at the moment sends none.
const FIRED_WITHIN: Duration = Duration::from_secs(10);
/// How often that is looked at.
const FIRED_EVERY: Duration = Duration::from_millis(20);

impl Faults {
    /// None so far; each will be noted in `folder`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(crate) fn create(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self { counts: Mutex::default(), journal: Journal::create(&folder.join("faults.jsonl"))? })
    }

    /// Notes that a fault is over.
    async fn done(&self, name: String) -> anyhow::Result<()> {
        self.journal.record(&json!({ "ended": Timestamp::now(), "fault": name })).await?;
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Ok(())
    }

    /// All that there are, with how often they were done.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let done = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        all().into_iter().map(|name| (name.clone(), done.get(&name).copied().unwrap_or_default())).collect()
    }
}

/// The names of all faults.
fn all() -> Vec<String> {
    let harms = HARMS.iter().flat_map(|harm| SIDES.map(|side| harm_name(*harm, side)));
    harms.chain(wires().into_iter().map(wire_name)).collect()
}

fn wires() -> Vec<Wire> {
    let breaks = BREAKS.iter().flat_map(|what| SIDES.map(|side| Wire::Break(side, *what)));
    breaks.chain(LOSSES.map(Wire::Loss)).collect()
}

fn harm_name(harm: Harm, side: Side) -> String {
    format!("{side:?}: {harm:?}")
}

fn wire_name(wire: Wire) -> String {
    match wire {
        Wire::Break(side, what) => format!("{side:?}: {what:?}"),
        Wire::Loss(loss) => format!("Broker: {loss:?}"),
    }
}

/// Does harm to the processes until `enough`.
///
/// # Errors
/// When a fault cannot be noted.
pub(crate) async fn harm_processes(
    stack: &Stack,
    seed: u64,
    faults: &Faults,
    enough: &CancellationToken,
) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    while !enough.is_cancelled() {
        let mut deck: Vec<_> = HARMS.iter().flat_map(|harm| SIDES.map(|side| (*harm, side))).collect();
        deck.shuffle(&mut random);
        for (harm, side) in deck {
            if enough.run_until_cancelled(sleep(between(&mut random, 200, 1500))).await.is_none() {
                return Ok(());
            }
            do_harm(stack, harm, side, &mut random).await;
            faults.done(harm_name(harm, side)).await?;
        }
    }
    Ok(())
}

async fn do_harm(stack: &Stack, harm: Harm, side: Side, random: &mut StdRng) {
    let service = stack.service(side);
    match harm {
        Harm::Kill => service.signal(Signal::SIGKILL),
        Harm::Pause => {
            service.signal(Signal::SIGSTOP);
            sleep(between(random, 500, 5000)).await;
            service.signal(Signal::SIGCONT);
        }
        Harm::CrashPoint => {
            if let Some(point) = crash_points::of(side).choose(random) {
                service.arm(*point);
            }
        }
    }
}

/// Does harm to the connections and to the broker until `enough`.
///
/// # Errors
/// When the broker does not come back.
pub(crate) async fn harm_wires(
    stack: &Stack,
    broker: &mut Broker,
    seed: u64,
    faults: &Faults,
    enough: &CancellationToken,
) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
    while !enough.is_cancelled() {
        let mut deck = wires();
        deck.shuffle(&mut random);
        for wire in deck {
            if enough.run_until_cancelled(sleep(between(&mut random, 100, 500))).await.is_none() {
                return Ok(());
            }
            let done = match wire {
                Wire::Break(side, what) => do_break(stack, side, what, &mut random).await,
                Wire::Loss(loss) => do_loss(stack, broker, loss, &mut random).await?,
            };
            if done {
                faults.done(wire_name(wire)).await?;
            }
        }
    }
    Ok(())
}

/// Whether it was done.
async fn do_break(stack: &Stack, side: Side, what: Break, random: &mut StdRng) -> bool {
    let link = stack.link(side);
    let while_it_lasts = sleep(between(random, 300, 2000));
    match what {
        Break::Cut(ending) => link.end_all(ending),
        Break::Refuse => {
            link.refuse(Some(Ending::Finish));
            link.end_all(Ending::Reset);
            while_it_lasts.await;
        }
        Break::BlackHole => {
            link.shape(Direction::ToBroker, Traffic::held());
            link.shape(Direction::ToService, Traffic::held());
            while_it_lasts.await;
        }
        Break::Hold(direction) => {
            link.shape(direction, Traffic::held());
            while_it_lasts.await;
        }
        Break::Close(direction) => {
            link.shape(direction, Traffic::closed());
            while_it_lasts.await;
        }
        Break::Slow => {
            let delay = Some((Duration::from_millis(1), Duration::from_millis(50)));
            link.shape(Direction::ToBroker, Traffic { delay, slice: Some(100), ..Traffic::default() });
            link.shape(Direction::ToService, Traffic { delay, ..Traffic::default() });
            while_it_lasts.await;
        }
        Break::Rule(method, action) => {
            let which = match action {
                Action::DropAndCut => Which::Nth(random.random_range(1..6)),
                Action::Duplicate | Action::Drop | Action::Delay(_) => Which::Every(3),
            };
            let rule = link.rule(method, which, action);
            let until = Instant::now() + FIRED_WITHIN;
            while_it_lasts.await;
            while rule.fired() == 0 && Instant::now() < until {
                sleep(FIRED_EVERY).await;
            }
            link.clear_rules();
            return rule.fired() > 0;
        }
    }
    mend(stack, side);
    true
}

/// Lets everything through again.
fn mend(stack: &Stack, side: Side) {
    let link = stack.link(side);
    link.refuse(None);
    link.shape(Direction::ToBroker, Traffic::default());
    link.shape(Direction::ToService, Traffic::default());
    link.clear_rules();
}

/// Ends all harm.
pub(crate) fn heal(stack: &Stack) {
    for side in SIDES {
        mend(stack, side);
        stack.service(side).signal(Signal::SIGCONT);
        // A connection that was half closed stays so.
        stack.link(side).end_all(Ending::Finish);
        // The next one is not armed.
        stack.service(side).signal(Signal::SIGKILL);
    }
}

/// Whether it was done: a purge of empty queues is nothing.
async fn do_loss(stack: &Stack, broker: &mut Broker, loss: Loss, random: &mut StdRng) -> anyhow::Result<bool> {
    match loss {
        Loss::Alarm => {
            broker.memory_alarm(true).await;
            sleep(between(random, 500, 3000)).await;
            broker.memory_alarm(false).await;
        }
        Loss::Restart => {
            // Some may have been made anew just now, after they were deleted.
            broker.remembers_its_queues().await;
            broker.kill_and_restart(&stack.host).await;
        }
        Loss::Purge(taker, prefix) => {
            // Otherwise it takes everything at once, and there is never anything to purge.
            stack.link(taker).refuse(Some(Ending::Finish));
            stack.link(taker).end_all(Ending::Reset);
            let lost = lose_some(stack, prefix, false).await;
            mend(stack, taker);
            return Ok(lost);
        }
        Loss::Delete(prefix) => return Ok(lose_some(stack, prefix, true).await),
    }
    Ok(true)
}

/// Whether something was lost in time.
async fn lose_some(stack: &Stack, prefix: &str, delete: bool) -> bool {
    let mut names = stack.host.queues().await;
    names.retain(|name| name.starts_with(prefix));
    let lost = tokio::time::timeout(LOSS_WITHIN, lose(&stack.host.url, &names, delete)).await;
    matches!(lost, Ok(Ok(())))
}

/// Purges or deletes queues over a connection of its own, again and again until something is lost.
async fn lose(url: &str, names: &[String], delete: bool) -> anyhow::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let mut lost = 0;
    while lost == 0 {
        for name in names {
            // The exclusive queue of a provider refuses, and a channel that was refused is closed.
            let channel = connection.create_channel().await?;
            let name = ShortString::from(name.as_str());
            lost += match delete {
                true => channel.queue_delete(name, QueueDeleteOptions::default()).await.map_or(0, |_| 1),
                false => channel.queue_purge(name, QueuePurgeOptions::default()).await.unwrap_or_default(),
            };
            let _ = channel.close(200, "done".into()).await;
        }
        sleep(LOSS_EVERY).await;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn between(random: &mut StdRng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.random_range(least..most))
}
