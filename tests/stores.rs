//! What every store does alike, in an SQLite file and in a PostgreSQL database; and what several instances on one
//! database must not do.

mod lost_connections;
mod shared_by_instances;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use harness::postgres::{Database, Postgres};
use harness::store::StoreOfTest;
use jiff::Timestamp;
use requestor::operation::{Callback, Change, Event, Operation, State};
use requestor::store::{Created, Filter, IdempotencyKey, Lost, NewOperation, Room, Scope, Sent, Store, StoreError};
use requestor::store::{LogOfAll, RequestId};
use shared::message::{Content, Outcome, Progress, Reply};
use shared::problem::Problem;
use std::time::Duration;
use tempfile::TempDir;

const ROOM: Room = Room { open_max: 1000, bytes_max: 1 << 30 };
const MINUTE: Duration = Duration::from_secs(60);

/// A store, and what it lives in.
struct Opened {
    store: Store,
    _folder: TempDir,
    _database: Option<Database>,
}

impl std::ops::Deref for Opened {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// One of each.
async fn stores() -> [Opened; 2] {
    let (folder, database) = (tempfile::tempdir().unwrap(), Postgres::shared().await.database().await);
    let file = open(&format!("sqlite://{}/store.db", folder.path().display())).await;
    let server = open(database.url.expose()).await;
    [
        Opened { store: file, _folder: folder, _database: None },
        Opened { store: server, _folder: tempfile::tempdir().unwrap(), _database: Some(database) },
    ]
}

async fn open(url: &str) -> Store {
    let config = requestor::config::Config::load(None).unwrap();
    Store::open(url, 4, config.rules(), drop).await.unwrap()
}

fn operation() -> Operation {
    Operation::new("echo", Timestamp::now(), MINUTE, MINUTE)
}

fn new(operation: &Operation) -> NewOperation {
    NewOperation { operation: operation.clone(), request: Content::json("1"), key: None, room: ROOM }
}

fn with_key(operation: &Operation, key: &str, fingerprint: u8) -> NewOperation {
    let key = IdempotencyKey { key: key.into(), fingerprint: vec![fingerprint] };
    NewOperation { key: Some(key), ..new(operation) }
}

async fn created(store: &Store) -> Operation {
    let operation = operation();
    assert_eq!(store.create(new(&operation)).await, Ok(Created::New));
    operation
}

fn succeeded(body: &'static str) -> Event {
    Event::Reply(Reply::new(1, 1, Outcome::Succeeded(Content::json(body))))
}

fn failed() -> Event {
    let problem = Problem::new("no", 422, "It cannot be done", "it never could");
    Event::Reply(Reply::new(1, 1, Outcome::Failed(problem)))
}

fn progress(sequence: i64, message: &str) -> Event {
    let message = Some(message.to_owned());
    Event::Progress(Progress { step: 1, attempt: 1, sequence, percent: Some(1.5), message, lease: None })
}

async fn events(store: &Store, after: u64) -> LogOfAll {
    store.log_of_all(Scope::All, after, (1000, None)).await.unwrap()
}

#[tokio::test]
async fn what_is_stored_is_read_again_by_its_owner_and_by_nobody_else() {
    for store in stores().await {
        let mut stored = operation().through(&["a".into(), "b".into()]).owned_by("me");
        (stored.priority, stored.traceparent) = (Some(3), Some("00-ab-cd-01".into()));
        stored.callback = Some(Callback { url: "https://example.com/".into(), base_url: "http://me".into() });
        assert_eq!(store.create(new(&stored)).await, Ok(Created::New));
        stored.events = 1;
        let (id, me, you) = (stored.id, Scope::Of("me".into()), Scope::Of("you".into()));
        assert_eq!(store.get(me.clone(), id).await, Ok(Some(stored.clone())));
        assert_eq!(store.get(you.clone(), id).await, Ok(None));
        assert!(store.apply_in(you.clone(), id, Event::Cancel, Timestamp::now()).await.unwrap().is_none());
        assert!(store.operation_log(you.clone(), id, 0, 9).await.unwrap().is_none());
        let first = store.apply(id, succeeded("2"), Timestamp::now()).await.unwrap().unwrap();
        assert!(matches!(first.change, Change::StepSucceeded { .. }));
        assert_eq!(store.get(Scope::All, id).await, Ok(Some(first.operation.clone())));
        let second = Event::Reply(Reply::new(2, 1, Outcome::Succeeded(Content::json("3"))));
        let second = store.apply_in(me.clone(), id, second, Timestamp::now()).await.unwrap().unwrap();
        assert_eq!(store.get(Scope::All, id).await, Ok(Some(second.operation.clone())));
        assert_eq!(store.result(me.clone(), id).await.unwrap().unwrap().body, "3");
        assert_eq!(store.result(you.clone(), id).await, Ok(None));
        let log = store.operation_log(me.clone(), id, 1, 9).await.unwrap().unwrap();
        let told: Vec<_> = log.events.iter().map(|event| (event.number, event.event_type.as_str())).collect();
        assert_eq!((told, log.last, log.ended), (vec![(2, "step-succeeded"), (3, "succeeded")], 3, true));
        let nothing_new = store.operation_log(me, id, 3, 9).await.unwrap().unwrap();
        assert_eq!((nothing_new.events.len(), nothing_new.last, nothing_new.ended), (0, 3, true));
    }
}

#[tokio::test]
async fn operations_are_listed_newest_first_by_owner_kind_and_status() {
    for store in stores().await {
        let all = [operation(), operation().owned_by("me"), Operation::new("other", Timestamp::now(), MINUTE, MINUTE)];
        for one in &all {
            assert_eq!(store.create(new(one)).await, Ok(Created::New));
        }
        store.apply(all[0].id, succeeded("1"), Timestamp::now()).await.unwrap();
        let list = async |scope: Scope, filter: Filter| -> Vec<_> {
            store.list(scope, Filter { limit: 2, ..filter }).await.unwrap().iter().map(|found| found.id).collect()
        };
        let [first, mine, other] = [0, 1, 2].map(|place: usize| all[place].id);
        assert_eq!(list(Scope::All, Filter::default()).await, [other, mine]);
        assert_eq!(list(Scope::All, Filter { before: Some(mine), ..Filter::default() }).await, [first]);
        assert_eq!(list(Scope::Of("me".into()), Filter::default()).await, [mine]);
        assert_eq!(list(Scope::All, Filter { kind: Some("echo".into()), ..Filter::default() }).await, [mine, first]);
        assert_eq!(list(Scope::All, Filter { status: Some("Succeeded"), ..Filter::default() }).await, [first]);
        let open = store.open_operations(Scope::All, 1).await.unwrap();
        assert_eq!((open.sequence, open.operations[0].id, open.more), (4, other, true));
        let open = store.open_operations(Scope::Of("nobody".into()), 1).await.unwrap();
        assert_eq!((open.sequence, open.operations.len(), open.more), (4, 0, false));
        assert_eq!(store.open_of_kind("echo".into(), 9).await, Ok(vec![mine]));
        assert_eq!(store.took_lately("echo".into(), 9).await.unwrap().len(), 1);
        let open = all.iter().filter(|operation| operation.id != first).map(|operation| (operation.kind.clone(), 1));
        assert_eq!(store.backlog().await, Ok(open.collect()));
    }
}

#[tokio::test]
async fn a_key_is_used_once_by_its_owner() {
    for store in stores().await {
        let (first, again, other, yours) = (operation(), operation(), operation(), operation().owned_by("you"));
        // Together, so that PostgreSQL's come in one batch.
        let (a, b) = tokio::join!(store.create(with_key(&first, "k", 1)), store.create(with_key(&again, "k", 1)));
        let before = match (a.unwrap(), b.unwrap()) {
            (Created::New, Created::Before(before)) | (Created::Before(before), Created::New) => before.id,
            other => panic!("{other:?}"),
        };
        assert!(store.get(Scope::All, before).await.unwrap().is_some());
        assert_eq!(store.create(with_key(&other, "k", 2)).await, Ok(Created::OtherPayload));
        assert_eq!(store.create(with_key(&yours, "k", 2)).await, Ok(Created::New));
        assert_eq!(store.list(Scope::All, Filter { limit: 9, ..Filter::default() }).await.unwrap().len(), 2);
        assert_eq!(events(&store, 0).await.events.len(), 2, "what was refused has no event");
    }
}

#[tokio::test]
async fn an_owner_has_no_more_than_it_may() {
    for store in stores().await {
        let room = Room { open_max: 2, bytes_max: 3 * 1024 + 3 };
        let create = async || {
            let operation = operation();
            (operation.id, store.create(NewOperation { room, ..new(&operation) }).await.unwrap())
        };
        let three = tokio::join!(create(), create(), create());
        let mut three = [three.0, three.1, three.2];
        three.sort_by_key(|(_, created)| *created != Created::New);
        assert_eq!(three.clone().map(|(_, created)| created), [Created::New, Created::New, Created::TooManyOpen]);
        assert_eq!(store.get(Scope::All, three[2].0).await, Ok(None), "what is refused is not stored");
        store.apply(three[0].0, succeeded("1"), Timestamp::now()).await.unwrap();
        // One byte is taken by the result.
        assert_eq!(create().await.1, Created::TooManyBytes);
        assert_eq!(events(&store, 0).await.events.len(), 3);
    }
}

#[tokio::test]
async fn what_is_due_is_given_and_noted() {
    for store in stores().await {
        let now = Timestamp::now();
        let later = now.checked_add(2 * MINUTE).unwrap();
        let one = created(&store).await;
        assert!(store.to_send(now, 9).await.unwrap().is_empty());
        let due = store.to_send(later, 9).await.unwrap();
        assert_eq!((due[0].0.id, &due[0].1.body[..], due.len()), (one.id, &b"1"[..], 1));
        let next_send_at = later.checked_add(2 * MINUTE).unwrap();
        let sent = Sent { request: RequestId::of(&one), sends: 1, sent_at: later, next_send_at };
        let other_attempt = Sent { request: RequestId { attempt: 2, ..sent.request }, sends: 7, ..sent };
        store.sent(vec![other_attempt, sent]).await.unwrap();
        let noted = store.get(Scope::All, one.id).await.unwrap().unwrap();
        assert_eq!((noted.sends, noted.next_send_at.as_millisecond()), (1, next_send_at.as_millisecond()));
        assert_eq!(store.overdue(now, 9).await, Ok(vec![]));
        assert_eq!(store.overdue(later, 9).await, Ok(vec![one.id]));
        store.apply(one.id, Event::Cancel, now).await.unwrap();
        let due = store.to_cancel(later, 9, (MINUTE, MINUTE)).await.unwrap();
        assert_eq!(due.iter().map(|one| one.id).collect::<Vec<_>>(), [one.id]);
        assert!(store.to_cancel(later, 9, (MINUTE, MINUTE)).await.unwrap().is_empty());
        assert_eq!(store.get(Scope::All, one.id).await.unwrap().unwrap().cancels, 1);
    }
}

#[tokio::test]
async fn what_is_forgotten_is_gone_with_all_of_its_traces_but_one() {
    for store in stores().await {
        let (ended, open) = (created(&store).await, created(&store).await);
        store.apply(ended.id, succeeded("12345"), Timestamp::now()).await.unwrap();
        let late = Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24 * 7)).unwrap();
        assert_eq!(store.purge(Timestamp::now(), 9, 1).await, Ok(0));
        assert_eq!(store.purge(late, 9, 1).await, Ok(1));
        assert_eq!(store.get(Scope::All, ended.id).await, Ok(None));
        assert_eq!(store.result(Scope::All, ended.id).await, Ok(None));
        assert_eq!(store.was_forgotten(Scope::All, ended.id).await, Ok(true));
        assert_eq!(store.was_forgotten(Scope::Of("you".into()), ended.id).await, Ok(false));
        assert!(store.get(Scope::All, open.id).await.unwrap().is_some());
        // Its events were the first and the third: who has read the third misses nothing.
        let lost = async |after| events(&store, after).await.lost;
        assert_eq!((lost(2).await, lost(3).await, lost(4).await), (Some(Lost::Gone), None, Some(Lost::Unknown)));
        store.apply(open.id, succeeded("1"), Timestamp::now()).await.unwrap();
        assert_eq!(store.purge(late, 9, 1).await, Ok(1));
        assert_eq!(store.was_forgotten(Scope::All, ended.id).await, Ok(false), "only the last is remembered");
        assert!(
            matches!(
                store.create(NewOperation { room: Room { open_max: 1, bytes_max: 1025 }, ..new(&operation()) }).await,
                Ok(Created::New)
            ),
            "all was given back"
        );
    }
}

#[tokio::test]
async fn a_follower_is_told_when_it_is_too_far_behind() {
    for store in stores().await {
        let one = created(&store).await;
        for number in 1..=4 {
            store.apply(one.id, progress(number, "on"), Timestamp::now()).await.unwrap();
        }
        for scope in [Scope::All, Scope::Of(one.owner.as_str().into())] {
            let lost = async |max| store.log_of_all(scope.clone(), 2, (1, Some(max))).await.unwrap().lost;
            assert_eq!((lost(2).await, lost(3).await), (Some(Lost::Behind), None), "{scope:?}");
        }
        assert_eq!(events(&store, 3).await.events.iter().map(|it| it.sequence).collect::<Vec<_>>(), [4, 5]);
    }
}

#[tokio::test]
async fn what_a_provider_writes_is_stored_whatever_it_is() {
    for store in stores().await {
        let one = created(&store).await;
        store.apply(one.id, progress(i64::MAX, "a\0b"), Timestamp::now()).await.unwrap();
        let running = store.get(Scope::All, one.id).await.unwrap().unwrap();
        assert!(matches!(running.state, State::Running(progress) if progress.sequence == i64::MAX));
        let problem = Problem::new("no", 422, "No\0", "\0");
        let failed = Event::Reply(Reply::new(1, 1, Outcome::Failed(problem)));
        let ended = store.apply(one.id, failed, Timestamp::now()).await.unwrap().unwrap();
        assert_eq!(store.get(Scope::All, one.id).await, Ok(Some(ended.operation)));
        let two = created(&store).await;
        let result = Content { content_type: "text/plain\0".into(), body: vec![0; 100_000].into() };
        let reply = Event::Reply(Reply::new(1, 1, Outcome::Succeeded(result)));
        store.apply(two.id, reply, Timestamp::now()).await.unwrap();
        assert_eq!(store.result(Scope::All, two.id).await.unwrap().unwrap().body.len(), 100_000);
    }
}

#[tokio::test]
async fn events_of_one_operation_that_come_together_are_applied_in_turn() {
    for store in stores().await {
        let one = created(&store).await;
        let together = [progress(1, "a"), progress(2, "b"), failed(), succeeded("1")];
        let applied = together.map(|event| store.apply(one.id, event, Timestamp::now()));
        let changes = futures_util::future::join_all(applied).await;
        let changes: Vec<_> = changes.into_iter().map(|applied| applied.unwrap().unwrap().change).collect();
        assert!(matches!(changes[..], [Change::Progressed, Change::Progressed, Change::Ended(None), Change::Late]));
        let told: Vec<_> = events(&store, 0).await.events.into_iter().map(|it| (it.sequence, it.event_type)).collect();
        let types = ["created", "progress", "progress", "failed", "late-outcome"];
        assert_eq!(told, (1..).zip(types.map(str::to_owned)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn more_than_it_can_write_is_refused_at_once_and_what_is_under_way_still_ends() {
    const OFFERED: usize = 6000;
    let (folder, database) = (tempfile::tempdir().unwrap(), Postgres::shared().await.database().await);
    for of_test in [StoreOfTest::in_file(folder.path(), "store"), StoreOfTest::Database(database)] {
        let store = open(of_test.url().expose()).await;
        let under_way = created(&store).await;
        let locked = of_test.lock().await;
        let create = || store.create(NewOperation { room: Room { open_max: 10_000, ..ROOM }, ..new(&operation()) });
        let mut offered: FuturesUnordered<_> = (0..OFFERED).map(|_| create()).collect();
        // All but the store's queue for new work, and one batch that the writer has taken.
        for _ in 0..OFFERED - 2048 - 512 {
            assert_eq!(offered.next().await, Some(Err(StoreError::Busy)), "nothing can be written");
        }
        let ending = store.apply(under_way.id, succeeded("1"), Timestamp::now());
        let (ended, ()) = tokio::join!(ending, locked.release());
        assert!(matches!(ended.unwrap().unwrap().change, Change::Ended(_)));
        let rest: Vec<_> = offered.collect().await;
        let accepted = rest.iter().filter(|created| **created == Ok(Created::New)).count();
        assert!(accepted >= 2000, "{accepted}");
        assert!(rest.iter().all(|created| matches!(created, Ok(Created::New) | Err(StoreError::Busy))));
        let [stored] = of_test.numbers("select count(*) from operations").await;
        assert_eq!(stored as usize, accepted + 1);
    }
}
