//! Where a frame goes: to a port of this host by its MAC, to all, or out by the wire.
//!
//! Each wire and the ports on it are one switch. MACs are learned from what guests send, never from
//! the wire, so that nobody outside can draw a guest's frames to himself. A MAC stays with the port
//! that sent from it first, for as long as that port is there: a guest cannot take another's (RB-1).
//!
//! Pure: no I/O, no clock, no threads. Bounded by ports times [`MAX_STATIONS`].

use crate::headers::Mac;
use crate::identity::MAX_STATIONS;

/// Place of a port in its core.
pub type Slot = usize;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the port at this place.
    Port(Slot),
    /// To everybody but the sender.
    All,
    /// To nobody that is known here.
    Unknown,
}

/// A MAC in a form that is compared at once.
#[inline]
const fn number(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// The MAC belongs to another port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken;

/// MACs of the ports on one wire.
#[derive(Debug, Default)]
pub struct Switch {
    /// Sorted by MAC, as a number.
    table: Vec<(u64, Slot)>,
}

impl Switch {
    /// Makes room for one more port.
    pub fn reserve_port(&mut self) {
        self.table.reserve(MAX_STATIONS);
    }

    /// The port at `slot` sends from `mac`. `room` says whether a new one may be learned.
    ///
    /// Bound: O(log n) for a known MAC. Allocations: none.
    /// Cost of a known one: 11 ns for four guests (`cargo bench -p holdfast-dataplane`).
    ///
    /// # Errors
    /// [`Taken`] when the MAC is another port's.
    pub fn learn(&mut self, mac: Mac, slot: Slot) -> Result<(), Taken> {
        match self.table.binary_search_by_key(&number(mac), |&(known, _)| known) {
            Ok(place) if self.table[place].1 == slot => Ok(()),
            Ok(_) => Err(Taken),
            Err(place) => {
                if self.table.len() < self.table.capacity() {
                    self.table.insert(place, (number(mac), slot));
                }
                Ok(())
            }
        }
    }

    /// The port at `slot` is gone, and those behind it moved up by one place.
    pub fn forget(&mut self, slot: Slot) {
        self.table.retain(|&(_, known)| known != slot);
        for (_, known) in self.table.iter_mut().filter(|(_, known)| *known > slot) {
            *known -= 1;
        }
    }

    /// Whether the MAC is another port's than that at `slot`.
    #[must_use]
    pub fn is_taken(&self, mac: Mac, slot: Slot) -> bool {
        matches!(self.destination(mac), Destination::Port(owner) if owner != slot)
    }

    /// Where a frame to `mac` goes.
    ///
    /// Bound: O(log n). Allocations: none. Cost: 10 ns for four guests (`cargo bench -p holdfast-dataplane`).
    #[inline]
    #[must_use]
    pub fn destination(&self, mac: Mac) -> Destination {
        if mac.is_group() {
            return Destination::All;
        }
        match self.table.binary_search_by_key(&number(mac), |&(known, _)| known) {
            Ok(place) => Destination::Port(self.table[place].1),
            Err(_) => Destination::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    /// RB-1: a guest that sends from another guest's MAC does not get its frames.
    #[test]
    fn a_mac_stays_with_the_port_that_sent_from_it_first() {
        let mut switch = Switch::default();
        switch.reserve_port();
        assert_eq!(switch.learn(B, 1), Ok(()));
        assert_eq!(switch.learn(A, 0), Ok(()));
        assert_eq!(switch.learn(A, 1), Err(Taken));
        assert_eq!(switch.learn(A, 0), Ok(()));
        assert_eq!(switch.destination(A), Destination::Port(0));
        switch.forget(0);
        assert_eq!(switch.destination(B), Destination::Port(0), "the port behind it moved up");
        assert_eq!(switch.learn(A, 0), Ok(()));
        assert_eq!(switch.destination(A), Destination::Port(0));
    }

    #[test]
    fn groups_go_to_all_and_strangers_to_nobody_here() {
        let switch = Switch::default();
        assert_eq!(switch.destination(Mac::BROADCAST), Destination::All);
        assert_eq!(switch.destination(Mac([0x33, 0x33, 0, 0, 0, 1])), Destination::All);
        assert_eq!(switch.destination(A), Destination::Unknown);
    }
}
