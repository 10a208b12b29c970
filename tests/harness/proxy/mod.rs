mod frames;
mod link;
mod rules;
mod tags;

pub use frames::Method;
pub use link::Link;
pub use rules::{Action, Rule, Which};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A relay between a service and a broker on a port of its own. Closed at first: nothing listens there.
///
/// What it does to connections, bytes, messages and acknowledgements can be changed while it runs.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    open: Option<CancellationToken>,
    tasks: TaskTracker,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    attempts: AtomicU64,
    manner: Mutex<Manner>,
    links: Mutex<Vec<Arc<Link>>>,
    rules: rules::Rules,
}

/// How new connections are treated.
#[derive(Clone, Copy, Debug, Default)]
struct Manner {
    refusal: Option<Ending>,
    to_broker: Traffic,
    to_service: Traffic,
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the service to the broker.
    ToBroker,
    /// From the broker to the service.
    ToService,
}

/// How a connection ends, on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With FIN, as when a process ends: what was sent before still arrives.
    Finish,
    /// With RST, as when a machine or a firewall has forgotten it: what was not read yet is lost.
    Reset,
}

/// How bytes go through in one direction; the default is as they come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Nothing goes through, and nobody is told: a black hole. What was held goes through when this ends, as TCP
    /// sends it again.
    pub held: bool,
    /// This direction alone is closed: the receiver is told with FIN, the sender is not, and writes to nobody. Cannot
    /// be undone for a connection.
    pub closed: bool,
    /// The least and the longest pause before each piece.
    pub delay: Option<(Duration, Duration)>,
    /// The most bytes in a piece, at least 1.
    pub slice: Option<usize>,
    /// The bandwidth.
    pub bytes_per_second: Option<u32>,
}

impl Traffic {
    /// Nothing goes through.
    #[must_use]
    pub fn held() -> Self {
        Self { held: true, ..Self::default() }
    }

    /// This direction is closed.
    #[must_use]
    pub fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }
}

impl Proxy {
    /// A relay to `target`, `host:port`, that is not open yet.
    #[must_use]
    pub fn closed(target: String) -> Self {
        let shared = Shared {
            target,
            attempts: AtomicU64::new(0),
            manner: Mutex::default(),
            links: Mutex::default(),
            rules: rules::Rules::default(),
        };
        Self { port: super::free_port(), open: None, tasks: TaskTracker::new(), shared: Arc::new(shared) }
    }

    /// `url` with the relay's address.
    ///
    /// # Panics
    /// When `url` is none.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.into()
    }

    /// Lets connections through.
    ///
    /// # Panics
    /// When something else listens on the port by now.
    pub async fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let (cut, shared, tasks) = (CancellationToken::new(), Arc::clone(&self.shared), self.tasks.clone());
        self.open = Some(cut.clone());
        self.tasks.spawn(async move {
            while let Some(Ok((client, _))) = cut.run_until_cancelled(listener.accept()).await {
                let shared = Arc::clone(&shared);
                tasks.spawn(async move { shared.accept(client).await });
            }
        });
    }

    /// Cuts all connections and lets no more through.
    pub async fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            open.cancel();
            // Also those that were being made when the others were ended.
            self.refuse(Some(Ending::Finish));
            self.end_all(Ending::Finish);
            self.tasks.close();
            self.tasks.wait().await;
            self.tasks.reopen();
            self.refuse(None);
        }
    }

    /// From now on accepts each new connection and ends it at once; with `None`, lets them through again.
    pub fn refuse(&self, with: Option<Ending>) {
        self.shared.manner.lock().unwrap().refusal = with;
    }

    /// How often a service has connected.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.shared.attempts.load(Ordering::Relaxed)
    }

    /// The connections that pass through now, in the order in which they came.
    #[must_use]
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.shared.links.lock().unwrap().clone()
    }

    /// Ends all connections that pass through now.
    pub fn end_all(&self, ending: Ending) {
        self.links().iter().for_each(|link| link.end(ending));
    }

    /// From now on lets what goes to `direction` through in this way, over all connections and those to come.
    pub fn shape(&self, direction: Direction, traffic: Traffic) {
        let mut manner = self.shared.manner.lock().unwrap();
        match direction {
            Direction::ToBroker => manner.to_broker = traffic,
            Direction::ToService => manner.to_service = traffic,
        }
        // Under the lock, so that no connection is made in between.
        self.links().iter().for_each(|link| link.shape(direction, traffic));
    }

    /// From now on does `action` to `which` of the messages or acknowledgements that are `method`.
    pub fn rule(&self, method: Method, which: Which, action: Action) -> Arc<Rule> {
        self.shared.rules.add(method, which, action)
    }

    /// Ends all rules. What they have done to a connection's numbers stays right.
    pub fn clear_rules(&self) {
        self.shared.rules.clear();
    }
}

impl Shared {
    async fn accept(&self, mut client: TcpStream) {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let (link, refusal) = self.link(number);
        match refusal {
            Some(Ending::Reset) => drop(client.set_zero_linger()),
            Some(Ending::Finish) => drop(client.shutdown().await),
            None => {
                if let Ok(server) = TcpStream::connect(&self.target).await {
                    link.relay(client, server, &self.rules).await;
                }
            }
        }
        self.links.lock().unwrap().retain(|other| other.number() != number);
    }

    fn link(&self, number: u64) -> (Arc<Link>, Option<Ending>) {
        let manner = self.manner.lock().unwrap();
        let link = Arc::new(Link::new(number, manner.to_broker, manner.to_service));
        if manner.refusal.is_none() {
            self.links.lock().unwrap().push(Arc::clone(&link));
        }
        (link, manner.refusal)
    }
}
