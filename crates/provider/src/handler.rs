//! What a handler is: an asynchronous function from a request to a reply.

use crate::context::Context;
use crate::ledger::Transaction;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::message::Content;
use shared::problem::Problem;
use std::sync::Arc;

/// Why a handler has no reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Asking again would fail again: the outcome of the operation.
    Permanent(Problem),
    /// Asking again may help. Nothing of the effect may have happened.
    Transient(Problem),
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
}

impl From<rusqlite::Error> for Failure {
    /// The ledger's database failed: nothing was done, and it may work later.
    fn from(error: rusqlite::Error) -> Self {
        Self::Transient(Problem::new("ledger-failed", 503, "The provider's database failed", error.to_string()))
    }
}

pub(crate) type PureFn = dyn Fn(Content, Context) -> BoxFuture<'static, Result<Content, Failure>> + Send + Sync;
pub(crate) type TransactionalFn = dyn Fn(&Content, &Transaction<'_>) -> Result<Content, Failure> + Send + Sync;

/// A handler with its types erased, and what kind of effect it has.
#[derive(Clone)]
pub(crate) enum Handler {
    /// Running twice harms nothing.
    Pure(Arc<PureFn>),
    /// The effect is in the ledger's own database, and committed together with the outcome.
    Transactional(Arc<TransactionalFn>),
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pure(_) => "Pure",
            Self::Transactional(_) => "Transactional",
        })
    }
}

pub(crate) fn raw<F>(function: impl Fn(Content, Context) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Result<Content, Failure>> + Send + 'static,
{
    Handler::Pure(Arc::new(move |content, context| function(content, context).boxed()))
}

pub(crate) fn pure<Q, P, F>(function: impl Fn(Q, Context) -> F + Send + Sync + 'static) -> Handler
where
    Q: DeserializeOwned + Send,
    P: Serialize,
    F: Future<Output = Result<P, Failure>> + Send + 'static,
{
    Handler::Pure(Arc::new(move |content, context| match read(&content) {
        Ok(request) => function(request, context).map(|reply| write(&reply?)).boxed(),
        Err(failure) => std::future::ready(Err(failure)).boxed(),
    }))
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
