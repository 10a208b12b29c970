//! Headers of answers.

use super::fields::EXAMPLE_ID;
use serde_json::{Map, Value, json};

/// Where the service is in examples.
const EXAMPLE_BASE: &str = "https://requests.example.com";

/// The headers that every answer has.
pub(super) const COMMON_HEADERS: [&str; 3] = ["Cache-Control", "X-Content-Type-Options", "Content-Security-Policy"];

/// All of them, by name; those whose name ends with `.optional` are not always there.
pub(super) fn all() -> Map<String, Value> {
    let url = |path: &str| json!(format!("{EXAMPLE_BASE}/v1/operations/{EXAMPLE_ID}{path}"));
    let text = || json!({ "type": "string" });
    let uri = || json!({ "type": "string", "format": "uri-reference" });
    let given = [
        ("Location", "Where to go on.", uri(), url("")),
        ("Operation-Location", "The URL of the operation.", uri(), url("")),
        ("Content-Location", "The URL of the result.", uri(), url("/result")),
        (
            "Retry-After",
            "In how many seconds it is worth asking again.",
            json!({ "type": "integer", "minimum": 1 }),
            json!(3),
        ),
        ("ETag", "Tells this state of the operation from others.", text(), json!("\"ZTG5NwpqbcWHPsLHrIJTpQ\"")),
        ("Preference-Applied", "What of `Prefer` was done.", text(), json!("wait=5")),
        (
            "Link",
            "`rel=\"next\"` or `rel=\"status\"` (RFC 8288).",
            text(),
            json!("</v1/operations?pageSize=20>; rel=\"next\""),
        ),
        (
            "RateLimit-Policy",
            "The caller's quotas of requests and of open operations (draft-ietf-httpapi-ratelimit-headers).",
            text(),
            json!("\"rate\";q=50000;w=10, \"open\";q=100000;qu=\"concurrent-requests\""),
        ),
        (
            "RateLimit",
            "What is left of `rate`, and in how many seconds there is more.",
            text(),
            json!("\"rate\";r=49999;t=1"),
        ),
        ("WWW-Authenticate", "How to say who asks.", text(), json!("Bearer")),
        ("Cache-Control", "Answers change from one moment to the next.", json!({ "const": "no-store" }), Value::Null),
        ("X-Content-Type-Options", "What a provider made is what it says.", json!({ "const": "nosniff" }), Value::Null),
        ("Content-Security-Policy", "What a provider made must not run as a page.", text(), Value::Null),
    ];
    given
        .into_iter()
        .flat_map(|(name, about, schema, example)| {
            let mut header = json!({ "description": about, "schema": schema });
            if !example.is_null() {
                header["example"] = example;
            }
            let mut always = header.clone();
            always["required"] = true.into();
            [(name.to_owned(), always), (format!("{name}.optional"), header)]
        })
        .collect()
}
