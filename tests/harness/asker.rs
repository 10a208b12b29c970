use super::PATIENCE;
use super::broker::VirtualHost;
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use serde_json::Value;
use shared::message::{Cancel, Content, Message, OperationId, Progress, Reply, Request, ReturnAddress};
use shared::topology;
use std::time::Duration;

/// The requestor group that a test speaks for.
const GROUP: &str = "tester";

/// After how long what was answered before is asked for once more.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A requestor without a store: sends what it is told to send and shows what comes back.
#[derive(Debug)]
pub struct Asker {
    connection: Connection,
    channel: Channel,
    replies: Consumer,
    progress: Consumer,
}

/// A request of `kind` for a new operation.
#[must_use]
pub fn request(kind: &str, body: &Value) -> Request {
    let operation = OperationId::new();
    Request {
        operation: Some(operation),
        correlation_id: operation.to_string(),
        kind: kind.into(),
        step: 1,
        attempt: 1,
        deadline: Some(Timestamp::now() + Duration::from_secs(120)),
        expiration: None,
        reply_to: Some(ReturnAddress::Group(GROUP.into())),
        priority: None,
        traceparent: None,
        content: Content::json(body.to_string()),
    }
}

impl Asker {
    /// Declares what a requestor and a provider of `kinds` need, so that neither has to be there first.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn start(host: &VirtualHost, kinds: &[&str]) -> Self {
        let connection = host.connect().await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let kinds: Vec<_> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        topology::declare_for_requestor(&channel, GROUP, &kinds).await.unwrap();
        topology::declare_for_provider(&channel, "default", GROUP, &kinds).await.unwrap();
        let replies = consume(&channel, &topology::reply_queue(GROUP)).await;
        let progress = consume(&channel, &topology::progress_queue(GROUP)).await;
        Self { connection, channel, replies, progress }
    }

    /// Sends a request.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub async fn send(&self, request: &Request) {
        let operation = request.operation.unwrap();
        self.publish(&request.to_message(operation, GROUP, Timestamp::now()).unwrap()).await;
    }

    /// Asks to cancel a request.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub async fn cancel(&self, request: &Request) {
        let cancel = Cancel {
            operation: request.operation.unwrap(),
            kind: request.kind.clone(),
            step: request.step,
            attempt: request.attempt,
            deadline: request.deadline.unwrap(),
            reply_to: request.reply_to.clone().unwrap(),
        };
        self.publish(&cancel.to_message().unwrap()).await;
    }

    /// The next reply to the step that `request` is; a provider that was killed may have answered an earlier one twice.
    ///
    /// # Panics
    /// When none comes, or one to another operation.
    pub async fn reply(&mut self, request: &Request) -> Reply {
        loop {
            let (operation, reply) = self.any_reply().await;
            assert_eq!(Some(operation), request.operation, "{reply:?}");
            if reply.step == request.step {
                return reply;
            }
        }
    }

    /// Asks for what was answered already. A copy that reaches the provider before it knows that the broker has the reply is
    /// dropped as superfluous, so this asks until there is an answer, as a requestor does.
    ///
    /// # Panics
    /// When none comes.
    pub async fn again(&mut self, request: &Request) -> Reply {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.send(request).await;
            if let Ok(reply) = tokio::time::timeout(AGAIN_AFTER, self.reply(request)).await {
                return reply;
            }
            assert!(tokio::time::Instant::now() < until, "no reply within {PATIENCE:?}");
        }
    }

    /// The next reply, whatever it answers.
    ///
    /// # Panics
    /// When none comes.
    pub async fn any_reply(&mut self) -> (OperationId, Reply) {
        Reply::from_delivery(&mut next(&mut self.replies, "reply").await).unwrap()
    }

    /// The next report of progress.
    ///
    /// # Panics
    /// When none comes.
    pub async fn progress(&mut self) -> Progress {
        Progress::from_delivery(&next(&mut self.progress, "progress").await).unwrap().1
    }

    /// Deletes a queue under the feet of those who use it.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn delete_queue(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), Default::default()).await.unwrap();
    }

    /// Leaves nothing behind.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn finish(self) {
        for queue in [topology::reply_queue(GROUP), topology::progress_queue(GROUP)] {
            self.delete_queue(&queue).await;
        }
        self.connection.close(200, "done".into()).await.unwrap();
    }

    /// The next reply as it comes.
    ///
    /// # Panics
    /// When none comes.
    pub async fn delivery(&mut self) -> Delivery {
        next(&mut self.replies, "reply").await
    }

    /// Publishes any message.
    ///
    /// # Panics
    /// When it cannot be sent.
    #[expect(clippy::disallowed_methods, reason = "messages of a requestor that the test plays")]
    pub async fn publish(&self, message: &Message) {
        let (options, properties) = (BasicPublishOptions::default(), message.properties.clone());
        let (exchange, key) = (message.exchange.into(), message.routing_key.clone());
        let confirm = self.channel.basic_publish(exchange, key, options, &message.body, properties);
        confirm.await.unwrap().await.unwrap();
    }
}

async fn consume(channel: &Channel, queue: &str) -> Consumer {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    channel.basic_consume(queue.into(), "".into(), options, arguments).await.unwrap()
}

async fn next(consumer: &mut Consumer, what: &str) -> Delivery {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await;
    let delivery = delivery.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}")).unwrap().unwrap();
    delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    delivery
}
