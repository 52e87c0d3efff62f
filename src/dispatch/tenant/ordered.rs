//! Order within a key, stepped by hand over a table of rows that stands for the database.

use super::fixture::*;
use super::*;
use crate::dispatch::run::{DuePage, Rest};
use crate::store::dispatch::DeferredRow;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

fn key(number: u128) -> OrderingKey {
    OrderingKey(Uuid::from_u128(number))
}

/// A tenant with one subscription in order, what the log holds for it, and the rows that settles have written.
struct World {
    tenant: Tenant,
    keys: BTreeMap<Position, OrderingKey>,
    deferred: BTreeMap<Position, DeferredRow>,
    dead: BTreeMap<Position, OrderingKey>,
    blocks: bool,
    /// The registry version of the subscription.
    version: i64,
    /// How far a replay has come.
    replayed: Option<Position>,
    /// Keys that one load meets at most.
    keys_max: usize,
}

impl World {
    fn new(blocks: bool) -> Self {
        let mut tenant = tenant();
        tenant.ordered = true;
        let (keys, deferred, dead) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { tenant, keys, deferred, dead, blocks, version: 1, replayed: None, keys_max: usize::MAX }
    }

    /// Events of these keys are committed while the subscription is not active.
    fn miss(&mut self, keys: &[u128]) {
        for number in keys {
            let position = self.tenant.head.position + 1;
            self.keys.insert(position, key(*number));
            self.tenant.hear_committed(&[entry(position, &[])], at(0), &config());
        }
    }

    /// What was missed up to a position is deferred, from behind another; the tenant hears of it.
    fn replay(&mut self, after: Position, up_to: Position) {
        for (position, key) in self.keys.range(after + 1..=up_to) {
            self.deferred.insert(*position, DeferredRow { ordering_key: Some(key.0), ..row(*position, at(0)) });
        }
        self.replayed = Some(up_to);
        self.tenant.due_summary(&[(1, at(0))]);
    }

    /// Events of these keys are committed.
    fn publish(&mut self, keys: &[u128], now: i64) {
        for number in keys {
            let position = self.tenant.head.position + 1;
            self.keys.insert(position, key(*number));
            self.tenant.hear_committed(&[entry(position, &[1])], at(now), &config());
        }
        self.read(now);
    }

    /// The log is read as far as there is room.
    fn read(&mut self, now: i64) {
        while let Some(wanted) = self.tenant.wants_page(at(now), &config()) {
            let WantedPage::Keys(entries) = wanted else { panic!("all of it was heard") };
            let place = |position| Place { position, subscription_no: 1 };
            let in_order = |position| InOrder { key: self.keys[&position], version: self.version };
            let matched = entries.iter().filter(|entry| !entry.matched.is_empty());
            let keys = matched.map(|entry| (place(entry.position), in_order(entry.position))).collect();
            let not_pending = self.deferred.keys().map(|position| place(*position)).collect();
            let page = LogPage { entries, not_pending, keys, head: None };
            self.tenant.page(&page, at(now), &config());
        }
    }

    fn start(&mut self) -> Option<Start> {
        start(&mut self.tenant)
    }

    fn settle(&mut self) {
        for change in settle(&mut self.tenant) {
            let position = change.place.position;
            let key = change.key.expect("everything here has one");
            match change.fate {
                Fate::Deferred { attempt, base, due_at } => {
                    let row =
                        DeferredRow { attempt, attempt_base: base, ordering_key: Some(key.0), ..row(position, due_at) };
                    self.deferred.insert(position, row);
                }
                Fate::Dead { .. } => {
                    self.deferred.remove(&position);
                    self.dead.insert(position, key);
                }
                Fate::Succeeded | Fate::Cancelled(_) => {
                    self.deferred.remove(&position);
                }
            }
        }
    }

    /// What the database would answer.
    fn page(&self, wanted: &WantedDue, now: DateTime<Utc>) -> DuePage {
        let others = self.deferred.values().filter(|row| !wanted.held.contains(&row.position));
        let others: Vec<DeferredRow> = others.copied().collect();
        let keys = self.deferred.values().filter_map(|row| row.ordering_key.map(OrderingKey));
        let mut keys: BTreeSet<Uuid> =
            keys.filter(|key| wanted.after.is_none_or(|after| key.0 > after.0)).map(|key| key.0).collect();
        let unmet = keys.iter().nth(self.keys_max).copied();
        unmet.map(|unmet| keys.split_off(&unmet));
        let free = |row: &DeferredRow| {
            let same = |other: &DeferredRow| other.ordering_key == row.ordering_key && other.position < row.position;
            let waits = self.deferred.values().any(|other| same(other) && other.due_at > now);
            let key = row.ordering_key.map(OrderingKey).expect("everything here has one");
            let blocked = self.blocks && self.dead.iter().any(|(dead, of)| *dead < row.position && *of == key);
            let beyond = self.replayed.is_some_and(|replayed| row.position > replayed) || row.position > wanted.up_to;
            let met = keys.contains(&key.0) && !wanted.full.contains(&key);
            row.due_at <= now && met && !waits && !blocked && !beyond
        };
        let rows: Vec<DeferredRow> = others.iter().filter(|row| free(row)).copied().collect();
        let due_at = self.deferred.values().map(|row| row.due_at).filter(|due| *due > now).min();
        let left = others.len() > rows.len() || self.blocks && !self.dead.is_empty() || self.replayed.is_some();
        let events = events(rows.iter().map(|row| row.position));
        let beyond = self.deferred.keys().any(|position| *position > wanted.up_to).then_some(wanted.up_to);
        let after = unmet.and(keys.last()).map(|key| OrderingKey(*key));
        let rest = Some(Rest { after, looked: true, due_at, left, beyond, replayed: self.replayed });
        DuePage { rows, events, at: now, more: false, rest }
    }

    fn load(&mut self, now: i64) {
        while let Some(wanted) = self.tenant.wants_due(at(now), &config()).pop() {
            let page = self.page(&wanted, at(now));
            self.tenant.due(1, &page, &config());
        }
    }

    /// Runs whatever can run, each as `outcome` says, until nothing is left to do now.
    fn run(&mut self, now: i64, outcome: impl Fn(Position) -> OutcomeClass) -> Vec<Position> {
        let mut order = Vec::new();
        loop {
            self.load(now);
            let Some(attempt) = self.start() else {
                if self.tenant.has_changes() {
                    self.settle();
                    continue;
                }
                return order;
            };
            let position = place(&attempt).0;
            order.push(position);
            end(&mut self.tenant, &attempt, outcome(position));
        }
    }
}

#[test]
fn g7_a_row_of_a_former_owner_waits_for_what_only_that_one_had_in_memory() {
    let mut world = World::new(false);
    // The former owner had the first one in memory, and the second one of the key put behind it into the database.
    for position in 1..=3 {
        world.keys.insert(position, key(1));
        world.tenant.hear_committed(&[entry(position, &[1])], at(0), &config());
    }
    world.deferred.insert(2, DeferredRow { ordering_key: Some(key(1).0), ..row(2, at(0)) });
    world.tenant.due_summary(&[(1, at(0))]);
    world.load(0);
    assert!(world.start().is_none(), "what comes before it in the log is not known yet");
    world.read(0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [1, 2, 3]);
    // The same where there is nothing before it any more.
    let mut world = World::new(false);
    world.keys.insert(1, key(1));
    world.tenant.hear_committed(&[entry(1, &[1])], at(0), &config());
    world.deferred.insert(1, DeferredRow { ordering_key: Some(key(1).0), ..row(1, at(0)) });
    world.tenant.due_summary(&[(1, at(0))]);
    world.load(0);
    assert!(world.start().is_none());
    world.read(0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [1]);
}

#[test]
fn g7_keys_run_in_parallel_and_each_in_its_order() {
    let mut world = World::new(false);
    world.publish(&[1, 1, 2, 1, 2], 0);
    let (first, second) = (world.start().expect("key 1"), world.start().expect("key 2"));
    assert_eq!((place(&first).0, place(&second).0), (1, 3));
    assert!(world.start().is_none());
    end(&mut world.tenant, &second, OutcomeClass::Succeeded);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [5], "key 1 is held");
    end(&mut world.tenant, &first, OutcomeClass::Succeeded);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [2, 4]);
    assert_eq!(world.tenant.cursor().after, 5);
}

#[test]
fn g7_a_retry_holds_its_key_alone_also_against_what_comes_later() {
    let mut world = World::new(false);
    world.publish(&[1, 1, 2], 0);
    let failing = |position| if position == 1 { OutcomeClass::Failed } else { OutcomeClass::Succeeded };
    assert_eq!(world.run(0, failing), [1, 3]);
    assert_eq!(world.deferred.keys().copied().collect::<Vec<_>>(), [1, 2]);
    world.publish(&[1, 2, 3], 0);
    assert_eq!(world.run(0, failing), [5, 6], "what is new of the key waits in the database");
    assert_eq!(world.tenant.cursor().after, 6, "and holds no cursor");
    assert_eq!(world.run(10_000, |_| OutcomeClass::Succeeded), [1, 2, 4]);
    assert!(world.deferred.is_empty());
    world.publish(&[1], 0);
    assert!(world.deferred.is_empty() && world.start().is_some(), "straight from memory again");
}

#[test]
fn g7_a_dead_letter_is_skipped_or_holds_its_key_until_it_is_gone() {
    for blocks in [false, true] {
        let mut world = World::new(blocks);
        world.publish(&[1, 1, 2, 1], 0);
        let refused = |position| if position == 1 { OutcomeClass::Rejected } else { OutcomeClass::Succeeded };
        let order = world.run(2_000, refused);
        assert_eq!(world.dead.len(), 1);
        if !blocks {
            assert_eq!(order, [1, 3, 2, 4]);
            continue;
        }
        assert_eq!(order, [1, 3]);
        assert_eq!(world.deferred.keys().copied().collect::<Vec<_>>(), [2, 4], "they wait, and can be seen");
        world.publish(&[1, 2], 0);
        assert_eq!(world.run(2_000, refused), [6]);
        assert!(world.tenant.wants_due(at(3_000), &config()).is_empty(), "nothing asks again and again");
        // A caller redrives it: the review says that there is something due.
        world.dead.clear();
        world.deferred.insert(1, DeferredRow { ordering_key: Some(key(1).0), ..row(1, at(0)) });
        world.tenant.due_summary(&[(1, at(0))]);
        assert_eq!(world.run(4_000, |_| OutcomeClass::Succeeded), [1, 2, 4, 5]);
    }
}

#[test]
fn g7_a_dead_letter_with_nothing_behind_it_holds_up_what_comes_later() {
    let mut world = World::new(true);
    world.publish(&[1], 0);
    assert_eq!(world.run(2_000, |_| OutcomeClass::Rejected), [1]);
    world.publish(&[1, 2], 2_000);
    assert_eq!(world.run(2_000, |_| OutcomeClass::Succeeded), [3]);
}

#[test]
fn g7_what_does_not_fit_into_memory_keeps_its_order() {
    let mut world = World::new(false);
    let keys: Vec<u128> = (0..40).map(|number| number % 3).collect();
    world.publish(&keys, 0);
    assert!(world.tenant.queues[&1].waiting() <= config().queue_max);
    let order = world.run(1_000, |_| OutcomeClass::Succeeded);
    assert_eq!(order.len(), 40);
    for number in 0..3 {
        let of_key: Vec<Position> =
            order.iter().copied().filter(|position| world.keys[position] == key(number)).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    assert_eq!(world.tenant.cursor().after, 40);
}

#[test]
fn g7_a_load_that_began_before_a_failure_brings_nothing_that_overtakes_it() {
    let mut world = World::new(false);
    world.publish(&[1], 0);
    let head = world.start().expect("runs");
    // The second one goes to the database while the first one runs, as where the queue is full.
    world.deferred.insert(2, DeferredRow { ordering_key: Some(key(1).0), ..row(2, at(0)) });
    world.publish(&[1], 0);
    world.tenant.due_summary(&[(1, at(0))]);
    let wanted = world.tenant.wants_due(at(1_000), &config()).pop().expect("it is due");
    let page = world.page(&wanted, at(1_000));
    assert_eq!(page.rows.len(), 1, "the load sees nothing before it");
    end(&mut world.tenant, &head, OutcomeClass::Failed);
    world.tenant.due(1, &page, &config());
    assert!(world.start().is_none());
    world.load(1_000);
    assert!(world.start().is_none(), "nor before the failure is written");
    world.settle();
    world.load(1_000);
    assert!(world.start().is_none(), "nor before its retry");
    assert_eq!(world.run(10_000, |_| OutcomeClass::Succeeded), [1, 2]);
}

#[test]
fn g7_what_is_put_aside_takes_its_whole_key_along() {
    let mut world = World::new(false);
    // One that hangs holds the window; its key waits behind it.
    world.publish(&[1, 1], 0);
    let hanging = world.start().expect("runs");
    for _ in 0..30 {
        world.publish(&[2], 0);
        assert_eq!(world.run(0, |_| OutcomeClass::Succeeded).len(), 1);
    }
    assert_eq!(world.tenant.cursor().after, 32, "the cursor does not wait");
    end(&mut world.tenant, &hanging, OutcomeClass::Succeeded);
    assert_eq!(world.run(1_000, |_| OutcomeClass::Succeeded), [2]);
    assert!(world.deferred.is_empty());
}

#[test]
fn g7_what_is_new_waits_until_a_replay_has_passed_what_was_missed() {
    let mut world = World::new(false);
    world.publish(&[1, 2], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [1, 2]);
    world.miss(&[1, 2]);
    (world.version, world.replayed) = (2, Some(2));
    world.publish(&[1, 2], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [0; 0], "nothing of it is read yet");
    assert_eq!(world.deferred.keys().copied().collect::<Vec<_>>(), [5, 6], "what is new waits in the database");
    assert_eq!(world.tenant.cursor().after, 6, "and holds no cursor");
    world.replay(2, 3);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [3]);
    world.publish(&[1], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [0; 0]);
    assert!(world.tenant.wants_due(at(1_000), &config()).is_empty(), "nothing asks again and again");
    world.replay(3, 4);
    world.replayed = None;
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [4, 5, 6, 7]);
    world.publish(&[1], 0);
    assert!(world.deferred.is_empty() && world.start().is_some(), "straight from memory again");
}

#[test]
fn g7_a_load_that_began_before_a_replay_does_not_say_that_there_is_none() {
    let mut world = World::new(false);
    world.publish(&[1], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [1]);
    world.tenant.due_summary(&[(1, at(0))]);
    let wanted = world.tenant.wants_due(at(0), &config()).pop().expect("it is due");
    let page = world.page(&wanted, at(0));
    world.miss(&[1]);
    (world.version, world.replayed) = (2, Some(1));
    world.publish(&[1], 0);
    world.tenant.due(1, &page, &config());
    world.publish(&[1], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [0; 0]);
    // It ends while a load that has found it under way has not answered, and something new is written meanwhile.
    world.replay(1, 2);
    let wanted = world.tenant.wants_due(at(0), &config()).pop().expect("it is due");
    let page = world.page(&wanted, at(0));
    world.replayed = None;
    world.publish(&[1], 0);
    world.settle();
    world.tenant.due_summary(&[(1, at(0))]);
    world.tenant.due(1, &page, &config());
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [2, 3, 4, 5]);
}

#[test]
fn g7_loads_that_meet_only_some_keys_go_on_with_the_others_and_then_with_what_has_become_due() {
    let mut world = World::new(false);
    world.keys_max = 2;
    world.publish(&[1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Failed).len(), 5);
    let wanted = world.tenant.wants_due(at(10_000), &config()).pop().expect("the retries are due");
    let page = world.page(&wanted, at(10_000));
    assert_eq!(page.rows.iter().map(|row| row.position).collect::<Vec<_>>(), [1, 2, 6, 7]);
    world.tenant.due(1, &page, &config());
    // Another one of a key that was met goes behind the others.
    world.publish(&[1], 10_000);
    let order = world.run(10_000, |_| OutcomeClass::Succeeded);
    assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (1..=11).collect());
    for number in 1..=5 {
        let of_key: Vec<Position> =
            order.iter().copied().filter(|position| world.keys[position] == key(number)).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    assert!(world.tenant.wants_due(at(20_000), &config()).is_empty(), "nothing asks again and again");
    world.publish(&[1], 20_000);
    assert!(world.deferred.is_empty() && world.start().is_some(), "straight from memory again");
}

#[test]
fn what_is_in_no_order_is_looked_for_from_when_it_may_have_become_due() {
    let mut world = World::new(false);
    world.tenant.due_summary(&[(1, at(0))]);
    let look = |world: &mut World, now| {
        let wanted = world.tenant.wants_due(at(now), &config()).pop().expect("something is due");
        (wanted.looked, world.page(&wanted, at(now)))
    };
    let (looked, page) = look(&mut world, 1_000);
    assert!(looked <= at(0));
    world.tenant.due(1, &page, &config());
    world.tenant.due_summary(&[(1, at(3_000))]);
    let (looked, page) = look(&mut world, 4_000);
    assert_eq!(looked, at(1_000), "what was due before is in memory");
    // Something is written meanwhile that was due before the load began, or the load brings only a part.
    world.tenant.due_summary(&[(1, at(3_500))]);
    world.tenant.due(1, &page, &config());
    let (looked, mut page) = look(&mut world, 5_000);
    assert_eq!(looked, at(3_500));
    page.rest = page.rest.map(|rest| Rest { looked: false, ..rest });
    world.tenant.due(1, &page, &config());
    world.tenant.due_summary(&[(1, at(6_000))]);
    assert_eq!(look(&mut world, 6_000).0, at(3_500));
}

#[test]
fn a_load_that_fails_puts_off_its_subscription_alone() {
    let mut tenant = tenant();
    tenant.due_summary(&[(1, at(0)), (2, at(0))]);
    assert_eq!(tenant.wants_due(at(0), &config()).len(), 2);
    tenant.due_failed(1, at(1_000));
    take_rows(&mut tenant, 2, &[], HashMap::new(), at(0));
    tenant.due_summary(&[(1, at(0)), (2, at(0))]);
    assert_eq!(tenant.wants_due(at(999), &config()), [wants(&tenant, 2, &[])], "whatever is due of the other one");
    assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[])]);
}

#[test]
fn a_change_that_began_no_replay_costs_one_look() {
    let mut world = World::new(false);
    world.version = 2;
    world.publish(&[1, 2], 0);
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [1, 2]);
    world.publish(&[1], 0);
    assert!(world.deferred.is_empty() && world.start().is_some(), "straight from memory");
}

#[test]
fn a_key_that_is_cancelled_lets_the_others_go_on() {
    let mut world = World::new(true);
    world.publish(&[1, 1, 2], 0);
    world.tenant.revoke(&HashSet::from([Place { position: 1, subscription_no: 1 }]));
    assert_eq!(world.run(0, |_| OutcomeClass::Succeeded), [2, 3]);
    assert_eq!(world.tenant.cursor().after, 3);
}
