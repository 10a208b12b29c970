use super::BrokerConfig;
use crate::message::Message;
use futures_util::future::{join_all, try_join_all};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection, ErrorKind};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What a broker closes a channel or connection with because of a message: content too large, precondition failed, frame
/// error, syntax error (AMQP 0-9-1, 1.7). Others, such as access refused, are not the message's fault.
const OF_THE_MESSAGE: [u16; 4] = [311, 406, 501, 502];

/// Why a message was not published, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue takes it: nobody has ever served this kind, or the reply queue is gone.
    #[error("no queue takes the message")]
    Unroutable,
    /// The broker refused it, for example because the queue is full; or closed the channel, for it may not publish.
    #[error("the broker refused the message")]
    Refused,
    /// It may or may not have been published: the session failed or the confirm did not come in time.
    #[error("it is not known whether the message was published")]
    Unknown,
    /// More messages wait than `broker.publish_queue_max`.
    #[error("too many messages wait to be published")]
    Full,
    /// The broker closed the channel or the connection because of what this message is, for example larger than it
    /// takes; or each connection was lost on which it was published alone.
    #[error("the broker cannot take such a message")]
    Invalid,
    /// The payload is larger than `broker.message_bytes_max`.
    #[error("the payload has {0} bytes, more than broker.message_bytes_max")]
    TooLarge(usize),
}

/// Connections that may be lost with one message alone in flight before it is taken for the cause. That this happens by
/// chance so often, one after the other, is unlikely; each costs everybody a new connection.
const CONNECTIONS_LOST_MAX: u32 = 3;

struct Job {
    message: Message,
    /// Connections that were lost while this was the one message in flight.
    lost: u32,
    done: Option<oneshot::Sender<Result<(), PublishError>>>,
}

/// Publishes messages; cheap to clone, lives as long as the process and outlasts sessions.
#[derive(Clone, Debug)]
pub struct Publisher {
    jobs: mpsc::Sender<Job>,
    message_bytes_max: usize,
}

/// The other end of a [`Publisher`]: one task owns it and publishes in batches.
#[derive(Debug)]
pub struct PublishQueue {
    jobs: mpsc::Receiver<Job>,
    /// What is published and not confirmed: one batch. It is kept here, since a lost connection ends the future that
    /// publishes it.
    in_flight: Vec<Job>,
    /// What was in a batch that failed: at most one batch.
    suspects: VecDeque<Job>,
    batch_max: usize,
    confirm_timeout: Duration,
}

impl Job {
    fn new(message: Message, done: Option<oneshot::Sender<Result<(), PublishError>>>) -> Self {
        Self { message, lost: 0, done }
    }

    /// Whether somebody waits for it: others, and hints, are not worth a try alone.
    fn is_awaited(&self) -> bool {
        self.done.as_ref().is_some_and(|done| !done.is_closed())
    }

    fn end(self, result: Result<(), PublishError>) {
        if let Some(done) = self.done {
            let _ = done.send(result);
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.message.message_id.fmt(f)
    }
}

/// A publisher and its queue.
#[must_use]
pub fn publisher(config: &BrokerConfig) -> (Publisher, PublishQueue) {
    let (sender, jobs) = mpsc::channel(config.publish_queue_max);
    let publisher = Publisher { jobs: sender, message_bytes_max: config.message_bytes_max };
    let queue = PublishQueue {
        jobs,
        in_flight: Vec::new(),
        suspects: VecDeque::new(),
        batch_max: config.publish_batch_max,
        confirm_timeout: config.confirm_timeout,
    };
    (publisher, queue)
}

impl Publisher {
    /// Publishes `message` and waits until the broker has it, however long there is no broker.
    ///
    /// # Errors
    /// [`PublishError`]; after [`PublishError::Unknown`] publishing again with the same message id is right.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.check(&message)?;
        let (done, confirmed) = oneshot::channel();
        self.jobs.send(Job::new(message, Some(done))).await.map_err(|_| PublishError::Unknown)?;
        confirmed.await.unwrap_or(Err(PublishError::Unknown))
    }

    /// Takes `message` if there is room and lets the caller wait for the confirm.
    ///
    /// # Errors
    /// [`PublishError::Full`] or [`PublishError::TooLarge`] at once; the future's as [`Publisher::publish`]'s.
    pub fn try_publish(
        &self,
        message: Message,
    ) -> Result<impl Future<Output = Result<(), PublishError>> + use<>, PublishError> {
        self.check(&message)?;
        let (done, confirmed) = oneshot::channel();
        self.jobs.try_send(Job::new(message, Some(done))).map_err(|_| PublishError::Full)?;
        Ok(async move { confirmed.await.unwrap_or(Err(PublishError::Unknown)) })
    }

    /// Whether less than three quarters of `broker.publish_queue_max` wait: what begins work leaves room for what ends it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.jobs.capacity() > self.jobs.max_capacity() / 4
    }

    /// Publishes `message` if there is room, and forgets it: for progress, which may be lost.
    pub fn hint(&self, message: Message) {
        if self.check(&message).is_ok() {
            let _ = self.jobs.try_send(Job::new(message, None));
        }
    }

    fn check(&self, message: &Message) -> Result<(), PublishError> {
        match message.body.len() {
            size if size > self.message_bytes_max => Err(PublishError::TooLarge(size)),
            _ => Ok(()),
        }
    }
}

impl PublishQueue {
    /// Publishes batch after batch on `channel` of `connection`, on which nothing else may publish.
    ///
    /// A batch ends with a barrier: all its confirms are awaited before a returned message is told from a routed
    /// one. lapin gives a returned message to whichever confirm completes next, so a single confirm proves
    /// nothing; but when all of a batch are there, so are all its returned messages, and their ids tell.
    ///
    /// What fails as a batch is published again one by one on the next channel, so that a message that the broker
    /// will not have fails alone. One that loses its connection is tried again behind the others, and given up when
    /// it has lost three.
    pub(super) async fn publish_on(
        &mut self,
        connection: &Connection,
        channel: &Channel,
        user: Option<&str>,
    ) -> anyhow::Result<()> {
        // What a session left here that was lost before this task could see why.
        self.keep(None);
        loop {
            match self.suspects.pop_front() {
                Some(suspect) => self.in_flight.push(suspect),
                None if self.jobs.recv_many(&mut self.in_flight, self.batch_max).await == 0 => return Ok(()),
                None => {}
            }
            match self.confirmed(connection, publish_batch(channel, user, &self.in_flight)).await {
                Ok(confirmations) => settle(std::mem::take(&mut self.in_flight), &confirmations),
                Err(error) => {
                    let lost = !connection.status().connected();
                    self.keep(Some(alone(&error)).filter(|result| !lost || *result == PublishError::Invalid));
                    return Err(error);
                }
            }
        }
    }

    /// Awaits the confirms of a batch. During a resource alarm the broker reads nothing from this connection, which
    /// is no reason to give it up.
    async fn confirmed(
        &self,
        connection: &Connection,
        batch: impl Future<Output = lapin::Result<Vec<Confirmation>>>,
    ) -> anyhow::Result<Vec<Confirmation>> {
        let mut batch = std::pin::pin!(batch);
        loop {
            match tokio::time::timeout(self.confirm_timeout, &mut batch).await {
                Ok(confirmations) => return Ok(confirmations?),
                Err(_) if connection.status().blocked() => {}
                Err(_) => anyhow::bail!("no confirm within {:?}", self.confirm_timeout),
            }
        }
    }

    /// Keeps what was in flight for another try, unless it was alone and `verdict` is known of it, which is none when
    /// the connection was lost.
    fn keep(&mut self, verdict: Option<PublishError>) {
        let mut batch = std::mem::take(&mut self.in_flight);
        if batch.len() > 1 {
            self.suspects.extend(batch.into_iter().filter(Job::is_awaited));
            return;
        }
        let Some(mut job) = batch.pop() else { return };
        job.lost += 1;
        match verdict {
            Some(error) => job.end(Err(error)),
            None if job.lost >= CONNECTIONS_LOST_MAX => {
                tracing::error!(message_id = %job.message.message_id, "each connection was lost that it was published on");
                job.end(Err(PublishError::Invalid));
            }
            None if job.is_awaited() => self.suspects.push_back(job),
            None => {}
        }
    }
}

/// What `error` says of the one message of a batch.
fn alone(error: &anyhow::Error) -> PublishError {
    match error.downcast_ref::<lapin::Error>().map(lapin::Error::kind) {
        Some(ErrorKind::ProtocolError(error)) if OF_THE_MESSAGE.contains(&error.get_id()) => PublishError::Invalid,
        Some(ErrorKind::ProtocolError(_)) => PublishError::Refused,
        _ => PublishError::Unknown,
    }
}

fn settle(batch: Vec<Job>, confirmations: &[Confirmation]) {
    let returned: HashSet<ShortString> = confirmations.iter().filter_map(returned_id).collect();
    for (job, confirmation) in batch.into_iter().zip(confirmations) {
        let result = match confirmation {
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(PublishError::Refused),
            Confirmation::Ack(_) if returned.contains(&job.message.message_id) => Err(PublishError::Unroutable),
            Confirmation::Ack(_) => Ok(()),
        };
        job.end(result);
    }
}

async fn publish_batch(channel: &Channel, user: Option<&str>, batch: &[Job]) -> lapin::Result<Vec<Confirmation>> {
    // Polled in order by this one task, so that delivery tags and frames keep the same order.
    let published = join_all(batch.iter().map(|job| publish(channel, user, &job.message))).await;
    try_join_all(published.into_iter().collect::<lapin::Result<Vec<_>>>()?).await
}

#[expect(clippy::disallowed_methods, reason = "the one place that publishes")]
async fn publish(channel: &Channel, user: Option<&str>, message: &Message) -> lapin::Result<lapin::PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
    let mut properties = message.properties.clone();
    if let Some(user) = user.and_then(|user| ShortString::try_new(user).ok()) {
        // The broker checks it against the connection's user, so that a receiver can trust it.
        properties = properties.with_user_id(user);
    }
    channel
        .basic_publish(message.exchange.into(), message.routing_key.clone(), options, &message.body, properties)
        .await
}

fn returned_id(confirmation: &Confirmation) -> Option<ShortString> {
    match confirmation {
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            returned.delivery.properties.message_id().clone()
        }
        _ => None,
    }
}
