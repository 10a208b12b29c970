//! One task takes the creates and applies that wait and commits them together, in one transaction.

use super::batch::{self, Outcome, Work};
use crate::rules::RulesByKind;
use crate::store::{Changed, StoreError};
use shared::database::{Postgres, Waiting, Writes, queue};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Writes that are committed together at most.
const BATCH_MAX: usize = 256;
/// How often a write is tried that met another's, which then was undone.
const TRIES: usize = 3;
/// How long it is asked what became of a commit when the connection was lost meanwhile, and how often.
const UNKNOWN_MAX: Duration = Duration::from_secs(5);
const UNKNOWN_EVERY: Duration = Duration::from_millis(100);

type Done = oneshot::Sender<Result<Outcome, StoreError>>;

/// The way to the writer, which ends after the last of these.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    writes: Writes<(Work, Done)>,
}

#[derive(Debug)]
struct Committer<F> {
    postgres: Postgres,
    rules: RulesByKind,
    committed: F,
}

impl Writer {
    pub(super) fn start(
        tasks: &TaskTracker,
        postgres: Postgres,
        rules: RulesByKind,
        committed: impl Fn(Vec<Changed>) + Send + Sync + 'static,
    ) -> Self {
        let (writes, waiting) = queue();
        tasks.spawn(Committer { postgres, rules, committed }.run(waiting));
        Self { writes }
    }

    /// Returns when `work` is durable. A create waits behind all else, and fails at once where many wait there.
    pub(super) async fn write(&self, work: Work) -> Result<Outcome, StoreError> {
        let (done, outcome) = oneshot::channel();
        match work {
            Work::Create(_) => self.writes.send_new((work, done))?,
            Work::Apply { .. } => self.writes.send((work, done)).await?,
        }
        outcome.await.unwrap_or_else(|_| Err(StoreError::Failed("the writer has stopped".into())))
    }
}

impl<F: Fn(Vec<Changed>)> Committer<F> {
    async fn run(self, mut waiting: Waiting<(Work, Done)>) {
        let mut batch = Vec::new();
        while waiting.receive(&mut batch, BATCH_MAX).await {
            let (work, done): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
            let outcomes = self.together(&work).await;
            for (done, outcome) in done.into_iter().zip(outcomes) {
                let _ = done.send(outcome);
            }
        }
    }

    /// Commits all of `work` at once. If that fails for other reasons than that the database is busy, one of them is to
    /// blame, so each is committed alone.
    async fn together(&self, work: &[Work]) -> Vec<Result<Outcome, StoreError>> {
        let mut outcomes = match self.commit(work).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(error @ StoreError::Failed(_)) if work.len() > 1 => {
                tracing::warn!(%error, "a batch failed; its writes are committed one by one");
                vec![Ok(Outcome::Again); work.len()]
            }
            Err(error) => vec![Err(error); work.len()],
        };
        for (outcome, work) in outcomes.iter_mut().zip(work) {
            if matches!(outcome, Ok(Outcome::Again)) {
                *outcome = self.alone(work).await;
            }
        }
        outcomes
    }

    async fn alone(&self, work: &Work) -> Result<Outcome, StoreError> {
        for _ in 0..TRIES {
            match self.commit(std::slice::from_ref(work)).await?.into_iter().next() {
                None | Some(Outcome::Again) => {}
                Some(outcome) => return Ok(outcome),
            }
        }
        Err(StoreError::Busy)
    }

    async fn commit(&self, work: &[Work]) -> Result<Vec<Outcome>, StoreError> {
        let run = async {
            let mut transaction = self.postgres.begin().await?;
            let written = batch::write(&mut transaction, &self.rules, work).await?;
            sqlx::Result::Ok((transaction, written))
        };
        let (transaction, written) = self.postgres.run(run).await?;
        if let Err(error) = self.postgres.run(transaction.commit()).await {
            tracing::warn!(%error, "a commit was not confirmed");
            if !was_committed(&self.postgres, written.transaction).await {
                return Err(error);
            }
        }
        (self.committed)(written.changed);
        Ok(written.outcomes)
    }
}

/// Whether a transaction was committed although that was not confirmed, as PostgreSQL knows afterwards. While it does not
/// tell, it counts as not committed: then what was answered with an error may be there all the same.
async fn was_committed(postgres: &Postgres, transaction: Option<String>) -> bool {
    let Some(transaction) = transaction else { return false };
    let until = Instant::now() + UNKNOWN_MAX;
    while Instant::now() < until {
        let status = sqlx::query_scalar::<_, Option<String>>("select pg_xact_status($1::xid8)").bind(&transaction);
        match postgres.run(status.fetch_one(postgres.pool())).await {
            Ok(Some(status)) if status == "in progress" => {}
            Ok(status) => return status.as_deref() == Some("committed"),
            Err(StoreError::Busy) => {}
            Err(_) => return false,
        }
        tokio::time::sleep(UNKNOWN_EVERY).await;
    }
    false
}
