//! What was committed here and waits until the page that is being read ends where it begins.

use crate::domain::event::LogEntry;
use crate::domain::ids::Position;
use crate::domain::memory::{Kept, Memory};
use std::collections::VecDeque;
use std::sync::Arc;

/// Adjacent entries of a tenant's log, bounded: what is let go of is read from the log.
#[derive(Debug)]
pub(super) struct Heard {
    entries: VecDeque<(Arc<LogEntry>, Kept)>,
    bytes: usize,
    /// Where they are counted with those of other tenants.
    memory: Memory,
}

impl Heard {
    /// Nothing heard yet.
    pub fn new(memory: Memory) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, memory }
    }

    /// Position of the first entry.
    pub fn first(&self) -> Option<Position> {
        self.entries.front().map(|(entry, _)| entry.position)
    }

    /// Adds entries. Forgets the ones before where these do not follow on, or where they are beyond the bounds with them.
    pub fn hear(&mut self, entries: &[Arc<LogEntry>], entries_max: usize, bytes_max: usize) {
        let (Some(first), more) = (entries.first(), entries.iter().map(|entry| entry.memory_bytes()).sum::<usize>())
        else {
            return;
        };
        if self.entries.back().is_some_and(|(back, _)| back.position + 1 != first.position)
            || self.entries.len() + entries.len() > entries_max
            || self.bytes + more > bytes_max
        {
            self.entries.clear();
            self.bytes = 0;
        }
        let keep = |entry: &Arc<LogEntry>| (entry.clone(), self.memory.keep(entry.memory_bytes()));
        self.entries.extend(entries.iter().map(keep));
        self.bytes += more;
    }

    /// Takes the first entries out, at most `count`.
    pub fn take(&mut self, count: usize) -> Vec<Arc<LogEntry>> {
        let taken: Vec<_> = self.entries.drain(..count.min(self.entries.len())).map(|(entry, _)| entry).collect();
        self.bytes -= taken.iter().map(|entry| entry.memory_bytes()).sum::<usize>();
        taken
    }

    /// Forgets the entries before a position.
    pub fn forget_before(&mut self, position: Position) {
        self.take(self.entries.partition_point(|(entry, _)| entry.position < position));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tenant::fixture::entry;

    fn entries(positions: std::ops::RangeInclusive<Position>) -> Vec<Arc<LogEntry>> {
        positions.map(|position| entry(position, &[])).collect()
    }

    #[test]
    fn it_keeps_what_follows_on_within_its_bounds() {
        let mut heard = Heard::new(Memory::new(usize::MAX));
        heard.hear(&entries(4..=5), 4, 1 << 20);
        heard.hear(&entries(6..=7), 4, 1 << 20);
        assert_eq!(heard.first(), Some(4));
        heard.hear(&entries(9..=9), 4, 1 << 20);
        assert_eq!(heard.first(), Some(9), "after a gap");
        heard.hear(&entries(10..=13), 4, 1 << 20);
        assert_eq!(heard.first(), Some(10), "too many");
        let bytes = heard.memory.bytes();
        heard.hear(&entries(14..=14), 8, bytes);
        assert_eq!(heard.first(), Some(14), "too much");
        assert_eq!(heard.memory.bytes(), bytes / 4);
    }

    #[test]
    fn what_is_taken_costs_nothing() {
        let mut heard = Heard::new(Memory::new(usize::MAX));
        heard.hear(&entries(1..=5), 8, 1 << 20);
        heard.forget_before(3);
        let positions: Vec<_> = heard.take(2).iter().map(|entry| entry.position).collect();
        assert_eq!(positions, [3, 4]);
        assert_eq!((heard.take(9).len(), heard.memory.bytes(), heard.first()), (1, 0, None));
    }
}
