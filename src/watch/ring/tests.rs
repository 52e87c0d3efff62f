//! The ring's bounds, its reads at every offset, and the cache of ready-made messages.

use super::*;
use crate::watch::tests::entry;

fn place(after: Position) -> LogPlace {
    LogPlace { after, day: entry(1, "A").day() }
}

fn ring(entries_max: usize, bytes_max: usize, upto: Position) -> Ring {
    let mut ring = Ring::new(place(0), entries_max, bytes_max, Rings::new(usize::MAX));
    for position in 1..=upto {
        assert!(ring.push(entry(position, "A")));
    }
    ring
}

#[test]
fn the_rings_of_all_tenants_are_bounded_together() {
    let rings = Rings::new(10_000);
    let of_tenant = || Ring::new(place(0), 1_000, 1 << 20, rings.clone());
    let (mut busy, mut other) = (of_tenant(), of_tenant());
    for position in 1..=100 {
        assert!(busy.push(entry(position, "A")));
    }
    let (many, bytes) = busy.size();
    assert!(many > 1 && bytes <= 10_000, "{many} entries of {bytes} bytes");
    assert!(other.push(entry(1, "A")) && other.push(entry(2, "A")));
    assert_eq!(other.size().0, 1, "always at least one");
    drop(busy);
    assert!(other.push(entry(3, "A")));
    assert_eq!(other.size().0, 2, "what an ended ring held is free again");
}

#[test]
fn it_takes_only_the_next_entry() {
    let mut ring = ring(8, 1 << 20, 3);
    for wrong in [1, 3, 5] {
        assert!(!ring.push(entry(wrong, "A")), "{wrong}");
    }
    assert!(ring.push(entry(4, "A")));
    assert_eq!(ring.end().after, 4);
}

#[test]
fn every_offset_reads_on_without_gap_or_says_that_it_is_behind() {
    let ring = ring(8, 1 << 20, 20);
    for after in 0..=25 {
        match ring.read(after, 100) {
            Reading::Behind { up_to } => assert!(after < 12 && up_to == 20, "{after}"),
            Reading::AtEnd => assert!(after >= 20, "{after}"),
            Reading::Entries(entries) => {
                let positions: Vec<_> = entries.iter().map(|entry| entry.position()).collect();
                assert_eq!(positions, (after + 1..=20).collect::<Vec<_>>());
            }
        }
    }
    let Reading::Entries(bounded) = ring.read(13, 2) else { panic!("it is there") };
    assert_eq!(bounded.len(), 2);
}

#[test]
fn bytes_bound_it_too_but_the_newest_entry_always_stays() {
    let ring = ring(100, 1, 20);
    assert!(matches!(ring.read(18, 100), Reading::Behind { up_to: 20 }));
    assert!(matches!(ring.read(19, 100), Reading::Entries(entries) if entries.len() == 1));
}

#[test]
fn a_skip_leaves_readers_behind() {
    let mut ring = ring(8, 1 << 20, 5);
    ring.skip_to(place(9));
    assert!(matches!(ring.read(5, 100), Reading::Behind { up_to: 9 }));
    assert!(ring.push(entry(10, "A")));
    assert!(matches!(ring.read(9, 100), Reading::Entries(_)));
    assert!(matches!(ring.read(8, 100), Reading::Behind { up_to: 10 }));
}

#[test]
fn a_ready_made_message_is_used_while_it_says_all_there_is() {
    let frame = Bytes::from_static(&[0; 10]);
    let mut segments = Segments::new(2 * (SEGMENT_OVERHEAD + 10) + 5);
    let segment = |to, full| Segment { to: place(to), frame: Some(frame.clone()), skipped: 0, full };
    segments.put(0, EventView::Full, 1, segment(5, false));
    assert!(segments.get(0, EventView::Full, 1, 5).is_some());
    assert!(segments.get(0, EventView::Full, 1, 6).is_none(), "more has come since");
    assert!(segments.get(0, EventView::Metadata, 1, 5).is_none());
    assert!(segments.get(0, EventView::Full, 2, 5).is_none(), "others have other filters");
    segments.put(0, EventView::Full, 1, segment(6, true));
    assert!(segments.get(0, EventView::Full, 1, 9).is_some(), "it is as large as a message may be");
    segments.put(6, EventView::Full, 1, segment(7, true));
    segments.put(7, EventView::Full, 1, segment(8, true));
    assert!(segments.get(0, EventView::Full, 1, 9).is_none(), "the oldest has made room");
    assert!(segments.get(7, EventView::Full, 1, 9).is_some());
}
