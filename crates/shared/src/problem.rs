use crate::json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What every problem type of ours starts with; the last part is stable and documented in `docs/protocol.md`.
pub const TYPE_PREFIX: &str = "urn:problem-type:arr:";

/// The media type of a problem document (RFC 9457 section 3).
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Problem details (RFC 9457): what went wrong, for a person and for a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// A URI that names the kind of problem and never changes.
    #[serde(rename = "type", default = "about_blank")]
    #[schemars(extend("format" = "uri-reference"))]
    pub type_uri: String,
    /// The kind of problem in a few words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status that fits the problem, 400 to 599.
    #[serde(default = "internal_error")]
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// What happened this time and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Further members, such as `errors` with a JSON pointer each.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

fn about_blank() -> String {
    "about:blank".into()
}

fn internal_error() -> u16 {
    500
}

impl Problem {
    /// A problem of our own type `urn:problem-type:arr:{name}`.
    pub fn new(name: &str, status: u16, title: &str, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("{TYPE_PREFIX}{name}"),
            title: title.into(),
            status,
            detail: Some(detail.into()),
            extensions: Map::new(),
        }
    }

    /// The same problem with one more member.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.extensions.insert(member.into(), value.into());
        self
    }

    /// Whether this is our own problem type `name`.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.type_uri.strip_prefix(TYPE_PREFIX) == Some(name)
    }

    /// The outcome of an operation that was not finished by its deadline.
    #[must_use]
    pub fn deadline_exceeded() -> Self {
        Self::new(
            "deadline-exceeded",
            504,
            "Deadline exceeded",
            "the operation was not finished by its deadline; whether its effect happened is not known here",
        )
    }

    /// The proof that nothing of the operation's effect happened, and nothing will.
    #[must_use]
    pub fn canceled() -> Self {
        Self::new("canceled", 409, "Canceled", "the operation was canceled before its effect")
    }

    /// The body of a message or response.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|_| br#"{"type":"about:blank","status":500}"#.to_vec())
    }

    /// Reads a problem that another program wrote. What is no problem document becomes the detail of one.
    #[must_use]
    pub fn from_body(body: &[u8]) -> Self {
        let mut problem = json::read::<Self>(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned();
            Self::new("provider-error", 500, "The provider reported an error", text)
        });
        if !(400..=599).contains(&problem.status) {
            problem.status = 500;
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_problem_document_becomes_one() {
        let problem = Problem::from_body(b"\xffdivision by zero");
        assert!(problem.is("provider-error"));
        assert!(problem.detail.unwrap().contains("division by zero"));
        assert_eq!(Problem::from_body(br#"{"status":200}"#).status, 500);
    }

    #[test]
    fn extensions_survive_a_round_trip() {
        let problem = Problem::new("out-of-stock", 409, "Out of stock", "no hammers").with("available", 3);
        assert_eq!(Problem::from_body(&problem.to_json()), problem);
    }
}
