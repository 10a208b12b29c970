//! Whatever a message says, reading it neither panics nor believes too much.

use super::*;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString};
use proptest::option::of;
use proptest::prelude::*;

const NAMES: &[&str] = &[
    "attempt",
    "step",
    "deadline",
    "traceparent",
    "sequence",
    "percent",
    "lease",
    "retry-after",
    "retryable",
    "version",
    "x",
];
const BODY_BYTES_MAX: usize = 1000;

fn value() -> impl Strategy<Value = AMQPValue> {
    let text = prop_oneof![
        any::<Vec<u8>>().prop_map(LongString::from),
        "[0-9T:Z-]{0,30}".prop_map(|text| LongString::from(text.as_str())),
    ];
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<f64>().prop_map(AMQPValue::Double),
        any::<f32>().prop_map(AMQPValue::Float),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        text.prop_map(AMQPValue::LongString),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(12, 64, 4, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..4).prop_map(|items| AMQPValue::FieldArray(items.into()));
        prop_oneof![items, headers(inner).prop_map(AMQPValue::FieldTable)]
    })
}

fn headers(value: impl Strategy<Value = AMQPValue>) -> impl Strategy<Value = FieldTable> {
    let names = prop::sample::select(NAMES);
    prop::collection::vec((names, value), 0..6).prop_map(|entries| {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.into(), value);
        }
        table
    })
}

fn short(pattern: &'static str) -> impl Strategy<Value = Option<ShortString>> {
    of(pattern.prop_map(|text| ShortString::try_new(text.as_str()).unwrap_or_default()))
}

fn properties() -> impl Strategy<Value = BasicProperties> {
    let types = prop::sample::select(&[REQUEST, PROGRESS, CANCEL, ANNOUNCE, REPLY, ERROR, "", "arr.nonsense"][..]);
    let names = (of(types), short("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}|.{0,60}"));
    let addresses = short("arr\\.(reply|control|request)\\.[a-z#*.-]{0,10}|.{0,60}|[a-z\\x00]{0,255}");
    let rest = (short("[0-9]{0,25}|.{0,8}"), short(".{0,20}"), short("gzip|utf-8|.{0,8}"), of(headers(value())));
    (names, addresses, rest).prop_map(|((kind, id), address, (expiration, content_type, encoding, headers))| {
        let mut properties = BasicProperties::default();
        let given = |value: Option<ShortString>| value.unwrap_or_default();
        if let Some(kind) = kind {
            properties = properties.with_type(kind.into());
        }
        if let Some(id) = id {
            properties = properties.with_correlation_id(id);
        }
        if let Some(headers) = headers {
            properties = properties.with_headers(headers);
        }
        let properties = properties.with_reply_to(given(address)).with_expiration(given(expiration));
        properties.with_content_type(given(content_type)).with_content_encoding(given(encoding))
    })
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let announced =
        r#"\{"kind":"[a-z.#]{0,9}","group":"[a-z]{0,3}","instance":"[^"]{0,70}","concurrency":[0-9]{1,6}\}"#;
    let bodies = prop_oneof![
        any::<Vec<u8>>(),
        r#"\{"message":"[^"]{0,300}"\}|[\[{]{0,300}"#.prop_map(String::into_bytes),
        announced.prop_map(String::into_bytes),
    ];
    (properties(), bodies).prop_map(|(properties, body)| {
        let mut delivery = Delivery::mock(1, "x".into(), "echo".into(), false, body);
        delivery.properties = properties;
        delivery
    })
}

fn with_headers(headers: FieldTable) -> Delivery {
    let mut delivery = Delivery::mock(1, "x".into(), "echo".into(), false, vec![b'1']);
    delivery.properties = BasicProperties::default().with_headers(headers);
    delivery
}

fn problem_of(delivery: &Delivery) -> String {
    check_request(delivery, BODY_BYTES_MAX).unwrap_err().type_uri
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_message_makes_a_reader_panic(mut delivery in delivery()) {
        let _ = check_request(&delivery, BODY_BYTES_MAX);
        let _ = Cancel::from_delivery(&delivery);
        if let Ok(announcement) = Announcement::from_delivery(&delivery) {
            prop_assert!(topology::is_kind(&announcement.kind) && announcement.instance.len() <= 64);
            prop_assert!(announcement.concurrency > 0 && announcement.to_message().is_ok());
        }
        if let Ok((_, progress)) = Progress::from_delivery(&delivery) {
            prop_assert!(progress.message.is_none_or(|text| text.len() <= PROGRESS_MESSAGE_BYTES_MAX));
            prop_assert!(progress.percent.is_none_or(|percent| (0.0..=100.0).contains(&percent)));
        }
        if let Ok((_, reply)) = Reply::from_delivery(&mut delivery) {
            let _ = reply.at_most(BODY_BYTES_MAX);
        }
        if let Ok(request) = Request::from_delivery("echo", &mut delivery) {
            // What was read can be answered, or is said not to be; and leads to no queue of ours but a reply queue.
            if let Some(address) = &request.reply_to
                && let Ok(message) = answer(address, &request.correlation_id, &Reply::new(1, 1, Outcome::Failed(Problem::canceled())))
            {
                let key = message.routing_key.as_str();
                prop_assert_eq!(key.starts_with("arr."), message.exchange == "arr.reply", "{}", key);
                prop_assert!(!message.exchange.is_empty() || !key.starts_with("arr."));
            }
        }
    }
}

#[test]
fn header_bombs_are_refused_and_a_history_of_dead_lettering_is_not() {
    let mut many = FieldTable::default();
    for n in 0..10_000 {
        many.insert(format!("h{n}").into(), AMQPValue::Void);
    }
    let mut large = FieldTable::default();
    large.insert("x".into(), AMQPValue::LongString("x".repeat(100 * 1024).into()));
    let nested = |depth: usize| {
        let value = (0..depth).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])));
        let mut table = FieldTable::default();
        table.insert("x".into(), value);
        table
    };
    for bomb in [many, large, nested(100)] {
        let delivery = with_headers(bomb);
        assert!(problem_of(&delivery).ends_with("unreadable-message"));
        assert!(check_headers(&delivery.properties).is_err());
    }
    // x-death: an array of tables with an array of routing keys in each.
    check_headers(&with_headers(nested(4)).properties).unwrap();
}

#[test]
fn a_request_of_another_version_encoding_or_size_is_refused_by_name() {
    let version = |value: AMQPValue| {
        let mut headers = FieldTable::default();
        headers.insert("version".into(), value);
        with_headers(headers)
    };
    check_request(&version(AMQPValue::LongInt(1)), BODY_BYTES_MAX).unwrap();
    for other in [AMQPValue::LongInt(2), AMQPValue::LongLongInt(0), AMQPValue::LongString("1".into()), AMQPValue::Void]
    {
        assert!(problem_of(&version(other.clone())).ends_with("unsupported-version"), "{other:?}");
    }
    let mut delivery = with_headers(FieldTable::default());
    for (encoding, fine) in
        [("", true), ("UTF-8", true), ("identity", true), ("gzip", false), ("x".repeat(255).as_str(), false)]
    {
        delivery.properties = BasicProperties::default().with_content_encoding(encoding.into());
        match fine {
            true => check_request(&delivery, BODY_BYTES_MAX).unwrap(),
            false => assert!(problem_of(&delivery).ends_with("unsupported-media-type")),
        }
    }
    delivery.properties = BasicProperties::default();
    delivery.data = vec![b'0'; BODY_BYTES_MAX + 1];
    assert!(problem_of(&delivery).ends_with("too-large"));
}

#[test]
fn a_message_whose_headers_could_break_the_connection_is_not_made() {
    let operation = OperationId::new();
    let request = Request {
        operation: Some(operation),
        correlation_id: operation.to_string(),
        kind: "echo".into(),
        step: 1,
        attempt: 1,
        deadline: None,
        expiration: None,
        reply_to: None,
        priority: None,
        traceparent: Some("x".repeat(200_000)),
        content: Content::json("1"),
    };
    let refused = request.to_message(operation, "default", Timestamp::now()).unwrap_err();
    assert!(refused.to_string().contains("bytes"), "{refused}");
}

#[test]
fn only_a_traceparent_is_passed_on_as_one() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert!(is_traceparent(good));
    let bad = [
        "",
        "00",
        &good.to_uppercase(),
        &format!("{good}-x"),
        &good.replacen("00", "ff", 1),
        &good.replace('a', "\r"),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    ];
    for bad in bad {
        assert!(!is_traceparent(bad), "{bad:?}");
    }
}
