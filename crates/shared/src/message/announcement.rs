//! What a provider says of itself: which kind it serves, how, and what requests and results look like.

use super::outgoing::{message, short};
use super::{ANNOUNCE, JSON, Message, Unreadable};
use crate::schema::Schemas;
use crate::{json, topology};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::ShortString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The body of an announcement: two schemas of the largest size that a requestor takes by default, and the rest.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 160 * 1024;
/// The longest name of an instance and of a version, in bytes. They are shown in tables and kept with every kind.
const NAME_BYTES_MAX: usize = 64;
/// The most requests that one instance works on at once: beyond what a broker delivers to a consumer, it is an error.
const CONCURRENCY_MAX: u32 = 65_535;
/// How long an announcement holds that does not say so: three times the pause between two.
const LEASE_SECONDS: u32 = 45;

/// What kind of effect a provider has, and so what a repeat of a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Running twice harms nothing.
    Pure,
    /// It is in the provider's own database, and happens once.
    Transactional,
    /// It is in another system, which is asked with the same idempotency key each time.
    External,
}

impl Effect {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Transactional => "transactional",
            Self::External => "external",
        }
    }

    /// The effect of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pure, Self::Transactional, Self::External].into_iter().find(|effect| effect.name() == name)
    }
}

/// That an instance of a provider serves a kind, for as long as it is not silent. Its body is this as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// The kind.
    pub kind: String,
    /// The provider group.
    pub group: String,
    /// What tells this process from others, the same as long as it lives; at most 64 bytes.
    pub instance: String,
    /// The provider's version, such as `1.4.2`; at most 64 bytes, and empty if it has none.
    #[serde(default)]
    pub version: String,
    /// What kind of effect a request has, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// How many requests of this kind it works on at once.
    #[serde(default = "one")]
    pub concurrency: u32,
    /// What requests and results look like.
    #[serde(flatten)]
    pub schemas: Schemas,
    /// For how long this holds: a provider of which nothing is heard for so long has gone.
    #[serde(default = "lease_seconds")]
    pub lease_seconds: u32,
    /// Whether it takes no more requests from now on.
    #[serde(default)]
    pub leaving: bool,
}

fn one() -> u32 {
    1
}

fn lease_seconds() -> u32 {
    LEASE_SECONDS
}

impl Announcement {
    /// For how long this holds.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds.into())
    }

    /// The message that says it. It is not worth keeping for longer than it holds.
    ///
    /// # Errors
    /// [`Unreadable`] when no requestor would take it, for example because its schemas are too large.
    pub fn to_message(&self) -> Result<Message, Unreadable> {
        self.check()?;
        let body = serde_json::to_vec(self).map_err(|error| Unreadable(error.to_string()))?;
        if body.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(too_large(body.len()));
        }
        let properties = BasicProperties::default()
            .with_type(ANNOUNCE.into())
            .with_content_type(JSON.into())
            .with_expiration(self.lease().as_millis().to_string().into());
        let message_id = short(uuid::Uuid::now_v7().to_string())?;
        let mut message = message(topology::ANNOUNCE, &self.kind, message_id, properties, body)?;
        message.mandatory = false;
        Ok(message)
    }

    /// Reads an announcement.
    ///
    /// # Errors
    /// [`Unreadable`] with what is wrong.
    pub fn from_delivery(delivery: &Delivery) -> Result<Self, Unreadable> {
        if delivery.properties.kind().as_ref().map(ShortString::as_str) != Some(ANNOUNCE) {
            return Err(Unreadable("the message is no announcement".into()));
        }
        if delivery.data.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(too_large(delivery.data.len()));
        }
        let read: Self = json::read(&delivery.data).map_err(|error| Unreadable(format!("no announcement: {error}")))?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), Unreadable> {
        let plain = |text: &str| text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        let complaint = if !topology::is_kind(&self.kind) {
            "kind cannot name a kind: use a-z, 0-9, dots, hyphens, underscores, at most 63".to_owned()
        } else if !topology::is_group(&self.group) {
            "group cannot name a group: use a-z, 0-9 and hyphens, at most 63".to_owned()
        } else if self.instance.is_empty() || !plain(&self.instance) || !plain(&self.version) {
            format!("instance and version are at most {NAME_BYTES_MAX} visible characters of ASCII")
        } else if !(1..=CONCURRENCY_MAX).contains(&self.concurrency) || self.lease_seconds == 0 {
            format!("concurrency is from 1 to {CONCURRENCY_MAX}, and leaseSeconds at least 1")
        } else {
            return Ok(());
        };
        Err(Unreadable(complaint))
    }
}

fn too_large(bytes: usize) -> Unreadable {
    Unreadable(format!("the announcement has {bytes} bytes, more than {ANNOUNCEMENT_BYTES_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn announcement() -> Announcement {
        Announcement {
            kind: "order.place".into(),
            group: "default".into(),
            instance: "01a2076b-5594-7450-ab5f-b6f5ebe0fa56".into(),
            version: "1.2.3".into(),
            effect: Some(Effect::Transactional),
            concurrency: 4,
            schemas: Schemas { request: Some(json!({"type": "object"})), result: Some(json!(true)) },
            lease_seconds: 45,
            leaving: false,
        }
    }

    fn read(body: impl Into<Vec<u8>>) -> Result<Announcement, Unreadable> {
        let mut delivery = Delivery::mock(1, topology::ANNOUNCE.into(), "echo".into(), false, body.into());
        delivery.properties = BasicProperties::default().with_type(ANNOUNCE.into());
        Announcement::from_delivery(&delivery)
    }

    #[test]
    fn an_announcement_comes_back_as_it_was_sent() {
        let sent = announcement();
        let message = sent.to_message().unwrap();
        assert_eq!((message.exchange, message.routing_key.as_str()), ("arr.announce", "order.place"));
        assert!(!message.mandatory);
        assert_eq!(message.properties.expiration().as_ref().unwrap().as_str(), "45000");
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(body["requestSchema"], json!({"type": "object"}));
        assert_eq!((&body["effect"], &body["leaseSeconds"]), (&json!("transactional"), &json!(45)));
        assert_eq!(read(message.body.to_vec()).unwrap(), sent);
    }

    #[test]
    fn who_says_little_is_understood_and_what_is_new_is_ignored() {
        let read = read(r#"{"kind":"note.take","group":"notes","instance":"a","colour":"red","requestSchema":null}"#);
        let read = read.unwrap();
        assert_eq!((read.concurrency, read.lease_seconds, read.leaving), (1, 45, false));
        assert_eq!((read.effect, read.version.as_str(), read.schemas), (None, "", Schemas::default()));
    }

    #[test]
    fn what_no_honest_provider_says_is_refused_by_name() {
        let with = |name: &str, value: Value| {
            let mut body = serde_json::to_value(announcement()).unwrap();
            body[name] = value;
            read(body.to_string()).unwrap_err().to_string()
        };
        for (name, value) in [
            ("kind", json!("arr.#")),
            ("kind", json!("")),
            ("kind", json!("x".repeat(100_000))),
            ("group", json!("a.b")),
            ("instance", json!("")),
            ("instance", json!("a\nb")),
            ("instance", json!("x".repeat(65))),
            ("version", json!("1\u{1b}[31m")),
            ("concurrency", json!(0)),
            ("concurrency", json!(65_536)),
            ("leaseSeconds", json!(0)),
        ] {
            let complaint = with(name, value);
            assert!(complaint.contains(name) && complaint.len() < 300, "{name}: {complaint}");
        }
        for (name, value) in [
            ("concurrency", json!(-1)),
            ("leaseSeconds", json!(1e12)),
            ("effect", json!("miraculous")),
            ("leaving", json!("yes")),
            ("requestSchema", json!("x".repeat(ANNOUNCEMENT_BYTES_MAX))),
        ] {
            let complaint = with(name, value);
            assert!(complaint.contains("announcement") && complaint.len() < 300, "{name}: {complaint}");
        }
        for body in ["", "[]", "{}", r#"{"kind":"a","kind":"b"}"#, &"[".repeat(1000), "\u{feff}{}"] {
            assert!(read(body).unwrap_err().to_string().contains("no announcement"), "{body:.20}");
        }
    }

    #[test]
    fn what_is_too_large_is_not_sent() {
        let mut large = announcement();
        large.schemas.result = Some(json!("x".repeat(ANNOUNCEMENT_BYTES_MAX)));
        assert!(large.to_message().unwrap_err().to_string().contains("bytes"));
    }
}
