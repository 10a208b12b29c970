//! What a caller asks for: in which way, and from where on.

use super::App;
use super::Error;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use shared::problem::Problem;
use url::Url;

/// In which way events are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Pages,
    ServerSent,
    Socket,
}

impl Way {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
        if upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket")) {
            return Self::Socket;
        }
        let (stream, json) = (quality(headers, "text/event-stream"), quality(headers, "application/json"));
        if stream > 0.0 && stream >= json { Self::ServerSent } else { Self::Pages }
    }
}

/// How much a caller wants a media type that it names itself (RFC 9110 section 12.5.1); 0 if it does not.
fn quality(headers: &HeaderMap, media_type: &str) -> f32 {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges = values.flat_map(|value| value.split(','));
    let mut qualities = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next()?.eq_ignore_ascii_case(media_type);
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
        named.then(|| quality.unwrap_or(1.0))
    });
    qualities.next().unwrap_or_default()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct EventsQuery {
    pub(super) after: Option<u64>,
    last_event_id: Option<u64>,
    pub(super) page_size: Option<u32>,
}

impl EventsQuery {
    pub(super) fn from_request(query: Result<Query<Self>, QueryRejection>) -> Result<Self, Error> {
        query.map(|Query(query)| query).map_err(|error| Error::bad_request(error.body_text()))
    }

    /// The number of the last event that the caller has had. The header comes first: an EventSource that reconnects
    /// still has the query with which it began.
    pub(super) fn position(&self, headers: &HeaderMap) -> Result<Option<u64>, Error> {
        match headers.get("last-event-id").filter(|value| !value.is_empty()) {
            None => Ok(self.last_event_id.or(self.after)),
            Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(Error::bad_request("Last-Event-ID is the id of an event, which is a number")),
            },
        }
    }
}

/// Browsers let any page open a WebSocket to anywhere and read it, so a page of another origin is refused.
pub(super) fn same_origin(app: &App, headers: &HeaderMap) -> Result<(), Error> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|text| Url::parse(text).ok());
    let ours = Url::parse(&app.base_url(headers)).ok();
    match (&origin, &ours) {
        (Some(origin), Some(ours)) if origin.authority() == ours.authority() => Ok(()),
        _ => {
            let detail = "a page of another origin may not open a WebSocket here";
            Err(Problem::new("wrong-origin", 403, "Another origin", detail).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_stream_is_opened_only_for_who_asks_for_one() {
        let way =
            |accept: &'static str| Way::of(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]));
        for accept in ["", "*/*", "application/json", "text/html, */*;q=0.8", "text/event-stream;q=0"] {
            assert_eq!(way(accept), Way::Pages, "{accept}");
        }
        assert_eq!(way("text/event-stream;q=0.5, application/json"), Way::Pages);
        for accept in
            ["text/event-stream", "Text/Event-Stream; q=0.9, */*;q=0.1", "application/json, text/event-stream"]
        {
            assert_eq!(way(accept), Way::ServerSent, "{accept}");
        }
        let upgrade = (header::UPGRADE, HeaderValue::from_static("WebSocket"));
        assert_eq!(Way::of(&HeaderMap::from_iter([upgrade])), Way::Socket);
    }
}
