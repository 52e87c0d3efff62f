//! Counts what is kept in memory against one bound, for as long as it is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are kept together, and how many may be. Cheap to clone; every clone counts the same.
#[derive(Debug, Clone)]
pub struct Memory {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// Some of these bytes. They are free again when it is dropped.
#[derive(Debug)]
pub struct Kept {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Memory {
    /// Nothing kept yet, of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: Arc::default(), bytes_max }
    }

    /// Bytes that are kept now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may be kept.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// True at the bound.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.bytes_max
    }

    /// True from three quarters of the bound on: the rest is for those who have least.
    pub fn is_scarce(&self) -> bool {
        self.bytes() >= self.bytes_max / 4 * 3
    }

    /// Counts bytes that are kept, also beyond the bound: whoever keeps them has looked.
    pub fn keep(&self, bytes: usize) -> Kept {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Kept { bytes, of: self.bytes.clone() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_counts_until_it_is_dropped() {
        let memory = Memory::new(100);
        let (first, clone) = (memory.keep(60), memory.clone());
        assert!(!memory.is_scarce() && !memory.is_full());
        let second = clone.keep(15);
        assert!(memory.is_scarce() && !memory.is_full());
        let third = memory.keep(50);
        assert!(clone.is_full() && clone.bytes() == 125);
        drop((first, third));
        assert_eq!(memory.bytes(), 15);
        drop(second);
        assert_eq!(memory.bytes(), 0);
    }
}
