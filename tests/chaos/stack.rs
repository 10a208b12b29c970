//! What is tested: the real services as processes, each with a relay of its own to the broker, and a payment server.

use crate::kept::Kept;
use anyhow::Context;
use harness::broker::{Broker, VirtualHost};
use harness::caller::Caller;
use harness::process::Service;
use harness::proxy::Proxy;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Patience is for people: in a run of minutes, what is lost must be sent again within seconds.
const REQUESTOR: &str = r#"
[redrive]
waiting = "4s"
waiting_max = "8s"
quiet = "5s"
unroutable_max = "2s"
[retries]
pause = "200ms"
pause_max = "1s"
[broker]
confirm_timeout = "5s"
reconnect_max = "1s"
[cancel]
resend = "500ms"
resend_max = "2s"
[log]
filter = "warn"
"#;

/// The provider's: only what is asked for, so that it starts quickly; slow payments outlast `ack_hold`, and the inventory never ends.
const PROVIDER: &str = r#"
kinds = ["echo", "order.place", "payment.charge"]
concurrency = 8
ack_hold = "300ms"
lease = "4s"
[payments]
timeout = "5s"
[progress]
heartbeat = "1s"
[orders]
inventory = [
  { sku = "mouse", price_cents = 1_999, stock = 1_000_000 },
  { sku = "unicorn", price_cents = 999_999, stock = 0 },
]
[broker]
confirm_timeout = "5s"
reconnect_max = "1s"
[log]
filter = "warn"
"#;

/// Articles of which there are plenty, as [`PROVIDER`] has them.
pub(crate) const STOCK: i64 = 1_000_000;

/// Which of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Requestor,
    Provider,
}

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) host: VirtualHost,
    pub(crate) folder: PathBuf,
    pub(crate) caller: Caller,
    requestor: Kept,
    provider: Kept,
    requestor_link: Proxy,
    provider_link: Proxy,
    _sink: Sink,
}

impl Stack {
    /// Starts everything in a virtual host of its own, with all files in `folder`.
    ///
    /// # Errors
    /// When a file cannot be written or a process not be started.
    pub(crate) async fn start(broker: &Broker, folder: &Path) -> anyhow::Result<Self> {
        let host = broker.virtual_host().await;
        let sink = Sink::start(folder)?;
        let [mut requestor_link, mut provider_link] = [(); 2].map(|()| Proxy::closed(broker.address()));
        requestor_link.open().await;
        provider_link.open().await;
        let (requestor_config, provider_config) = (folder.join("requestor.toml"), folder.join("provider.toml"));
        std::fs::write(&requestor_config, REQUESTOR)?;
        std::fs::write(&provider_config, PROVIDER)?;
        let requestor = Service::requestor(&requestor_link.url(&host.url), folder).with_config(requestor_config);
        let provider = Service::provider(&provider_link.url(&host.url), folder)
            .with_config(provider_config)
            .with("PROVIDER_PAYMENTS__URL", &sink.url);
        let caller = Caller::new(format!("http://127.0.0.1:{}", requestor.port()));
        let (requestor, provider) = (Kept::start(requestor), Kept::start(provider));
        requestor.listening().await;
        provider.listening().await;
        let folder = folder.to_path_buf();
        Ok(Self { host, folder, caller, requestor, provider, requestor_link, provider_link, _sink: sink })
    }

    /// The service of `side`.
    pub(crate) fn service(&self, side: Side) -> &Kept {
        match side {
            Side::Requestor => &self.requestor,
            Side::Provider => &self.provider,
        }
    }

    /// The relay between the broker and the service of `side`.
    pub(crate) fn link(&self, side: Side) -> &Proxy {
        match side {
            Side::Requestor => &self.requestor_link,
            Side::Provider => &self.provider_link,
        }
    }

    /// Where the payment server writes what happened.
    pub(crate) fn sink_journal(&self) -> PathBuf {
        self.folder.join("sink.jsonl")
    }
}

/// The payment server's process.
#[derive(Debug)]
struct Sink {
    child: Child,
    url: String,
}

impl Sink {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let listen = format!("127.0.0.1:{}", harness::free_port());
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["sink", "--listen", &listen, "--journal"]).arg(folder.join("sink.jsonl"));
        let child = command.stdin(Stdio::null()).spawn().context("cannot start the payment server")?;
        Ok(Self { child, url: format!("http://{listen}/charges") })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
