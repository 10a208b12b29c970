//! JSON Schemas: our own are trusted, those of providers are looked at first.

use jsonschema::{PatternOptions, Validator};
use serde_json::{Value, json};
use shared::problem::Problem;

/// Violations that are told at most; a body of many small mistakes must not make a large answer.
const VIOLATIONS_MAX: usize = 50;
/// The longest detail and the longest pointer of one violation, in bytes.
const VIOLATION_BYTES_MAX: usize = 512;
/// Values in an announced schema once its references are followed. A schema of 64 KiB has a few thousand; a chain of
/// references that double could have as many as one likes, and each request would be checked against all of them.
const UNFOLDED_MAX: usize = 50_000;

/// Compiles a schema of the configuration or of the product.
pub(super) fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::validator_for(schema).map_err(|error| cut(error.to_string()))
}

/// Compiles a schema that a provider has announced: one that costs little to check, by patterns of linear time only.
pub(super) fn compile_announced(schema: &Value) -> Result<Validator, String> {
    unfold(schema, schema, &mut Vec::new(), &mut 0)?;
    let linear = jsonschema::options().with_pattern_options(PatternOptions::regex());
    linear.build(schema).map_err(|error| cut(error.to_string()))
}

/// Counts what `value`, a part of the schema `root`, amounts to. `path` has the references that lead to it: what refers
/// to itself counts once, since it is checked once for each level of a request.
fn unfold<'a>(value: &'a Value, root: &'a Value, path: &mut Vec<&'a str>, count: &mut usize) -> Result<(), String> {
    *count += 1;
    if *count > UNFOLDED_MAX {
        return Err(format!("its references amount to more than {UNFOLDED_MAX} values"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| unfold(item, root, path, count)),
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), member) {
                    ("$ref", Value::String(target)) => follow(target, root, path, count)?,
                    ("$dynamicRef" | "$recursiveRef" | "$id" | "$anchor", Value::String(_)) => {
                        return Err(format!("{name} is not supported: refer to a part of the schema by #/…"));
                    }
                    _ => unfold(member, root, path, count)?,
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn follow<'a>(target: &'a str, root: &'a Value, path: &mut Vec<&'a str>, count: &mut usize) -> Result<(), String> {
    if path.contains(&target) {
        return Ok(());
    }
    let part = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
    let part = part.ok_or_else(|| format!("{target:.80?} is no part of it"))?;
    path.push(target);
    let unfolded = unfold(part, root, path, count);
    path.pop();
    unfolded
}

/// Checks a request.
///
/// # Errors
/// A problem with every violation and the JSON pointer (RFC 6901) of what violates.
pub(super) fn validate(validator: &Validator, request: &Value) -> Result<(), Problem> {
    let violations: Vec<Value> = validator
        .iter_errors(request)
        .take(VIOLATIONS_MAX)
        .map(|error| (error.instance_path().to_string(), error.to_string()))
        .map(|(pointer, detail)| json!({ "pointer": cut(pointer), "detail": cut(detail) }))
        .collect();
    if violations.is_empty() {
        return Ok(());
    }
    let detail = format!("{} violation(s) of the schema; see errors", violations.len());
    Err(Problem::new("invalid-request", 422, "The request does not fit its schema", detail).with("errors", violations))
}

/// The validator repeats what violates, which may be most of the body, once for each violation.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(VIOLATION_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_that_would_keep_us_busy_or_leads_elsewhere_is_refused() {
        let double = |n: usize| json!({"allOf": [{"$ref": format!("#/$defs/{n}")}, {"$ref": format!("#/$defs/{n}")}]});
        let mut doubling = json!({"$ref": "#/$defs/0", "$defs": {"40": true}});
        for n in 0..40 {
            doubling["$defs"][n.to_string()] = double(n + 1);
        }
        for (schema, hint) in [
            (doubling, "amount to more"),
            (json!({"$ref": "http://example.com/schema"}), "no part of it"),
            (json!({"$ref": "file:///etc/passwd"}), "no part of it"),
            (json!({"$ref": "#/$defs/nothing"}), "no part of it"),
            (json!({"$dynamicAnchor": "a", "anyOf": [{"$dynamicRef": "#a"}]}), "$dynamicRef"),
            (json!({"pattern": "(?=a)b"}), "regex"),
            (json!({"pattern": "(a{1000}){1000}"}), "regex"),
            (json!({"type": "nonsense"}), "nonsense"),
            (json!({"$schema": "http://example.com/meta"}), "example.com"),
        ] {
            let error = compile_announced(&schema).unwrap_err();
            assert!(error.contains(hint), "{schema:.80}: {error}");
        }
    }

    #[test]
    fn a_schema_may_refer_to_itself() {
        let tree = json!({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}});
        let tree = compile_announced(&tree).unwrap();
        assert!(tree.is_valid(&json!({"children": [{"children": []}]})));
        let errors = validate(&tree, &json!({"children": [{"children": [1]}]})).unwrap_err().to_json();
        assert!(String::from_utf8_lossy(&errors).contains("/children/0/children/0"));
        for endless in [json!({"$ref": "#"}), json!({"allOf": [{"$ref": "#"}]})] {
            assert!(compile_announced(&endless).unwrap().is_valid(&json!(1)));
        }
        for (_, schemas) in shared::schema::built_in() {
            compile_announced(&schemas.request.unwrap()).unwrap();
            compile_announced(&schemas.result.unwrap()).unwrap();
        }
    }

    #[test]
    fn a_pattern_takes_linear_time() {
        let validator = compile_announced(&json!({"pattern": "^(a+)+$"})).unwrap();
        assert!(!validator.is_valid(&json!(format!("{}b", "a".repeat(10_000)))));
    }
}
