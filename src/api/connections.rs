//! How many connections a port holds: a cap in total and per peer, and who makes room for whoever comes next.
//!
//! A flood of connections must not keep others out: at a cap, the oldest one goes by which no call with a good credential has come. What it
//! has open protects it no more than silence does: calls that need no credential cost a stranger nothing, and whoever comes anew, a stranger
//! himself until he is known, would have to go in its stead.
//!
//! Nor must who is known keep others out by what he does not use: where few places are strangers', of those who have an idle connection
//! beside others, whoever has the most loses the one that has been without a call for longest. One by which a call is open stays.
//! Nobody who is known has more than three quarters of a port: whoever comes with one more loses his own longest idle one, or else that one.
//!
//! Who is known is not cut, since a call may be on its way: his connection says goodbye, and answers what crosses that. Its place in the port
//! is another's meanwhile, so a port holds some more than its cap, and no more than that: where too many leave, the one that has been leaving
//! for longest is cut. Its place among those of its peer it keeps until it is gone; a peer that is at that cap has it cut by whoever comes
//! from there.

use super::in_flight::Sharer;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio_util::sync::CancellationToken;

/// One place in so many is for strangers: whoever comes is one, and those who come at the same time would else go in each other's stead.
const STRANGERS_PART: usize = 8;
/// One place in so many is never one holder's.
const OTHERS_PART: usize = 4;
/// One connection for so many places may be leaving, beside those that have a place.
pub const LEAVING_PART: usize = 8;

/// The connections of one port.
#[derive(Debug)]
pub struct Connections {
    total_max: usize,
    per_peer_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Numbers connections, and the moments at which they become idle.
    next: u64,
    /// Every admitted connection.
    open: HashMap<u64, Open>,
    /// Those of strangers, oldest first.
    strangers: BTreeSet<u64>,
    per_peer: HashMap<IpAddr, usize>,
    known: HashMap<Sharer, Known>,
    /// Who of these has an idle connection, by how many connections he has.
    idlers: BTreeSet<(usize, Sharer)>,
    /// Those that have no place in the port any more and still say goodbye, in the order in which they began to.
    leaving: VecDeque<Leaving>,
}

#[derive(Debug)]
struct Leaving {
    id: u64,
    peer: IpAddr,
    holder: Option<Sharer>,
    evicted: CancellationToken,
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    leaves: CancellationToken,
    evicted: CancellationToken,
    /// Whose it is; none for a stranger's.
    holder: Option<Sharer>,
    /// Since when no call is open by it; only of who is known.
    idle: Option<u64>,
}

/// The connections of one who is known.
#[derive(Debug, Default)]
struct Known {
    count: usize,
    /// Those by which no call is open, by since when.
    idle: BTreeMap<u64, u64>,
}

/// Whoever makes room.
enum Room {
    Leaving(u64),
    Stranger(u64),
    Idle(u64),
}

/// What an admitted connection and its calls share.
#[derive(Debug)]
struct Line {
    connections: Arc<Connections>,
    id: u64,
    holder: OnceLock<Sharer>,
    calls: AtomicUsize,
}

/// An admitted connection's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    line: Arc<Line>,
    /// Of who is known; cancelled with the other one too.
    leaves: CancellationToken,
    evicted: CancellationToken,
}

/// A call that is open by a connection, until it is dropped. It keeps no place.
#[derive(Debug)]
pub struct OpenCall(Arc<Line>);

impl Connections {
    /// Takes the caps.
    pub fn new(total_max: usize, per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_peer_max, inner: Mutex::default() })
    }

    /// A place for a new connection; none where nobody can make room.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let peer = network_of(peer);
        let mut inner = self.lock();
        // Nobody is cut for a newcomer that is then refused.
        let by_peer = match inner.per_peer.get(&peer) {
            Some(count) if *count >= self.per_peer_max => Some(inner.room_of(peer)?),
            _ => None,
        };
        let freed = usize::from(matches!(by_peer, Some(Room::Stranger(_))));
        let by_port = if inner.open.len() - freed >= self.total_max {
            let few = inner.strangers.len() <= self.total_max / STRANGERS_PART;
            let idle = inner.longest_idle().filter(|_| few).map(Room::Idle);
            Some(idle.or_else(|| Some(Room::Stranger(*inner.strangers.first()?)))?)
        } else {
            None
        };
        for room in [by_peer, by_port].into_iter().flatten() {
            match room {
                Room::Leaving(id) => drop(inner.cut_leaving(|leaving| leaving.id == id)),
                Room::Stranger(id) => inner.evict(id),
                Room::Idle(id) => inner.let_go(id, self.leaving_max()),
            }
        }
        let id = inner.next;
        inner.next += 1;
        let evicted = CancellationToken::new();
        let leaves = evicted.child_token();
        let open = Open { peer, leaves: leaves.clone(), evicted: evicted.clone(), holder: None, idle: None };
        inner.open.insert(id, open);
        inner.strangers.insert(id);
        *inner.per_peer.entry(peer).or_default() += 1;
        let (holder, calls) = (OnceLock::new(), AtomicUsize::new(0));
        Some(Slot { line: Arc::new(Line { connections: Arc::clone(self), id, holder, calls }), leaves, evicted })
    }

    /// How many there are, without those that leave.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    fn leaving_max(&self) -> usize {
        (self.total_max / LEAVING_PART).max(1)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The connection that has been idle for longest, of whoever has the most beside it.
    fn longest_idle(&self) -> Option<u64> {
        let (count, holder) = self.idlers.last()?;
        let (_, id) = self.known.get(holder).filter(|_| *count > 1)?.idle.first_key_value()?;
        Some(*id)
    }

    /// Who of a peer makes room for another one from there: whoever has said goodbye goes before whoever has just come.
    fn room_of(&self, peer: IpAddr) -> Option<Room> {
        let leaving = self.leaving.iter().find(|leaving| leaving.peer == peer).map(|leaving| Room::Leaving(leaving.id));
        let is_of = |id: &&u64| self.open.get(id).is_some_and(|open| open.peer == peer);
        leaving.or_else(|| self.strangers.iter().find(is_of).map(|id| Room::Stranger(*id)))
    }

    fn evict(&mut self, id: u64) {
        if let Some(open) = self.remove(id) {
            open.evicted.cancel();
            self.give_back(open.peer);
        }
    }

    /// Tells a connection to leave; whichever has been leaving for longest is cut where there are too many.
    fn let_go(&mut self, id: u64, leaving_max: usize) {
        let Some(open) = self.remove(id) else { return };
        open.leaves.cancel();
        self.leaving.push_back(Leaving { id, peer: open.peer, holder: open.holder, evicted: open.evicted });
        if self.leaving.len() > leaving_max {
            self.cut_leaving(|_| true);
        }
    }

    /// Cuts the one of these that has been leaving for longest; false where none of them leaves.
    fn cut_leaving(&mut self, of: impl Fn(&Leaving) -> bool) -> bool {
        let Some(leaving) = self.leaving.iter().position(of).and_then(|at| self.leaving.remove(at)) else {
            return false;
        };
        leaving.evicted.cancel();
        self.give_back(leaving.peer);
        true
    }

    /// Takes down that a connection is gone, whether it was told to leave or not; nothing where it was cut.
    fn gone(&mut self, id: u64) {
        if let Some(open) = self.remove(id) {
            self.give_back(open.peer);
        }
        self.cut_leaving(|leaving| leaving.id == id);
    }

    /// Gives back a place of a peer.
    fn give_back(&mut self, peer: IpAddr) {
        if let Some(count) = self.per_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&peer);
            }
        }
    }

    /// Takes a connection out of the port; its peer's place stays.
    fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.strangers.remove(&id);
        if let Some(holder) = open.holder {
            self.change(holder, |known| {
                known.count -= 1;
                if let Some(since) = open.idle {
                    known.idle.remove(&since);
                }
            });
        }
        Some(open)
    }

    /// Takes down whose a connection is. Where he has more than so many he loses one, which may be this one.
    fn introduce(&mut self, id: u64, holder: Sharer, own_max: usize, leaving_max: usize) {
        if let Some(open) = self.open.get_mut(&id) {
            open.holder = Some(holder);
            self.strangers.remove(&id);
            self.change(holder, |known| known.count += 1);
            let count = self.known.get(&holder).map_or(0, |known| known.count);
            if count > own_max {
                // None of others is cut for that.
                if self.leaving.len() >= leaving_max {
                    self.cut_leaving(|leaving| leaving.holder == Some(holder));
                }
                let idle = self.known.get(&holder).and_then(|known| known.idle.first_key_value()).map(|(_, id)| *id);
                self.let_go(idle.unwrap_or(id), leaving_max);
            }
        }
    }

    /// Takes down whether a connection is idle, by how many calls are open.
    fn note(&mut self, id: u64, calls: usize) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let Some(holder) = open.holder else { return };
        match (open.idle, calls) {
            (None, 0) => {
                let since = self.next;
                self.next += 1;
                open.idle = Some(since);
                self.change(holder, |known| {
                    known.idle.insert(since, id);
                });
            }
            (Some(since), 1..) => {
                open.idle = None;
                self.change(holder, |known| {
                    known.idle.remove(&since);
                });
            }
            _ => {}
        }
    }

    fn change(&mut self, holder: Sharer, change: impl FnOnce(&mut Known)) {
        let known = self.known.entry(holder).or_default();
        self.idlers.remove(&(known.count, holder));
        change(known);
        if !known.idle.is_empty() {
            self.idlers.insert((known.count, holder));
        }
        if known.count == 0 {
            self.known.remove(&holder);
        }
    }
}

impl Line {
    /// Asked after each change, so that the last one to ask sees them all.
    fn note(&self) {
        // What strangers do protects nothing.
        if self.holder.get().is_some() {
            let mut inner = self.connections.lock();
            inner.note(self.id, self.calls.load(Ordering::SeqCst));
        }
    }
}

impl Slot {
    /// Says that a call with a good credential of this holder has come by the connection. Asked by every call; the first one counts.
    pub fn prove(&self, holder: Sharer) {
        if self.line.holder.set(holder).is_ok() {
            let connections = &self.line.connections;
            let own_max = (connections.total_max - connections.total_max.div_ceil(OTHERS_PART)).max(1);
            connections.lock().introduce(self.line.id, holder, own_max, connections.leaving_max());
            self.line.note();
        }
    }

    /// Says that a call is open by the connection.
    pub fn open_call(&self) -> OpenCall {
        if self.line.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            self.line.note();
        }
        OpenCall(Arc::clone(&self.line))
    }

    /// Waits until the connection has to say goodbye, and to end once it is heard and the calls are over.
    pub async fn leaves(&self) {
        self.leaves.cancelled().await;
    }

    /// Waits until the connection has to make room at once.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Whether a call is open by the connection.
    pub fn has_calls(&self) -> bool {
        self.line.calls.load(Ordering::SeqCst) > 0
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.note();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.line.connections.lock().gone(self.line.id);
    }
}

/// One peer is one IPv4 address, or one /64 of IPv6, which is what a single host is given.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests;
