//! What a network does between the services and the broker: no order is lost, and each has its effect once.

use harness::broker::Broker;
use harness::orders::{place, placed_once};
use harness::pair::Pair;
use harness::proxy::{Action, Direction, Ending, Method, Proxy, Rule, Traffic, Which};
use shared::config::SecretUrl;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Both services, each behind a relay of its own, and the orders that were placed.
struct Network {
    pair: Pair,
    requestor: Proxy,
    provider: Proxy,
    ids: Vec<String>,
}

impl Network {
    /// The relays are open; heartbeats are short, so that silence is noticed within seconds.
    async fn prepare() -> Self {
        let mut pair = Pair::prepare().await;
        let address = Broker::shared().await.address();
        let (mut requestor, mut provider) = (Proxy::closed(address.clone()), Proxy::closed(address));
        let url = |proxy: &Proxy| SecretUrl::new(format!("{}?heartbeat=2", proxy.url(&pair.host.url)));
        (pair.requestor_config.broker.url, pair.provider_config.broker.url) = (url(&requestor), url(&provider));
        requestor.open().await;
        provider.open().await;
        Self { pair, requestor, provider, ids: Vec::new() }
    }

    /// Both services work, and have done so once.
    async fn start() -> Self {
        let mut network = Self::prepare().await;
        network.run().await;
        network
    }

    async fn run(&mut self) {
        self.pair.start_requestor();
        self.pair.start_provider();
        self.pair.ready().await;
        self.place(1).await;
        self.pair.result(&self.ids[0]).await;
    }

    async fn place(&mut self, count: usize) {
        self.ids.extend(place(&self.pair, count).await);
    }

    fn proxies(&self) -> [&Proxy; 2] {
        [&self.requestor, &self.provider]
    }

    fn attempts(&self) -> [u64; 2] {
        self.proxies().map(Proxy::attempts)
    }

    /// Waits until both services have connected anew.
    async fn connected_anew(&self, before: [u64; 2]) {
        harness::eventually("both services connect anew", async || {
            let now = self.attempts();
            // Each session has two connections.
            if now[0] >= before[0] + 2 && now[1] >= before[1] + 2 { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }

    /// The same rule for both services.
    fn rule(&self, method: Method, which: Which, action: Action) -> [Arc<Rule>; 2] {
        self.proxies().map(|proxy| proxy.rule(method, which, action))
    }

    /// Every order has succeeded and had its effect once, and nothing is left.
    async fn finish(self) {
        placed_once(&self.pair, &self.ids, &self.pair.ledger).await;
        self.pair.finish().await;
    }
}

fn fired(rules: &[Arc<Rule>]) -> Vec<u64> {
    rules.iter().map(|rule| rule.fired()).collect()
}

/// Loses the third and the fourteenth of what is `method`, for each service, with the connection.
async fn lose(method: Method) {
    let mut network = Network::start().await;
    let before = network.attempts();
    let rules: Vec<_> =
        [3, 14].into_iter().flat_map(|nth| network.rule(method, Which::Nth(nth), Action::DropAndCut)).collect();
    network.place(20).await;
    // Acknowledgements may be for many, so the second needs more orders.
    while fired(&rules).contains(&0) {
        network.place(1).await;
        network.pair.result(&network.ids[network.ids.len() - 1]).await;
        assert!(network.ids.len() < 200, "not lost: {:?} of {:?}", fired(&rules), rules);
    }
    network.connected_anew(before).await;
    network.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_publish_is_published_again() {
    lose(Method::Publish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_confirm_leads_to_a_copy_that_does_no_harm() {
    lose(Method::Confirm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_delivery_comes_again() {
    lose(Method::Deliver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_acknowledgement_leads_to_a_delivery_that_does_no_harm() {
    lose(Method::Settle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_forgets_a_confirm_is_asked_again_on_another_channel() {
    let mut network = Network::prepare().await;
    let confirm_timeout = Duration::from_millis(500);
    network.pair.requestor_config.broker.confirm_timeout = confirm_timeout;
    network.pair.provider_config.broker.confirm_timeout = confirm_timeout;
    network.run().await;
    let before = network.attempts();
    let rules = network.rule(Method::Confirm, Which::Nth(1), Action::Drop);
    network.place(10).await;
    harness::eventually("both services have lost a confirm", async || {
        let fired = fired(&rules);
        if fired == [1, 1] { Ok(()) } else { Err(format!("{fired:?}")) }
    })
    .await;
    for id in &network.ids {
        network.pair.result(id).await;
    }
    assert_eq!(network.attempts(), before, "the connections were given up");
    network.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_twice_has_its_effect_once() {
    for method in [Method::Publish, Method::Deliver] {
        let mut network = Network::start().await;
        let before = network.attempts();
        let rules = network.rule(method, Which::Every(1), Action::Duplicate);
        network.place(20).await;
        for id in &network.ids {
            network.pair.result(id).await;
        }
        assert!(fired(&rules).iter().all(|fired| *fired >= 20), "{rules:?}");
        assert_eq!(network.attempts(), before, "the connections were given up");
        network.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direction_that_is_closed_alone_is_noticed() {
    let mut network = Network::start().await;
    for direction in [Direction::ToBroker, Direction::ToService] {
        let before = network.attempts();
        network.place(5).await;
        for link in network.proxies().iter().flat_map(|proxy| proxy.links()) {
            link.shape(direction, Traffic::closed());
        }
        network.place(5).await;
        network.connected_anew(before).await;
    }
    network.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direction_that_swallows_everything_is_noticed_by_heartbeats() {
    let mut network = Network::start().await;
    for direction in [Direction::ToBroker, Direction::ToService] {
        let (before, held) = (network.attempts(), Instant::now());
        network.place(5).await;
        // Those that are open now, as a router forgets them; new ones get through.
        for link in network.proxies().iter().flat_map(|proxy| proxy.links()) {
            link.shape(direction, Traffic::held());
        }
        network.place(5).await;
        network.connected_anew(before).await;
        assert!(held.elapsed() < Duration::from_secs(12), "noticed only after {:?}", held.elapsed());
    }
    network.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_makes_it_slow_and_nothing_else() {
    let mut network = Network::start().await;
    let before = network.attempts();
    let slow = Traffic {
        delay: Some((Duration::ZERO, Duration::from_millis(4))),
        slice: Some(50),
        bytes_per_second: Some(20_000),
        ..Traffic::default()
    };
    for direction in [Direction::ToBroker, Direction::ToService] {
        network.proxies().iter().for_each(|proxy| proxy.shape(direction, slow));
    }
    network.place(15).await;
    for id in &network.ids {
        network.pair.result(id).await;
    }
    assert_eq!(network.attempts(), before, "the connections were given up");
    for direction in [Direction::ToBroker, Direction::ToService] {
        network.proxies().iter().for_each(|proxy| proxy.shape(direction, Traffic::default()));
    }
    network.finish().await;
}

/// Does `harm` again and again for three seconds under load: how often each service connected meanwhile.
async fn storm(network: &mut Network, harm: impl Fn(&Proxy)) -> [u64; 2] {
    let (before, until) = (network.attempts(), Instant::now() + Duration::from_secs(3));
    while Instant::now() < until {
        network.proxies().into_iter().for_each(&harm);
        // Few, for no connection holds: what the requestor has accepted waits in its store.
        network.place(1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = network.attempts();
    [after[0] - before[0], after[1] - before[1]]
}

/// Pauses between sessions double from 100 ms, less jitter, and a session takes two connections: at the least
/// 0.05 + 0.1 + … + 0.8 + 1.6 s pass before the seventh.
const ATTEMPTS_MAX: u64 = 14;

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_again_and_again_are_made_with_growing_pauses() {
    let mut network = Network::start().await;
    let attempts = storm(&mut network, |proxy| proxy.end_all(Ending::Reset)).await;
    assert!(attempts.iter().all(|count| (2..=ATTEMPTS_MAX).contains(count)), "{attempts:?}");
    network.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_accepted_and_closed_are_made_with_growing_pauses() {
    for ending in [Ending::Finish, Ending::Reset] {
        let mut network = Network::start().await;
        network.proxies().iter().for_each(|proxy| proxy.refuse(Some(ending)));
        let attempts = storm(&mut network, |proxy| proxy.end_all(ending)).await;
        assert!(attempts.iter().all(|count| (2..=ATTEMPTS_MAX).contains(count)), "{attempts:?}");
        network.proxies().iter().for_each(|proxy| proxy.refuse(None));
        network.finish().await;
    }
}
