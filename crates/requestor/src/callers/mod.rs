//! Who may ask, and for how much at once.

/// API keys.
pub(crate) mod key;
mod quotas;

pub(crate) use quotas::Left;
pub use quotas::{OwnQuotas, Quotas};

use crate::config::HttpConfig;
use crate::http::Error;
use crate::operation::ANONYMOUS;
use crate::store::Scope;
use crate::webhook::{Secret, secrets};
use quotas::Rate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest name of a caller, in bytes: it is stored with each operation.
const NAME_BYTES_MAX: usize = 64;

/// One of the sections `[callers.…]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the annotated file describes each key")]
pub struct CallerConfig {
    #[serde(deserialize_with = "shared::config::list")]
    pub key_hashes: Vec<String>,
    #[serde(default)]
    pub admin: bool,
    #[serde(default, deserialize_with = "secrets")]
    pub webhook_secrets: Vec<Secret>,
    #[serde(default)]
    pub quotas: OwnQuotas,
}

/// Checks the callers and what they may have.
///
/// # Errors
/// Which key is wrong.
pub(crate) fn validate(callers: &BTreeMap<String, CallerConfig>, quotas: &Quotas) -> anyhow::Result<()> {
    quotas.validate("quotas")?;
    let mut seen = HashMap::new();
    for (name, caller) in callers {
        // Lower case, so that a caller can be set from the environment, too.
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        anyhow::ensure!(
            (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) && name != ANONYMOUS,
            "callers.{name:?}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, dots, hyphens, underscores, and not {ANONYMOUS:?}"
        );
        anyhow::ensure!(
            !caller.key_hashes.is_empty() && caller.key_hashes.iter().all(|hash| key::is_hash(hash)),
            "callers.{name}.key_hashes: give one or more hashes as `requestor key new` prints them, sha256:…"
        );
        for hash in &caller.key_hashes {
            if let Some(other) = seen.insert(hash, name) {
                anyhow::bail!("callers.{name}.key_hashes: a key of {other} is there again; each names one caller");
            }
        }
        quotas.with(&caller.quotas).validate(&format!("callers.{name}.quotas"))?;
    }
    Ok(())
}

/// Who asks. A handler that takes this cannot be reached by anybody else.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    /// Whether everybody's operations can be seen, canceled and retried.
    pub(crate) admin: bool,
}

impl Caller {
    /// Whose operations the caller may see.
    pub(crate) fn scope(&self) -> Scope {
        if self.admin { Scope::All } else { Scope::Of(Arc::clone(&self.name)) }
    }
}

/// All callers, and what each of them has.
#[derive(Debug)]
pub(crate) struct Callers {
    /// Everybody, while there are no keys.
    anonymous: Account,
    named: HashMap<Arc<str>, Account>,
    /// All that may wait at once.
    waiters: Arc<Semaphore>,
    /// All that may follow events at once.
    streams: Arc<Semaphore>,
}

#[derive(Debug)]
struct Account {
    caller: Caller,
    key_hashes: Vec<String>,
    quotas: Quotas,
    rate: Rate,
    waiters: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// One of the things that a caller may have so many of, as long as this is held.
#[derive(Debug)]
pub(crate) struct Slot {
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

impl Callers {
    /// Callers who have nothing yet.
    pub(crate) fn new(callers: &BTreeMap<String, CallerConfig>, quotas: &Quotas, http: &HttpConfig) -> Self {
        let named = callers.iter().map(|(name, config)| {
            let caller = Caller { name: name.as_str().into(), admin: config.admin };
            (Arc::clone(&caller.name), Account::new(caller, config.key_hashes.clone(), quotas.with(&config.quotas)))
        });
        let anonymous = Caller { name: ANONYMOUS.into(), admin: true };
        Self {
            anonymous: Account::new(anonymous, Vec::new(), quotas.clone()),
            named: named.collect(),
            waiters: semaphore(http.waiters_max),
            streams: semaphore(http.streams_max),
        }
    }

    /// The caller with this key; everybody is the same caller while there are no keys.
    pub(crate) fn with_key(&self, key: Option<&str>) -> Option<Caller> {
        if self.named.is_empty() {
            return Some(self.anonymous.caller.clone());
        }
        let hash = key::hash(key?);
        // All are compared, and each in the same time wherever it differs, so that the time tells nothing of them.
        let mut found = None;
        for account in self.named.values() {
            for known in &account.key_hashes {
                if bool::from(known.as_bytes().ct_eq(hash.as_bytes())) {
                    found = Some(account.caller.clone());
                }
            }
        }
        found
    }

    /// Counts a request, and tells what is left.
    pub(crate) fn count(&self, caller: &Caller) -> Left {
        self.account(caller).rate.count()
    }

    /// What the caller may have.
    pub(crate) fn quotas(&self, caller: &Caller) -> &Quotas {
        &self.account(caller).quotas
    }

    /// A place to wait for an outcome.
    ///
    /// # Errors
    /// 429 if the caller has all of its own, 503 if all together have all there are.
    pub(crate) fn waiter(&self, caller: &Caller) -> Result<Slot, Error> {
        let account = self.account(caller);
        let own = slot(&account.waiters).ok_or_else(|| Error::over_quota("waiters", account.quotas.waiters_max, 1))?;
        let shared = slot(&self.waiters);
        let shared = shared.ok_or_else(|| Error::overloaded("no more callers can wait for an outcome now"))?;
        Ok(Slot { _own: own, _shared: shared })
    }

    /// A stream of events.
    ///
    /// # Errors
    /// 429 if the caller has all of its own, 503 if all together have all there are.
    pub(crate) fn stream(&self, caller: &Caller) -> Result<Slot, Error> {
        let account = self.account(caller);
        let own = slot(&account.streams).ok_or_else(|| Error::over_quota("streams", account.quotas.streams_max, 5))?;
        let shared = slot(&self.streams);
        let shared = shared.ok_or_else(|| Error::overloaded("no more streams of events can be opened now"))?;
        Ok(Slot { _own: own, _shared: shared })
    }

    fn account(&self, caller: &Caller) -> &Account {
        self.named.get(&caller.name).unwrap_or(&self.anonymous)
    }
}

impl Account {
    fn new(caller: Caller, key_hashes: Vec<String>, quotas: Quotas) -> Self {
        Self {
            caller,
            key_hashes,
            rate: Rate::new(&quotas),
            waiters: semaphore(quotas.waiters_max),
            streams: semaphore(quotas.streams_max),
            quotas,
        }
    }
}

fn semaphore(size: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(size.min(Semaphore::MAX_PERMITS)))
}

fn slot(of: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(of).try_acquire_owned().ok()
}
