//! Publishes replies until the broker has them.

use super::{NoReply, Worker};
use shared::amqp::PublishError;
use shared::message::{Message, Reply, Request, ReturnAddress, answer};
use std::time::Duration;

/// How often a reply that no queue takes is published before the request is given back.
const REPLY_ATTEMPTS: u32 = 8;
/// The first pause between such attempts; it doubles.
const REPLY_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between such attempts.
const REPLY_PAUSE_MAX: Duration = Duration::from_secs(5);

impl Worker {
    pub(super) async fn reply(&self, request: &Request, reply: Reply) -> Result<(), NoReply> {
        let Some(address) = &request.reply_to else { return Ok(()) };
        let reply = self.fitting(reply);
        match answer(address, &request.correlation_id, &reply) {
            Ok(message) => {
                self.publish_reply(message, address).await?;
                shared::crash::point("provider.replied");
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "no reply can be made");
                Ok(())
            }
        }
    }

    /// A result that no message can carry becomes a failure that says so.
    pub(super) fn fitting(&self, reply: Reply) -> Reply {
        reply.at_most(self.0.config.broker.message_bytes_max)
    }

    /// Publishes until the broker has it, over as many sessions as it takes; gives up when no queue takes it.
    pub(super) async fn publish_reply(&self, message: Message, address: &ReturnAddress) -> Result<(), NoReply> {
        let (mut left, mut pause) = (REPLY_ATTEMPTS, REPLY_PAUSE);
        while left > 0 {
            match self.0.publisher.publish(message.clone()).await {
                Ok(()) => return Ok(()),
                // A foreign client that has gone takes its queue with it.
                Err(PublishError::Unroutable) if matches!(address, ReturnAddress::Foreign(_)) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, message_id = %message.message_id, "reply not published");
                    left -= 1;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REPLY_PAUSE_MAX);
        }
        Err(NoReply::Unpublished)
    }
}
