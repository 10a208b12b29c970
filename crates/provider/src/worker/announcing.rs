//! Says what is served here, so that requestors know it without being told.

use super::Worker;
use crate::config::Config;
use crate::handler::Handler;
use futures_util::future::join_all;
use rand::RngExt;
use shared::message::Announcement;
use shared::schema::Schemas;
use std::collections::BTreeMap;
use std::time::Duration;

/// Pauses after which an announcement holds no longer, so that two that are lost do no harm.
const LEASE_PAUSES: u32 = 3;
/// How long saying that we leave may take. If it is lost, we are missed when the lease has run out.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What this process says of each of its kinds. Schemas that are too large to be sent are left out.
pub(crate) fn announcements(
    config: &Config,
    version: &str,
    handlers: &BTreeMap<String, Handler>,
    mut schemas: BTreeMap<String, Schemas>,
) -> Vec<Announcement> {
    let instance = uuid::Uuid::now_v7().to_string();
    let lease = config.announcements.interval * LEASE_PAUSES;
    let announcement = |(kind, handler): (&String, &Handler)| Announcement {
        kind: kind.clone(),
        group: config.group.clone(),
        instance: instance.clone(),
        version: version.to_owned(),
        effect: Some(handler.effect()),
        concurrency: u32::try_from(config.effective_concurrency()).unwrap_or(u32::MAX),
        schemas: schemas.remove(kind).unwrap_or_default(),
        lease_seconds: u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1),
        leaving: false,
    };
    handlers.iter().map(announcement).map(without_what_is_too_large).collect()
}

fn without_what_is_too_large(announcement: Announcement) -> Announcement {
    match announcement.to_message() {
        Ok(_) => announcement,
        Err(error) => {
            tracing::warn!(kind = announcement.kind, %error, "announced without its schemas");
            Announcement { schemas: Schemas::default(), ..announcement }
        }
    }
}

impl Worker {
    /// Announces every kind at once and then regularly, until the shutdown. Does not return.
    pub(super) async fn announce(&self) -> anyhow::Result<()> {
        let regularly = async {
            loop {
                for message in self.0.announcements.iter().filter_map(|one| one.to_message().ok()) {
                    self.0.publisher.hint(message);
                }
                // Providers that were started together do not speak together for ever.
                let pause = self.0.config.announcements.interval.mul_f64(rand::rng().random_range(0.75..=1.0));
                tokio::time::sleep(pause).await;
            }
        };
        self.0.shutdown.run_until_cancelled(regularly).await;
        std::future::pending().await
    }

    /// Says that no more requests are taken here.
    pub(super) async fn leave(&self) {
        let last_words = self
            .0
            .announcements
            .iter()
            .filter_map(|announcement| Announcement { leaving: true, ..announcement.clone() }.to_message().ok());
        let published = join_all(last_words.map(|message| self.0.publisher.publish(message)));
        if tokio::time::timeout(LEAVE_TIMEOUT, published).await.is_err() {
            tracing::debug!("nobody was told that this provider leaves");
        }
    }
}
