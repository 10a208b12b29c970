use super::calls::calls;
use super::problems::PROBLEMS;
use super::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn config() -> Config {
    Config::load(None).unwrap()
}

/// Compares a file with what the code says; with `UPDATE_DOCS=1` makes it so.
#[expect(clippy::disallowed_methods, reason = "tells whether to write the files")]
fn is_as_committed(path: &Path, expected: &str) {
    if std::env::var("UPDATE_DOCS").is_ok() {
        std::fs::write(path, expected).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == expected, "{} is not what the code says: run `make docs`", path.display());
}

fn pretty(document: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(document).unwrap())
}

#[test]
fn documents_are_as_committed() {
    let docs = root().join("docs");
    is_as_committed(&docs.join("openapi.json"), &pretty(&openapi::document(&config())));
    is_as_committed(&docs.join("asyncapi.json"), &pretty(&asyncapi::document()));
}

#[test]
fn schemas_are_as_committed() {
    let (folder, documents) = (root().join("docs/schemas"), schemas::documents());
    std::fs::create_dir_all(&folder).unwrap();
    for (name, schema) in &documents {
        is_as_committed(&folder.join(format!("{name}.json")), &pretty(schema));
    }
    let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let stale: Vec<_> = files.filter(|file| !documents.contains_key(file.trim_end_matches(".json"))).collect();
    assert!(stale.is_empty(), "not from the code: {stale:?}");
}

#[test]
fn the_protocol_lists_every_problem_type() {
    let path = root().join("docs/protocol.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- problem types -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end of problem types -->\n").unwrap();
    let table = problems::table();
    is_as_committed(&path, &format!("{before}<!-- problem types -->\n{table}<!-- end of problem types -->\n{after}"));
}

/// All Rust sources under `folder`, without the code that tests.
fn sources(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") && !entry.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&entry).unwrap();
            found.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned());
        }
    }
    found
}

#[test]
fn every_problem_of_the_code_is_listed_and_none_else() {
    let sources = sources(&root().join("crates"));
    let calls = sources.iter().flat_map(|source| source.split("Problem::new(").skip(1));
    let literal = |text: &str| text.trim_start().strip_prefix('"')?.split_once('"').map(|(name, _)| name.to_owned());
    for call in calls.filter(|call| literal(call).is_some_and(|name| !name.is_empty())) {
        let name = literal(call).unwrap();
        let problem = PROBLEMS.iter().find(|problem| problem.name == name);
        let problem = problem.unwrap_or_else(|| panic!("problems.rs does not list {name}"));
        let status = call.split(',').nth(1).unwrap().trim();
        let known = status.parse().map_or(true, |status: u16| problem.statuses.contains(&status));
        assert!(known, "{name} has the status {status} in the code");
    }
    for problem in PROBLEMS {
        // Once in the list itself.
        let (name, title) = (format!("\"{}\"", problem.name), format!("\"{}\"", problem.title));
        let times = |text: &str| sources.iter().map(|source| source.matches(text).count()).sum::<usize>();
        assert!(times(&name) > 1 && times(&title) > 1, "the code knows no {name} with the title {title}");
    }
}

/// What a router is made of in the sources.
fn routed(source: &str) -> impl Iterator<Item = &str> {
    source.split(".route(").skip(1).filter_map(|route| route.trim_start().strip_prefix('"')?.split('"').next())
}

#[test]
fn each_path_that_is_routed_is_documented_and_none_else() {
    let root = root().join("crates");
    let sources = [sources(&root.join("requestor/src")), sources(&root.join("shared/src"))].concat();
    let routed: BTreeSet<_> = sources.iter().flat_map(|source| routed(source)).collect();
    let documented: BTreeSet<_> = calls().iter().map(|call| call.path).collect();
    assert_eq!(routed, documented);
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(document: &Value, value: &Value) {
        if let Some(reference) = value["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Object(object) => object.values().for_each(|value| check(document, value)),
            Value::Array(array) => array.iter().for_each(|value| check(document, value)),
            _ => {}
        }
    }
    for document in [openapi::document(&config()), asyncapi::document()] {
        check(&document, &document);
    }
}

#[test]
fn examples_fit_their_schemas() {
    let schemas = schemas::documents();
    let fits = |name: &str, value: &Value| {
        let validator = jsonschema::validator_for(&schemas[name]).unwrap();
        let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}: {value}");
    };
    for (kind, body) in examples::bodies() {
        fits(&format!("{kind}.request"), &body);
    }
    for (name, example) in examples::answers() {
        let schema = match name.as_str() {
            "operations" => "operation-page",
            "events" => "event-page",
            "log" => "log-page",
            "kind" => "kind",
            "kinds" => "kind-page",
            "outcome" => "problem",
            _ => "operation",
        };
        fits(schema, &example["value"]);
    }
}

/// The examples are messages that the code made, so this is what the code puts into one.
#[test]
fn messages_have_the_headers_that_are_documented() {
    for (name, message) in messages::all() {
        let Some(example) = message["examples"].get(0) else { continue };
        let mut schema = message["headers"].clone();
        schema["additionalProperties"] = json!(false);
        assert!(jsonschema::is_valid(&schema, &example["headers"]), "{name}: {}", example["headers"]);
        let documented = schema["properties"].as_object().unwrap().keys().filter(|name| *name != "version");
        let missing: Vec<_> = documented.filter(|header| example["headers"].get(header).is_none()).collect();
        let may_miss = matches!(name.as_str(), "reply").then_some("retry-after");
        assert!(missing.iter().all(|header| Some(header.as_str()) == may_miss), "{name} lacks {missing:?}");
        assert!(jsonschema::is_valid(&message["payload"], &example["payload"]), "{name}: {}", example["payload"]);
    }
}

#[test]
fn the_page_tells_every_call_and_loads_nothing() {
    let config = config();
    let page = page::html(&openapi::document(&config), &asyncapi::document(), "http://localhost");
    for call in calls() {
        assert!(page.contains(&format!("<article id=\"{}\">", call.id)), "{}", call.id);
    }
    for loads in ["<script", "src=", "<link", "@import", "url(", "style="] {
        assert!(!page.contains(loads), "{loads}");
    }
}
