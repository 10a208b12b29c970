use super::*;
use futures_util::future::{join_all, try_join_all};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// Two instances on one database.
async fn two() -> (Store, Store, Database) {
    let database = Postgres::shared().await.database().await;
    let (a, b) = tokio::join!(open(database.url.expose()), open(database.url.expose()));
    (a, b, database)
}

/// Reads the log as fast as it can until it is `done`, and checks that no number is left out.
async fn follow(store: &Store, done: &AtomicBool) -> Vec<(u64, shared::message::OperationId, u64)> {
    let mut seen: Vec<(u64, shared::message::OperationId, u64)> = Vec::new();
    loop {
        let last_look = done.load(Ordering::SeqCst);
        let page = events(store, seen.len() as u64).await;
        assert_eq!(page.lost, None);
        for event in &page.events {
            assert_eq!(event.sequence, seen.len() as u64 + 1, "a follower would have missed one");
            seen.push((event.sequence, event.id, event.number));
        }
        if last_look && page.events.is_empty() {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_apply_at_once_agree_on_one_outcome_and_followers_miss_nothing() {
    const OPERATIONS: usize = 100;
    let (a, b, _database) = two().await;
    let done = AtomicBool::new(false);
    let work = async {
        let half = |store| join_all((0..OPERATIONS / 2).map(move |_| created(store)));
        let (of_a, of_b) = tokio::join!(half(&a), half(&b));
        let all: Vec<_> = of_a.into_iter().chain(of_b).map(|operation| operation.id).collect();
        let now = Timestamp::now();
        let rounds = |store, ending: fn() -> Event| {
            let all = &all;
            async move {
                for round in 1..=3 {
                    try_join_all(all.iter().map(|id| Store::apply(store, *id, progress(round, "on"), now)))
                        .await
                        .unwrap();
                }
                try_join_all(all.iter().rev().map(|id| Store::apply(store, *id, ending(), now))).await.unwrap()
            }
        };
        let (told_a, told_b) = tokio::join!(rounds(&a, || succeeded("1")), rounds(&b, failed));
        done.store(true, Ordering::SeqCst);
        (all, told_a, told_b)
    };
    let ((all, told_a, told_b), of_a, of_b) = tokio::join!(work, follow(&a, &done), follow(&b, &done));
    assert_eq!(of_a, of_b, "all followers see one order");
    for (place, id) in all.iter().rev().enumerate() {
        let told = [&told_a[place], &told_b[place]].map(|told| told.as_ref().unwrap());
        let ended: Vec<_> = told.iter().filter(|told| matches!(told.change, Change::Ended(_))).collect();
        assert_eq!(ended.len(), 1, "{told:?}");
        let stored = a.get(Scope::All, *id).await.unwrap().unwrap();
        assert_eq!(stored.state, ended[0].operation.state, "an outcome is final");
        let numbers: Vec<_> = of_a.iter().filter(|(_, of, _)| of == id).map(|(.., number)| *number).collect();
        assert_eq!(numbers, (1..=u64::from(stored.events)).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_and_a_quota_hold_for_all_instances_together() {
    let (a, b, _database) = two().await;
    let room = Room { open_max: 30, ..ROOM };
    // Both use the same 20 keys, in opposite orders.
    let create = |store: &Store, place: usize| {
        let (store, new) = (store.clone(), with_key(&operation(), &format!("key {place}"), 1));
        async move { store.create(NewOperation { room, ..new }).await.unwrap() }
    };
    let (of_a, of_b) = tokio::join!(
        join_all((0..20).map(|place| create(&a, place))),
        join_all((0..20).rev().map(|place| create(&b, place)))
    );
    let created = of_a.iter().chain(&of_b).filter(|created| **created == Created::New).count();
    let before = of_a.iter().chain(&of_b).filter(|created| matches!(created, Created::Before(_))).count();
    assert_eq!((created, before), (20, 20));
    let without_key = |store: &Store| {
        let (store, new) = (store.clone(), NewOperation { room, ..new(&operation()) });
        async move { store.create(new).await.unwrap() }
    };
    let rest = join_all([&a, &b].into_iter().cycle().take(20).map(without_key)).await;
    assert_eq!(rest.iter().filter(|created| **created == Created::New).count(), 10);
    assert_eq!(rest.iter().filter(|created| **created == Created::TooManyOpen).count(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_do_not_do_the_same_work_and_take_over_what_one_has_left() {
    let (a, b, _database) = two().await;
    let all: HashSet<_> = join_all((0..50).map(|_| created(&a))).await.into_iter().map(|one| one.id).collect();
    let later = Timestamp::now().checked_add(2 * MINUTE).unwrap();
    let (of_a, of_b) = tokio::join!(a.to_send(later, 256), b.to_send(later, 256));
    let ids = |due: Vec<(Operation, Content)>| due.into_iter().map(|(one, _)| one.id).collect::<Vec<_>>();
    let given = [ids(of_a.unwrap()), ids(of_b.unwrap())].concat();
    assert_eq!((given.len(), given.into_iter().collect::<HashSet<_>>()), (50, all.clone()));
    assert!(a.to_send(later, 256).await.unwrap().is_empty());
    // Neither has noted that it sent them: seconds later they are due again.
    let much_later = later.checked_add(Duration::from_secs(6)).unwrap();
    assert_eq!(b.to_send(much_later, 256).await.unwrap().len(), 50);
    let (of_a, of_b) = tokio::join!(a.overdue(later, 256), b.overdue(later, 256));
    let (first, second) = (of_a.unwrap().len(), of_b.unwrap().len());
    assert_eq!((first.max(second), first.min(second)), (50, 0), "one of them gives all up");
    let idle = if first == 0 { &a } else { &b };
    harness::eventually("the other takes over", async || match idle.overdue(later, 256).await.unwrap().len() {
        50 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    let apply =
        |store: Store, id| async move { store.apply(id, Event::Deadline, later).await.unwrap().unwrap().change };
    join_all(all.iter().map(|id| apply(a.clone(), *id))).await;
    let late = later.checked_add(jiff::SignedDuration::from_hours(24 * 7)).unwrap();
    let (of_a, of_b) = tokio::join!(a.purge(late, 256, 100), b.purge(late, 256, 100));
    assert_eq!(of_a.unwrap() + of_b.unwrap(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_be_takes_no_other_with_it() {
    let (a, _b, _database) = two().await;
    let impossible = operation().owned_by("nobody\0");
    let mut all: Vec<_> = (0..20).map(|_| operation()).collect();
    all.insert(7, impossible);
    let created = join_all(all.iter().map(|one| a.create(new(one)))).await;
    for (place, created) in created.into_iter().enumerate() {
        match place {
            7 => assert!(matches!(created, Err(StoreError::Failed(_))), "{created:?}"),
            _ => assert_eq!(created, Ok(Created::New)),
        }
    }
    let sequences: Vec<_> = events(&a, 0).await.events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=20).collect::<Vec<_>>(), "numbers that were rolled back are given again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_is_no_success() {
    let (a, b, database) = two().await;
    let other = shared::database::Postgres::open(database.url.expose(), 1, "test", &[]).await.unwrap();
    // Ends the connection when all is written and only the commit is left.
    let trap = "create function lose() returns trigger language plpgsql as $$ begin
            perform pg_terminate_backend(pg_backend_pid()); return null; end $$;
        create constraint trigger lose after insert on operations deferrable initially deferred
            for each row when (new.owner = 'unlucky') execute function lose()";
    sqlx::raw_sql(trap).execute(other.pool()).await.unwrap();
    let unlucky = operation().owned_by("unlucky");
    assert_eq!(a.create(new(&unlucky)).await, Err(StoreError::Busy));
    assert_eq!(b.get(Scope::All, unlucky.id).await, Ok(None));
    created(&a).await;
    assert_eq!(events(&b, 0).await.events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1]);
}
