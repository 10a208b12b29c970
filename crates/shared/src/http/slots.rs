use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How many connections each address has.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    max: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of an address, for as long as this lives.
#[derive(Debug)]
pub(super) struct PeerSlot {
    peers: Peers,
    address: IpAddr,
}

/// What a connection holds until its socket is closed, by whoever had it last: also after an upgrade.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _peer: Option<PeerSlot>,
    pub(super) _tracked: TaskTrackerToken,
}

impl Peers {
    /// At most `max` for each address; 0 stands for any number.
    pub(super) fn new(max: usize) -> Self {
        Self { max, open: Arc::default() }
    }

    /// One more connection of `address`. Who is on this machine is not counted: a proxy, or somebody who can do worse.
    ///
    /// # Errors
    /// When it has as many as it may have.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Option<PeerSlot>, IpAddr> {
        let address = network(address);
        if self.max == 0 || address.is_loopback() {
            return Ok(None);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.max {
            return Err(address);
        }
        *count += 1;
        Ok(Some(PeerSlot { peers: self.clone(), address }))
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Whoever has an address of IPv6 has its whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_count() {
        let peers = Peers::new(2);
        let enter = |address: &str| peers.enter(address.parse().unwrap());
        let (first, second) = (enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap());
        assert!(first.is_some() && second.is_some());
        assert!(enter("192.0.2.1").is_err());
        let other = enter("192.0.2.2").unwrap();
        drop(first);
        let third = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_err());
        drop((second, third, other));
        assert!(peers.open.lock().unwrap().is_empty());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let peers = Peers::new(1);
        let _first = peers.enter("2001:db8::1".parse().unwrap()).unwrap();
        assert!(peers.enter("2001:db8::2".parse().unwrap()).is_err());
        assert!(peers.enter("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }

    #[test]
    fn this_machine_is_not_counted_nor_is_anyone_without_a_limit() {
        let entered: Vec<_> = (0..10).map(|_| Peers::new(1).enter("127.0.0.1".parse().unwrap())).collect();
        assert!(entered.iter().all(Result::is_ok));
        let peers = Peers::new(0);
        let entered: Vec<_> = (0..10).map(|_| peers.enter("192.0.2.1".parse().unwrap())).collect();
        assert!(entered.iter().all(Result::is_ok));
        assert!(Peers::new(1).enter("::1".parse().unwrap()).unwrap().is_none());
    }
}
