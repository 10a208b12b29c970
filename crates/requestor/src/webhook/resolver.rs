//! Names are judged where they are resolved for a connection: a name that was public a moment ago may not be now.

use super::address::Addresses;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Asks the system for the addresses of a name; it may take as long as the system likes.
type Lookup = fn(&str) -> io::Result<Vec<IpAddr>>;

/// A name that leads nowhere, or not only to public addresses. Which of the two is not told to callers: they could
/// learn which names there are inside. The log has it.
#[derive(Debug, thiserror::Error)]
#[error("the host's name does not lead to public addresses, and to nothing else")]
pub(crate) struct NotPublic;

/// Resolves names to addresses that may be connected to, all of them or none.
#[derive(Clone)]
pub(crate) struct PublicResolver {
    addresses: Arc<Addresses>,
    /// A lookup goes on in its thread when nobody waits for it any more, and threads are needed for other things.
    lookups: Arc<Semaphore>,
    lookup: Lookup,
}

impl fmt::Debug for PublicResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicResolver").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl PublicResolver {
    /// At most `lookups` names are looked up at once.
    pub(crate) fn new(addresses: Arc<Addresses>, lookups: usize) -> Self {
        let lookup: Lookup = |name| Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect());
        Self { addresses, lookups: Arc::new(Semaphore::new(lookups)), lookup }
    }

    async fn public(self, name: String) -> Result<Vec<IpAddr>, NotPublic> {
        let slot = Arc::clone(&self.lookups).acquire_owned().await.map_err(|_| NotPublic)?;
        let (lookup, host) = (self.lookup, name.clone());
        let found = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            lookup(&host)
        });
        let refused = match found.await {
            Ok(Ok(found)) if found.is_empty() => "it has no address".to_owned(),
            Ok(Ok(found)) => match found.iter().find_map(|ip| Some((ip, self.addresses.check(*ip).err()?))) {
                None => return Ok(found),
                Some((address, what)) => format!("{address} is {what}"),
            },
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::info!(host = name, reason = refused, "a webhook's host was refused");
        Err(NotPublic)
    }
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let public = self.clone().public(name.as_str().to_owned());
        Box::pin(async move {
            // The port is the URL's.
            let addresses = public.await?.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::net::TcpListener;

    fn resolver(lookup: Lookup, allowed: &[&str]) -> PublicResolver {
        let allowed: Vec<_> = allowed.iter().map(|network| network.parse().unwrap()).collect();
        PublicResolver { lookup, ..PublicResolver::new(Arc::new(Addresses::new(&allowed).unwrap()), 4) }
    }

    #[tokio::test]
    async fn one_address_that_is_not_public_spoils_the_name() {
        let found: Lookup = |name| match name {
            "none" => Ok(vec![]),
            "missing" => Err(io::ErrorKind::NotFound.into()),
            addresses => Ok(addresses.split(' ').map(|address| address.parse().unwrap()).collect()),
        };
        let public = async |name: &str| resolver(found, &["10.0.0.0/8"]).public(name.into()).await;
        assert_eq!(public("8.8.8.8 2606:4700::1 10.0.0.1").await.unwrap().len(), 3);
        for name in ["none", "missing", "8.8.8.8 127.0.0.1", "169.254.169.254", "2606:4700::1 ::1 8.8.8.8"] {
            assert!(public(name).await.is_err(), "{name}");
        }
    }

    /// DNS rebinding: public at the first look, this machine at the second.
    #[tokio::test]
    async fn what_was_judged_is_what_is_connected_to() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let rebinding: Lookup = |_| {
            let first = LOOKUPS.fetch_add(1, Ordering::SeqCst) == 0;
            Ok(vec![if first { "192.0.2.1" } else { "127.0.0.1" }.parse().unwrap()])
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://rebinding.example:{}/", listener.local_addr().unwrap().port());
        // The network for documentation leads nowhere, so that the first attempt ends by its timeout at the latest.
        let ask = async |allowed: &[&str]| {
            let client = reqwest::Client::builder().no_proxy().dns_resolver(resolver(rebinding, allowed));
            let client = client.timeout(Duration::from_millis(300)).build().unwrap();
            client.get(&url).send().await.unwrap_err()
        };
        for _ in 0..3 {
            ask(&["192.0.2.0/24"]).await;
        }
        assert_eq!(LOOKUPS.load(Ordering::SeqCst), 3, "each connection is judged anew");
        let hit = async || tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
        assert!(hit().await.is_err(), "it was connected to");
        // The same is a hit where it is allowed: this test can fail.
        ask(&["127.0.0.0/8"]).await;
        assert!(hit().await.is_ok());
    }
}
