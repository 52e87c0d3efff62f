//! A start by time against what retention has taken: ListEvents and Watch answer alike.

use super::*;
use chrono::{DateTime, NaiveTime, Utc};

/// The position that reading begins at; as an error, the one that the earliest cursor begins at where the start is refused.
type Begin = Result<Option<Position>, Option<Position>>;

impl World {
    async fn first_after(&self, cursor: String) -> Option<Position> {
        let page = self.list(ListEventsRequest { cursor, page_size: 1, ..Default::default() }).await.expect("a page");
        positions(&page).first().copied()
    }

    async fn refused(&self, error: ApiError) -> Begin {
        let ApiError::CursorExpired { earliest } = error else { panic!("{error:?}") };
        Err(self.first_after(earliest).await)
    }

    async fn listed(&self, from: DateTime<Utc>) -> Begin {
        let request = ListEventsRequest { start_time: Some(from.into()), page_size: 1, ..Default::default() };
        match self.list(request).await {
            Ok(page) => Ok(positions(&page).first().copied()),
            Err(error) => self.refused(error).await,
        }
    }

    async fn watched(&self, from: DateTime<Utc>) -> Begin {
        let request = WatchRequest { start: Some(Start::StartTime(from.into())), ..Default::default() };
        match watch::handle(&self.deps, self.request(request)).await {
            Ok(mut stream) => {
                let created = stream.next().await.expect("open").expect("a message");
                Ok(self.first_after(created.cursor).await)
            }
            Err(error) => self.refused(error).await,
        }
    }

    /// The gap that a watch from a time begins with, where it asks for one instead of an error.
    async fn gap(&self, from: DateTime<Utc>) -> Option<(Position, Position)> {
        let request = WatchRequest {
            start: Some(Start::StartTime(from.into())),
            on_expired: OnExpired::FromEarliest.into(),
            ..Default::default()
        };
        let mut stream = watch::handle(&self.deps, self.request(request)).await.expect("opens");
        loop {
            match stream.next().await.expect("open").expect("a message").kind.expect("set") {
                Kind::Created(_) => {}
                Kind::Gap(gap) => return Some((gap.from_position, gap.to_position)),
                Kind::Events(_) | Kind::Bookmark(_) => return None,
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn g12_a_time_is_refused_where_retention_took_something_after_it_and_only_there() {
    let world = World::start(Config::default()).await;
    let entries = world.publish(&["USER_CREATE"; 30], "{}").await;
    let [committed, now] = [entries[0].committed_at, clock::now()];
    let ago = |days| committed - TimeDelta::days(days);
    // From before the log began, of which nothing is gone.
    assert_eq!((world.listed(ago(400)).await, world.watched(ago(400)).await), (Ok(Some(1)), Ok(Some(1))));
    assert_eq!(world.gap(ago(400)).await, None);

    // Retention of thirty days has taken what came forty days ago; since then the tenant was silent until just now.
    sqlx::query("UPDATE tenant_heads SET earliest_position = 21, removed_until = $1, removed_before = 21")
        .bind(ago(40))
        .execute(&world.pool)
        .await
        .expect("as retention does");
    sqlx::query("DELETE FROM events WHERE position < 21").execute(&world.pool).await.expect("as retention does");
    let just_after = ago(40) + TimeDelta::microseconds(1);
    for (from, expected) in [
        (ago(400), Err(Some(21))),
        (ago(40), Err(Some(21))),
        (just_after, Ok(Some(21))),
        (ago(6), Ok(Some(21))),
        (committed, Ok(Some(21))),
        (now + TimeDelta::seconds(30), Ok(None)),
    ] {
        assert_eq!((world.listed(from).await, world.watched(from).await), (expected, expected), "from {from}");
        let gap = if expected.is_err() { Some((1, 21)) } else { None };
        if expected != Ok(None) {
            assert_eq!(world.gap(from).await, gap, "from {from}");
        }
    }

    // Also where nothing is left.
    let cut = "UPDATE tenant_heads SET earliest_position = 31, removed_until = committed_at, removed_before = 31";
    sqlx::query(cut).execute(&world.pool).await.expect("as retention does");
    sqlx::query("DELETE FROM events").execute(&world.pool).await.expect("as retention does");
    assert_eq!((world.listed(committed).await, world.watched(committed).await), (Err(None), Err(None)));
    assert_eq!(world.gap(committed).await, Some((1, 31)));
    let after = committed + TimeDelta::microseconds(1);
    assert_eq!((world.listed(after).await, world.watched(after).await), (Ok(None), Ok(None)));
    world.deps.watches.stop().await;
}

#[tokio::test]
async fn g12_a_cut_by_the_release_before_hides_nothing_from_a_start_by_time() {
    let world = World::start(Config::default()).await;
    let entries = world.publish(&["USER_CREATE"; 30], "{}").await;
    let day = entries[20].committed_at.date_naive().and_time(NaiveTime::MIN).and_utc();
    // Retention has taken what came forty days ago; then a replica that was not replaced yet took the days after it up to today, and
    // said no more than where the log begins now.
    for sql in [
        "UPDATE tenant_heads SET earliest_position = 21, removed_until = now() - interval '40 days', removed_before = 11",
        "DELETE FROM events WHERE position < 21",
    ] {
        sqlx::query(sql).execute(&world.pool).await.expect("as retention does");
    }
    let yesterday = day - TimeDelta::microseconds(1);
    for (from, expected) in
        [(yesterday - TimeDelta::days(6), Err(Some(21))), (yesterday, Err(Some(21))), (day, Ok(Some(21)))]
    {
        assert_eq!((world.listed(from).await, world.watched(from).await), (expected, expected), "from {from}");
        assert_eq!(world.gap(from).await, if expected.is_err() { Some((1, 21)) } else { None }, "from {from}");
    }
    world.deps.watches.stop().await;
}
