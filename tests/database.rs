//! What is relied on of PostgreSQL, with a real one.

use harness::postgres::Postgres as Server;
use shared::database::{DatabaseError, Postgres};

const FIRST: &str = "create table numbers (n integer primary key); insert into numbers values (1)";
const SECOND: &str = "insert into numbers values (2)";

#[tokio::test]
async fn many_may_bring_the_tables_up_to_date_at_once_and_it_happens_once() {
    let database = Server::shared().await.database().await;
    let open = |migrations| Postgres::open(database.url.expose(), 2, "store", migrations);
    open(&[FIRST]).await.unwrap();
    let all = futures_util::future::join_all((0..4).map(|_| open(&[FIRST, SECOND]))).await;
    let postgres = all.into_iter().map(Result::unwrap).next_back().unwrap();
    let numbers = postgres.run(sqlx::query_scalar("select n from numbers order by n").fetch_all(postgres.pool()));
    assert_eq!(numbers.await, Ok(vec![1, 2]));
    let said = format!("{:#}", open(&[FIRST]).await.unwrap_err());
    assert!(said.contains("start a newer one"), "{said}");
    // Another part in the same database has versions of its own.
    Postgres::open(database.url.expose(), 2, "ledger", &["create table others (n integer)"]).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_makes_the_database_busy_and_then_it_serves_again() {
    let database = Server::shared().await.database().await;
    let postgres = Postgres::open(database.url.expose(), 2, "store", &[FIRST]).await.unwrap();
    let end = "select pg_terminate_backend(pg_backend_pid())";
    assert_eq!(postgres.run(sqlx::query(end).execute(postgres.pool())).await.map(drop), Err(DatabaseError::Busy));
    let insert = || postgres.run(sqlx::query("insert into numbers values (3)").execute(postgres.pool()));
    assert_eq!(insert().await.map(drop), Ok(()));
    assert!(matches!(insert().await.map(drop), Err(DatabaseError::Failed(_))), "twice the same key");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_without_the_password() {
    let url = format!("postgres://me:secret@127.0.0.1:{}/store", harness::free_port());
    let said = format!("{:#}", Postgres::open(&url, 2, "store", &[]).await.unwrap_err());
    assert!(said.contains("127.0.0.1") && !said.contains("secret"), "{said}");
}
