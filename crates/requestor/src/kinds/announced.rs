//! What providers have said that they serve. Pure: `now` is passed in.

use super::schema;
use crate::config::AnnouncementsConfig;
use crate::operation::after;
use jiff::Timestamp;
use jsonschema::Validator;
use shared::message::{Announcement, Effect};
use shared::schema::Schemas;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kinds that providers have announced.
#[derive(Debug)]
pub(crate) struct Announced {
    limits: AnnouncementsConfig,
    kinds: BTreeMap<String, Kind>,
}

/// What is known of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) known: Known,
    /// Of requests; none if there is no schema, or one that cannot be used.
    pub(super) validator: Option<Arc<Validator>>,
    /// By instance: those that serve it, and those that have gone lately.
    pub(crate) providers: BTreeMap<String, Provider>,
}

/// What holds of a kind, whoever serves it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    pub(crate) schemas: Schemas,
    /// The version of the provider whose schemas they are.
    pub(crate) version: String,
    /// Its instance.
    pub(crate) instance: String,
    /// When anyone last announced the kind.
    pub(crate) announced_at: Timestamp,
}

/// An instance of a provider, as far as it serves one kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Provider {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) effect: Option<Effect>,
    pub(crate) concurrency: u32,
    pub(crate) first_seen_at: Timestamp,
    pub(crate) last_seen_at: Timestamp,
    /// When it counts as gone unless it is heard of again.
    pub(crate) gone_at: Timestamp,
    /// Whether it has announced other schemas than those that hold.
    pub(crate) differs: bool,
}

/// What an announcement has changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// Whether nobody had announced the kind before.
    pub(crate) new: bool,
    /// What an operator should know of it.
    pub(crate) warning: Option<String>,
}

impl Provider {
    pub(crate) fn is_live(&self, now: Timestamp) -> bool {
        now < self.gone_at
    }

    /// Of two whose schemas differ, the higher holds: the newer version, then the one that was started later.
    fn rank(&self) -> (Vec<u64>, Timestamp) {
        let numbers = self.version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
        (numbers.collect(), self.first_seen_at)
    }
}

impl Kind {
    /// Those that serve it now.
    pub(crate) fn live(&self, now: Timestamp) -> impl Iterator<Item = &Provider> {
        self.providers.values().filter(move |provider| provider.is_live(now))
    }

    pub(super) fn new(known: Known) -> (Self, Option<String>) {
        let mut kind = Self { known, validator: None, providers: BTreeMap::new() };
        let unusable = kind.compile();
        (kind, unusable)
    }

    /// Makes the validator; or says why there is none, and requests are left to the provider's own check.
    fn compile(&mut self) -> Option<String> {
        let compiled = self.known.schemas.request.as_ref().map(schema::compile_announced).transpose();
        let (validator, error) = match compiled {
            Ok(validator) => (validator.map(Arc::new), None),
            Err(error) => (None, Some(error)),
        };
        self.validator = validator;
        error.map(|error| format!("requests are not checked here, for its schema cannot be used: {error}"))
    }

    /// Whether the schemas of `instance` are to take the place of those that hold.
    fn yields_to(&self, instance: &str, now: Timestamp) -> bool {
        let holder = self.providers.get(&self.known.instance).filter(|holder| holder.is_live(now));
        let (Some(holder), Some(other)) = (holder, self.providers.get(instance)) else { return true };
        instance == self.known.instance || other.rank() > holder.rank()
    }

    /// Compares the schemas that `instance` has announced with those that hold.
    fn compare(&mut self, instance: &str, schemas: Schemas, now: Timestamp) -> Option<String> {
        let (differs, yields) = (schemas != self.known.schemas, self.yields_to(instance, now));
        let provider = self.providers.get_mut(instance)?;
        let was_different = std::mem::replace(&mut provider.differs, differs && !yields);
        let version = provider.version.clone();
        if yields {
            self.known.instance = instance.to_owned();
            self.known.version.clone_from(&version);
        }
        match (differs, yields) {
            (false, _) => None,
            (true, false) if was_different => None,
            (true, false) => Some(format!(
                "instance {instance} of version {version:?} has other schemas than version {:?}, which hold",
                self.known.version
            )),
            (true, true) => {
                self.known.schemas = schemas;
                let unusable = self.compile();
                let changed = format!("its schemas are now those of version {version:?}, instance {instance}");
                Some(unusable.map_or(changed.clone(), |unusable| format!("{changed}; {unusable}")))
            }
        }
    }
}

impl Announced {
    pub(crate) fn new(limits: AnnouncementsConfig) -> Self {
        Self { limits, kinds: BTreeMap::new() }
    }

    /// Knows again what was known before a restart.
    pub(super) fn restore(&mut self, name: String, kind: Kind) {
        self.kinds.insert(name, kind);
    }

    pub(crate) fn kinds(&self) -> &BTreeMap<String, Kind> {
        &self.kinds
    }

    /// Takes note of an announcement.
    ///
    /// # Errors
    /// Which limit it exceeds.
    pub(crate) fn hear(&mut self, announcement: Announcement, now: Timestamp) -> Result<Heard, String> {
        self.check_sizes(&announcement.schemas)?;
        let (name, instance) = (announcement.kind.clone(), announcement.instance.clone());
        if announcement.leaving {
            let provider = self.kinds.get_mut(&name).and_then(|kind| kind.providers.get_mut(&instance));
            if let Some(provider) = provider {
                (provider.last_seen_at, provider.gone_at) = (now, now);
            }
            return Ok(Heard::default());
        }
        self.make_room(&name, &instance, now)?;
        let mut heard = Heard::default();
        let kind = self.kinds.entry(name).or_insert_with(|| {
            let (schemas, version) = (announcement.schemas.clone(), announcement.version.clone());
            let known = Known { schemas, version, instance: instance.clone(), announced_at: now };
            let (kind, warning) = Kind::new(known);
            heard = Heard { new: true, warning };
            kind
        });
        kind.known.announced_at = now;
        let first_seen_at = kind.providers.get(&instance).map_or(now, |provider| provider.first_seen_at);
        let differs = kind.providers.get(&instance).is_some_and(|provider| provider.differs);
        let provider = Provider {
            group: announcement.group.clone(),
            version: announcement.version.clone(),
            effect: announcement.effect,
            concurrency: announcement.concurrency,
            first_seen_at,
            last_seen_at: now,
            gone_at: after(now, announcement.lease().min(self.limits.lease_max)),
            differs,
        };
        kind.providers.insert(instance.clone(), provider);
        let compared = kind.compare(&instance, announcement.schemas, now);
        heard.warning = heard.warning.or(compared);
        Ok(heard)
    }

    fn check_sizes(&self, schemas: &Schemas) -> Result<(), String> {
        let most = self.limits.schema_bytes_max;
        for (name, schema) in [("requestSchema", &schemas.request), ("resultSchema", &schemas.result)] {
            let bytes = schema.as_ref().map_or(0, |schema| schema.to_string().len());
            if bytes > most {
                return Err(format!("{name} has {bytes} bytes, more than announcements.schema_bytes_max ({most})"));
            }
        }
        Ok(())
    }

    /// Forgets what has not been heard of for long, and sees whether another finds room.
    fn make_room(&mut self, name: &str, instance: &str, now: Timestamp) -> Result<(), String> {
        let limits = &self.limits;
        if let Some(kind) = self.kinds.get_mut(name) {
            kind.providers.retain(|_, provider| now < after(provider.gone_at, limits.keep_providers));
            let most = limits.providers_max;
            let full = kind.providers.len() >= most && !kind.providers.contains_key(instance);
            return if full { Err(format!("announcements.providers_max ({most}) are known")) } else { Ok(()) };
        }
        if self.kinds.len() >= limits.kinds_max {
            self.kinds.retain(|_, kind| now < after(kind.known.announced_at, limits.keep_kinds));
        }
        match self.kinds.len() < limits.kinds_max {
            true => Ok(()),
            false => Err(format!("announcements.kinds_max ({}) are known", limits.kinds_max)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn announced() -> Announced {
        let (hour, minutes) = (Duration::from_secs(3600), Duration::from_secs(600));
        Announced::new(AnnouncementsConfig {
            kinds_max: 2,
            providers_max: 2,
            schema_bytes_max: 100,
            lease_max: minutes,
            keep_providers: hour,
            keep_kinds: hour * 24,
        })
    }

    fn says(kind: &str, instance: &str, version: &str, least: u32) -> Announcement {
        Announcement {
            kind: kind.into(),
            group: "default".into(),
            instance: instance.into(),
            version: version.into(),
            effect: Some(Effect::Pure),
            concurrency: 2,
            schemas: Schemas { request: Some(json!({"minimum": least})), result: None },
            lease_seconds: 45,
            leaving: false,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn live(announced: &Announced, kind: &str, now: i64) -> usize {
        announced.kinds[kind].live(at(now)).count()
    }

    #[test]
    fn a_provider_is_live_until_it_leaves_or_is_silent_for_its_lease() {
        let mut announced = announced();
        assert!(announced.hear(says("a", "1", "1.0", 0), at(0)).unwrap().new);
        assert_eq!(announced.hear(says("a", "2", "1.0", 0), at(10)), Ok(Heard::default()));
        assert_eq!((live(&announced, "a", 44), live(&announced, "a", 45), live(&announced, "a", 55)), (2, 1, 0));
        announced.hear(Announcement { leaving: true, ..says("a", "2", "1.0", 0) }, at(20)).unwrap();
        assert_eq!(live(&announced, "a", 20), 1);
        announced.hear(Announcement { leaving: true, ..says("b", "9", "1.0", 0) }, at(20)).unwrap();
        assert!(!announced.kinds.contains_key("b"), "who leaves serves nothing");
        announced.hear(Announcement { lease_seconds: u32::MAX, ..says("a", "1", "1.0", 0) }, at(20)).unwrap();
        assert_eq!((live(&announced, "a", 619), live(&announced, "a", 620)), (1, 0), "announcements.lease_max");
    }

    #[test]
    fn of_two_schemas_the_newer_versions_holds_and_it_is_said_once() {
        let mut announced = announced();
        let least =
            |announced: &Announced| announced.kinds["a"].known.schemas.request.clone().unwrap()["minimum"].clone();
        announced.hear(says("a", "old", "1.9.0", 1), at(0)).unwrap();
        let warning = announced.hear(says("a", "new", "1.10.0", 2), at(1)).unwrap().warning.unwrap();
        assert!(warning.contains("now those of version \"1.10.0\""), "{warning}");
        let warning = announced.hear(says("a", "old", "1.9.0", 1), at(2)).unwrap().warning.unwrap();
        assert!(warning.contains("\"1.9.0\" has other schemas"), "{warning}");
        assert_eq!(announced.hear(says("a", "old", "1.9.0", 1), at(3)), Ok(Heard::default()), "not again");
        assert_eq!(least(&announced), 2);
        assert!(announced.kinds["a"].providers["old"].differs && !announced.kinds["a"].providers["new"].differs);
        // When the newer has gone, the other's hold.
        announced.hear(Announcement { leaving: true, ..says("a", "new", "1.10.0", 2) }, at(4)).unwrap();
        announced.hear(says("a", "old", "1.9.0", 1), at(5)).unwrap();
        assert_eq!((least(&announced), announced.kinds["a"].providers["old"].differs), (json!(1), false));
        let check = announced.kinds["a"].validator.as_ref().unwrap();
        assert!(check.is_valid(&json!(1)) && !check.is_valid(&json!(0)));
    }

    #[test]
    fn of_equal_versions_the_one_that_came_later_holds() {
        let mut announced = announced();
        for now in 0..3 {
            announced.hear(says("a", "first", "1", 1), at(now * 2)).unwrap();
            announced.hear(says("a", "second", "1", 2), at(now * 2 + 1)).unwrap();
        }
        assert_eq!(announced.kinds["a"].known.instance, "second");
        assert!(announced.kinds["a"].providers["first"].differs);
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_said_and_checks_nothing() {
        let mut announced = announced();
        let schemas = Schemas { request: Some(json!({"pattern": "(?=a)"})), result: None };
        let warning = announced.hear(Announcement { schemas, ..says("a", "1", "1", 0) }, at(0)).unwrap().warning;
        assert!(warning.unwrap().contains("not checked here"));
        assert!(announced.kinds["a"].validator.is_none() && announced.kinds["a"].known.schemas.request.is_some());
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_until_there_is_room() {
        let mut announced = announced();
        let large = Schemas { request: None, result: Some(json!("x".repeat(100))) };
        let refused = announced.hear(Announcement { schemas: large, ..says("a", "1", "1", 0) }, at(0)).unwrap_err();
        assert!(refused.contains("resultSchema") && refused.contains("schema_bytes_max"), "{refused}");
        for instance in ["1", "2"] {
            announced.hear(says("a", instance, "1", 0), at(0)).unwrap();
        }
        let refused = announced.hear(says("a", "3", "1", 0), at(1)).unwrap_err();
        assert!(refused.contains("providers_max"), "{refused}");
        announced.hear(says("a", "2", "1", 0), at(1)).unwrap();
        announced.hear(says("a", "3", "1", 0), at(3645)).unwrap();
        assert_eq!(announced.kinds["a"].providers.keys().collect::<Vec<_>>(), ["2", "3"]);
        announced.hear(says("b", "1", "1", 0), at(3600)).unwrap();
        let refused = announced.hear(says("c", "1", "1", 0), at(3600)).unwrap_err();
        assert!(refused.contains("kinds_max"), "{refused}");
        announced.hear(says("c", "1", "1", 0), at(24 * 3600 + 3600)).unwrap();
        assert_eq!(announced.kinds.keys().collect::<Vec<_>>(), ["a", "c"]);
    }
}
