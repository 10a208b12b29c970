//! Calls `echo` a thousand times, a hundred at once: `cargo run --example rpc`.
//!
//! It needs a broker, and a provider that takes calls: `PROVIDER_CALLS__PREFETCH=256 provider serve`. The broker is
//! that of `REQUESTOR_BROKER__URL`, or `amqp://guest:guest@127.0.0.1:5672`.

use futures_util::{StreamExt, stream};
use requestor::Content;
use requestor::rpc::{Client, Config, Error};
use std::time::Duration;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it has done")]
async fn main() -> anyhow::Result<()> {
    let client = Client::connect(Config::load(None)?).await?;
    let answers = stream::iter(0..1000)
        .map(|number| {
            let call = client.call("echo", Content::json(format!("{number}")), Duration::from_secs(5));
            async move { (number, call.await) }
        })
        .buffer_unordered(100);
    let mut right = 0;
    let mut answers = std::pin::pin!(answers);
    while let Some((number, answer)) = answers.next().await {
        match answer {
            Ok(reply) if reply.body == format!("{number}") => right += 1,
            Ok(reply) => anyhow::bail!("{number} was answered with {reply:?}"),
            Err(Error::Failed(problem)) => anyhow::bail!("the provider answered with a problem: {problem:?}"),
            Err(error) if error.may_have_run() => anyhow::bail!("{number} may be done or not: {error}"),
            Err(error) => anyhow::bail!("{number} was not done and can be asked for again: {error}"),
        }
    }
    client.close().await;
    println!("{right} calls were answered, each with its own reply");
    Ok(())
}
