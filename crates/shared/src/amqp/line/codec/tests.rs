use super::*;
use amq_protocol::frame::AMQPContentHeader;
use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::types::{AMQPValue, FieldTable};
use proptest::prelude::*;

const LIMITS: Limits = Limits { frame_max: 4096, body_max: 20_000 };

fn properties() -> AMQPProperties {
    let mut headers = FieldTable::default();
    headers.insert("attempt".into(), AMQPValue::LongUInt(1));
    AMQPProperties::default()
        .with_content_type("text/plain".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(7)
        .with_correlation_id("a1".into())
        .with_expiration("250".into())
        .with_message_id("m".into())
        .with_timestamp(1)
        .with_type("arr.reply".into())
        .with_user_id("guest".into())
}

/// What a broker writes, by the crate that lapin writes with.
fn delivered(body: &[u8], chunk: usize) -> Vec<u8> {
    let deliver = basic::Deliver {
        consumer_tag: "echo".into(),
        delivery_tag: 42,
        redelivered: false,
        exchange: "arr.call".into(),
        routing_key: "echo".into(),
    };
    let header = AMQPContentHeader { class_id: BASIC, body_size: body.len() as u64, properties: properties() };
    let method = AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver));
    let mut frames = vec![AMQPFrame::Method(1, method), AMQPFrame::Header(1, header)];
    for part in body.chunks(chunk) {
        frames.extend([AMQPFrame::Heartbeat, AMQPFrame::Body(1, part.to_vec())]);
    }
    let mut bytes = Vec::new();
    for frame in frames {
        let (written, _) = gen_frame(&frame)(WriteContext::from(Vec::new())).unwrap().into_inner();
        bytes.extend_from_slice(&written);
    }
    bytes
}

#[test]
fn what_we_write_another_reads() {
    let (mut bytes, body) = (Vec::new(), [b'x'; 5000]);
    let properties = Properties {
        content_type: b"application/json",
        correlation_id: b"7",
        reply_to: b"amq.rabbitmq.reply-to",
        expiration: b"1000",
        message_type: b"arr.reply",
        ..Properties::default()
    };
    let message = Outgoing { exchange: b"arr.call", routing_key: b"echo", mandatory: true, properties, body: &body };
    publish(&mut bytes, LIMITS.frame_max, &message);
    ack(&mut bytes, 9, true);
    heartbeat(&mut bytes);
    let (mut rest, mut frames) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let (left, frame) = parse_frame(rest).unwrap();
        rest = left;
        frames.push(frame);
    }
    let published =
        basic::Publish { exchange: "arr.call".into(), routing_key: "echo".into(), mandatory: true, immediate: false };
    let expected = AMQPProperties::default()
        .with_content_type("application/json".into())
        .with_correlation_id("7".into())
        .with_reply_to("amq.rabbitmq.reply-to".into())
        .with_expiration("1000".into())
        .with_type("arr.reply".into());
    let header = AMQPContentHeader { class_id: BASIC, body_size: 5000, properties: expected };
    let basic = |method| AMQPFrame::Method(1, AMQPClass::Basic(method));
    let expected = [
        basic(basic::AMQPMethod::Publish(published)),
        AMQPFrame::Header(1, header),
        AMQPFrame::Body(1, vec![b'x'; 4088]),
        AMQPFrame::Body(1, vec![b'x'; 912]),
        basic(basic::AMQPMethod::Ack(basic::Ack { delivery_tag: 9, multiple: true })),
        AMQPFrame::Heartbeat,
    ];
    assert_eq!(frames, expected);
}

#[test]
fn a_message_is_read_when_it_is_complete_and_not_before() {
    for (body, chunk) in [(&[b'y'; 300][..], 300), (&[b'y'; 300], 7), (&[], 1)] {
        let bytes = delivered(body, chunk);
        for cut in 0..bytes.len() {
            assert_eq!(next(&bytes[..cut], LIMITS).unwrap(), (0, None), "{cut} bytes of {}", bytes.len());
        }
        let (used, event) = next(&bytes, LIMITS).unwrap();
        let Some(Event::Message(message)) = event else { panic!("{event:?}") };
        assert_eq!(used, bytes.len());
        assert_eq!(message.origin, Origin::Delivered { consumer: b"echo", tag: 42 });
        assert_eq!(message.body, body);
        let read = Properties {
            content_type: b"text/plain",
            correlation_id: b"a1",
            expiration: b"250",
            message_type: b"arr.reply",
            ..Properties::default()
        };
        assert_eq!(message.properties, read);
    }
}

#[test]
fn what_is_too_large_is_told_and_the_next_is_read() {
    let mut bytes = delivered(&[b'z'; 20_001], 1000);
    bytes.extend(delivered(b"small", 100));
    let (used, event) = next(&bytes, LIMITS).unwrap();
    assert!(matches!(event, Some(Event::TooLarge(_))), "{event:?}");
    let (_, event) = next(&bytes[used..], LIMITS).unwrap();
    assert!(matches!(event, Some(Event::Message(Incoming { body, .. })) if *body == *b"small"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in any::<Vec<u8>>(), flips in prop::collection::vec((0_usize..600, any::<u8>()), 0..4)) {
        let _ = next(&bytes, LIMITS);
        bytes = delivered(&[b'x'; 200], 90);
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = next(&bytes, LIMITS);
    }
}
