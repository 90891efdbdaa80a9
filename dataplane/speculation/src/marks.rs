//! What each epoch that is not committed yet adds to a flow.

use crate::emission::Pattern;
use crate::seq::SeqNum;
use crate::window::Scaled;
use holdfast_epoch::EpochId;

/// Marks that a flow keeps apart. With more epochs in flight the newest two become one, that of the
/// later epoch: its bytes wait longer than they had to, and never leave early (OC-1).
pub(crate) const MARKS: usize = 8;

/// What the guest last said of the client's data: it rides on every segment to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Voice {
    pub(crate) ack: SeqNum,
    pub(crate) window: Scaled,
    pub(crate) tsval: u32,
    pub(crate) tsecr: u32,
    pub(crate) ece: bool,
}

/// How a flow stood at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: EpochId,
    /// Bytes before this were streamed before the cut.
    pub(crate) end: SeqNum,
    /// The guest's FIN follows them.
    pub(crate) fin: bool,
    /// The guest has reset the flow.
    pub(crate) reset: bool,
    pub(crate) voice: Voice,
    /// What its frames looked like.
    pub(crate) pattern: Pattern,
}

/// The marks of a flow, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    ring: [Mark; MARKS],
    first: u8,
    len: u8,
}

impl Marks {
    /// None.
    pub(crate) fn new() -> Self {
        let mark = Mark {
            epoch: EpochId::FIRST,
            end: SeqNum::new(0),
            fin: false,
            reset: false,
            voice: Voice::default(),
            pattern: Pattern::none(),
        };
        Self { ring: [mark; MARKS], first: 0, len: 0 }
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the mark of an epoch that is later than all others.
    pub(crate) fn push(&mut self, mark: Mark) {
        let same = self.len > 0 && self.ring[self.place(self.len - 1)].epoch == mark.epoch;
        if usize::from(self.len) == MARKS || same {
            let last = self.place(self.len - 1);
            self.ring[last] = mark;
        } else {
            let next = self.place(self.len);
            self.ring[next] = mark;
            self.len += 1;
        }
    }

    /// Takes the newest mark of an epoch that is not later than `epoch`, and those before it.
    pub(crate) fn take(&mut self, epoch: EpochId) -> Option<Mark> {
        let mut found = None;
        while self.len > 0 && self.ring[self.place(0)].epoch <= epoch {
            found = Some(self.ring[self.place(0)]);
            self.first = self.place(1) as u8;
            self.len -= 1;
        }
        found
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    fn place(&self, nth: u8) -> usize {
        (usize::from(self.first) + usize::from(nth)) % MARKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: u64) -> Mark {
        Mark {
            epoch: EpochId::new(epoch),
            end: SeqNum::new(epoch as u32 * 100),
            fin: false,
            reset: false,
            voice: Voice::default(),
            pattern: Pattern::none(),
        }
    }

    fn taken(marks: &mut Marks, epoch: u64) -> Option<u32> {
        marks.take(EpochId::new(epoch)).map(|mark| mark.end.get())
    }

    #[test]
    fn a_commit_takes_its_epoch_and_those_before_it() {
        let mut marks = Marks::new();
        [2, 3, 5].into_iter().for_each(|epoch| marks.push(mark(epoch)));
        assert_eq!(taken(&mut marks, 1), None);
        assert_eq!(taken(&mut marks, 4), Some(300));
        assert_eq!(taken(&mut marks, 4), None);
        assert_eq!(taken(&mut marks, 9), Some(500));
        assert!(marks.is_empty());
    }

    /// OC-1: when there are more epochs than places, bytes wait for a later commit, never an earlier.
    #[test]
    fn epochs_beyond_the_bound_become_one_with_the_last() {
        let mut marks = Marks::new();
        (1..=20).for_each(|epoch| marks.push(mark(epoch)));
        assert_eq!(taken(&mut marks, 7), Some(700));
        assert_eq!(taken(&mut marks, 19), None, "the bytes of 8 to 19 wait for 20");
        assert_eq!(taken(&mut marks, 20), Some(2000));
        for epoch in 21..100 {
            marks.push(mark(epoch));
            assert_eq!(taken(&mut marks, epoch), Some(epoch as u32 * 100));
        }
    }
}
