//! The request header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a request that is repeated with
//! its key is accepted once.

use super::error::Error;
use crate::callers::Caller;
use crate::store::IdempotencyKey;
use axum::http::HeaderMap;
use ring::digest::{Context, SHA256};
use sfv::{Item, Parser};
use shared::problem::Problem;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest key, in bytes: it is stored and indexed. A UUID has 36.
pub(crate) const KEY_BYTES_MAX: usize = 255;

/// The key of a request, if it has one; `parts` are what makes the request this one.
pub(super) fn key(headers: &HeaderMap, parts: &[&[u8]]) -> Result<Option<IdempotencyKey>, Error> {
    let mut given = headers.get_all("idempotency-key").iter();
    let key = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok().and_then(read),
        (Some(_), Some(_)) => None,
    };
    let key = key.filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len())).ok_or_else(|| {
        let hint = r#"such as "8e03978e-40d5-43e8-bc93-6894a57f9324""#;
        Error::bad_request(format!("Idempotency-Key is one text of 1 to {KEY_BYTES_MAX} visible characters, {hint}"))
    })?;
    Ok(Some(IdempotencyKey { key, fingerprint: fingerprint(parts) }))
}

/// The draft wants a string in double quotes; many clients send the bare text.
fn read(value: &str) -> Option<String> {
    match value.trim() {
        quoted if quoted.starts_with('"') => {
            let item = Parser::new(quoted).parse::<Item>().ok()?;
            Some(item.bare_item.as_string()?.as_str().to_owned())
        }
        bare => bare.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"').then(|| bare.to_owned()),
    }
}

/// Each part with its length, so that no two requests have the same parts in a row.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().to_vec()
}

type Keys = Arc<Mutex<HashSet<(Arc<str>, String)>>>;

/// The keys of requests that are being answered. No more than there are connections.
#[derive(Clone, Debug, Default)]
pub(super) struct BeingAnswered(Keys);

/// A key, until its request is answered.
#[derive(Debug)]
pub(super) struct Answering {
    keys: Keys,
    key: (Arc<str>, String),
}

impl BeingAnswered {
    /// Begins to answer a request.
    ///
    /// # Errors
    /// 409 if one with the same key is being answered.
    pub(super) fn begin(&self, caller: &Caller, key: &IdempotencyKey) -> Result<Answering, Error> {
        let key = (Arc::clone(&caller.name), key.key.clone());
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return Ok(Answering { keys: Arc::clone(&self.0), key });
        }
        let detail = "a request with this Idempotency-Key is being answered; send it again to be told what came of it";
        let problem = Problem::new("idempotency-key-in-flight", 409, "The first request is not answered yet", detail);
        Err(Error { problem, retry_after_seconds: Some(1) })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// The key was used for another request.
pub(crate) fn reused() -> Error {
    let detail = "this Idempotency-Key was used for a request with another kind, body, priority, Operation-Timeout or Callback-Url";
    Problem::new("idempotency-key-reused", 422, "Idempotency-Key is already used", detail).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_and_bare_keys_are_the_same() {
        for given in ["\"a-1\"", "a-1", "\"a-1\";x=2", " a-1 "] {
            assert_eq!(read(given).as_deref(), Some("a-1"), "{given}");
        }
        assert_eq!(read(r#""say \"so\"""#).as_deref(), Some("say \"so\""));
        for given in ["\"a", "a b", "a\"", "\"a\" \"b\"", "\"a\", \"b\"", "\"ü\""] {
            assert_eq!(read(given), None, "{given}");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_eq!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"ab", b"c"]));
    }
}
