//! A bound on how much of a kind runs at the same time, at which tenants, or others that share, wait for their turn.
//!
//! The next place goes to the tenant that holds fewest, and of those that hold equally many to the one that waits longest; within a
//! tenant, first come, first served. One tenant never holds the last quarter of the places, or more than a smaller bound, or more than it
//! leaves free, as the turnstile is made: however much it asks for, and however long that takes, the next tenant finds a place at once. Where something is refused instead of waiting, see
//! `domain::places`.

use crate::domain::ids::TenantId;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The places of a kind. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turnstile<S: Copy + Ord + Hash = TenantId> {
    state: Arc<Mutex<State<S>>>,
}

#[derive(Debug)]
struct State<S> {
    free: usize,
    /// What one of them may hold.
    share_max: usize,
    /// True where one gets another place only while it then holds no more than it leaves free.
    leaves_as_many: bool,
    lines: HashMap<S, Line>,
    /// Of each of whom somebody waits: what it holds, and the ticket of the first that waits.
    next: BTreeSet<(usize, u64, S)>,
    tickets: u64,
}

#[derive(Debug, Default)]
struct Line {
    held: usize,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A place; given back when dropped. Before its turn has come, it stands for the wait.
#[derive(Debug)]
pub struct Pass<S: Copy + Ord + Hash = TenantId> {
    turnstile: Turnstile<S>,
    sharer: S,
    ticket: u64,
}

impl<S: Copy + Ord + Hash> Turnstile<S> {
    /// Takes how many places there are; at least one.
    pub fn new(places: usize) -> Self {
        Self::shared(places, if places > 1 { places - (places / 4).max(1) } else { places })
    }

    /// Takes how many places there are, and how many of them one sharer may hold; at least one each.
    pub fn shared(places: usize, share_max: usize) -> Self {
        Self::of(places, share_max, false)
    }

    /// Takes how many places there are. One alone gets half of them, two get a third each, and whoever comes next finds some as long as any is left, as
    /// of `domain::places`.
    pub fn leaving_as_many(places: usize) -> Self {
        Self::of(places, places, true)
    }

    fn of(places: usize, share_max: usize, leaves_as_many: bool) -> Self {
        let (free, share_max) = (places.max(1), share_max.max(1));
        let state = State { free, share_max, leaves_as_many, lines: HashMap::new(), next: BTreeSet::new(), tickets: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A place, once it is the sharer's turn. Dropped earlier, it leaves the line.
    pub async fn enter(&self, sharer: S) -> Pass<S> {
        let (pass, turn) = {
            let mut state = self.state();
            let ticket = state.tickets;
            state.tickets += 1;
            let (sender, turn) = oneshot::channel();
            state.change(sharer, |line| line.waiting.push_back((ticket, sender)));
            state.admit();
            (Pass { turnstile: self.clone(), sharer, ticket }, turn)
        };
        turn.await.expect("who is in line is told, and leaves it by dropping the pass");
        pass
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Copy + Ord + Hash> Drop for Pass<S> {
    fn drop(&mut self) {
        let mut state = self.turnstile.state();
        let had_place = state.change(self.sharer, |line| {
            match line.waiting.binary_search_by_key(&self.ticket, |(ticket, _)| *ticket) {
                Ok(at) => {
                    line.waiting.remove(at);
                    false
                }
                Err(_) => {
                    line.held -= 1;
                    true
                }
            }
        });
        if had_place {
            state.free += 1;
        }
        state.admit();
    }
}

impl<S: Copy + Ord + Hash> State<S> {
    /// Lets in whoever may come in now.
    fn admit(&mut self) {
        while self.free > 0 {
            // The first holds fewest: where even it may not have another one, nobody may.
            let Some(&(held, _, sharer)) = self.next.first() else { return };
            if held >= self.share_max || self.leaves_as_many && held > 0 && held + 1 > self.free - 1 {
                return;
            }
            self.free -= 1;
            let first = self.change(sharer, |line| {
                line.held += 1;
                line.waiting.pop_front()
            });
            if let Some((_, turn)) = first {
                // Whoever has just gone away gives the place back by dropping the pass.
                let _ = turn.send(());
            }
        }
    }

    /// Changes a sharer's line, and keeps its place among the others.
    fn change<T>(&mut self, sharer: S, change: impl FnOnce(&mut Line) -> T) -> T {
        let line = self.lines.entry(sharer).or_default();
        if let Some((ticket, _)) = line.waiting.front() {
            self.next.remove(&(line.held, *ticket, sharer));
        }
        let changed = change(line);
        match line.waiting.front() {
            Some((ticket, _)) => {
                self.next.insert((line.held, *ticket, sharer));
            }
            None if line.held == 0 => {
                self.lines.remove(&sharer);
            }
            None => {}
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use uuid::Uuid;

    fn tenant(number: u128) -> TenantId {
        TenantId(Uuid::from_u128(number))
    }

    /// One that has come to the line, or is in already; [`let_in`] says which.
    fn come(turnstile: &Turnstile, number: u128) -> BoxFuture<'static, Pass> {
        let turnstile = turnstile.clone();
        let mut wait = async move { turnstile.enter(tenant(number)).await }.boxed();
        match (&mut wait).now_or_never() {
            Some(pass) => std::future::ready(pass).boxed(),
            None => wait,
        }
    }

    fn let_in(wait: BoxFuture<'static, Pass>) -> Result<Pass, BoxFuture<'static, Pass>> {
        let mut wait = wait;
        (&mut wait).now_or_never().ok_or(wait)
    }

    #[test]
    fn one_tenant_leaves_a_quarter_to_whoever_comes_next() {
        let turnstile = Turnstile::new(8);
        let (inside, waiting): (Vec<_>, Vec<_>) = (0..20).map(|_| let_in(come(&turnstile, 1))).partition(Result::is_ok);
        assert_eq!((inside.len(), waiting.len()), (6, 14));
        let others: Vec<_> = (0..3).map(|_| let_in(come(&turnstile, 2))).collect();
        assert_eq!(others.iter().filter(|other| other.is_ok()).count(), 2);
        drop((inside, waiting, others));
        let state = turnstile.state();
        assert_eq!((state.free, state.lines.len(), state.next.len()), (8, 0, 0));
    }

    #[test]
    fn however_many_tenants_take_all_that_they_get_the_next_one_finds_a_place() {
        let turnstile = Turnstile::leaving_as_many(16);
        let all = |number| {
            let come: Vec<_> = (0..20).map(|_| let_in(come(&turnstile, number))).collect();
            (come.iter().filter(|one| one.is_ok()).count(), come)
        };
        let held = [all(1), all(2), all(3), all(4)];
        assert_eq!(held.each_ref().map(|(count, _)| *count), [8, 4, 2, 1]);
        let (mut held, third) = (held, let_in(come(&turnstile, 5)));
        assert!(third.is_ok(), "the last place is for who has none");
        held[0].1.retain(Result::is_err);
        drop(third);
        let waiting = held.iter_mut().flat_map(|(_, come)| come.drain(..)).filter_map(Result::err);
        assert!(waiting.filter_map(|wait| let_in(wait).ok()).count() > 0, "what is free again is given on");
    }

    #[test]
    fn no_sharer_holds_more_than_a_bound_of_its_own() {
        let turnstile = Turnstile::shared(4, 2);
        let inside: Vec<Pass> = (0..2).filter_map(|_| let_in(come(&turnstile, 1)).ok()).collect();
        let third = let_in(come(&turnstile, 1)).expect_err("it waits");
        assert!(inside.len() == 2 && let_in(come(&turnstile, 2)).is_ok());
        drop(inside);
        assert!(let_in(third).is_ok());
    }

    #[test]
    fn the_next_place_goes_to_who_holds_fewest_and_then_to_who_waits_longest() {
        let turnstile = Turnstile::new(4);
        let mut inside: Vec<Pass> = (0..3).filter_map(|_| let_in(come(&turnstile, 1)).ok()).collect();
        inside.extend(let_in(come(&turnstile, 2)).ok());
        assert_eq!(inside.len(), 4);
        let mut waiting: Vec<_> = [1, 2, 3, 1, 3, 2].map(|number| (number, come(&turnstile, number))).into();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(inside.remove(0));
            let at = waiting.iter_mut().position(|(_, wait)| {
                let pass = wait.now_or_never();
                let is_in = pass.is_some();
                inside.extend(pass);
                is_in
            });
            order.push(waiting.remove(at.expect("one is let in for each that goes")).0);
        }
        assert_eq!(order, [3, 1, 2, 1, 3, 2]);
    }

    #[test]
    fn who_gives_up_waiting_is_passed_over_and_a_place_that_nobody_took_is_given_on() {
        let turnstile = Turnstile::new(1);
        let first = let_in(come(&turnstile, 1)).ok().expect("it is free");
        let (gone, lost, last) = (come(&turnstile, 2), come(&turnstile, 3), come(&turnstile, 4));
        drop(gone);
        drop(first);
        // The place was given to this one, which never looked.
        drop(lost);
        assert!(let_in(last).is_ok());
        assert_eq!(turnstile.state().free, 1);
    }
}
