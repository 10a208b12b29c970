//! The protocol as a state machine that is small enough to try everything.
//!
//! One operation, two workers, and a broker that delivers in any order. [`actions`] says what can happen in a
//! [`State`], faults included; [`explore`](explore::explore) tries all of it, breadth first, and checks the
//! [`invariants`] on the way. Take a [`Mechanism`] away and it finds the shortest way in which the promise breaks.
#![forbid(unsafe_code)]

/// What can happen: the steps of requestor and provider, and faults.
pub mod actions;
/// The explorer: breadth first, with the shortest trace to whatever breaks.
pub mod explore;
/// What must hold.
pub mod invariants;
/// What there is: the record, the queues, the ledger, the workers, the effect.
pub mod state;

pub use actions::{Action, Fault};
pub use explore::{Report, explore};
pub use invariants::Property;
pub use state::State;

/// What kind of effect the handler has; as in the crate `provider`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Running twice harms nothing.
    Pure,
    /// The effect is in the ledger's own database.
    Transactional,
    /// Another service's, which is called with an idempotency key.
    External,
}

/// What each guarantee rests on. A design without one of them is a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A terminal outcome is never overwritten at the requestor.
    TerminalCas,
    /// The provider group records outcomes, and answers repeats from them.
    Ledger,
    /// The ledger says that an external effect is about to happen before it does.
    Intent,
    /// An intent outlives a failure: a later attempt starts from it.
    LastingIntent,
    /// The epoch of a row outlives a released claim, so that no two claims have the same.
    LastingEpoch,
    /// What an execution writes to the ledger is refused once another has claimed the request, or it was canceled.
    ClaimCas,
    /// The other service recognises a repeated call by its idempotency key.
    IdempotencyKey,
    /// Only the provider group's answer makes an operation canceled.
    TwoPhaseCancel,
    /// Whatever has had no news is sent again, ...
    Redrive,
    /// ... without limit.
    UnlimitedRedrive,
    /// A request that no queue takes comes back and stays due.
    Mandatory,
    /// A request is acknowledged after its reply is confirmed.
    LateAck,
    /// A reply is acknowledged after it is stored.
    StoreBeforeAck,
    /// The operation is stored before the caller has its 202.
    CommitBefore202,
    /// That a request is due to be sent is part of the stored record.
    Outbox,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Model {
    /// The handler's effect.
    pub effect: Effect,
    /// What is taken away from the design.
    pub without: Vec<Mechanism>,
    /// The other service lets a call pass only if no later claim has called before: instead of the key.
    pub fencing_token: bool,
    /// The caller may cancel.
    pub cancel: bool,
    /// The operation has a deadline, which may pass at any time.
    pub deadline: bool,
    /// How often the kind's policy attempts a request. Above 1, handlers may fail, for now or for good.
    pub attempts: u8,
    /// A failed operation may be retried by hand, once.
    pub retry_by_hand: bool,
    /// A long execution may acknowledge its delivery early and live on its lease.
    pub lease: bool,
    /// Steps that could as well be earlier or later are tried at every moment, not at once: many more states.
    pub every_order: bool,
    /// How many faults may happen, ...
    pub faults: u8,
    /// ... of which kinds.
    pub fault_kinds: Vec<Fault>,
}

impl Model {
    /// The design, with everything that can happen but attempts beyond the first, and no fault yet.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        Self {
            effect,
            without: Vec::new(),
            fencing_token: false,
            cancel: false,
            deadline: false,
            attempts: 1,
            retry_by_hand: false,
            lease: false,
            every_order: false,
            faults: 0,
            fault_kinds: Fault::ALL.to_vec(),
        }
    }

    /// Takes mechanisms away.
    #[must_use]
    pub fn without(mut self, mechanisms: &[Mechanism]) -> Self {
        self.without.extend(mechanisms);
        self
    }

    /// Allows so many faults.
    #[must_use]
    pub fn faults(mut self, faults: u8) -> Self {
        self.faults = faults;
        self
    }

    /// Whether the design has `mechanism`.
    #[must_use]
    pub fn has(&self, mechanism: Mechanism) -> bool {
        !self.without.contains(&mechanism)
    }

    /// Whether requests go through the ledger.
    #[must_use]
    pub fn has_ledger(&self) -> bool {
        self.effect != Effect::Pure && self.has(Mechanism::Ledger)
    }
}
