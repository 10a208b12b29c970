//! Hears what providers serve.

use super::{Gateway, PREFETCH};
use crate::store::AnnouncedRow;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use lapin::message::Delivery;
use shared::amqp::{self, Session, Settle};
use shared::message::{Announcement, Unreadable};
use shared::topology;
use std::collections::BTreeSet;

impl Gateway {
    /// Takes announcements until the session ends. None is waited for: each comes again.
    pub(super) async fn hear(&self, session: &Session) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        // New for each session: the broker may still hold the queue of one that it has not noticed to be over.
        let instance = uuid::Uuid::now_v7().simple().to_string();
        let declared = topology::declare_for_announcements(&channel, &self.0.group, &instance);
        let queue = amqp::call("declaring", declared).await?;
        let mut deliveries = amqp::consume(&channel, &queue, PREFETCH).await?.ready_chunks(PREFETCH.into());
        while let Some(chunk) = deliveries.next().await {
            let chunk = chunk.into_iter().collect::<lapin::Result<Vec<_>>>()?;
            let heard: Vec<_> = chunk.iter().filter_map(|delivery| self.heard(delivery)).collect();
            if !heard.is_empty() {
                self.remember(heard).await;
            }
            if let Some(last) = chunk.last() {
                amqp::settle(&last.acker, Settle::AckAll).await?;
            }
        }
        anyhow::bail!("the consumer of {queue} was cancelled")
    }

    /// Takes note of one. Who may not reply may not announce.
    fn heard(&self, delivery: &Delivery) -> Option<AnnouncedRow> {
        let read = self.believed(&delivery.properties).and_then(|()| Announcement::from_delivery(delivery));
        let heard = read.and_then(|announcement| {
            let (kind, instance) = (announcement.kind.clone(), announcement.instance.clone());
            let heard = self.0.kinds.hear(announcement, Timestamp::now());
            let refused = |why| Unreadable(format!("announcement of {kind} by {instance} refused: {why}"));
            let heard = heard.map_err(refused)?;
            Ok(heard.map(|(known, provider)| AnnouncedRow { kind, instance, known, provider }))
        });
        heard.unwrap_or_else(|error| {
            metrics::counter!("arr_unreadable_total", "queue" => topology::ANNOUNCE).increment(1);
            tracing::warn!(%error, "announcement dropped");
            None
        })
    }

    async fn remember(&self, rows: Vec<AnnouncedRow>) {
        let before = Timestamp::now().checked_sub(self.0.keep_providers).unwrap_or(Timestamp::MIN);
        if let Err(error) = self.0.store.announce(rows, self.0.kinds.names(), before).await {
            tracing::warn!(%error, "cannot store what was announced");
        }
    }

    /// Answers the dead letters of all kinds, also of those that are announced in the meantime.
    pub(super) async fn answer_all_dead_letters(&self, session: &Session) -> anyhow::Result<()> {
        let channel = session.consume_channel().await?;
        let (mut more, mut consumed, mut consumers) = (self.0.kinds.follow(), BTreeSet::new(), FuturesUnordered::new());
        loop {
            more.borrow_and_update();
            for kind in self.0.kinds.asked() {
                if consumed.insert(kind.clone()) {
                    let channel = channel.clone();
                    consumers.push(async move {
                        amqp::call("declaring", topology::declare_dead_queue(&channel, &kind)).await?;
                        self.answer_dead_letters(&channel, &kind).await
                    });
                }
            }
            tokio::select! {
                _ = more.changed() => {}
                Some(ended) = consumers.next() => ended?,
            }
        }
    }
}
