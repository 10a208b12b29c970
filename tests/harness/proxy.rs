use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A TCP relay on a port of its own. Closed at first: nothing listens there.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    target: String,
    open: Option<CancellationToken>,
    tasks: TaskTracker,
}

impl Proxy {
    /// A relay to `target`, `host:port`, that is not open yet.
    #[must_use]
    pub fn closed(target: String) -> Self {
        Self { port: super::free_port(), target, open: None, tasks: TaskTracker::new() }
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
        let (cut, target, tasks) = (CancellationToken::new(), self.target.clone(), self.tasks.clone());
        self.open = Some(cut.clone());
        self.tasks.spawn(async move {
            while let Some(Ok((client, _))) = cut.run_until_cancelled(listener.accept()).await {
                let (cut, target) = (cut.clone(), target.clone());
                tasks.spawn(async move { cut.run_until_cancelled(relay(client, target)).await });
            }
        });
    }

    /// Cuts all connections and lets no more through.
    pub async fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            open.cancel();
            self.tasks.close();
            self.tasks.wait().await;
            self.tasks.reopen();
        }
    }
}

async fn relay(mut client: TcpStream, target: String) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
