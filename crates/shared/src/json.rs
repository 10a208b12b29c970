//! Reads JSON that strangers wrote: once over the bytes, before anything is built from them.

use crate::problem::Problem;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

/// Arrays and objects within one another.
///
/// Payloads made by hand have fewer than ten; whoever works on a payload after
/// us may recurse, and `serde_json` itself stops at 128.
pub const DEPTH_MAX: usize = 64;

/// Values in one document.
///
/// A value of two bytes on the wire takes 32 in memory, so this bounds a document to a few MiB
/// whatever it consists of, and is far more than a body of the default 256 KiB needs in practice.
pub const VALUES_MAX: usize = 100_000;

/// How much of a key is repeated in an error.
const KEY_CHARACTERS_MAX: usize = 64;

/// Why a document is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is not JSON: not UTF-8, a byte order mark, a lone surrogate, a number beyond a double's range, anything else.
    #[error("{0}")]
    NotJson(String),
    /// It is JSON that one reader takes for this and another for that, or that costs far more to read than to send.
    #[error("{0}")]
    Hostile(String),
    /// It is JSON, but not of the type that is wanted.
    #[error("{0}")]
    Unfit(String),
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        let (name, status, title) = match &error {
            JsonError::NotJson(_) => ("not-json", 400, "Not JSON"),
            JsonError::Hostile(_) => ("hostile-json", 400, "JSON that is not safe to read"),
            JsonError::Unfit(_) => ("invalid-request", 422, "The request cannot be carried out"),
        };
        Self::new(name, status, title, error.to_string())
    }
}

/// Checks that `bytes` are one JSON document that every reader takes alike.
///
/// No key is there twice in an object, it is at most [`DEPTH_MAX`] deep and has at most [`VALUES_MAX`] values. Keeps
/// nothing but the keys of the objects it is in.
///
/// # Errors
/// [`JsonError::NotJson`] or [`JsonError::Hostile`], with line and column.
pub fn check(bytes: &[u8]) -> Result<(), JsonError> {
    let (mut scan, mut deserializer) = (Scan::default(), serde_json::Deserializer::from_slice(bytes));
    let result = Value { scan: &mut scan, depth: 0 }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    result.map_err(|error| match scan.hostile {
        true => JsonError::Hostile(error.to_string()),
        false => JsonError::NotJson(error.to_string()),
    })
}

/// Reads a `T` from `bytes` that [`check`] accepts.
///
/// # Errors
/// [`JsonError`].
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    check(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| JsonError::Unfit(error.to_string()))
}

#[derive(Default)]
struct Scan {
    values: usize,
    /// Whether the scan stopped at what is JSON and not safe.
    hostile: bool,
}

impl Scan {
    fn refuse<E: serde::de::Error>(&mut self, why: impl fmt::Display) -> E {
        self.hostile = true;
        E::custom(why)
    }
}

/// One value, `depth` arrays and objects deep.
struct Value<'a> {
    scan: &'a mut Scan,
    depth: usize,
}

impl Value<'_> {
    fn inner(&mut self) -> Value<'_> {
        Value { scan: self.scan, depth: self.depth + 1 }
    }

    fn enter<E: serde::de::Error>(&mut self) -> Result<(), E> {
        match self.depth {
            DEPTH_MAX.. => {
                Err(self.scan.refuse(format_args!("more than {DEPTH_MAX} arrays and objects in one another")))
            }
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.scan.values += 1;
        if self.scan.values > VALUES_MAX {
            return Err(self.scan.refuse(format_args!("more than {VALUES_MAX} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.enter()?;
        while items.next_element_seed(self.inner())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        self.enter()?;
        let mut keys = HashSet::new();
        while let Some(Key(key)) = members.next_key()? {
            if let Some(twice) = keys.replace(key) {
                let shown: String = twice.chars().take(KEY_CHARACTERS_MAX).collect();
                return Err(self.scan.refuse(format_args!("the key {shown:?} is there twice in one object")));
            }
            members.next_value_seed(self.inner())?;
        }
        Ok(())
    }
}

/// A key, borrowed unless it has escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hostile(text: &str) -> String {
        match check(text.as_bytes()) {
            Err(JsonError::Hostile(why)) => why,
            other => panic!("{text:.80}: {other:?}"),
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        assert!(hostile(r#"{"a":1,"b":2,"a":3}"#).contains(r#"the key "a" is there twice"#));
        assert!(hostile(r#"[{"x":{"amount":1,"\u0061mount":2}}]"#).contains(r#""amount""#), "an escape hides nothing");
        assert!(hostile(&format!(r#"{{"{0}":1,"{0}":2}}"#, "k".repeat(9999))).len() < 200);
        check(br#"{"a":{"a":[{"a":1},{"a":1}]},"A":1}"#).unwrap();
    }

    #[test]
    fn nesting_and_number_of_values_have_limits() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        check(nested(DEPTH_MAX).as_bytes()).unwrap();
        hostile(&nested(DEPTH_MAX + 1));
        hostile(&"[".repeat(1_000_000));
        hostile(&r#"{"a":"#.repeat(1_000_000));
        let many = |values: usize| format!("[{}]", vec!["0"; values - 1].join(","));
        check(many(VALUES_MAX).as_bytes()).unwrap();
        hostile(&many(VALUES_MAX + 1));
    }

    #[test]
    fn what_is_not_json_is_said_to_be_none() {
        let corpus: [&[u8]; 16] = [
            b"",
            b" ",
            b"{",
            b"\xff",
            b"\"\xff\"",
            b"\xef\xbb\xbf1",
            b"1e400",
            b"-1e400",
            b"\"\\ud800\"",
            b"{\"\\udc00\":1}",
            b"1 2",
            b"NaN",
            b"[1,]",
            b"{'a':1}",
            b"01",
            b"\"\n\"",
        ];
        for bad in corpus {
            assert!(matches!(check(bad), Err(JsonError::NotJson(_))), "{bad:?}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            let members = prop::collection::hash_map(".*", inner.clone(), 0..8);
            let object = members.prop_map(|members| serde_json::Value::Object(members.into_iter().collect()));
            prop_oneof![prop::collection::vec(inner, 0..8).prop_map(Into::into), object]
        })
    }

    proptest! {
        /// What serde_json writes is read, however it is laid out.
        #[test]
        fn every_document_is_accepted(value in json()) {
            check(value.to_string().as_bytes()).unwrap();
            check(serde_json::to_string_pretty(&value).unwrap().as_bytes()).unwrap();
        }

        /// Nothing passes that serde_json would not read, and what it would read is refused for a reason of ours.
        #[test]
        fn it_agrees_with_serde_json(bytes in r#"[\[\]{}",:0-9a-eE.\\u \-+]{0,40}"#) {
            let theirs = serde_json::from_str::<serde_json::Value>(&bytes).is_ok();
            match check(bytes.as_bytes()) {
                Ok(()) => prop_assert!(theirs),
                Err(JsonError::Hostile(_)) => {}
                Err(error) => prop_assert!(!theirs, "{error}"),
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let theirs = serde_json::from_slice::<serde_json::Value>(&bytes).is_ok();
            prop_assert!(theirs || check(&bytes).is_err());
        }
    }
}
