//! Providers announce what they serve, and the requestor knows it.

use crate::stand_in::StandIn;
use harness::broker::VirtualHost;
use harness::eventually;
use harness::pair::Pair;
use harness::process::command;
use lapin::options::{BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions};
use lapin::{Channel, Connection, ConnectionProperties};
use provider::schemars::{self, JsonSchema};
use provider::{Context, Failure, Provider};
use requestor::config::{KindConfig, PipelineConfig};
use serde_json::{Value, json};
use shared::config::SecretUrl;
use shared::message::{Announcement, Message};
use shared::schema::Schemas;
use std::time::Duration;
use tokio::time::Instant;

const KIND: &str = "people.greet";

#[derive(serde::Deserialize, JsonSchema)]
struct Person {
    /// Whom to greet.
    #[schemars(length(min = 1))]
    name: String,
}

/// A provider of a kind that no configuration names.
fn greeter(pair: &Pair) -> Provider {
    let greet = |person: Person, _: Context| async move { Ok::<_, Failure>(format!("Hello {}", person.name)) };
    let builder = Provider::builder(pair.provider_config.clone()).version("2.1.0");
    builder.handle(KIND, greet).describe::<Person, String>(KIND).build().unwrap()
}

async fn kind(pair: &Pair, name: &str) -> Value {
    pair.get_json(&format!("/v1/kinds/{name}")).await
}

/// The kind, once `fits` is true of it.
async fn kind_that(pair: &Pair, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} {what}"), async || {
        let kind = kind(pair, name).await;
        if fits(&kind) { Ok(kind) } else { Err(kind.to_string()) }
    })
    .await
}

/// Somebody who announces what he likes.
struct Announcer {
    connection: Connection,
    channel: Channel,
    user: Option<String>,
}

fn says(kind: &str, instance: &str, version: &str, schemas: Schemas) -> Announcement {
    Announcement {
        kind: kind.into(),
        group: "others".into(),
        instance: instance.into(),
        version: version.into(),
        effect: None,
        concurrency: 3,
        schemas,
        lease_seconds: 300,
        leaving: false,
    }
}

fn asks_for(schema: Value) -> Schemas {
    Schemas { request: Some(schema), result: None }
}

impl Announcer {
    /// Waits until the requestor hears what is announced: there is no queue for what was said before. It then knows `kind`.
    async fn is_heard(&self, pair: &Pair, kind_name: &str) {
        eventually("the requestor hears announcements", async || {
            self.say(&says(kind_name, "a", "1", Schemas::default())).await;
            let known = kind(pair, kind_name).await;
            if known["providersSeen"] == 1 { Ok(()) } else { Err(known.to_string()) }
        })
        .await;
    }

    async fn join(host: &VirtualHost) -> Self {
        Self::connect(&host.url, None).await
    }

    async fn connect(url: &str, user: Option<&str>) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { connection, channel, user: user.map(str::to_owned) }
    }

    async fn say(&self, announcement: &Announcement) {
        self.send(announcement.to_message().unwrap()).await;
    }

    #[expect(clippy::disallowed_methods, reason = "announcements of the test's own")]
    async fn send(&self, message: Message) {
        let mut properties = message.properties;
        if let Some(user) = &self.user {
            properties = properties.with_user_id(user.as_str().into());
        }
        let (exchange, key, options) = (message.exchange.into(), message.routing_key, BasicPublishOptions::default());
        let sent = self.channel.basic_publish(exchange, key, options, &message.body, properties);
        sent.await.unwrap().await.unwrap();
    }

    async fn leave(self) {
        self.connection.close(200, "done".into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_can_be_asked_for_as_soon_as_a_provider_announces_it_and_ever_after() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let refused = pair.try_submit(KIND, &json!({"name": "Ada"})).await.unwrap();
    assert_eq!(refused.status(), 404);
    let refused: Value = refused.json().await.unwrap();
    assert!(refused["kinds"].as_array().unwrap().contains(&json!("echo")), "{refused}");
    assert_eq!(pair.get(&format!("/v1/kinds/{KIND}")).await.status(), 404);

    let provider = greeter(&pair);
    pair.start_provider_with(provider);
    let known = kind_that(&pair, KIND, "is live", |kind| kind["live"] == true).await;
    assert_eq!(
        (&known["configured"], &known["version"], &known["effect"]),
        (&json!(false), &json!("2.1.0"), &json!("pure"))
    );
    assert_eq!((&known["timeoutSeconds"], &known["attempts"]), (&json!(3600), &json!(3)));
    assert_eq!(known["requestSchema"]["properties"]["name"]["description"], "Whom to greet.");
    assert_eq!(known["resultSchema"]["type"], "string");
    let slots = pair.provider_config.effective_concurrency();
    assert_eq!((known["concurrency"].as_u64(), known["providersSeen"].as_u64()), (Some(slots as u64), Some(1)));
    assert_eq!((&known["providers"][0]["group"], &known["providers"][0]["live"]), (&json!("default"), &json!(true)));
    let refused = pair.try_submit(KIND, &json!({"name": ""})).await.unwrap();
    assert_eq!(refused.status(), 422);
    assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["pointer"], "/name");
    let id = pair.submit(KIND, &json!({"name": "Ada"})).await;
    assert_eq!(pair.result(&id).await, "Hello Ada");

    // Long before its lease has run out.
    let (stopped, lease) = (Instant::now(), pair.provider_config.announcements.interval * 3);
    pair.stop_provider().await;
    kind_that(&pair, KIND, "is known to have lost its provider", |kind| kind["live"] == false).await;
    assert!(stopped.elapsed() < lease.mul_f64(0.75), "it did not say that it left: {:?}", stopped.elapsed());

    pair.stop_requestor().await;
    pair.start_requestor();
    pair.ready().await;
    let known = kind(&pair, KIND).await;
    assert_eq!((&known["live"], &known["version"]), (&json!(false), &json!("2.1.0")), "a restart forgets nothing");
    assert_eq!(known["providers"].as_array().unwrap().len(), 1, "{known}");
    assert_eq!(pair.try_submit(KIND, &json!({})).await.unwrap().status(), 422);
    let id = pair.submit(KIND, &json!({"name": "Grace"})).await;
    let waiting = pair.operation(&id).await;
    assert_eq!(waiting["providersSeen"], 0, "{waiting}");
    assert!(waiting["message"].as_str().unwrap().contains("no provider of people.greet was seen lately"), "{waiting}");

    let provider = greeter(&pair);
    pair.start_provider_with(provider);
    assert_eq!(pair.result(&id).await, "Hello Grace");
    assert!(pair.operation(&id).await.get("providersSeen").is_none());
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_listed_with_what_is_known_of_it() {
    let pair = Pair::start().await;
    kind_that(&pair, "order.place", "is live", |kind| kind["live"] == true).await;
    let all = pair.get_json("/v1/kinds").await;
    let find = |name: &str| all["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == name).unwrap().clone();
    let (order, publish) = (find("order.place"), find("video.publish"));
    assert_eq!((&order["effect"], &order["timeoutSeconds"]), (&json!("transactional"), &json!(300)));
    assert_eq!(order["requestSchema"]["title"], "Order");
    assert_eq!(order["resultSchema"]["title"], "OrderConfirmation");
    assert!(order.get("providers").is_none(), "only where one kind is asked for");
    assert_eq!(publish["steps"], json!(["video.capture", "video.compress", "video.deliver"]));
    assert_eq!(
        (&publish["requestSchema"]["title"], &publish["resultSchema"]["title"]),
        (&json!("Capture"), &json!("Stream"))
    );
    assert_eq!(publish["live"], find("video.capture")["live"], "a pipeline is served if its steps are");

    let mut table = command("requestor", &[("ARR_URL".into(), pair.base.clone())]);
    let mut one = command("requestor", &[("ARR_URL".into(), pair.base.clone())]);
    let (table, one) = tokio::task::spawn_blocking(move || {
        (table.arg("kinds").output().unwrap(), one.args(["kinds", "order.place"]).output().unwrap())
    })
    .await
    .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let line = table.lines().find(|line| line.starts_with("order.place ")).unwrap();
    assert!(line.contains("transactional") && line.contains("300s"), "{table}");
    let one: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!((&one["kind"], one["providers"].as_array().unwrap().len()), (&json!("order.place"), 1));
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_schema_holds_whatever_is_announced_and_an_announced_one_before_the_products() {
    let mut pair = Pair::prepare().await;
    let file = pair.folder.path().join("schema.json");
    std::fs::write(&file, json!({"maximum": 10}).to_string()).unwrap();
    let configured = KindConfig { schema: Some(file), ..KindConfig::default() };
    pair.requestor_config.kinds.insert("number.take".into(), configured);
    pair.start_requestor();
    pair.ready().await;
    let announcer = Announcer::join(&pair.host).await;
    for kind in ["number.take", "echo"] {
        announcer.say(&says(kind, "a", "1", asks_for(json!({"maximum": 5})))).await;
        kind_that(&pair, kind, "is live", |kind| kind["live"] == true).await;
    }
    assert_eq!(pair.try_submit("number.take", &json!(11)).await.unwrap().status(), 422);
    assert_eq!(kind(&pair, "number.take").await["requestSchema"], json!({"maximum": 10}));
    assert_eq!(pair.try_submit("echo", &json!(6)).await.unwrap().status(), 422);
    assert_eq!(kind(&pair, "echo").await["requestSchema"], json!({"maximum": 5}));
    let id = pair.submit("number.take", &json!(10)).await;
    assert_eq!(pair.operation(&id).await["providersSeen"], 1);
    pair.request("DELETE", &format!("/v1/operations/{id}")).send().await.unwrap();
    announcer.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_providers_that_differ_the_newest_versions_schema_holds_and_it_is_shown() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let announcer = Announcer::join(&pair.host).await;
    let (old, new) = (says("x", "old", "1.9", asks_for(json!({"maximum": 1}))), asks_for(json!({"maximum": 2})));
    let new = says("x", "new", "1.10", new);
    announcer.say(&new).await;
    announcer.say(&old).await;
    let differs = kind_that(&pair, "x", "has two", |kind| kind["providersSeen"] == 2).await;
    assert_eq!((&differs["schemasDiffer"], &differs["requestSchema"]), (&json!(true), &json!({"maximum": 2})));
    let providers = differs["providers"].as_array().unwrap();
    let marked =
        |instance: &str| providers.iter().find(|one| one["instance"] == instance).unwrap()["schemasDiffer"].clone();
    assert_eq!((marked("old"), marked("new")), (json!(true), json!(false)));
    announcer.say(&Announcement { leaving: true, ..new }).await;
    announcer.say(&old).await;
    let left = kind_that(&pair, "x", "has one", |kind| kind["providersSeen"] == 1).await;
    let left = if left["schemasDiffer"] == false {
        left
    } else {
        kind_that(&pair, "x", "agrees", |kind| kind["schemasDiffer"] == false).await
    };
    assert_eq!(left["requestSchema"], json!({"maximum": 1}));
    announcer.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_have_limits_and_count_only_from_users_that_may_reply() {
    let mut pair = Pair::prepare().await;
    let mallory = format!("mallory-{}", pair.host.name);
    let stranger = Announcer::connect(&pair.host.add_user(&mallory).await, Some(&mallory)).await;
    let friend = Announcer::connect(&pair.host.url, Some("guest")).await;
    let unsigned = Announcer::join(&pair.host).await;
    pair.requestor_config.replies.users = vec!["guest".into()];
    pair.requestor_config.announcements.kinds_max = 2;
    pair.requestor_config.announcements.schema_bytes_max = 1000;
    pair.start_requestor();
    pair.ready().await;
    friend.is_heard(&pair, "good").await;
    stranger.say(&says("evil", "a", "1", Schemas::default())).await;
    unsigned.say(&says("evil", "b", "1", Schemas::default())).await;
    friend.say(&says("large", "a", "1", asks_for(json!("x".repeat(1000))))).await;
    let mut nonsense = says("good", "a", "1", Schemas::default()).to_message().unwrap();
    for body in ["", "[]", "{\"kind\":\"evil\"}", r#"{"kind":"arr.#","group":"a","instance":"a"}"#] {
        nonsense.body = body.into();
        friend.send(nonsense.clone()).await;
    }
    friend.say(&says("video.publish", "a", "1", Schemas::default())).await;
    friend.say(&says("good", "a", "1", asks_for(json!({"pattern": "(?=a)"})))).await;
    friend.say(&says("better", "a", "1", Schemas::default())).await;
    friend.say(&says("too.many", "a", "1", Schemas::default())).await;
    // Behind them all.
    friend.say(&says("good", "last", "1", Schemas::default())).await;
    kind_that(&pair, "good", "has two providers", |kind| kind["providersSeen"] == 2).await;
    for refused in ["evil", "large", "too.many", "arr.%23"] {
        assert_eq!(pair.get(&format!("/v1/kinds/{refused}")).await.status(), 404, "{refused}");
    }
    assert_eq!(kind(&pair, "video.publish").await["providersSeen"], 0, "a pipeline is no provider's");
    // Those of the other connections may come later.
    eventually("all others are refused", async || match pair.metric("arr_unreadable_total", "arr.announce").await {
        few @ ..9.0 => Err(few.to_string()),
        _ => Ok(()),
    })
    .await;
    for announcer in [stranger, friend, unsigned] {
        announcer.leave().await;
    }
    pair.host.delete_user(&mallory).await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_a_kind_that_is_only_announced_are_answered() {
    let mut pair = Pair::prepare().await;
    pair.start_requestor();
    pair.ready().await;
    let (announcer, provider) = (Announcer::join(&pair.host).await, StandIn::join(&pair, &[KIND]).await);
    announcer.say(&says(KIND, "a", "1", Schemas::default())).await;
    kind_that(&pair, KIND, "is live", |kind| kind["live"] == true).await;
    let id = pair.submit(KIND, &json!(1)).await;
    let queue = shared::topology::request_queue(KIND);
    let ended = eventually("the broker gives the request up", async || {
        let got = announcer.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap();
        if let Some(message) = got {
            message.delivery.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        }
        let operation = pair.operation(&id).await;
        if operation["status"] == "Failed" { Ok(operation) } else { Err(operation.to_string()) }
    })
    .await;
    assert_eq!(ended["error"]["type"], "urn:problem-type:arr:poison", "{ended}");
    announcer.leave().await;
    provider.leave().await;
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_may_have_steps_that_were_announced_once_and_no_others() {
    let mut pair = Pair::prepare().await;
    let pipeline = PipelineConfig { steps: vec![KIND.into(), "echo".into()], timeout: None };
    let port = pair.requestor_config.http.listen;
    let config = requestor::config::Config {
        pipelines: [("greet.twice".to_owned(), pipeline)].into(),
        ..pair.requestor_config.clone()
    };
    let listener = shared::http::bind(port).unwrap();
    let refused = requestor::run(config.clone(), listener, Default::default()).await.unwrap_err().to_string();
    assert!(refused.contains("pipelines.greet.twice.steps") && refused.contains(KIND), "{refused}");

    pair.start_requestor();
    let provider = greeter(&pair);
    pair.start_provider_with(provider);
    pair.ready().await;
    kind_that(&pair, KIND, "is live", |kind| kind["live"] == true).await;
    pair.stop_requestor().await;
    pair.requestor_config = config;
    pair.start_requestor();
    pair.ready().await;
    assert_eq!(pair.try_submit("greet.twice", &json!({"name": ""})).await.unwrap().status(), 422, "of the first step");
    let id = pair.submit("greet.twice", &json!({"name": "Ada"})).await;
    let request = eventually("the second step waits for a provider of echo", async || {
        let operation = pair.operation(&id).await;
        if operation["stepKind"] == "echo" { Ok(operation) } else { Err(operation.to_string()) }
    })
    .await;
    assert_eq!(request["position"], 2);
    pair.stop_provider().await;
    pair.start_provider();
    assert_eq!(pair.result(&id).await, "Hello Ada");
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_announces_itself_again_and_again() {
    let mut pair = Pair::prepare().await;
    pair.provider_config.announcements.interval = Duration::from_secs(1);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let first = kind_that(&pair, "echo", "is live", |kind| kind["live"] == true).await;
    let again = kind_that(&pair, "echo", "is announced again", |kind| kind["lastSeenAt"] != first["lastSeenAt"]).await;
    assert_eq!(again["providers"][0]["instance"], first["providers"][0]["instance"]);
    assert_eq!(again["providers"][0]["firstSeenAt"], first["providers"][0]["firstSeenAt"]);
    assert_eq!(again["providersSeen"], 1);
    pair.finish().await;
}

/// `config/rabbitmq/definitions.json`: each service has the rights that it needs.
#[tokio::test(flavor = "multi_thread")]
async fn the_users_of_the_compose_stack_may_announce_and_hear_of_it() {
    let mut pair = Pair::prepare().await;
    let definitions = include_str!("../config/rabbitmq/definitions.json");
    let definitions: Value = serde_json::from_str(definitions).unwrap();
    let (mut users, mut urls) = (Vec::new(), Vec::new());
    for role in ["requestor", "provider"] {
        let user = format!("{role}-{}", pair.host.name);
        urls.push(SecretUrl::new(pair.host.add_user(&user).await));
        let rights = definitions["permissions"].as_array().unwrap().iter().find(|one| one["user"] == role).unwrap();
        let rights = json!({"configure": rights["configure"], "write": rights["write"], "read": rights["read"]});
        pair.host.call("PUT", &format!("permissions/{}/{user}", pair.host.name), &rights.to_string()).await;
        users.push(user);
    }
    pair.requestor_config.replies.users = users.clone();
    pair.requestor_config.broker.url = urls.remove(0);
    pair.provider_config.broker.url = urls.remove(0);
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    kind_that(&pair, "order.place", "is live", |kind| kind["live"] == true).await;
    let id = pair.submit("echo", &json!(1)).await;
    assert_eq!(pair.result(&id).await, 1);
    pair.stop_provider().await;
    kind_that(&pair, "order.place", "has lost its provider", |kind| kind["live"] == false).await;
    pair.stop_requestor().await;
    for user in users {
        pair.host.delete_user(&user).await;
    }
    pair.finish().await;
}
