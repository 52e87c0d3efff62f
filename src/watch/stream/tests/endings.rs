//! The ends of a watch: each is announced with the place reached, and follows as the stream's reason.

use super::*;

#[tokio::test(start_paused = true)]
async fn g12_what_retention_removed_is_an_error_or_a_gap_as_asked() {
    for (on_expired, is_told) in [(OnExpired::Fail, false), (OnExpired::FromEarliest, true)] {
        let bench = Bench::start(small(), 0);
        for _ in 0..60 {
            bench.append("A");
        }
        bench.announce();
        bench.settle().await;
        bench.retain_from(31);
        let mut stream = bench.watch(10, FilterSet::default(), on_expired);
        assert!(matches!(next(&mut stream).await.kind, Some(Kind::Created(_))));
        if is_told {
            let message = next(&mut stream).await;
            assert_eq!(message.kind, Some(Kind::Gap(WatchGap { from_position: 11, to_position: 31 })));
            assert_eq!(bench.open(&message.cursor), 30);
            assert_eq!(positions(&events(&bench, &mut stream, 30).await), (31..=60).collect::<Vec<_>>());
        } else {
            // The place reached is said, and not skipped: who resumes there is told of the gap, if it wants to be.
            let ending = closing(&bench, &mut stream, "CURSOR_EXPIRED", 10).await;
            let Ending::Expired { earliest_cursor } = ending else { panic!("{ending:?}") };
            assert_eq!(bench.open(&earliest_cursor), 30);
        }
    }
}

/// Reads to the last message, which must say this reason and place; why the stream ended.
pub(super) async fn closing(bench: &Bench, stream: &mut WatchStream, reason: &str, at: Position) -> Ending {
    loop {
        let message = next(stream).await;
        match message.kind.expect("set") {
            Kind::Bookmark(_) => {}
            Kind::Closing(closing) => {
                assert_eq!(closing.reason, reason);
                assert_eq!(closing.resume_cursor, message.cursor);
                assert_eq!(bench.open(&message.cursor), at);
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    let ending = stream.next().await.expect("a reason").expect_err("the end");
    assert!(stream.next().await.is_none());
    ending
}

#[tokio::test(start_paused = true)]
async fn it_says_goodbye_when_the_server_drains_and_when_it_is_old() {
    let bench = Bench::start(small(), 3);
    let mut old = bench.watch_from(3);
    let begun = Instant::now();
    next(&mut old).await;
    assert!(matches!(closing(&bench, &mut old, "STREAM_AGE", 3).await, Ending::Age { .. }));
    let age = begun.elapsed();
    assert!(age >= Duration::from_mins(30) && age <= Duration::from_mins(61), "{age:?}");

    let mut stream = bench.watch_from(3);
    next(&mut stream).await;
    let (mut waiting, goodbye) = (stream, bench.drain_later());
    assert!(matches!(closing(&bench, &mut waiting, "SERVER_DRAINING", 3).await, Ending::Draining));
    goodbye.await.expect("drained");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_credential_ends_it_within_a_minute() {
    let bench = Bench::start(small(), 3);
    let mut stream = bench.watch_from(3);
    next(&mut stream).await;
    next(&mut stream).await;
    let revoked = Instant::now();
    bench.revoke();
    assert!(matches!(closing(&bench, &mut stream, "CREDENTIAL_INVALID", 3).await, Ending::CredentialInvalid));
    assert!(revoked.elapsed() <= Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn it_ends_in_the_moment_that_its_credential_does() {
    let bench = Bench::start(small(), 3);
    let mut stream = bench.watch_from(3);
    next(&mut stream).await;
    let expiry = Instant::now() + Duration::from_secs(90);
    stream.expires_at = Some(expiry);
    assert!(matches!(closing(&bench, &mut stream, "CREDENTIAL_INVALID", 3).await, Ending::CredentialInvalid));
    assert!(Instant::now() - expiry < Duration::from_millis(10));
}

/// A stream that has read one page and is behind by the rest.
async fn behind(bench: &Bench) -> WatchStream {
    for _ in 0..60 {
        bench.append("A");
    }
    bench.announce();
    bench.settle().await;
    let mut stream = bench.watch_from(0);
    assert_eq!(positions(&events(bench, &mut stream, 10).await), (1..=10).collect::<Vec<_>>());
    stream
}

#[tokio::test(start_paused = true)]
async fn reads_that_fail_for_some_seconds_end_no_watch() {
    let bench = Bench::start(small(), 0);
    let mut stream = behind(&bench).await;
    bench.fail_reads(true);
    let fail_over = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        bench.fail_reads(false);
    };
    let (seen, ()) = tokio::join!(events(&bench, &mut stream, 50), fail_over);
    assert_eq!(positions(&seen), (11..=60).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_read_for_long_says_where_it_was() {
    let bench = Bench::start(small(), 0);
    let mut stream = behind(&bench).await;
    bench.fail_reads(true);
    let begun = Instant::now();
    let ending = closing(&bench, &mut stream, "STORE_UNAVAILABLE", 10).await;
    assert!(matches!(ending, Ending::Store(_)), "{ending:?}");
    assert!(begun.elapsed() > Duration::from_secs(25), "a fail-over takes seconds: {:?}", begun.elapsed());
    bench.fail_reads(false);
    let mut resumed = bench.watch_from(10);
    assert_eq!(positions(&events(&bench, &mut resumed, 50).await), (11..=60).collect::<Vec<_>>());
}
