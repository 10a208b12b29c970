//! `make demo` and `make up`: the whole stack on this machine, with whatever broker it has.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a demonstration is there to be read")]

use anyhow::{Context, bail, ensure};
use clap::Parser;
use harness::broker::Broker;
use harness::caller::Caller;
use harness::process::{Process, Service, command};
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the whole stack: a broker, a provider and a requestor.
#[derive(Debug, Parser)]
enum Arguments {
    /// Shows an order, an impossible order and a risk analysis, and ends.
    Demo,
    /// Keeps the stack running until Ctrl-C.
    Up,
}

/// Where `make up` listens, unless the port is taken.
const PORT: u16 = 8080;
/// The headers that the pattern is about.
const HEADERS: [&str; 5] = ["location", "operation-location", "retry-after", "preference-applied", "content-type"];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = async {
        // The services end by themselves when Ctrl-C reaches them; the broker ends with this process.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = run(arguments) => result,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    };
    match result.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let broker = Broker::obtain().await?;
    match arguments {
        Arguments::Demo => {
            let stack = Stack::start(&broker, folder.path(), harness::free_port()).await?;
            stack.demo().await?;
            stack.stop().await
        }
        Arguments::Up => {
            let port =
                if std::net::TcpListener::bind(("127.0.0.1", PORT)).is_ok() { PORT } else { harness::free_port() };
            let stack = Stack::start(&broker, folder.path(), port).await?;
            println!(
                "up: {}  (Ctrl-C ends it; data and logs are in {} until then)",
                stack.caller.base,
                folder.path().display()
            );
            println!(
                "try: curl -i {}/v1/requests/echo -H 'Content-Type: application/json' -d '\"hello\"'",
                stack.caller.base
            );
            std::future::pending().await
        }
    }
}

struct Stack {
    provider: Process,
    requestor: Process,
    caller: Caller,
}

impl Stack {
    async fn start(broker: &Broker, folder: &Path, port: u16) -> anyhow::Result<Self> {
        let provider = Service::provider(broker.url(), folder);
        let requestor = Service::requestor(broker.url(), folder)
            .on_port(port)
            .with("REQUESTOR_HTTP__LISTEN", &format!("127.0.0.1:{port}"));
        println!("stack: starting a provider and a requestor");
        let (provider, requestor) = (provider.start().await, requestor.start().await);
        let caller = Caller::new(format!("http://127.0.0.1:{port}"));
        harness::eventually("the requestor is ready", async || {
            let response = caller.request("GET", "/readyz").send().await.map_err(|error| error.to_string())?;
            if response.status().is_success() { Ok(()) } else { Err(response.text().await.unwrap_or_default()) }
        })
        .await;
        Ok(Self { provider, requestor, caller })
    }

    async fn demo(&self) -> anyhow::Result<()> {
        let order = json!({"customer": "Ada", "items": [
            {"sku": "keyboard", "quantity": 2, "unitPriceCents": 4999},
            {"sku": "mouse", "quantity": 1, "unitPriceCents": 1999}]});
        title("1. An order: accepted at once, then followed to its result");
        let ended = self.follow("order.place", &order).await?;
        ensure!(ended == 200, "the order was to succeed");

        title("2. An order that cannot be carried out: accepted all the same, and its problem kept");
        let order = json!({"customer": "Ada", "items": [{"sku": "unicorn", "quantity": 1, "unitPriceCents": 999_999}]});
        let ended = self.follow("order.place", &order).await?;
        ensure!(ended == 409, "the order was to fail");

        title("3. A risk analysis that takes a while: progress meanwhile");
        let ended = self.follow("risk.analyze", &portfolio()).await?;
        ensure!(ended == 200, "the analysis was to succeed");

        title("4. The same from the command line");
        self.command_line()
    }

    /// Submits a request and shows the conversation to its end; the status of the result.
    async fn follow(&self, kind: &str, body: &Value) -> anyhow::Result<u16> {
        let path = format!("/v1/requests/{kind}");
        println!("> POST {path}\n> Content-Type: application/json\n> {body}");
        let request = self.caller.request("POST", &path).header(CONTENT_TYPE, "application/json");
        let accepted = show(request.body(body.to_string()).send().await?).await?;
        let id = accepted["id"].as_str().context("no operation was accepted")?;
        let path = format!("/v1/operations/{id}");
        let mut shown = String::new();
        loop {
            let request = self.caller.request("GET", &path).header("prefer", "wait=1");
            let response = request.send().await?;
            if response.status() == 303 {
                println!("> GET {path}");
                show(response).await?;
                break;
            }
            let operation: Value = response.json().await?;
            let line = progress_line(&operation);
            if line != shown {
                println!("> GET {path}\n< 200 OK  {line}");
                shown = line;
            }
            if operation["status"] == "Failed" {
                println!("< {operation}\n");
                break;
            }
        }
        println!("> GET {path}/result");
        let response = self.caller.request("GET", &format!("{path}/result")).send().await?;
        let status = response.status().as_u16();
        show(response).await?;
        Ok(status)
    }

    fn command_line(&self) -> anyhow::Result<()> {
        let arguments = ["submit", "echo", r#"{"hello":"world"}"#, "--wait", "--url", &self.caller.base];
        println!("$ requestor {}", arguments.join(" "));
        let status = command("requestor", &[]).args(arguments).status()?;
        ensure!(status.success(), "requestor submit failed");
        let arguments = ["list", "--url", &self.caller.base];
        println!("$ requestor {}", arguments.join(" "));
        let status = command("requestor", &[]).args(arguments).status()?;
        ensure!(status.success(), "requestor list failed");
        Ok(())
    }

    async fn stop(self) -> anyhow::Result<()> {
        for (name, mut process) in [("requestor", self.requestor), ("provider", self.provider)] {
            let status = process.terminate().await;
            if !status.success() {
                bail!("the {name} ended with {status}");
            }
        }
        println!("\nstack: stopped, nothing is left running");
        Ok(())
    }
}

/// Shows the status line, the headers that matter and the body of a response; the body as JSON if it is.
async fn show(response: Response) -> anyhow::Result<Value> {
    println!("< {}", response.status());
    for name in HEADERS {
        if let Some(value) = response.headers().get(name) {
            println!("< {name}: {}", value.to_str()?);
        }
    }
    let body: Value = response.json().await?;
    println!("< {body}\n");
    Ok(body)
}

fn progress_line(operation: &Value) -> String {
    let percent = operation["percentComplete"].as_f64().unwrap_or_default();
    let filled = (percent / 5.0) as usize;
    let bar = format!("[{}{}]", "=".repeat(filled), " ".repeat(20_usize.saturating_sub(filled)));
    let status = operation["status"].as_str().unwrap_or_default();
    match operation["message"].as_str() {
        Some(message) => format!("{status} {bar} {percent:3.0} %  {message}"),
        None => status.to_owned(),
    }
}

fn portfolio() -> Value {
    json!({
        "weights": [0.5, 0.3, 0.2],
        "means": [0.0004, 0.0003, 0.0001],
        "covariance": [[0.0001, 0.00002, 0.0], [0.00002, 0.00015, 0.00001], [0.0, 0.00001, 0.00005]],
        "horizonDays": 10, "paths": 10_000_000, "seed": 42, "confidence": 0.99, "value": 1_000_000.0
    })
}

fn title(text: &str) {
    println!("\n── {text}\n");
}
