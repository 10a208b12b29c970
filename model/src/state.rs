use std::fmt;
use std::marker::PhantomData;

/// Sends that a capped re-drive allows.
pub const REDRIVES_MAX: u8 = 4;

/// Everything there is about one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The requestor with its store.
    pub requestor: Requestor,
    /// The broker's queues.
    pub broker: Broker,
    /// The provider group's ledger, its row for this request.
    pub ledger: Ledger,
    /// Two executions of the provider group, in one process or two.
    pub workers: [Worker; 2],
    /// How often the effect has happened; above 2 it makes no difference.
    pub effects: u8,
    /// The latest claim that the other service has seen, if it checks fencing tokens.
    pub fence: u8,
    /// Faults that may still happen.
    pub faults: u8,
}

/// Status of the operation's record. `Open` is `NotStarted` and `Running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Not stored.
    Absent,
    /// Stored, and not terminal.
    Open,
    /// Terminal.
    Succeeded,
    /// Terminal.
    Failed,
    /// Terminal.
    Canceled,
}

impl Status {
    /// Whether this is an outcome.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// The requestor: what it holds in memory, and the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Requestor {
    /// In memory: the caller's POST is being served.
    pub submitting: bool,
    /// The caller has its 202.
    pub accepted: bool,
    /// Stored.
    pub status: Status,
    /// Stored: the attempt that is asked for.
    pub attempt: u8,
    /// Stored: the attempt after which a retryable failure is final.
    pub last_attempt: u8,
    /// Stored: a person has asked for another attempt.
    pub retried_by_hand: bool,
    /// Stored: the request is due to be sent.
    pub due: bool,
    /// How often it was sent again; counted only when that is capped.
    pub redrives: u8,
    /// Stored: the caller wants it canceled.
    pub cancel_requested: bool,
    /// Stored: the wish to cancel is due to be sent.
    pub cancel_due: bool,
    /// In memory: a reply that is stored and not acknowledged; or the other way round in a mutant.
    pub in_hand: Option<Reply>,
}

/// What a reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The result.
    Succeeded,
    /// A problem that another attempt may not meet.
    Retryable,
    /// A problem, for good.
    Failed,
    /// The problem `canceled`: the ledger has a tombstone.
    Canceled,
}

/// A reply and the attempt that it answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reply {
    /// The attempt, from the request.
    pub attempt: u8,
    /// What it says.
    pub outcome: Outcome,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of attempt {}", self.outcome, self.attempt)
    }
}

/// The queues. A request and a wish to cancel are named by their attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Broker {
    /// Whether `arr.request` has a queue for the kind.
    pub bound: bool,
    /// `arr.request.{kind}`: ready, not delivered.
    pub requests: Queue<u8>,
    /// `arr.reply.{group}`.
    pub replies: Queue<Reply>,
    /// `arr.control.{group}`.
    pub controls: Queue<u8>,
    /// `arr.dead.{kind}`.
    pub dead: Queue<u8>,
}

/// A message, named by what tells it apart: a number below 16.
pub trait Message: Copy {
    /// Its number.
    fn number(self) -> u8;
    /// The message with that number.
    fn from_number(number: u8) -> Self;
}

impl Message for u8 {
    fn number(self) -> u8 {
        self
    }

    fn from_number(number: u8) -> Self {
        number
    }
}

impl Message for Reply {
    fn number(self) -> u8 {
        self.attempt * 4 + self.outcome as u8
    }

    fn from_number(number: u8) -> Self {
        let outcomes = [Outcome::Succeeded, Outcome::Retryable, Outcome::Failed, Outcome::Canceled];
        Self { attempt: number / 4, outcome: outcomes[usize::from(number % 4)] }
    }
}

/// Messages without order, for the next delivery may be any of them; and without copies, for what is taken can come
/// again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue<T>(u16, PhantomData<T>);

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}

impl<T: Message> Queue<T> {
    /// Adds a message.
    pub fn push(&mut self, message: T) {
        self.0 |= 1 << message.number();
    }

    /// Takes a message away.
    pub fn take(&mut self, message: T) {
        self.0 &= !(1 << message.number());
    }

    /// Every message.
    pub fn each(&self) -> impl Iterator<Item = T> + use<T> {
        let bits = self.0;
        (0..16).filter(move |number| bits & (1 << number) != 0).map(T::from_number)
    }

    /// Whether the message is there.
    #[must_use]
    pub fn has(&self, message: T) -> bool {
        self.0 & (1 << message.number()) != 0
    }

    /// Loses all.
    pub fn purge(&mut self) {
        self.0 = 0;
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }
}

impl<T: Message + fmt::Debug> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.each()).finish()
    }
}

/// The ledger's row for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// What it says.
    pub row: Row,
    /// Grows with each claim: an execution with an earlier one can write no more.
    pub epoch: u8,
    /// An effect was about to happen in this or an earlier attempt.
    pub intended: bool,
}

/// States of a ledger row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// No execution.
    Absent,
    /// An execution has begun.
    Claimed,
    /// Its external effect is about to happen, or has.
    Intent,
    /// Its outcome.
    Done(Reply),
    /// Canceled before any effect, for good.
    Tombstone,
}

/// How far an execution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// None.
    Idle,
    /// A request was delivered; the ledger is not asked yet.
    Received,
    /// The handler works.
    Running,
    /// INTENT is written; the effect is next.
    Intended,
    /// The other service has answered; DONE is next.
    Effected,
    /// The reply is to be published.
    Answering(Outcome),
    /// The broker has the reply; the acknowledgement is next.
    Answered,
}

/// An execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Worker {
    /// How far it is.
    pub phase: Phase,
    /// The attempt in the request.
    pub attempt: u8,
    /// Its claim.
    pub epoch: u8,
    /// Whether its delivery is still to be acknowledged: else the broker will not deliver it again.
    pub holds_delivery: bool,
}

impl Worker {
    /// No execution.
    pub const IDLE: Self = Self { phase: Phase::Idle, attempt: 0, epoch: 0, holds_delivery: false };
}

impl State {
    /// A caller's POST has arrived.
    #[must_use]
    pub fn initial(attempts: u8, faults: u8) -> Self {
        Self {
            requestor: Requestor {
                submitting: true,
                accepted: false,
                status: Status::Absent,
                attempt: 1,
                last_attempt: attempts,
                retried_by_hand: false,
                due: false,
                redrives: 0,
                cancel_requested: false,
                cancel_due: false,
                in_hand: None,
            },
            broker: Broker {
                bound: true,
                requests: Queue::default(),
                replies: Queue::default(),
                controls: Queue::default(),
                dead: Queue::default(),
            },
            ledger: Ledger { row: Row::Absent, epoch: 0, intended: false },
            workers: [Worker::IDLE; 2],
            effects: 0,
            fence: 0,
            faults,
        }
    }

    /// Whether the caller waits for nothing more: the operation is terminal, or was never accepted.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let never_accepted = self.requestor.status == Status::Absent && !self.requestor.accepted;
        self.requestor.status.is_terminal() || never_accepted && !self.requestor.submitting
    }

    /// The same state with the smallest epochs. They are only compared, so their ranks will do, and they stay finite.
    #[must_use]
    pub fn normal(mut self) -> Self {
        let [first, second] = &self.workers;
        let mut known = [0, self.ledger.epoch, self.fence, first.epoch, second.epoch];
        known.sort_unstable();
        let rank = |epoch: u8| {
            let below = known.iter().zip(known.iter().skip(1)).filter(|(a, b)| a < b && **b <= epoch);
            u8::try_from(below.count()).unwrap_or(u8::MAX)
        };
        self.ledger.epoch = rank(self.ledger.epoch);
        self.fence = rank(self.fence);
        for worker in &mut self.workers {
            worker.epoch = rank(worker.epoch);
        }
        // Which of the two is first makes no difference either.
        self.workers.sort_unstable();
        self
    }
}
