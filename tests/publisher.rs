//! The publisher never calls a message sent that no queue took.

use bytes::Bytes;
use harness::broker::Broker;
use lapin::BasicProperties;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use shared::amqp::{PublishError, Status, Supervisor, publisher};
use shared::config::SecretUrl;
use shared::message::Message;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 100;
const BATCH: usize = 64;

/// Every second message has no queue. With lapin's own attribution of returned messages, dozens of them would be
/// reported as sent (and as many good ones as returned).
#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_in_a_batch_are_told_from_routed_ones() {
    let host = Broker::shared().await.virtual_host().await;
    let mut config = requestor::config::Config::load(None).unwrap().broker;
    config.url = SecretUrl::new(&host.url);
    config.publish_batch_max = BATCH;
    let (publisher, mut queue) = publisher(&config);
    let (status, shutdown) = (Status::channel(), CancellationToken::new());
    let mut supervisor = Supervisor::new(&config, "test".into(), &status, &shutdown);
    let session = supervisor.open().await.unwrap();
    let connection = host.connect().await;
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("routed".into(), durable, FieldTable::default()).await.unwrap();

    let check = async {
        for round in 0..ROUNDS {
            let sends = (0..BATCH).map(|n| publisher.publish(message(round * BATCH + n)));
            for (n, result) in futures_util::future::join_all(sends).await.into_iter().enumerate() {
                let expected = if n.is_multiple_of(2) { Ok(()) } else { Err(PublishError::Unroutable) };
                assert_eq!(result, expected, "round {round}, message {n}");
            }
        }
    };
    tokio::select! {
        () = check => {}
        result = supervisor.guard(&session, session.publish_from(&mut queue)) => panic!("{result:?}"),
    }
    let purged = channel.queue_purge("routed".into(), QueuePurgeOptions::default()).await.unwrap();
    assert_eq!(purged as usize, ROUNDS * BATCH / 2);
    host.delete().await;
}

fn message(n: usize) -> Message {
    let message_id: lapin::types::ShortString = format!("message-{n}").into();
    Message {
        exchange: "",
        routing_key: if n.is_multiple_of(2) { "routed".into() } else { "nowhere".into() },
        properties: BasicProperties::default().with_message_id(message_id.clone()),
        message_id,
        body: Bytes::from_static(b"x"),
        mandatory: true,
    }
}
