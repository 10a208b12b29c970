//! What can be asked for: the kinds of the configuration, and those that providers have announced.

/// What providers have said.
pub(crate) mod announced;
mod schema;

use crate::config::{Config, KindConfig};
use announced::{Announced, Heard, Known, Provider};
use anyhow::Context;
use jiff::Timestamp;
use jsonschema::Validator;
use serde_json::Value;
use shared::message::Announcement;
use shared::problem::Problem;
use shared::schema::Schemas;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::watch;

/// The kinds that this requestor knows. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Kinds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: BTreeMap<String, Configured>,
    announced: RwLock<Announced>,
    /// Of a kind that is announced and not configured.
    defaults: Configured,
    /// Told when there is another.
    more: watch::Sender<()>,
}

/// A kind or a pipeline of the configuration.
#[derive(Clone, Debug, Default)]
struct Configured {
    timeout: Duration,
    attempts: u32,
    fallback: Option<String>,
    /// Where a plain RPC server takes its requests.
    queue: Option<String>,
    steps: Vec<String>,
    schemas: Schemas,
    /// Whether the configuration names the schema, and it holds whatever is announced; else it came with the product.
    fixed: bool,
    validator: Option<Arc<Validator>>,
}

/// What submitting a request needs to know of its kind.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// How long an operation of this kind may take unless the caller says otherwise.
    pub(crate) timeout: Duration,
    /// The kinds of its steps, if it is a pipeline.
    pub(crate) steps: Vec<String>,
    /// Of its first step, if it is a pipeline.
    validator: Option<Arc<Validator>>,
}

/// All that is known of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) configured: bool,
    pub(crate) timeout: Duration,
    pub(crate) attempts: u32,
    pub(crate) fallback: Option<String>,
    pub(crate) steps: Vec<String>,
    /// Those that hold; of a pipeline the request of its first step and the result of its last.
    pub(crate) schemas: Schemas,
    /// What was announced; of a pipeline nothing.
    pub(crate) announced: Option<announced::Kind>,
}

impl Kinds {
    /// Compiles the schemas: those that come with the product and those the configuration names.
    ///
    /// # Errors
    /// Which file is not there or no JSON Schema.
    pub(crate) fn load(config: &Config) -> anyhow::Result<Self> {
        let mut built_in: HashMap<_, _> = shared::schema::built_in().into_iter().collect();
        let defaults = Configured {
            timeout: config.operations.timeout,
            attempts: config.retries.attempts,
            ..Configured::default()
        };
        let mut configured = BTreeMap::new();
        for (name, settings) in &config.kinds {
            let given = read_schema(name, settings)?;
            let mut schemas = built_in.remove(name.as_str()).unwrap_or_default();
            let fixed = given.is_some();
            schemas.request = given.or(schemas.request);
            let compiled = schemas.request.as_ref().map(schema::compile).transpose();
            let validator = compiled.map_err(|error| anyhow::anyhow!("kinds.{name}.schema: {error}"))?.map(Arc::new);
            let timeout = settings.timeout.unwrap_or(defaults.timeout);
            let attempts = settings.attempts.unwrap_or(defaults.attempts);
            let (fallback, queue, steps) = (settings.fallback.clone(), settings.queue.clone(), Vec::new());
            let kind = Configured { timeout, attempts, fallback, queue, steps, schemas, fixed, validator };
            configured.insert(name.clone(), kind);
        }
        for (name, pipeline) in &config.pipelines {
            let timeout = pipeline.timeout.unwrap_or(defaults.timeout);
            configured.insert(name.clone(), Configured { timeout, steps: pipeline.steps.clone(), ..defaults.clone() });
        }
        let announced = RwLock::new(Announced::new(config.announcements.clone()));
        Ok(Self(Arc::new(Inner { configured, announced, defaults, more: watch::Sender::new(()) })))
    }

    /// Knows again what was announced before a restart.
    pub(crate) fn restore(&self, stored: Vec<(String, Known, BTreeMap<String, Provider>)>) {
        let mut announced = self.0.announced.write().unwrap_or_else(PoisonError::into_inner);
        for (name, known, providers) in stored {
            let (mut kind, warning) = announced::Kind::new(known);
            if let Some(warning) = warning {
                tracing::warn!(kind = name, "{warning}");
            }
            kind.providers = providers;
            announced.restore(name, kind);
        }
    }

    /// Checks that all steps and fallbacks are kinds that are configured, or were announced once.
    ///
    /// # Errors
    /// Which is not.
    pub(crate) fn check_references(&self) -> anyhow::Result<()> {
        let announced = self.announced();
        let known = |name: &String| {
            let configured = self.0.configured.get(name);
            configured.is_some_and(|kind| kind.steps.is_empty()) || announced.kinds().contains_key(name)
        };
        for (name, kind) in &self.0.configured {
            let fallback = kind.fallback.iter().map(|fallback| (format!("kinds.{name}.fallback"), fallback));
            let steps = kind.steps.iter().map(|step| (format!("pipelines.{name}.steps"), step));
            for (key, other) in fallback.chain(steps) {
                anyhow::ensure!(
                    known(other),
                    "{key}: {other:?} is not one of the kinds, and no provider has announced it so far: add a section \
                     [kinds.{other:?}], which may be empty"
                );
            }
        }
        Ok(())
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// A problem that names the known kinds.
    pub(crate) fn get(&self, name: &str) -> Result<Kind, Problem> {
        let announced = self.announced();
        let configured = match self.0.configured.get(name) {
            Some(configured) => configured,
            None if announced.kinds().contains_key(name) => &self.0.defaults,
            None => return Err(self.unknown(name, &announced)),
        };
        let checked = configured.steps.first().map_or(name, String::as_str);
        let validator = self.validator(checked, &announced);
        Ok(Kind { timeout: configured.timeout, steps: configured.steps.clone(), validator })
    }

    /// The configured schema, else the announced one, else that of the product.
    fn validator(&self, name: &str, announced: &Announced) -> Option<Arc<Validator>> {
        let configured = self.0.configured.get(name);
        let own = configured.and_then(|kind| kind.validator.clone());
        match announced.kinds().get(name) {
            Some(kind) if !configured.is_some_and(|kind| kind.fixed) && kind.known.schemas.request.is_some() => {
                kind.validator.clone()
            }
            _ => own,
        }
    }

    /// That there is no such kind.
    pub(crate) fn no_such_kind(&self, name: &str) -> Problem {
        self.unknown(name, &self.announced())
    }

    fn unknown(&self, name: &str, announced: &Announced) -> Problem {
        let known = self.known(announced);
        let detail = format!("there is no kind {name:.80?}; known are {}", known.join(", "));
        Problem::new("unknown-kind", 404, "Unknown kind", detail).with("kinds", known)
    }

    /// The names of all, pipelines included.
    pub(crate) fn names(&self) -> Vec<String> {
        self.known(&self.announced())
    }

    fn known(&self, announced: &Announced) -> Vec<String> {
        let names: BTreeSet<_> = self.0.configured.keys().chain(announced.kinds().keys()).collect();
        names.into_iter().cloned().collect()
    }

    /// The names of those whose requests may become dead letters.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        let (announced, plain) = (self.announced(), |kind: &Configured| kind.steps.is_empty() && kind.queue.is_none());
        let configured = self.0.configured.iter().filter(|(_, kind)| plain(kind)).map(|(name, _)| name);
        configured.chain(announced.kinds().keys()).cloned().collect()
    }

    /// Wakes whoever follows the kinds when there is another.
    pub(crate) fn follow(&self) -> watch::Receiver<()> {
        self.0.more.subscribe()
    }

    /// Takes note of an announcement. Returns what is to be stored of it, if anything.
    ///
    /// # Errors
    /// Which limit it exceeds, or why it cannot be.
    pub(crate) fn hear(&self, announcement: Announcement, now: Timestamp) -> Result<Option<(Known, Provider)>, String> {
        let (name, instance) = (announcement.kind.clone(), announcement.instance.clone());
        if self.0.configured.get(&name).is_some_and(|kind| !kind.steps.is_empty()) {
            return Err("a pipeline of this requestor has that name".into());
        }
        let mut announced = self.0.announced.write().unwrap_or_else(PoisonError::into_inner);
        let Heard { new, warning } = announced.hear(announcement, now)?;
        let kind = announced.kinds().get(&name);
        let stored = kind.and_then(|kind| Some((kind.known.clone(), kind.providers.get(&instance)?.clone())));
        drop(announced);
        if let Some(warning) = warning {
            tracing::warn!(kind = name, "{warning}");
        }
        if new {
            tracing::info!(kind = name, instance, "a kind was announced for the first time");
            self.0.more.send_replace(());
        }
        Ok(stored)
    }

    /// The queue of the plain RPC server that serves the kind, if one does. It announces nothing.
    pub(crate) fn queue(&self, name: &str) -> Option<&str> {
        self.0.configured.get(name)?.queue.as_deref()
    }

    /// How many providers of a kind are live, and how many requests they work on at once.
    pub(crate) fn providers(&self, name: &str, now: Timestamp) -> (usize, u32) {
        let announced = self.announced();
        let live = announced.kinds().get(name).into_iter().flat_map(|kind| kind.live(now));
        live.fold((0, 0), |(count, slots), provider| (count + 1, slots.saturating_add(provider.concurrency)))
    }

    /// All that is known of the kind of that name, if there is one.
    pub(crate) fn describe(&self, name: &str) -> Option<Description> {
        let announced = self.announced();
        let (configured, heard) = (self.0.configured.get(name), announced.kinds().get(name));
        let kind = configured.or(heard.map(|_| &self.0.defaults))?;
        let schemas = match (kind.steps.first(), kind.steps.last()) {
            (Some(first), Some(last)) => Schemas {
                request: self.schemas(first, &announced).request,
                result: self.schemas(last, &announced).result,
            },
            _ => self.schemas(name, &announced),
        };
        Some(Description {
            name: name.to_owned(),
            configured: configured.is_some(),
            timeout: kind.timeout,
            attempts: kind.attempts,
            fallback: kind.fallback.clone(),
            steps: kind.steps.clone(),
            schemas,
            announced: heard.cloned(),
        })
    }

    fn schemas(&self, name: &str, announced: &Announced) -> Schemas {
        let configured = self.0.configured.get(name);
        let own = configured.map(|kind| kind.schemas.clone()).unwrap_or_default();
        let said = announced.kinds().get(name).map(|kind| kind.known.schemas.clone()).unwrap_or_default();
        let fixed = configured.is_some_and(|kind| kind.fixed);
        let request = if fixed { own.request } else { said.request.or(own.request) };
        Schemas { request, result: said.result.or(own.result) }
    }

    fn announced(&self) -> RwLockReadGuard<'_, Announced> {
        self.0.announced.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    /// Checks a request against the kind's schema.
    ///
    /// # Errors
    /// A problem with every violation and the JSON pointer (RFC 6901) of what violates.
    pub(crate) fn validate(&self, request: &Value) -> Result<(), Problem> {
        self.validator.as_ref().map_or(Ok(()), |validator| schema::validate(validator, request))
    }
}

fn read_schema(name: &str, settings: &KindConfig) -> anyhow::Result<Option<Value>> {
    let Some(path) = &settings.schema else { return Ok(None) };
    let text = std::fs::read(path).with_context(|| format!("kinds.{name}.schema: cannot read {}", path.display()))?;
    let schema = serde_json::from_slice(&text).with_context(|| format!("kinds.{name}.schema: {}", path.display()))?;
    Ok(Some(schema))
}
