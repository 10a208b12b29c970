use super::*;
use harness::pair::Pair;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// How PostgreSQL confirms a commit.
const CONFIRMED: &[u8] = b"COMMIT\0";

/// A relay to the server of `url`, and the URL of the same database through it. While `cut` is set, it closes the
/// connection in place of the next confirmation of a commit.
async fn relay(url: &str, cut: &Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut url = Url::parse(url).unwrap();
    let server = (url.host_str().unwrap().to_owned(), url.port().unwrap());
    url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    url.set_query(Some("sslmode=disable"));
    let cut = Arc::clone(cut);
    tokio_util::task::TaskTracker::new().spawn(async move {
        let connections = tokio_util::task::TaskTracker::new();
        while let Ok((client, _)) = listener.accept().await {
            let (server, cut) = (TcpStream::connect(&server).await.unwrap(), Arc::clone(&cut));
            connections.spawn(async move {
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let answers = async {
                    let mut bytes = vec![0; 64 * 1024];
                    while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                        let confirmed = bytes[..count].windows(CONFIRMED.len()).any(|part| part == CONFIRMED);
                        if confirmed && cut.swap(false, Ordering::SeqCst) {
                            return;
                        }
                        if to_client.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = answers => {}
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                }
            });
        }
    });
    url.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_confirmation_is_lost_is_told_as_what_it_was() {
    let (database, cut) = (Postgres::shared().await.database().await, Arc::new(AtomicBool::new(false)));
    let store = open(&relay(database.url.expose(), &cut).await).await;
    let one = created(&store).await;
    for (place, event) in [progress(1, "on"), succeeded("1")].into_iter().enumerate() {
        cut.store(true, Ordering::SeqCst);
        let applied = store.apply(one.id, event, Timestamp::now()).await.unwrap().unwrap();
        assert!(!cut.load(Ordering::SeqCst), "nothing was cut");
        assert_eq!(store.get(Scope::All, one.id).await, Ok(Some(applied.operation)), "{place}");
    }
    cut.store(true, Ordering::SeqCst);
    let two = created(&store).await;
    assert!(!cut.load(Ordering::SeqCst) && store.get(Scope::All, two.id).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_whose_connections_are_cut_loses_nothing_and_stores_nothing_that_it_refuses() {
    let database = Postgres::shared().await.database().await;
    let mut pair = Pair::prepare().await;
    pair.requestor_config.store.url = database.url.clone();
    pair.start_requestor();
    pair.start_provider();
    pair.ready().await;
    let done = AtomicBool::new(false);
    let cutting = async {
        let other = shared::database::Postgres::open(database.url.expose(), 1, "test", &[]).await.unwrap();
        let end = "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and application_name = 'store'";
        let mut cuts = 0;
        while !done.load(Ordering::SeqCst) {
            cuts += sqlx::query(end).execute(other.pool()).await.unwrap().rows_affected();
            tokio::time::sleep(Duration::from_millis(rand::random_range(5..50))).await;
        }
        cuts
    };
    let submitting = async {
        let mut accepted = Vec::new();
        for round in 0..30 {
            let submit = async |number| pair.try_submit("echo", &json!([round, number])).await.unwrap();
            for answer in futures_util::future::join_all((0..10).map(submit)).await {
                match answer.status().as_u16() {
                    202 => accepted.push(answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()),
                    status => assert_eq!(status, 503),
                }
            }
        }
        done.store(true, Ordering::SeqCst);
        accepted
    };
    let (accepted, cuts) = tokio::join!(submitting, cutting);
    assert!(accepted.len() > 10 && cuts > 10, "{} accepted, {cuts} connections cut", accepted.len());
    for id in &accepted {
        pair.ended(id).await;
    }
    let other = shared::database::Postgres::open(database.url.expose(), 1, "test", &[]).await.unwrap();
    let stored: i64 = sqlx::query_scalar("select count(*) from operations").fetch_one(other.pool()).await.unwrap();
    assert_eq!(stored as usize, accepted.len());
    pair.finish().await;
}
