//! The state machine stepped by hand: no store, no clock, no listener.

use super::fixture::*;
use super::*;
use crate::dispatch::queue::JOB_BYTES;
use crate::dispatch::run::DuePage;
use crate::domain::event::LogEntry;
use crate::domain::memory::Kept;
use crate::store::dispatch::DeferredRow;

#[test]
fn the_cursor_stands_before_the_lowest_unfinished_event() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1]), entry(2, &[]), entry(3, &[2]), entry(4, &[])]);
    let (first, second) = (start(&mut tenant).expect("one"), start(&mut tenant).expect("two"));
    assert_eq!([place(&first), place(&second)], [(1, 1), (3, 2)]);
    end(&mut tenant, &second, OutcomeClass::Succeeded);
    assert_eq!(tenant.cursor().after, 0, "the first still runs");
    end(&mut tenant, &first, OutcomeClass::Succeeded);
    assert_eq!(tenant.cursor().after, 4, "events without listeners hold nothing");
    let changes = settle(&mut tenant);
    assert!(changes.iter().all(|change| change.fate == Fate::Succeeded && !change.deferred), "{changes:?}");
    assert_eq!(changes.len(), 2);
    drop((first, second));
    assert_eq!(tenant.memory.bytes(), 0);
    assert!(tenant.is_quiet() && tenant.cut().is_none(), "nothing is written twice");
}

#[test]
fn an_event_without_listeners_moves_the_cursor_and_writes_no_change() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[])]);
    assert!(!tenant.has_changes() && tenant.cursor_moved());
    let batch = tenant.cut().expect("the cursor has moved");
    assert_eq!((batch.cursor.after, batch.changes.len()), (1, 0));
}

#[test]
fn news_with_a_gap_waits_for_the_page_of_the_log_and_joins_it() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(3, &[1])]);
    let wanted = tenant.wants_page(at(0), &config());
    let Some(WantedPage::Log(from, up_to)) = wanted else { panic!("1 and 2 are missing: {wanted:?}") };
    assert_eq!((from.after, up_to), (0, 3));
    assert!(tenant.wants_page(at(0), &config()).is_none(), "one page at a time");
    hear(&mut tenant, &[entry(4, &[1])]);
    hear(&mut tenant, &[entry(5, &[1])]);
    let page = LogPage {
        entries: vec![entry(1, &[1]), entry(2, &[1, 2]), entry(3, &[1])],
        not_pending: HashSet::from([Place { position: 2, subscription_no: 1 }]),
        keys: HashMap::new(),
        head: None,
    };
    tenant.page(&page, at(0), &config());
    assert!(tenant.wants_page(at(0), &config()).is_none(), "4 and 5 were heard");
    let mut started = Vec::new();
    while let Some(attempt) = start(&mut tenant) {
        started.push(place(&attempt));
        end(&mut tenant, &attempt, OutcomeClass::Succeeded);
    }
    started.sort_unstable();
    assert_eq!(started, [(1, 1), (2, 2), (3, 1), (4, 1), (5, 1)], "what is settled does not run again");
    assert_eq!(tenant.cursor().after, 5);
}

#[test]
fn repeated_news_changes_nothing() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1])]);
    hear(&mut tenant, &[entry(1, &[1]), entry(2, &[1])]);
    assert!(start(&mut tenant).is_some() && start(&mut tenant).is_some());
    assert!(start(&mut tenant).is_none());
}

#[test]
fn g9_a_listener_that_hangs_delays_no_other_one() {
    let mut tenant = tenant();
    let entries: Vec<_> = (1..=6).map(|position| entry(position, &[1, 2])).collect();
    hear(&mut tenant, &entries);
    let mut hanging = Vec::new();
    let mut done = 0;
    while let Some(attempt) = start(&mut tenant) {
        if place(&attempt).1 == 1 {
            hanging.push(attempt);
        } else {
            end(&mut tenant, &attempt, OutcomeClass::Succeeded);
            done += 1;
        }
    }
    assert_eq!((hanging.len(), done), (2, 6), "the in-flight limit of one, all of the other");
}

#[test]
fn g15_a_full_queue_goes_aside_and_comes_back_in_order() {
    let mut tenant = tenant();
    for position in 1..=12 {
        hear(&mut tenant, &[entry(position, &[1])]);
    }
    let changes = settle(&mut tenant);
    let aside: Vec<Position> = changes.iter().map(|change| change.place.position).collect();
    assert_eq!(aside, [9, 10, 11, 12], "what does not fit into a queue of 8");
    assert!(changes.iter().all(|change| matches!(change.fate, Fate::Deferred { attempt: 0, base: 0, .. })));
    assert!(tenant.wants_due(at(1_000), &config()).is_empty(), "not while the queue is full");
    for _ in 0..6 {
        let attempt = start(&mut tenant).expect("queued");
        end(&mut tenant, &attempt, OutcomeClass::Succeeded);
    }
    hear(&mut tenant, &[entry(13, &[1])]);
    assert_eq!(settle(&mut tenant).last().map(|change| change.place.position), Some(13), "behind what is aside");
    let wanted = tenant.wants_due(at(1_000), &config());
    assert_eq!(wanted, [wants(&tenant, 1, &[])]);
    let rows: Vec<DeferredRow> = (9..=13).map(|position| row(position, at(1_000))).collect();
    take_rows(&mut tenant, 1, &rows, events(9..=13), at(1_000));
    hear(&mut tenant, &[entry(14, &[1])]);
    let mut order = Vec::new();
    while let Some(attempt) = start(&mut tenant) {
        order.push(place(&attempt).0);
        end(&mut tenant, &attempt, OutcomeClass::Succeeded);
    }
    assert_eq!(order, [7, 8, 9, 10, 11, 12, 13, 14]);
    let changes = settle(&mut tenant);
    let rows: Vec<Position> =
        changes.iter().filter(|change| change.deferred).map(|change| change.place.position).collect();
    assert_eq!(rows, [9, 10, 11, 12, 13], "their rows go with their outcomes");
    assert_eq!(tenant.cursor().after, 14);
}

#[test]
fn an_attempt_that_outlives_the_window_is_put_aside_and_ends_well() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1])]);
    let hanging = start(&mut tenant).expect("runs");
    for position in 2..=16 {
        hear(&mut tenant, &[entry(position, &[2])]);
        if let Some(attempt) = start(&mut tenant) {
            end(&mut tenant, &attempt, OutcomeClass::Succeeded);
        }
    }
    assert_eq!(tenant.cursor().after, 16, "the cursor does not wait for it");
    let aside = settle(&mut tenant).into_iter().find(|change| change.place.position == 1).expect("put aside");
    assert!(matches!(aside.fate, Fate::Deferred { .. }) && !aside.deferred);
    tenant.due_summary(&[(1, at(0))]);
    assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[1])], "its row is left out while it runs");
    take_rows(&mut tenant, 1, &[], HashMap::new(), at(1_000));
    end(&mut tenant, &hanging, OutcomeClass::Succeeded);
    let ended = settle(&mut tenant);
    assert!(ended.len() == 1 && ended[0].deferred && ended[0].fate == Fate::Succeeded, "{ended:?}");
}

#[test]
fn failures_are_retried_until_the_attempts_are_used_up() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1])]);
    let mut due = at(1_000);
    for number in 1..=3 {
        let attempt = start(&mut tenant).expect("due");
        assert_eq!(attempt.delivery.attempt, number);
        end(&mut tenant, &attempt, OutcomeClass::Failed);
        let changes = settle(&mut tenant);
        assert_eq!(changes[0].tried.as_ref().map(|tried| tried.attempt), Some(number));
        match changes[0].fate {
            Fate::Deferred { attempt, base, due_at } if number < 3 => {
                assert_eq!((attempt, base), (number, 0));
                due = due_at;
            }
            Fate::Dead { .. } if number == 3 => assert!(changes[0].deferred),
            fate => panic!("attempt {number}: {fate:?}"),
        }
        if number < 3 {
            assert!(tenant.wants_due(due - TimeDelta::milliseconds(1), &config()).is_empty(), "not before its time");
            assert_eq!(tenant.wants_due(due, &config()).len(), 1);
            let row = DeferredRow { attempt: number, ..row(1, due) };
            take_rows(&mut tenant, 1, &[row], events([1]), due);
        }
    }
    assert!(tenant.announce, "a dead letter is announced");
    assert_eq!(tenant.cursor().after, 1);
}

#[test]
fn g5_a_dead_letter_that_is_redriven_before_its_settle_has_answered_runs_again() {
    let mut tenant = tenant();
    tenant.due_summary(&[(1, at(0))]);
    assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[])]);
    take_rows(&mut tenant, 1, &[DeferredRow { attempt: 2, ..row(1, at(0)) }], events([1]), at(1_000));
    let last = start(&mut tenant).expect("it is due");
    end(&mut tenant, &last, OutcomeClass::Failed);
    // Written, but the answer does not come; meanwhile a caller redrives it, and a review finds its row.
    let batch = tenant.cut().expect("a dead letter");
    assert!(matches!(batch.changes[0].fate, Fate::Dead { .. }), "{batch:?}");
    tenant.due_summary(&[(1, at(0))]);
    assert_eq!(tenant.wants_due(at(1_001), &config()), [wants(&tenant, 1, &[1])]);
    take_rows(&mut tenant, 1, &[], HashMap::new(), at(1_001));
    tenant.settled(&batch);
    assert_eq!(tenant.wants_due(at(1_002), &config()), [wants(&tenant, 1, &[])], "it is looked for again");
    take_rows(&mut tenant, 1, &[DeferredRow { attempt: 3, attempt_base: 3, ..row(1, at(0)) }], events([1]), at(1_002));
    assert_eq!(start(&mut tenant).expect("redriven").delivery.attempt, 4);
}

#[test]
fn a_refusal_for_good_is_a_dead_letter_at_once_and_is_announced() {
    for class in [OutcomeClass::Rejected, OutcomeClass::BlockedAddress, OutcomeClass::Gone] {
        let mut tenant = tenant();
        hear(&mut tenant, &[entry(1, &[1])]);
        let attempt = start(&mut tenant).expect("runs");
        end(&mut tenant, &attempt, class);
        assert!(matches!(settle(&mut tenant)[0].fate, Fate::Dead { .. }), "{class:?}");
        assert!(tenant.announce, "{class:?}");
    }
}

#[test]
fn g5_what_a_dead_owner_may_have_started_runs_under_a_higher_number_that_costs_no_try() {
    let mut tenant = tenant_after(&[at(2)]);
    let page = LogPage {
        entries: vec![entry(1, &[1]), entry(2, &[1])],
        not_pending: HashSet::new(),
        keys: HashMap::new(),
        head: None,
    };
    tenant.hear_head(&Head { position: 2, ..tenant.head });
    assert!(tenant.wants_page(at(1_000), &config()).is_some());
    tenant.page(&page, at(1_000), &config());
    let (before, after) = (start(&mut tenant).expect("one"), start(&mut tenant).expect("two"));
    assert_eq!((before.delivery.attempt, after.delivery.attempt), (2, 1), "committed before and after the lease's end");
    end(&mut tenant, &before, OutcomeClass::Failed);
    let fate = settle(&mut tenant)[0].fate;
    assert!(matches!(fate, Fate::Deferred { attempt: 2, base: 1, .. }), "{fate:?}");
}

#[test]
fn g5_every_owner_that_may_have_started_an_attempt_raises_its_number() {
    let mut tenant = tenant_after(&[at(30), at(20)]);
    let page = LogPage { entries: vec![entry(1, &[1])], not_pending: HashSet::new(), keys: HashMap::new(), head: None };
    tenant.hear_head(&Head { position: 1, ..tenant.head });
    assert!(tenant.wants_page(at(1_000), &config()).is_some());
    tenant.page(&page, at(1_000), &config());
    assert_eq!(start(&mut tenant).expect("it").delivery.attempt, 3, "neither of two owners recorded anything");

    for (due, attempt) in [(10, 4), (25, 3), (35, 2)] {
        let mut tenant = tenant_after(&[at(30), at(20)]);
        tenant.due_summary(&[(1, at(due))]);
        assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[])]);
        let row = DeferredRow { attempt: 1, ..row(1, at(due)) };
        take_rows(&mut tenant, 1, &[row], events([1]), at(1_000));
        assert_eq!(start(&mut tenant).expect("it").delivery.attempt, attempt, "due at {due}, attempted once before");
    }
}

#[test]
fn work_of_a_subscription_that_is_not_active_is_cancelled_with_the_reason() {
    for (state, reason) in
        [(State::Disabled, CancelReason::SubscriptionDisabled), (State::Deleted, CancelReason::SubscriptionDeleted)]
    {
        let mut tenant = tenant();
        hear(&mut tenant, &[entry(1, &[1, 2]), entry(2, &[1])]);
        let look_up = |no| Some(Listener { state: if no == 1 { state } else { State::Active }, ..listener(3, 2) });
        reload(&mut tenant);
        let attempt = start_with(&mut tenant, look_up).expect("the other one runs");
        assert_eq!(place(&attempt), (1, 2));
        let changes = settle(&mut tenant);
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|change| change.fate == Fate::Cancelled(reason)), "{changes:?}");
    }
}

#[test]
fn nothing_is_cancelled_by_a_registry_that_may_be_older_than_the_work() {
    let disabled = |_| Some(Listener { state: State::Disabled, ..listener(3, 2) });
    let deleted = |_| Some(Listener { state: State::Deleted, ..listener(3, 2) });
    let unsure = |tenant: &mut Tenant| {
        let mut all = vec![tenant.next(at(0), FREE, &config(), |_| None)];
        all.push(tenant.next(at(0), FREE, &config(), disabled));
        all.push(tenant.next(at(0), FREE, &config(), deleted));
        all.iter().all(|next| matches!(next, Next::Unsure)) && tenant.has_ready() && !tenant.has_changes()
    };
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1])]);
    assert!(unsure(&mut tenant), "a reload is asked for first");
    let number = tenant.begin_reload();
    hear(&mut tenant, &[entry(2, &[1])]);
    tenant.reloaded(number);
    assert!(unsure(&mut tenant), "heard after the reload had begun");
    let _failed = tenant.begin_reload();
    assert!(unsure(&mut tenant), "a reload that failed says nothing");
    reload(&mut tenant);
    assert!(matches!(tenant.next(at(0), FREE, &config(), |_| None), Next::Nothing));
    let fates: Vec<Fate> = settle(&mut tenant).iter().map(|change| change.fate).collect();
    assert_eq!(fates, [Fate::Cancelled(CancelReason::SubscriptionDeleted); 2]);
    hear(&mut tenant, &[entry(3, &[1])]);
    assert!(unsure(&mut tenant), "the next one is not cancelled by an earlier reload");
    assert!(start(&mut tenant).is_some(), "a newer registry knows it");
}

#[test]
fn a_page_raises_the_registry_to_what_matched_it_and_an_empty_one_waits() {
    let mut tenant = tenant();
    let head = Head { position: 2, registry_version: 4, ..tenant.head };
    tenant.hear_head(&Head { position: 2, ..tenant.head });
    assert!(tenant.wants_page(at(0), &config()).is_some());
    let empty = LogPage { entries: Vec::new(), not_pending: HashSet::new(), keys: HashMap::new(), head: None };
    assert!(!tenant.page(&empty, at(0), &config()), "asking at once would find the same");
    assert!(tenant.wants_page(at(0), &config()).is_some());
    let page =
        LogPage { entries: vec![entry(1, &[1])], not_pending: HashSet::new(), keys: HashMap::new(), head: Some(head) };
    assert!(tenant.page(&page, at(0), &config()));
    assert_eq!(tenant.head.registry_version, 4);
}

#[test]
fn g11_a_refused_subscription_is_recorded_as_a_cycle_or_as_beyond_the_budget() {
    let mut tenant = tenant();
    let mut refused = LogEntry { refused: Arc::from([4, 5]), ..(*entry(1, &[])).clone() };
    Arc::make_mut(&mut refused.event).lineage.subscriptions = vec![4];
    hear(&mut tenant, &[Arc::new(refused)]);
    let changes = settle(&mut tenant);
    for (change, (no, reason)) in changes.iter().zip([(4, CancelReason::ChainCycle), (5, CancelReason::ChainBudget)]) {
        assert_eq!(change.place, Place { position: 1, subscription_no: no });
        assert_eq!(change.fate, Fate::Cancelled(reason));
    }
    assert_eq!(changes.len(), 2);
    assert_eq!(tenant.cursor().after, 1);
}

#[test]
fn a_row_that_ends_while_rows_are_loaded_does_not_run_twice() {
    let mut tenant = tenant();
    tenant.due_summary(&[(1, at(0))]);
    assert_eq!(tenant.wants_due(at(1_000), &config()).len(), 1);
    take_rows(&mut tenant, 1, &[row(5, at(0))], events([5]), at(1_000));
    let attempt = start(&mut tenant).expect("due");
    tenant.due_summary(&[(1, at(1))]);
    assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[5])]);
    end(&mut tenant, &attempt, OutcomeClass::Succeeded);
    settle(&mut tenant);
    // The load has read the row before the settle deleted it, and reports after it.
    take_rows(&mut tenant, 1, &[row(5, at(0))], events([5]), at(1_000));
    assert!(start(&mut tenant).is_none());
}

#[test]
fn a_retry_that_falls_due_while_rows_are_loaded_is_not_forgotten() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1])]);
    let attempt = start(&mut tenant).expect("runs");
    tenant.due_summary(&[(1, at(0))]);
    assert_eq!(tenant.wants_due(at(1_000), &config()).len(), 1);
    end(&mut tenant, &attempt, OutcomeClass::Failed);
    settle(&mut tenant);
    take_rows(&mut tenant, 1, &[], HashMap::new(), at(1_000));
    assert_eq!(tenant.wants_due(at(5_000), &config()).len(), 1);
}

#[test]
fn what_a_caller_cancels_before_its_start_does_not_start() {
    let mut tenant = tenant();
    hear(&mut tenant, &[entry(1, &[1]), entry(2, &[1])]);
    tenant.due_summary(&[(2, at(0))]);
    assert_eq!(tenant.wants_due(at(1_000), &config()).len(), 1);
    take_rows(&mut tenant, 2, &[row(1, at(0))], events([1]), at(1_000));
    assert_eq!(tenant.waiting_rows(), [Place { position: 1, subscription_no: 2 }]);
    let revoked = [(1, 1), (1, 2)].map(|(position, subscription_no)| Place { position, subscription_no });
    tenant.revoke(&HashSet::from(revoked));
    let left = start(&mut tenant).expect("the other event");
    assert_eq!(place(&left), (2, 1));
    assert!(start(&mut tenant).is_none());
    assert_eq!(tenant.cursor().after, 1);
}

#[test]
fn what_a_caller_cancels_before_it_is_taken_does_not_start_either() {
    let mut tenant = tenant();
    tenant.hear_head(&Head { position: 1, ..tenant.head });
    assert!(tenant.wants_page(at(1_000), &config()).is_some());
    // Heard while a page is read, and cancelled before that has come; the last one is heard only after the cancellation.
    hear(&mut tenant, &[entry(2, &[1]), entry(3, &[1])]);
    let revoked = [2, 4].map(|position| Place { position, subscription_no: 1 });
    tenant.revoke(&HashSet::from(revoked));
    let page = LogPage { entries: vec![entry(1, &[1])], not_pending: HashSet::new(), keys: HashMap::new(), head: None };
    tenant.page(&page, at(1_000), &config());
    hear(&mut tenant, &[entry(4, &[1]), entry(5, &[1])]);
    let mut started = Vec::new();
    while let Some(attempt) = start(&mut tenant) {
        started.push(place(&attempt).0);
        end(&mut tenant, &attempt, OutcomeClass::Succeeded);
    }
    assert_eq!(started, [1, 3, 5]);
    assert_eq!(tenant.cursor().after, 5);
}

/// A tenant that finds three quarters of the memory taken.
fn short_of_memory() -> (Tenant, Kept) {
    let mut tenant = tenant();
    tenant.memory = Memory::new(1 << 20);
    let kept = tenant.memory.keep(3 << 18);
    (tenant, kept)
}

#[test]
fn a_full_memory_leaves_nothing_more_to_a_subscription_that_runs_something() {
    let (mut tenant, _kept) = short_of_memory();
    hear(&mut tenant, &[entry(1, &[1])]);
    let running = start(&mut tenant).expect("there is room for it");
    let rest = tenant.memory.keep(1 << 18);
    assert!(tenant.memory.is_full());
    hear(&mut tenant, &[entry(2, &[1, 2])]);
    assert_eq!(settle(&mut tenant).iter().map(|change| change.place.subscription_no).collect::<Vec<_>>(), [1]);
    assert!(tenant.wants_due(at(2_000), &config()).is_empty(), "not while it runs");
    end(&mut tenant, &running, OutcomeClass::Succeeded);
    settle(&mut tenant);
    assert_eq!(tenant.wants_due(at(2_000), &config()), [wants(&tenant, 1, &[])], "when that has ended");
    drop((rest, running));
}

#[test]
fn an_event_counts_once_for_all_its_listeners_until_the_last_one_ends() {
    let mut tenant = tenant();
    let event = entry(1, &[1, 2, 3]);
    hear(&mut tenant, std::slice::from_ref(&event));
    let whole = tenant.memory.bytes();
    assert_eq!(whole, event.memory_bytes() + 3 * JOB_BYTES);
    for running in [1, 2, 3] {
        let start = start(&mut tenant).expect("each has one");
        end(&mut tenant, &start, OutcomeClass::Succeeded);
        drop(start);
        let left = if running < 3 { whole - running * JOB_BYTES } else { 0 };
        assert_eq!(tenant.memory.bytes(), left);
    }
}

#[test]
fn memory_at_its_bound_leaves_every_subscription_one_waiting_event() {
    let (mut tenant, _kept) = short_of_memory();
    tenant.hear_committed(&[entry(1, &[1, 2]), entry(2, &[1, 2])], at(1_000), &config());
    let aside: Vec<_> = settle(&mut tenant).iter().map(|change| change.place.position).collect();
    assert_eq!(aside, [2, 2]);
}

#[test]
fn while_memory_is_full_rows_are_loaded_where_nothing_else_waits_and_a_cut_page_has_more_behind_it() {
    let (mut tenant, _kept) = short_of_memory();
    hear(&mut tenant, &[entry(1, &[1])]);
    tenant.due_summary(&[(1, at(0)), (2, at(0))]);
    assert!(!tenant.is_loading());
    assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 2, &[])]);
    assert!(tenant.is_loading(), "a review waits for it");
    let cut = DuePage { rows: vec![row(2, at(0))], events: events([2]), at: at(1_000), more: true, rest: None };
    tenant.due(2, &cut, &config());
    assert!(!tenant.is_loading());
    assert!(start(&mut tenant).is_some() && start(&mut tenant).is_some(), "both have one");
    let mut wanted: Vec<_> =
        tenant.wants_due(at(1_000), &config()).into_iter().map(|wanted| wanted.subscription_no).collect();
    wanted.sort_unstable();
    assert_eq!(wanted, [1, 2], "both have drained, and the page was cut");
}
