//! Who makes room for whom.

use super::*;
use crate::domain::ids::TenantId;
use uuid::Uuid;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

fn tenant(n: u128) -> Sharer {
    Sharer::Tenant(TenantId(Uuid::from_u128(n)))
}

/// One of two tenants, in turns: who is known takes two numbers for each connection.
fn either(slot: &Slot) -> Sharer {
    tenant(u128::from(slot.line.id / 2 % 2))
}

fn is_empty(connections: &Connections) -> bool {
    let Inner { next: _, open, strangers, per_peer, known, idlers, leaving } = &*connections.lock();
    open.is_empty()
        && leaving.is_empty()
        && strangers.is_empty()
        && per_peer.is_empty()
        && known.is_empty()
        && idlers.is_empty()
}

#[test]
fn strangers_make_room_and_who_is_known_stays() {
    let connections = Connections::new(3, 2);
    let known = connections.admit(A).unwrap();
    known.prove(tenant(1));
    let stranger = connections.admit(A).unwrap();
    let newer = connections.admit(A).unwrap();
    assert!(stranger.evicted.is_cancelled() && !known.evicted.is_cancelled());
    newer.prove(tenant(1));
    assert!(connections.admit(A).is_none(), "both places of the peer are taken by who is known");
    let other = connections.admit(B).unwrap();
    let last = connections.admit(B).unwrap();
    assert!(other.evicted.is_cancelled());
    assert_eq!(connections.count(), 3);
    // An evicted connection gives nothing back a second time, and is nobody's any more.
    other.prove(tenant(2));
    drop((stranger, other));
    assert_eq!(connections.count(), 3);
    drop((known, newer, last));
    assert!(is_empty(&connections));
}

#[test]
fn who_has_the_most_loses_what_is_idle_for_longest_and_never_a_call_or_the_last_one() {
    let connections = Connections::new(12, 99);
    let admit = |holder: Sharer| {
        let slot = connections.admit(A).unwrap();
        let call = slot.open_call();
        slot.prove(holder);
        (slot, Some(call))
    };
    let (mut many, small) = ((0..6).map(|_| admit(tenant(1))).collect::<Vec<_>>(), admit(tenant(2)));
    let mut single = admit(tenant(3));
    let others: Vec<_> = (5..9).map(|n| admit(tenant(n))).collect();
    assert!(connections.admit(A).is_none(), "calls are open by all of them");
    drop(single.1.take());
    assert!(connections.admit(A).is_none(), "it is the only one");
    for one in [4, 2, 3] {
        many[one].1 = None;
    }
    let left = |many: &[(Slot, Option<OpenCall>)]| -> Vec<usize> {
        (0..6).filter(|one| many[*one].0.leaves.is_cancelled()).collect()
    };
    // By one that was idle first a call is open again.
    many[4].1 = Some(many[4].0.open_call());
    let newcomers = [admit(tenant(2)), admit(tenant(4))];
    assert_eq!(left(&many), [2, 3]);
    assert!(connections.admit(A).is_none());
    many[4].1 = None;
    let stranger = connections.admit(A).unwrap();
    assert_eq!(left(&many), [2, 3, 4]);
    let next = connections.admit(A).unwrap();
    assert!(stranger.evicted.is_cancelled(), "nobody has an idle one beside others");
    drop((many, small, single, others, newcomers, stranger, next));
    assert!(is_empty(&connections));
}

#[test]
fn g9_nobody_has_more_than_three_quarters_of_a_port() {
    let connections = Connections::new(8, 99);
    let admit = |holder: Sharer| {
        let slot = connections.admit(A).expect("there is room");
        let call = slot.open_call();
        slot.prove(holder);
        (slot, Some(call))
    };
    let mut many: Vec<_> = (0..6).map(|_| admit(tenant(1))).collect();
    let others = [admit(tenant(2)), admit(tenant(3))];
    assert!(connections.admit(A).is_none(), "calls are open by all of them");
    drop(others);
    // His next one leaves, once what came by it is answered; others find room.
    many.push(admit(tenant(1)));
    let left =
        |many: &[(Slot, Option<OpenCall>)]| many.iter().map(|one| one.0.leaves.is_cancelled()).collect::<Vec<_>>();
    assert_eq!(left(&many), [false, false, false, false, false, false, true]);
    assert!(!many[6].0.evicted.is_cancelled());
    // One of his own that he does not use goes in its stead.
    many[2].1 = None;
    many.push(admit(tenant(1)));
    assert_eq!(left(&many), [false, false, true, false, false, false, true, false]);
    let others = [admit(tenant(2)), admit(tenant(3))];
    assert_eq!(left(&many).iter().filter(|left| **left).count(), 2);
    // Strangers that come and go hurt nobody.
    for _ in 0..100 {
        assert!(connections.admit(A).is_none());
    }
    drop((many, others));
    assert!(is_empty(&connections));
}

#[test]
fn who_has_too_many_has_his_own_cut_first() {
    let connections = Connections::new(16, 99);
    let admit = |holder: Sharer| {
        let slot = connections.admit(A).expect("there is room");
        let call = slot.open_call();
        slot.prove(holder);
        (slot, Some(call))
    };
    let many: Vec<_> = (0..12).map(|_| admit(tenant(1))).collect();
    let mut small: Vec<_> = (0..4).map(|_| admit(tenant(2))).collect();
    small[0].1 = None;
    let more: Vec<_> = (0..20).map(|_| admit(tenant(1))).collect();
    assert!(small[0].0.leaves.is_cancelled() && !small[0].0.evicted.is_cancelled());
    assert_eq!(more.iter().filter(|one| one.0.evicted.is_cancelled()).count(), 19);
    drop((many, small, more));
    assert!(is_empty(&connections));
    for (total, own) in [(1, 1), (2, 1), (3, 2), (5, 3), (7, 5)] {
        let connections = Connections::new(total, 99);
        let slots: Vec<_> = (0..total).map(|_| connections.admit(A).expect("there is room")).collect();
        for slot in &slots {
            slot.prove(tenant(1));
        }
        assert_eq!(slots.iter().filter(|slot| !slot.leaves.is_cancelled()).count(), own, "of {total}");
    }
}

#[test]
fn nobody_is_cut_for_a_newcomer_that_is_refused() {
    let connections = Connections::new(4, 3);
    let admit = |peer, holder: Sharer| {
        let slot = connections.admit(peer).expect("there is room");
        slot.prove(holder);
        slot
    };
    let (idle, other) = (admit(A, tenant(1)), admit(A, tenant(1)));
    let others = [admit(B, tenant(2)), admit(B, tenant(3))];
    let newcomer = admit(A, tenant(4));
    assert!(idle.leaves.is_cancelled() && !idle.evicted.is_cancelled());
    let calls: Vec<_> = [&other, &newcomer, &others[0], &others[1]].map(Slot::open_call).into();
    assert!(connections.admit(A).is_none(), "the port is full of calls");
    assert!(!idle.evicted.is_cancelled(), "what crossed its goodbye may end");
    drop((calls, idle, other, others, newcomer));
    assert!(is_empty(&connections));
}

#[test]
fn who_is_known_leaves_in_peace_until_too_many_do() {
    let connections = Connections::new(16, 99);
    let admit = |_| connections.admit(A).unwrap();
    let prove = |slot: &Slot| slot.prove(either(slot));
    let mut known: Vec<_> = (0..16).map(admit).inspect(prove).collect();
    let evicted = |known: &[Slot]| known.iter().filter(|slot| slot.evicted.is_cancelled()).count();
    known.extend((0..2).map(admit).inspect(prove));
    assert_eq!((evicted(&known), connections.count()), (0, 16));
    known.extend((0..2).map(admit).inspect(prove));
    assert_eq!((evicted(&known), connections.count()), (2, 16));
    assert!(known[..2].iter().all(|slot| slot.evicted.is_cancelled()), "they have been leaving for longest");
    // Those that are gone are none of them.
    drop(known.drain(..4));
    known.extend((0..2).map(admit).inspect(prove));
    assert_eq!((evicted(&known), connections.lock().leaving.len()), (0, 2));
    drop(known);
    assert!(is_empty(&connections));
}

#[test]
fn a_peer_holds_no_more_than_it_may_whoever_leaves() {
    let connections = Connections::new(16, 17);
    let admit = || {
        let slot = connections.admit(A).expect("there is room");
        slot.prove(either(&slot));
        slot
    };
    let mut held: Vec<Slot> = (0..16).map(|_| admit()).collect();
    for newcomer in 1..=20 {
        held.push(admit());
        // Those that are cut end at once.
        let open = held.iter().filter(|slot| !slot.evicted.is_cancelled()).count();
        let leaving = held.iter().filter(|slot| slot.leaves.is_cancelled() && !slot.evicted.is_cancelled()).count();
        assert_eq!((open, leaving), (17, 1), "newcomer {newcomer}");
        assert!(!held[15 + newcomer].leaves.is_cancelled(), "whoever has just come stays");
    }
    // One that is gone by itself gives back its place, and so does one that was cut, once.
    drop(held.drain(..20));
    assert_eq!(connections.lock().per_peer[&A], 16);
    drop(held);
    assert!(is_empty(&connections));
}

#[test]
fn those_who_come_at_the_same_time_do_not_go_in_each_others_stead() {
    let connections = Connections::new(16, 99);
    let admit = |_| connections.admit(A).unwrap();
    let idle: Vec<_> = (0..16).map(admit).inspect(|slot| slot.prove(either(slot))).collect();
    let newcomers: Vec<_> = (0..3).map(admit).collect();
    assert!(newcomers.iter().all(|slot| !slot.evicted.is_cancelled()));
    assert_eq!(idle.iter().filter(|slot| slot.leaves.is_cancelled()).count(), 3);
    // However many strangers come, they push out no more of who is known.
    let flood: Vec<_> = (0..100).map(admit).collect();
    assert_eq!(idle.iter().filter(|slot| slot.leaves.is_cancelled()).count(), 3);
    drop((idle, newcomers, flood));
    assert!(is_empty(&connections));
}

#[test]
fn hosts_share_one_place_in_their_network() {
    let one = network_of("2001:db8:1:2::1".parse().unwrap());
    assert_eq!(one, network_of("2001:db8:1:2:ffff::9".parse().unwrap()));
    assert_ne!(one, network_of("2001:db8:1:3::1".parse().unwrap()));
    assert_eq!(network_of("::ffff:10.0.0.1".parse().unwrap()), A);
}
