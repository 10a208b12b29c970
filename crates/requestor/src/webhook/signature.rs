//! Signatures of Standard Webhooks 1.0, scheme `v1`: HMAC-SHA256 with a shared secret.

use crate::callers::CallerConfig;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

/// What every secret begins with, so that it is known for one wherever it turns up.
const PREFIX: &str = "whsec_";
/// How many random bytes a secret has (Standard Webhooks 1.0, "Signature scheme").
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A secret that deliveries are signed with. It is never shown or logged.
#[derive(Clone, Debug)]
pub struct Secret(hmac::Key);

impl FromStr for Secret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let encoded = text.strip_prefix(PREFIX).ok_or("a secret begins with whsec_")?;
        let key = STANDARD.decode(encoded).map_err(|_| "what follows whsec_ is not base64")?;
        if !BYTES.contains(&key.len()) {
            return Err("a secret is 24 to 64 bytes in base64");
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("whsec_***")
    }
}

/// Reads secrets from a list, or from text with commas or line ends between them, as in a file. An error tells which
/// one is wrong, and not what it is.
pub(crate) fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        List(Vec<String>),
    }
    let texts = match Either::deserialize(deserializer)? {
        Either::Text(text) => vec![text],
        Either::List(list) => list,
    };
    let words = texts.iter().flat_map(|text| text.split([',', '\n', '\r', ' '])).filter(|word| !word.is_empty());
    let numbered = words.enumerate().map(|(index, word)| (index + 1, word.parse()));
    numbered
        .map(|(number, parsed)| parsed.map_err(|error| serde::de::Error::custom(format!("secret {number}: {error}"))))
        .collect()
}

/// What the deliveries of each caller are signed with.
#[derive(Debug)]
pub(crate) struct Secrets {
    /// `webhooks.secrets`.
    all: Vec<Secret>,
    /// Those of callers who have their own.
    own: HashMap<String, Vec<Secret>>,
}

impl Secrets {
    pub(crate) fn new(all: &[Secret], callers: &BTreeMap<String, CallerConfig>) -> Self {
        let own = callers.iter().filter(|(_, caller)| !caller.webhook_secrets.is_empty());
        let own = own.map(|(name, caller)| (name.clone(), caller.webhook_secrets.clone())).collect();
        Self { all: all.to_vec(), own }
    }

    /// Empty if nothing can be sent for `caller`: what is not signed is not sent.
    pub(crate) fn of(&self, caller: &str) -> &[Secret] {
        self.own.get(caller).unwrap_or(&self.all)
    }

    pub(crate) fn any(&self) -> bool {
        !self.all.is_empty() || !self.own.is_empty()
    }
}

/// The header `webhook-signature`: one signature for each secret, so that receivers may change theirs in their own time.
pub(super) fn sign(secrets: &[Secret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp}.");
    let signatures = secrets.iter().map(|Secret(key)| {
        let mut context = hmac::Context::with_key(key);
        context.update(head.as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[serde(deserialize_with = "secrets")]
        secrets: Vec<Secret>,
    }

    fn sample(secrets: serde_json::Value) -> Result<Vec<Secret>, String> {
        let document = serde_json::json!({ "secrets": secrets });
        serde_json::from_value::<Sample>(document).map(|sample| sample.secrets).map_err(|error| error.to_string())
    }

    /// The example that the libraries of Standard Webhooks are tested with.
    #[test]
    fn the_published_example() {
        let secrets = [SECRET.parse().unwrap(), "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".parse().unwrap()];
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&secrets[..1], id, 1_614_265_330, body), signature);
        let both = sign(&secrets, id, 1_614_265_330, body);
        assert!(both.starts_with(&format!("{signature} v1,")) && both.matches("v1,").count() == 2, "{both}");
    }

    #[test]
    fn secrets_are_checked_and_never_shown() {
        assert_eq!(sample([SECRET, SECRET].into_iter().collect()).unwrap().len(), 2);
        assert_eq!(sample(format!("{SECRET}\n{SECRET},{SECRET}\n").into()).unwrap().len(), 3);
        for wrong in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!", "whsec_MfKQ9r8G"] {
            let error = sample([SECRET, wrong].into_iter().collect()).unwrap_err();
            assert!(error.contains("secret 2") && !error.contains("MfKQ"), "{error}");
        }
        let secrets = sample(SECRET.into()).unwrap();
        let shown = format!("{secrets:?} {}", serde_json::to_string(&secrets).unwrap());
        assert!(!shown.contains("MfKQ") && shown.contains("whsec_***"), "{shown}");
    }
}
