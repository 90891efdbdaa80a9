//! Numbers in guest memory that loom sees.
//!
//! Loom knows only its own atomics, and the numbers of a ring lie in mapped memory. A model names those by which driver
//! and device meet; accesses to them go to atomics of loom's that stand in their place, with the orders that the ring
//! asks for. All else in guest memory is read and written where it is, as if in one order that everybody sees.

use loom::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The numbers that were named, by their offset in the file.
#[derive(Debug, Default)]
pub(crate) struct Modelled(Mutex<HashMap<u64, Arc<AtomicU64>>>);

impl Modelled {
    /// Names a number, which is `value` now.
    pub(crate) fn name(&self, offset: u64, value: u64) {
        let number = Arc::new(AtomicU64::new(value));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(offset, number);
    }

    /// Loom may change threads at each access, so that none is made under the lock.
    fn find(&self, offset: u64) -> Option<Arc<AtomicU64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&offset).cloned()
    }

    /// Reads a number, if it was named.
    pub(crate) fn load(&self, offset: u64, order: Ordering) -> Option<u64> {
        self.find(offset).map(|number| number.load(order))
    }

    /// Writes a number, if it was named; whether it was.
    pub(crate) fn store(&self, offset: u64, value: u64, order: Ordering) -> bool {
        self.find(offset).map(|number| number.store(value, order)).is_some()
    }
}
