//! What a handler is: an asynchronous function from a request to a reply.

use crate::context::Context;
use crate::ledger::{PostgresTransaction, Transaction};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::database::DatabaseError;
use shared::json::{self, JsonError};
use shared::message::{Content, Effect, JSON, UNNAMED};
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

impl From<sqlx::Error> for Failure {
    /// The ledger's database failed: nothing was done, and it may work later.
    fn from(error: sqlx::Error) -> Self {
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
pub(crate) type PostgresFn =
    dyn for<'t> Fn(Content, &'t mut PostgresTransaction) -> BoxFuture<'t, Result<Content, Failure>> + Send + Sync;

/// A transactional handler, for each database that the ledger can be in.
#[derive(Clone, Default)]
pub(crate) struct Forms {
    pub(crate) sqlite: Option<Arc<TransactionalFn>>,
    pub(crate) postgres: Option<Arc<PostgresFn>>,
}

/// A handler with its types erased, and what kind of effect it has.
#[derive(Clone)]
pub(crate) enum Handler {
    /// Running twice harms nothing.
    Pure(Arc<AsyncFn>),
    /// The effect is in the ledger's own database, and committed together with the outcome.
    Transactional(Forms),
    /// The effect is elsewhere, and repeated with the same key until its outcome is recorded.
    External(Arc<AsyncFn>),
}

impl Handler {
    /// Whether it needs a ledger.
    pub(crate) fn has_effect(&self) -> bool {
        !matches!(self, Self::Pure(_))
    }

    pub(crate) fn effect(&self) -> Effect {
        match self {
            Self::Pure(_) => Effect::Pure,
            Self::Transactional(_) => Effect::Transactional,
            Self::External(_) => Effect::External,
        }
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

pub(crate) fn raw<F>(function: impl Fn(Content, Context) -> F + Send + Sync + 'static) -> Arc<AsyncFn>
where
    F: Future<Output = Result<Content, Failure>> + Send + 'static,
{
    Arc::new(move |content, context| function(content, context).boxed())
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
) -> Arc<TransactionalFn>
where
    Q: DeserializeOwned,
    P: Serialize,
{
    Arc::new(move |content, transaction| write(&function(read(content)?, transaction)?))
}

pub(crate) fn transactional_on_postgres<Q, P>(
    function: impl for<'t> Fn(Q, &'t mut PostgresTransaction) -> BoxFuture<'t, Result<P, Failure>> + Send + Sync + 'static,
) -> Arc<PostgresFn>
where
    Q: DeserializeOwned,
    P: Serialize + 'static,
{
    Arc::new(move |content, transaction| match read(&content) {
        Ok(request) => function(request, transaction).map(|reply| write(&reply?)).boxed(),
        Err(failure) => std::future::ready(Err(failure)).boxed(),
    })
}

/// Reads what a typed handler asks for. A message without a content type is taken for JSON, as plain RPC clients send it.
fn read<T: DeserializeOwned>(content: &Content) -> Result<T, Failure> {
    let essence = content.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence != JSON && !essence.ends_with("+json") && essence != UNNAMED {
        let detail = format!("send the request as {JSON}, not {essence:.64}");
        return Err(Failure::Permanent(Problem::new("unsupported-media-type", 415, "Unsupported media type", detail)));
    }
    json::read(&content.body).map_err(|error| match error {
        JsonError::Unfit(why) => Failure::invalid("", format!("unreadable request: {why}")),
        hostile => Failure::Permanent(hostile.into()),
    })
}

fn write(reply: &impl Serialize) -> Result<Content, Failure> {
    serde_json::to_vec(reply).map(Content::json).map_err(|error| {
        Failure::Permanent(Problem::new("provider-error", 500, "The reply cannot be written", error.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_of(content_type: &str, body: &str) -> Problem {
        let content = Content { content_type: content_type.into(), body: body.to_owned().into() };
        match read::<serde_json::Value>(&content) {
            Err(Failure::Permanent(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_typed_handler_reads_json_that_everybody_reads_alike() {
        let twice = problem_of(JSON, r#"{"quantity":1,"quantity":100}"#);
        assert!(twice.is("hostile-json") && twice.detail.unwrap().contains("quantity"));
        assert!(problem_of(JSON, &"[".repeat(100)).is("hostile-json"));
        assert!(problem_of(JSON, "\u{feff}1").is("not-json"));
        assert!(problem_of("text/xml", "1").is("unsupported-media-type"));
        for fine in [JSON, "application/json; charset=utf-8", "application/cloudevents+json", UNNAMED] {
            let content = Content { content_type: fine.into(), body: "1".into() };
            assert_eq!(read::<u32>(&content).unwrap(), 1, "{fine}");
        }
    }
}
