use super::ServerLimits;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Instant, sleep_until};

/// What a connection is doing, so that it can be told when that takes too long.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests from their head to the end of the response's body.
    requests: usize,
    fresh: bool,
    /// HTTP/2: bytes that come between requests may well be about the connection.
    multiplexed: bool,
    idle_since: Instant,
    head_since: Option<Instant>,
    /// Responses of which the client has not taken the last piece, by their number.
    untaken: BTreeMap<u64, Instant>,
    number: u64,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    Head,
    Request,
    Response,
}

/// A request under way, for as long as this lives.
#[derive(Debug)]
pub(super) struct UnderWay {
    activity: Arc<Activity>,
    number: u64,
}

impl Activity {
    /// A connection that has just been made, and owes a request.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
            requests: 0,
            fresh: true,
            multiplexed: false,
            idle_since: now,
            head_since: Some(now),
            untaken: BTreeMap::new(),
            number: 0,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was no request yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.state().fresh
    }

    /// Notes that bytes came.
    pub(super) fn received(&self) {
        let mut state = self.state();
        if state.requests == 0 && !state.multiplexed && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Notes that a request's head has come.
    pub(super) fn begin(self: &Arc<Self>, multiplexed: bool) -> UnderWay {
        let mut state = self.state();
        state.requests += 1;
        state.number += 1;
        state.fresh = false;
        state.multiplexed = multiplexed;
        state.head_since = None;
        UnderWay { activity: Arc::clone(self), number: state.number }
    }

    /// Returns when the client has let a deadline pass.
    pub(super) async fn overdue(&self, limits: &ServerLimits) -> Overdue {
        // What begins during the sleep is due after its end, so that no deadline is noticed late.
        let shortest = limits.header_timeout.min(limits.idle_timeout).min(limits.write_timeout);
        loop {
            let (now, deadline) = (Instant::now(), self.state().deadline(limits));
            match deadline {
                Some((at, overdue)) if at <= now => return overdue,
                Some((at, _)) => sleep_until(at.min(now + shortest)).await,
                None => sleep_until(now + shortest).await,
            }
        }
    }
}

impl State {
    fn deadline(&self, limits: &ServerLimits) -> Option<(Instant, Overdue)> {
        if self.requests > 0 {
            let since = self.untaken.values().min()?;
            return Some((*since + limits.write_timeout, Overdue::Response));
        }
        Some(match self.head_since {
            Some(since) => (since + limits.header_timeout, Overdue::Head),
            None => (self.idle_since + limits.idle_timeout, Overdue::Request),
        })
    }
}

impl UnderWay {
    /// A piece of the response was handed out, and none is asked for before the client has taken it.
    pub(super) fn waits_for_client(&self) {
        self.activity.state().untaken.insert(self.number, Instant::now());
    }

    /// The client would take more, and there is nothing yet.
    pub(super) fn waits_for_us(&self) {
        self.activity.state().untaken.remove(&self.number);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.untaken.remove(&self.number);
        state.requests -= 1;
        if state.requests == 0 {
            state.idle_since = Instant::now();
        }
    }
}

impl Overdue {
    /// As metrics name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Request => "idle",
            Self::Response => "unread",
        }
    }
}
