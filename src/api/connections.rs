//! How many connections a port holds: a cap in total and per peer, and room made by those of strangers.
//!
//! A flood of connections must not keep others out: at a cap, the oldest one goes by which no call with a good credential has come. What it
//! has open protects it no more than silence does: calls that need no credential cost a stranger nothing, and whoever comes anew, a stranger
//! himself until he is known, would have to go in its stead.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// The connections of one port.
#[derive(Debug)]
pub struct Connections {
    total_max: usize,
    per_peer_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Every admitted connection, oldest first.
    open: BTreeMap<u64, Open>,
    per_peer: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    /// Set for as long as its peer is a stranger.
    evict: Option<CancellationToken>,
}

/// An admitted connection's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    connections: Arc<Connections>,
    id: u64,
    evicted: CancellationToken,
    proven: AtomicBool,
}

impl Connections {
    /// Takes the caps.
    pub fn new(total_max: usize, per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_peer_max, inner: Mutex::default() })
    }

    /// A place for a new connection; none where every place is taken by one that has proven itself.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let peer = network_of(peer);
        let mut inner = self.lock();
        if inner.per_peer.get(&peer).is_some_and(|count| *count >= self.per_peer_max) {
            inner.evict(Some(peer))?;
        }
        if inner.open.len() >= self.total_max {
            inner.evict(None)?;
        }
        let id = inner.next;
        inner.next += 1;
        let evicted = CancellationToken::new();
        inner.open.insert(id, Open { peer, evict: Some(evicted.clone()) });
        *inner.per_peer.entry(peer).or_default() += 1;
        Some(Slot { connections: Arc::clone(self), id, evicted, proven: AtomicBool::new(false) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Ends the oldest connection of a stranger, from that peer or from any.
    fn evict(&mut self, peer: Option<IpAddr>) -> Option<()> {
        let fits = |open: &Open| open.evict.is_some() && peer.is_none_or(|peer| peer == open.peer);
        let id = self.open.iter().find(|(_, open)| fits(open)).map(|(id, _)| *id)?;
        let token = self.open.get(&id).and_then(|open| open.evict.clone())?;
        token.cancel();
        self.remove(id);
        Some(())
    }

    fn remove(&mut self, id: u64) {
        let Some(open) = self.open.remove(&id) else { return };
        if let Some(count) = self.per_peer.get_mut(&open.peer) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&open.peer);
            }
        }
    }
}

impl Slot {
    /// Says that a call with a good credential has come by the connection, so that it is not ended to make room. Asked by every call.
    pub fn prove(&self) {
        if !self.proven.swap(true, Ordering::Relaxed)
            && let Some(open) = self.connections.lock().open.get_mut(&self.id)
        {
            open.evict = None;
        }
    }

    /// Waits until the connection has to make room.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
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
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn strangers_make_room_and_who_is_known_stays() {
        let connections = Connections::new(3, 2);
        let known = connections.admit(A).unwrap();
        known.prove();
        let stranger = connections.admit(A).unwrap();
        let newer = connections.admit(A).unwrap();
        assert!(stranger.evicted.is_cancelled() && !known.evicted.is_cancelled());
        newer.prove();
        assert!(connections.admit(A).is_none(), "both places of the peer are taken by who is known");
        let other = connections.admit(B).unwrap();
        let last = connections.admit(B).unwrap();
        assert!(other.evicted.is_cancelled());
        assert_eq!(connections.count(), 3);
        // An evicted connection gives nothing back a second time.
        drop((stranger, other));
        assert_eq!(connections.count(), 3);
        drop((known, newer, last));
        assert_eq!(connections.count(), 0);
        assert!(connections.lock().per_peer.is_empty());
    }

    #[test]
    fn hosts_share_one_place_in_their_network() {
        let one = network_of("2001:db8:1:2::1".parse().unwrap());
        assert_eq!(one, network_of("2001:db8:1:2:ffff::9".parse().unwrap()));
        assert_ne!(one, network_of("2001:db8:1:3::1".parse().unwrap()));
        assert_eq!(network_of("::ffff:10.0.0.1".parse().unwrap()), A);
    }
}
