//! What a handler is: an asynchronous function from a request to a reply.

use crate::context::Context;
use crate::ledger::Transaction;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::database::DatabaseError;
use shared::message::Content;
use shared::problem::Problem;
use std::sync::Arc;
use std::time::Duration;

/// Why a handler has no reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Asking again would fail again: the outcome of the operation.
    Permanent(Problem),
    /// Asking again may help. Nothing of the effect may have happened, unless the handler has called
    /// [`Context::intent`]: then the next attempt repeats it with the same key.
    Transient(Problem),
    /// As [`Failure::Transient`], and asking again earlier than this from now is of no use.
    TransientFor(Duration, Problem),
}

impl Failure {
    /// The request cannot be carried out as it is: a permanent failure of the type `invalid-request`, status 422,
    /// with the JSON pointer of what is wrong.
    pub fn invalid(pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = serde_json::json!([{ "pointer": pointer, "detail": detail }]);
        let problem = Problem::new("invalid-request", 422, "The request cannot be carried out", detail);
        Self::Permanent(problem.with("errors", errors))
    }

    /// The work ended before its end, and nobody is to blame: a transient failure of the type `stopped`, status 503.
    pub fn stopped(detail: impl Into<String>) -> Self {
        Self::Transient(Problem::new("stopped", 503, "Stopped", detail))
    }
}

impl From<rusqlite::Error> for Failure {
    /// The ledger's database failed: nothing was done, and it may work later.
    fn from(error: rusqlite::Error) -> Self {
        DatabaseError::from(error).into()
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self::Transient(Problem::new("ledger-failed", 503, "The provider's database failed", error.to_string()))
    }
}

pub(crate) type AsyncFn = dyn Fn(Content, Context) -> BoxFuture<'static, Result<Content, Failure>> + Send + Sync;
pub(crate) type TransactionalFn = dyn Fn(&Content, &Transaction<'_>) -> Result<Content, Failure> + Send + Sync;

/// A handler with its types erased, and what kind of effect it has.
#[derive(Clone)]
pub(crate) enum Handler {
    /// Running twice harms nothing.
    Pure(Arc<AsyncFn>),
    /// The effect is in the ledger's own database, and committed together with the outcome.
    Transactional(Arc<TransactionalFn>),
    /// The effect is elsewhere, and repeated with the same key until its outcome is recorded.
    External(Arc<AsyncFn>),
}

impl Handler {
    /// Whether it needs a ledger.
    pub(crate) fn has_effect(&self) -> bool {
        !matches!(self, Self::Pure(_))
    }
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pure(_) => "Pure",
            Self::Transactional(_) => "Transactional",
            Self::External(_) => "External",
        })
    }
}

pub(crate) fn raw<F>(function: impl Fn(Content, Context) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Result<Content, Failure>> + Send + 'static,
{
    Handler::Pure(Arc::new(move |content, context| function(content, context).boxed()))
}

/// A function of bytes from one of a typed request.
pub(crate) fn typed<Q, P, F>(function: impl Fn(Q, Context) -> F + Send + Sync + 'static) -> Arc<AsyncFn>
where
    Q: DeserializeOwned + Send,
    P: Serialize,
    F: Future<Output = Result<P, Failure>> + Send + 'static,
{
    Arc::new(move |content, context| match read(&content) {
        Ok(request) => function(request, context).map(|reply| write(&reply?)).boxed(),
        Err(failure) => std::future::ready(Err(failure)).boxed(),
    })
}

pub(crate) fn transactional<Q, P>(
    function: impl Fn(Q, &Transaction<'_>) -> Result<P, Failure> + Send + Sync + 'static,
) -> Handler
where
    Q: DeserializeOwned,
    P: Serialize,
{
    Handler::Transactional(Arc::new(move |content, transaction| write(&function(read(content)?, transaction)?)))
}

fn read<T: DeserializeOwned>(content: &Content) -> Result<T, Failure> {
    serde_json::from_slice(&content.body).map_err(|error| Failure::invalid("", format!("unreadable request: {error}")))
}

fn write(reply: &impl Serialize) -> Result<Content, Failure> {
    serde_json::to_vec(reply).map(Content::json).map_err(|error| {
        Failure::Permanent(Problem::new("provider-error", 500, "The reply cannot be written", error.to_string()))
    })
}
