//! Page tokens of lists: where the next page of a query begins.

use super::error::Error;
use crate::callers::Caller;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{Context, SHA256};
use shared::message::OperationId;

/// Bytes of a token that tell the query. It protects from mistakes only: whose operations are listed never depends on it.
const QUERY_BYTES: usize = 8;
/// Bytes of an id.
const ID_BYTES: usize = 16;

/// What a page token is good for: the same caller, and the same `kind` and `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages([u8; QUERY_BYTES]);

impl Pages {
    pub(super) fn of(caller: &Caller, kind: Option<&str>, status: Option<&str>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in [Some(&*caller.name), kind, status] {
            // What is absent differs from what is empty.
            context.update(&part.map_or(usize::MAX, str::len).to_be_bytes());
            context.update(part.unwrap_or_default().as_bytes());
        }
        let mut query = [0; QUERY_BYTES];
        query.copy_from_slice(&context.finish().as_ref()[..QUERY_BYTES]);
        Self(query)
    }

    /// The token of the page after `last`.
    pub(super) fn token(self, last: OperationId) -> String {
        URL_SAFE_NO_PAD.encode([&self.0[..], last.0.as_bytes()].concat())
    }

    /// The last operation before the page of `token`.
    pub(super) fn read(self, token: &str) -> Result<OperationId, Error> {
        let bytes = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        let parts = bytes.split_first_chunk::<QUERY_BYTES>().map(|(query, id)| (query, <[u8; ID_BYTES]>::try_from(id)));
        match parts {
            Some((query, Ok(id))) if *query == self.0 => Ok(OperationId(uuid::Uuid::from_bytes(id))),
            Some((_, Ok(_))) => Err(Error::bad_request(
                "pageToken is of another query; ask for the next page with the same kind and status as for the first",
            )),
            _ => Err(Error::bad_request("pageToken is not one that a page gave")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_query_only() {
        let me = Caller { name: "me".into(), admin: false };
        let (id, pages) = (OperationId::new(), Pages::of(&me, Some("echo"), None));
        let token = pages.token(id);
        assert_eq!(pages.read(&token).unwrap(), id);
        assert!(!token.contains(&id.to_string()));
        let you = Caller { name: "you".into(), admin: true };
        for other in
            [Pages::of(&me, None, Some("echo")), Pages::of(&me, None, None), Pages::of(&you, Some("echo"), None)]
        {
            let problem = other.read(&token).unwrap_err().problem;
            assert!(problem.detail.unwrap().contains("another query"));
        }
        for nonsense in ["", "a", &token[1..], &format!("{token}A"), &id.to_string()] {
            assert!(pages.read(nonsense).unwrap_err().problem.detail.unwrap().contains("not one"), "{nonsense}");
        }
    }
}
