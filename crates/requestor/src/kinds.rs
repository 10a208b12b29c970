//! What can be asked for, and what a request of each kind must look like.

use crate::config::{Config, KindConfig};
use anyhow::Context;
use jsonschema::Validator;
use serde_json::{Value, json};
use shared::problem::Problem;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Violations that are told at most; a body of many small mistakes must not make a large answer.
const VIOLATIONS_MAX: usize = 50;
/// The longest detail and the longest pointer of one violation, in bytes.
const VIOLATION_BYTES_MAX: usize = 512;

/// The kinds that this requestor knows.
#[derive(Debug)]
pub(crate) struct Kinds(BTreeMap<String, Kind>);

/// One kind.
#[derive(Debug)]
pub(crate) struct Kind {
    /// How long an operation of this kind may take unless the caller says otherwise.
    pub timeout: Duration,
    /// The kinds of its steps, if it is a pipeline.
    pub steps: Vec<String>,
    /// Of its first step, if it is a pipeline.
    validator: Option<Arc<Validator>>,
}

impl Kinds {
    /// Compiles the schemas: those that come with the product and those the configuration names.
    ///
    /// # Errors
    /// Which file is not there or no JSON Schema.
    pub(crate) fn load(config: &Config) -> anyhow::Result<Self> {
        let built_in = shared::schema::built_in().into_iter();
        let mut built_in: HashMap<_, _> =
            built_in.filter_map(|(name, schemas)| Some((name, schemas.request?))).collect();
        let mut kinds = BTreeMap::new();
        for (name, settings) in &config.kinds {
            let schema = match read_schema(name, settings)? {
                None => built_in.remove(name.as_str()),
                given => given,
            };
            let validator = schema
                .map(|schema| jsonschema::validator_for(&schema).map_err(|e| anyhow::anyhow!("schema of {name}: {e}")))
                .transpose()?
                .map(Arc::new);
            let timeout = settings.timeout.unwrap_or(config.operations.timeout);
            kinds.insert(name.clone(), Kind { timeout, steps: Vec::new(), validator });
        }
        for (name, pipeline) in &config.pipelines {
            let first = pipeline.steps.first().and_then(|first| kinds.get(first));
            let validator = first.and_then(|kind: &Kind| kind.validator.clone());
            let timeout = pipeline.timeout.unwrap_or(config.operations.timeout);
            kinds.insert(name.clone(), Kind { timeout, steps: pipeline.steps.clone(), validator });
        }
        Ok(Self(kinds))
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// A problem that names the known kinds.
    pub(crate) fn get(&self, name: &str) -> Result<&Kind, Problem> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<_> = self.0.keys().cloned().collect();
            let detail = format!("there is no kind {name:?}; known are {}", known.join(", "));
            Problem::new("unknown-kind", 404, "Unknown kind", detail).with("kinds", known)
        })
    }
}

/// The validator repeats what violates, which may be most of the body, once for each violation.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(VIOLATION_BYTES_MAX));
    text
}

fn read_schema(name: &str, settings: &KindConfig) -> anyhow::Result<Option<Value>> {
    let Some(path) = &settings.schema else { return Ok(None) };
    let text = std::fs::read(path).with_context(|| format!("kinds.{name}.schema: cannot read {}", path.display()))?;
    let schema = serde_json::from_slice(&text).with_context(|| format!("kinds.{name}.schema: {}", path.display()))?;
    Ok(Some(schema))
}

impl Kind {
    /// Checks a request against the kind's schema.
    ///
    /// # Errors
    /// A problem with every violation and the JSON pointer (RFC 6901) of what violates.
    pub(crate) fn validate(&self, request: &Value) -> Result<(), Problem> {
        let Some(validator) = &self.validator else { return Ok(()) };
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
        Err(Problem::new("invalid-request", 422, "The request does not fit its schema", detail)
            .with("errors", violations))
    }
}
