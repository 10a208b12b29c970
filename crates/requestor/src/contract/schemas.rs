//! JSON Schemas of what is sent and answered, from the types that are.

use crate::http::{EventPage, KindPage, KindView, LogPage, OperationPage, OperationView};
use crate::webhook::Document;
#[cfg(test)]
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
#[cfg(test)]
use shared::message::Announcement;
use shared::problem::Problem;

/// The schemas of answers, which refer to each other as an OpenAPI document wants it.
pub(super) fn answers() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator =
        settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
    generator.subschema_for::<OperationView<'_>>();
    generator.subschema_for::<OperationPage<'_>>();
    generator.subschema_for::<EventPage<'_>>();
    generator.subschema_for::<LogPage<'_>>();
    generator.subschema_for::<KindView>();
    generator.subschema_for::<KindPage>();
    generator.subschema_for::<Document<'_>>();
    generator.subschema_for::<Problem>();
    let mut schemas = generator.take_definitions(true);
    schemas.values_mut().for_each(tidy);
    schemas
}

/// The schemas of requests and results of the kinds that come with the product, as `order.place.request`.
pub(super) fn payloads() -> Map<String, Value> {
    let mut schemas = Map::new();
    for (kind, of_kind) in shared::schema::built_in() {
        for (what, schema) in [("request", of_kind.request), ("result", of_kind.result)] {
            schemas.extend(schema.map(|schema| (format!("{kind}.{what}"), schema)));
        }
    }
    schemas
}

/// `payloads`, each in one piece: within another document a reference would lead elsewhere.
pub(super) fn inlined_payloads() -> Map<String, Value> {
    payloads().into_iter().map(|(name, schema)| (name, inlined(schema))).collect()
}

/// The documents in `docs/schemas/`, by name.
#[cfg(test)]
pub(super) fn documents() -> Map<String, Value> {
    let mut documents = payloads();
    documents.insert("operation".into(), document::<OperationView<'_>>());
    documents.insert("operation-page".into(), document::<OperationPage<'_>>());
    documents.insert("event-page".into(), document::<EventPage<'_>>());
    documents.insert("log-page".into(), document::<LogPage<'_>>());
    documents.insert("kind".into(), document::<KindView>());
    documents.insert("kind-page".into(), document::<KindPage>());
    documents.insert("webhook".into(), document::<Document<'_>>());
    documents.insert("announcement".into(), schemars::schema_for!(Announcement).to_value());
    documents.insert("problem".into(), document::<Problem>());
    documents
}

#[cfg(test)]
fn document<T: JsonSchema>() -> Value {
    let mut schema =
        SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// What is left out when there is none is never null.
fn tidy(schema: &mut Value) {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().cloned().collect();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        let optional = properties.iter_mut().filter(|(name, _)| !required.contains(&json!(name)));
        optional.for_each(|(_, property)| without_null(property));
    }
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        definitions.values_mut().for_each(tidy);
    }
}

fn without_null(schema: &mut Value) {
    if let Some(types) = schema["type"].as_array() {
        let mut types: Vec<_> = types.iter().filter(|name| *name != "null").cloned().collect();
        schema["type"] = if types.len() == 1 { types.remove(0) } else { json!(types) };
    } else if let Some(choices) = schema["anyOf"].as_array()
        && let [only] = &choices.iter().filter(|choice| choice["type"] != "null").collect::<Vec<_>>()[..]
    {
        let (only, description) = ((*only).clone(), schema["description"].take());
        *schema = only;
        schema["description"] = description;
    }
}

/// The schema with its definitions in place of the references to them. None of ours refers to itself.
pub(super) fn inlined(mut schema: Value) -> Value {
    let definitions = match schema.as_object_mut() {
        Some(object) => {
            object.remove("$schema");
            object.remove("$defs").unwrap_or_default()
        }
        // Any JSON. Some tools want an object where the standard lets `true` stand.
        None => return json!({}),
    };
    resolve(&mut schema, &definitions);
    schema
}

fn resolve(schema: &mut Value, definitions: &Value) {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        let (definition, beside) = (definitions[name].clone(), schema.as_object_mut().map(std::mem::take));
        *schema = definition;
        for (key, value) in beside.into_iter().flatten().filter(|(key, _)| key != "$ref") {
            schema[key] = value;
        }
    }
    match schema {
        Value::Object(object) => object.values_mut().for_each(|value| resolve(value, definitions)),
        Value::Array(array) => array.iter_mut().for_each(|value| resolve(value, definitions)),
        _ => {}
    }
}
