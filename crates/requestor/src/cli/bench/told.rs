//! Learns outcomes from one stream of server-sent events, for all who wait.

use super::http::{Target, spawn};
use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use shared::message::OperationId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// What is known of an operation.
enum Known {
    /// It has ended, before anybody asked.
    Ended(bool),
    /// Somebody waits.
    Awaited(oneshot::Sender<bool>),
}

/// Outcomes as they are told.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<OperationId, Known>>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Told {
    /// Follows all operations of the caller from now on.
    pub(super) async fn follow(target: &Target) -> anyhow::Result<Arc<Self>> {
        let mut connection = target.connect().await?;
        let request = target.request("GET", "/v1/events").header("accept", "text/event-stream");
        let response = connection.send_request(request.body(Full::new(Bytes::new()))?).await?;
        anyhow::ensure!(response.status() == 200, "/v1/events: {}", response.status());
        let (told, mut body) = (Arc::new(Self::default()), response.into_body());
        let reader = Arc::clone(&told);
        spawn(async move {
            // The stream lasts as long as its connection.
            let _connection = connection;
            let mut rest = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                if let Some(data) = frame.data_ref() {
                    rest.extend_from_slice(data);
                    reader.read(&mut rest);
                }
            }
        });
        Ok(told)
    }

    /// Waits for the outcome of `id`.
    pub(super) async fn outcome(&self, id: OperationId) -> anyhow::Result<()> {
        let waiting = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match known.remove(&id) {
                Some(Known::Ended(succeeded)) => Err(succeeded),
                _ => {
                    let (sender, waiting) = oneshot::channel();
                    known.insert(id, Known::Awaited(sender));
                    Ok(waiting)
                }
            }
        };
        let succeeded = match waiting {
            Ok(waiting) => waiting.await.context("the stream has ended")?,
            Err(succeeded) => succeeded,
        };
        anyhow::ensure!(succeeded, "the operation has not succeeded");
        Ok(())
    }

    /// Takes the whole events from `rest`.
    fn read(&self, rest: &mut Vec<u8>) {
        let Some(end) = rest.windows(2).rposition(|two| two == b"\n\n") else { return };
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest.drain(..end + 2);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in text.split("\n\n") {
            let Some((id, succeeded)) = ended(event) else { continue };
            match known.remove(&id) {
                Some(Known::Awaited(sender)) => drop(sender.send(succeeded)),
                _ => drop(known.insert(id, Known::Ended(succeeded))),
            }
        }
    }
}

/// Which operation an event says to have ended, and whether it has succeeded.
fn ended(event: &str) -> Option<(OperationId, bool)> {
    let kind = event.lines().find_map(|line| line.strip_prefix("event: "))?;
    let succeeded = match kind {
        "succeeded" => true,
        "failed" | "canceled" => false,
        _ => return None,
    };
    let (_, after) = event.split_once("\"operation\":\"")?;
    Some((after.get(..36)?.parse().ok()?, succeeded))
}
