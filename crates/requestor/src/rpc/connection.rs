//! One line after another, as long as there is a client.

use super::Shared;
use shared::amqp::line::{Line, close};
use shared::amqp::{Status, Supervisor};
use shared::topology::{CALL, DIRECT_REPLY};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects, serves, and connects again until `stop`.
pub(super) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut supervisor = Supervisor::new(&shared.config.broker, "requestor calls".into(), &shared.status, &stop);
    while let Some(line) = supervisor.line().await {
        let opened = line.opened;
        let error = serve(&shared, line, &stop).await;
        shared.calls.interrupt(&format!("{error:#}"));
        shared.status.send_replace(Status::Away(format!("{error:#}")));
        if stop.is_cancelled() {
            break;
        }
        supervisor.lost(opened.elapsed(), &error).await;
    }
    shared.calls.interrupt("the client was closed");
    shared.status.send_replace(Status::Away("the client was closed".into()));
}

/// Sends calls and takes replies until the line is over, and why it is.
async fn serve(shared: &Shared, mut line: Line, stop: &CancellationToken) -> anyhow::Error {
    let prepared = shared.config.broker.in_time(async {
        // So that a call before the first provider is returned, and is no error of the connection's.
        line.declare_exchange(CALL).await?;
        line.consume(DIRECT_REPLY, "replies", true).await
    });
    if let Err(error) = prepared.await {
        return error;
    }
    let frame_max = line.frame_max();
    let (mut receiver, mut sender) = line.split(shared.config.broker.message_bytes_max);
    let calls = &shared.calls;
    calls.open(frame_max);
    shared.status.send_replace(Status::Connected);
    let mut wakers = Vec::new();
    let receive = async {
        loop {
            if let Err(error) = receiver.ready().await {
                return error;
            }
            let mut result = Ok(());
            calls.take(&mut wakers, |take| result = receiver.messages(take));
            if let Err(error) = result {
                return error;
            }
        }
    };
    let goodbye = async {
        stop.cancelled().await;
        calls.outbox.add(close);
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    };
    tokio::select! {
        error = receive => error,
        result = sender.run(&calls.outbox) => result.err().unwrap_or_else(|| anyhow::anyhow!("closed")),
        () = goodbye => anyhow::anyhow!("closed"),
    }
}
