//! The request header `Prefer` (RFC 7240).

use axum::http::{HeaderMap, HeaderValue};
use std::time::Duration;

/// What a caller prefers. Preferences that we do not know are ignored, as the RFC demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefer {
    /// `respond-async`: answer at once (section 4.1).
    pub(crate) respond_async: bool,
    /// `wait=N`: answer within N seconds (section 4.3).
    pub(crate) wait: Option<u32>,
}

impl Prefer {
    /// Reads all `Prefer` headers; the first of repeated preferences counts (section 2).
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split(',')) {
            // What follows a semicolon are parameters, which neither preference has.
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => prefer.respond_async = true,
                "wait" if prefer.wait.is_none() => prefer.wait = value.trim().trim_matches('"').parse().ok(),
                _ => {}
            }
        }
        prefer
    }

    /// How long to wait, at most `longest`.
    pub(crate) fn wait_at_most(self, longest: Duration) -> Duration {
        self.wait.map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds.into()).min(longest))
    }
}

/// The response header `Preference-Applied` (section 3): only what was in fact done.
pub(crate) fn applied(respond_async: bool, waited: Option<Duration>) -> Option<HeaderValue> {
    let wait = waited.map(|wait| format!("wait={}", wait.as_secs()));
    let text = match (respond_async, wait) {
        (true, Some(wait)) => format!("respond-async, {wait}"),
        (true, None) => "respond-async".into(),
        (false, wait) => wait?,
    };
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefer(values: &[&'static str]) -> Prefer {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        Prefer::from_headers(&headers)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        let both = Prefer { respond_async: true, wait: Some(10) };
        assert_eq!(prefer(&["respond-async, wait=10"]), both);
        assert_eq!(prefer(&["Respond-Async", "WAIT = \"10\"; x=1, wait=99, handling=lenient"]), both);
        assert_eq!(applied(true, Some(Duration::from_secs(10))).unwrap(), "respond-async, wait=10");
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        assert_eq!(prefer(&["wait=soon, return=minimal, =, ;"]), Prefer::default());
        assert_eq!(applied(false, None), None);
        assert_eq!(prefer(&["wait=4000000000"]).wait_at_most(Duration::from_secs(5)), Duration::from_secs(5));
    }
}
