//! Conditional requests (RFC 9110 section 13): who has seen an operation as it is needs no copy of it.

use super::view::insert;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};

/// Bytes of the hash that make a tag: two versions of one operation never share it by chance.
const TAG_BYTES: usize = 16;

/// Gives `response` a strong entity tag of its `body`. A version number would not do: what is shown also changes without a new version, such
/// as the time of the next attempt and the URL in which it is shown.
pub(super) fn mark(response: &mut Response, body: &[u8]) {
    let hash = digest(&SHA256, body);
    insert(response, header::ETAG, &format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..TAG_BYTES])));
}

/// 304 in place of `response` if the caller has what it holds. Only for 200: other answers have no precondition.
pub(super) fn unless_known(mut response: Response, headers: &HeaderMap) -> Response {
    let known = match response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()) {
        Some(tag) => response.status() == StatusCode::OK && is_known(headers, tag),
        None => false,
    };
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Weak comparison, as `If-None-Match` wants it. Our tags have no commas.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = values.flat_map(|value| value.split(',')).map(str::trim);
    known.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly_one_by_one() {
        let mut response = Response::default();
        mark(&mut response, b"{}");
        let tag = response.headers()["etag"].to_str().unwrap();
        let known = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, value.parse().unwrap());
            is_known(&headers, tag)
        };
        assert!(known(tag) && known("*") && known(&format!("\"x\", W/{tag}")));
        assert!(!known("\"x\"") && !known(tag.trim_matches('"')));
    }
}
