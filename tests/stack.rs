//! `make demo` and `make up`: the whole stack on this machine, with whatever broker it has.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a demonstration is there to be read")]

use anyhow::{Context, bail, ensure};
use clap::Parser;
use harness::broker::Broker;
use harness::caller::Caller;
use harness::ffmpeg;
use harness::process::{Process, Service, command};
use reqwest::Response;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the whole stack: a broker, a provider and a requestor.
#[derive(Debug, Parser)]
enum Arguments {
    /// Shows orders, a risk analysis, a canceled one, and a video if there is ffmpeg, and ends.
    Demo,
    /// Keeps the stack running until Ctrl-C. Variables such as `REQUESTOR_HTTP__WAIT_MAX` count.
    Up {
        /// Where the requestor listens on this machine, unless it is taken; 0 for any port that is free.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

/// Where `make up` sends webhooks to, on this machine, and what it signs them with.
const WEBHOOK_PORT: u16 = 9000;
const WEBHOOK_SECRET: &str = "whsec_Zm9yIHRyeWluZyBvdXQsIGtub3duIHRvIGV2ZXJ5b25l";
/// The headers that the pattern is about.
const HEADERS: [&str; 5] = ["location", "operation-location", "retry-after", "preference-applied", "content-type"];

/// The exit code of what was interrupted, as shells give it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupted = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let folder = tempfile::tempdir()?;
    let started = async {
        let broker = Broker::obtain().await?;
        let stack = Stack::start(&broker, folder.path(), &arguments).await?;
        anyhow::Ok((broker, stack))
    };
    let (_broker, mut stack) = tokio::select! {
        started = started => started?,
        () = interrupted() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let result = tokio::select! {
        result = stack.run(&arguments, folder.path()) => result.map(|()| ExitCode::SUCCESS),
        () = interrupted() => Ok(match arguments {
            Arguments::Demo => ExitCode::from(INTERRUPTED),
            Arguments::Up { .. } => ExitCode::SUCCESS,
        }),
    };
    let stopped = stack.stop().await;
    let code = result?;
    stopped?;
    println!("\nstack: stopped, nothing is left running");
    Ok(code)
}

struct Stack {
    provider: Process,
    requestor: Process,
    caller: Caller,
}

impl Stack {
    async fn start(broker: &Broker, folder: &Path, arguments: &Arguments) -> anyhow::Result<Self> {
        let port = match arguments {
            Arguments::Demo | Arguments::Up { port: 0 } => harness::free_port(),
            Arguments::Up { port } if std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok() => *port,
            Arguments::Up { port } => {
                println!("stack: port {port} is taken, using another");
                harness::free_port()
            }
        };
        let provider = Service::provider(broker.url(), folder);
        let mut requestor = Service::requestor(broker.url(), folder)
            .on_port(port)
            .with("REQUESTOR_HTTP__LISTEN", &format!("127.0.0.1:{port}"));
        if matches!(arguments, Arguments::Up { .. }) {
            requestor = requestor
                .with("REQUESTOR_WEBHOOKS__SECRETS", WEBHOOK_SECRET)
                .with("REQUESTOR_WEBHOOKS__ALLOW_HTTP", "true")
                .with("REQUESTOR_WEBHOOKS__ALLOW_PRIVATE", "127.0.0.0/8")
                .with("REQUESTOR_WEBHOOKS__PORTS", &WEBHOOK_PORT.to_string());
        }
        if broker.is_given() {
            println!("stack: its requests share the queues of that broker's virtual host with whoever is there");
            requestor = requestor.with("REQUESTOR_GROUP", "demo");
        }
        let (provider, requestor) = match arguments {
            Arguments::Up { .. } => (provider.with_own("PROVIDER_"), requestor.with_own("REQUESTOR_")),
            Arguments::Demo => (provider, requestor),
        };
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

    async fn run(&mut self, arguments: &Arguments, folder: &Path) -> anyhow::Result<()> {
        match arguments {
            Arguments::Demo => self.demo().await,
            Arguments::Up { .. } => {
                let base = &self.caller.base;
                println!("up: {base} (Ctrl-C ends it and removes its data and logs in {})", folder.display());
                println!("try: curl -i {base}/v1/requests/echo -H 'Content-Type: application/json' -d '\"hello\"'");
                println!(
                    "webhooks: python3 docs/examples/receiver.py {WEBHOOK_PORT} {WEBHOOK_SECRET} receives them; \
                     add -H 'Callback-Url: http://127.0.0.1:{WEBHOOK_PORT}/' to a request"
                );
                tokio::select! {
                    status = self.provider.ended() => bail!("the provider has ended with {status}"),
                    status = self.requestor.ended() => bail!("the requestor has ended with {status}"),
                }
            }
        }
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

        title("4. A long analysis that nobody wants any more: canceled, and certainly so");
        let mut long = portfolio();
        (long["paths"], long["horizonDays"]) = (json!(20_000_000), json!(2_000));
        self.cancel("risk.analyze", &long).await?;

        title("5. A video in three steps: rendered, compressed, cut into a stream");
        if ffmpeg::is_there() {
            let picture = json!({"seconds": 20, "width": 960, "height": 540});
            let ended = self.follow("video.publish", &json!({"source": {"test": picture}})).await?;
            ensure!(ended == 200, "the video was to be published");
        } else {
            println!("left out, since ffmpeg is not installed (on Debian: apt-get install ffmpeg)");
        }

        title("6. The same from the command line");
        self.command_line()
    }

    /// Submits a request, lets it begin, cancels it, and shows how it ends.
    async fn cancel(&self, kind: &str, body: &Value) -> anyhow::Result<()> {
        println!("> POST /v1/requests/{kind}\n> Content-Type: application/json\n> {body}");
        let accepted = show(self.caller.post(kind).body(body.to_string()).send().await?).await?;
        let id = accepted["id"].as_str().context("no operation was accepted")?;
        let path = format!("/v1/operations/{id}");
        println!("> GET {path}\n< 200 OK  {}\n", progress_line(&self.caller.reached(id, &["Running"]).await));
        println!("> DELETE {path}");
        show(self.caller.request("DELETE", &path).send().await?).await?;
        let ended = self.caller.ended(id).await;
        println!("> GET {path}\n< 200 OK\n< {ended}\n");
        ensure!(ended["status"] == "Canceled", "the analysis was to be canceled");
        Ok(())
    }

    /// Submits a request and shows the conversation to its end; the status of the result.
    async fn follow(&self, kind: &str, body: &Value) -> anyhow::Result<u16> {
        println!("> POST /v1/requests/{kind}\n> Content-Type: application/json\n> {body}");
        let accepted = show(self.caller.post(kind).body(body.to_string()).send().await?).await?;
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

    async fn stop(&mut self) -> anyhow::Result<()> {
        for (name, process) in [("requestor", &mut self.requestor), ("provider", &mut self.provider)] {
            let status = process.terminate().await;
            ensure!(status.success(), "the {name} ended with {status}");
        }
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
    let step = match (operation["position"].as_u64(), operation["steps"].as_array()) {
        (Some(position), Some(steps)) => {
            format!("{} ({position} of {}): ", operation["stepKind"].as_str().unwrap_or_default(), steps.len())
        }
        _ => String::new(),
    };
    match operation["message"].as_str() {
        Some(message) => format!("{status} {bar} {percent:3.0} %  {step}{message}"),
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
