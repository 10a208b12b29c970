//! A provider that a test plays itself, message by message.

use harness::broker::VirtualHost;
use harness::eventually;
use harness::pair::Pair;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::{Channel, Connection};
use shared::message::{Cancel, Content, Message, Outcome, Progress, Reply, Request, answer};
use shared::problem::Problem;
use shared::topology;
use std::time::Duration;

/// The group of the provider that is played.
const GROUP: &str = "default";

pub(crate) struct StandIn {
    connection: Connection,
    channel: Channel,
    kinds: Vec<String>,
}

impl StandIn {
    /// Declares what a provider of `kinds` declares.
    pub(crate) async fn join(pair: &Pair, kinds: &[&str]) -> Self {
        Self::join_in(&pair.host, kinds).await
    }

    /// The same without a pair.
    pub(crate) async fn join_in(host: &VirtualHost, kinds: &[&str]) -> Self {
        let connection = host.connect().await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let kinds: Vec<_> = kinds.iter().map(|&kind| kind.to_owned()).collect();
        topology::declare_for_provider(&channel, GROUP, "stand-in", &kinds).await.unwrap();
        Self { connection, channel, kinds }
    }

    /// Takes the next request of `kind`, once it is there.
    pub(crate) async fn request(&self, kind: &str) -> Request {
        let mut delivery = self.take(&topology::request_queue(kind)).await;
        Request::from_delivery(kind, &mut delivery).unwrap()
    }

    /// Takes the next wish to cancel, once it is there.
    pub(crate) async fn cancel(&self) -> Cancel {
        Cancel::from_delivery(&self.take(&topology::control_queue(GROUP)).await).unwrap()
    }

    /// How many requests of `kind` wait.
    pub(crate) async fn waiting(&self, kind: &str) -> u32 {
        let queue = topology::request_queue(kind);
        let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        self.channel.queue_declare(queue.as_str().into(), passive, Default::default()).await.unwrap().message_count()
    }

    pub(crate) async fn reply(&self, request: &Request, reply: Reply) {
        let message = answer(request.reply_to.as_ref().unwrap(), &request.correlation_id, &reply).unwrap();
        self.publish(&message).await;
    }

    pub(crate) async fn succeed(&self, request: &Request, body: &str) {
        let outcome = Outcome::Succeeded(Content::json(body.to_owned()));
        self.reply(request, Reply::new(request.step, request.attempt, outcome)).await;
    }

    pub(crate) async fn fail(&self, request: &Request, problem: Problem) {
        self.reply(request, Reply::new(request.step, request.attempt, Outcome::Failed(problem))).await;
    }

    /// A failure that may pass.
    pub(crate) async fn be_busy(&self, request: &Request, retry_after: Option<Duration>) {
        let outcome = Outcome::Failed(Problem::new("busy", 503, "Busy", "come back later"));
        let reply = Reply { retryable: true, retry_after, ..Reply::new(request.step, request.attempt, outcome) };
        self.reply(request, reply).await;
    }

    pub(crate) async fn report(&self, request: &Request, percent: f64, lease: Option<Duration>) {
        let (step, attempt, sequence) = (request.step, request.attempt, Timestamp::now().as_microsecond());
        let progress = Progress { step, attempt, sequence, percent: Some(percent), message: None, lease };
        self.publish(&request.progress_message(&progress).unwrap().unwrap()).await;
    }

    /// Takes what was sent again in the meantime with it, and goes.
    pub(crate) async fn leave(self) {
        let queues = self.kinds.iter().map(|kind| topology::request_queue(kind));
        for queue in queues.chain([topology::control_queue(GROUP)]) {
            self.channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
        }
        self.connection.close(200, "done".into()).await.unwrap();
    }

    async fn take(&self, queue: &str) -> Delivery {
        eventually(&format!("{queue} has a message"), async || {
            let options = BasicGetOptions { no_ack: true };
            let got = self.channel.basic_get(queue.into(), options).await.unwrap();
            got.map(|got| got.delivery).ok_or_else(|| "nothing".to_owned())
        })
        .await
    }

    #[expect(clippy::disallowed_methods, reason = "a provider of the test's own")]
    async fn publish(&self, message: &Message) {
        let (options, properties) = (BasicPublishOptions::default(), message.properties.clone());
        let key = message.routing_key.clone();
        let sent = self.channel.basic_publish(message.exchange.into(), key, options, &message.body, properties);
        sent.await.unwrap().await.unwrap();
    }
}
