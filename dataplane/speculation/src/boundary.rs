//! What crosses the engine's border: frames of the guest, verdicts, and where made frames go.

use holdfast_epoch::EpochId;

/// Bytes of one whole frame of the guest, from its first byte. They may lie in the guest's memory, and
/// the guest may write to them at any time: they are copied once, and what was copied is judged.
pub trait Payload {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether there is no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `out.len()` bytes from `offset` on; bytes beyond the end of the frame are zero.
    fn copy_to(&self, offset: usize, out: &mut [u8]);
}

impl Payload for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let from = self.get(offset..).unwrap_or_default();
        let count = from.len().min(out.len());
        let (there, beyond) = out.split_at_mut(count);
        there.copy_from_slice(&from[..count]);
        beyond.fill(0);
    }
}

impl Payload for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        (**self).copy_to(offset, out);
    }
}

/// A frame that the guest sent, as large as its card lets it be (64 KiB with segmentation offload).
#[derive(Clone, Copy)]
pub struct GuestFrame<'a> {
    /// The frame's first bytes, read once: all of it, or [`holdfast_packet::headers::MAX_HEADERS`].
    pub head: &'a [u8],
    /// The whole frame; the part behind the headers is read from here.
    pub frame: &'a dyn Payload,
    /// Whether the TCP checksum is in the frame. If not, the guest left it to its card, and there is
    /// nothing to verify.
    pub checksum_done: bool,
}

/// What becomes of a frame of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FromGuest {
    /// It goes the way of plain output commit.
    Pass,
    /// The engine is done with it: its bytes are held, or it was dropped for a counted reason.
    Taken,
}

/// What becomes of a frame from the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FromWire {
    /// It goes to the guest, perhaps rewritten in place.
    Pass,
    /// The engine is done with it.
    Taken,
}

/// Where frames go that the engine makes.
pub trait Sink {
    /// Makes room for a frame of `len` bytes and lets `write` fill all of it; false when there is no
    /// room now: the engine asks again with the next poll, and nothing is lost. `epoch` is the epoch
    /// whose commit let the frame go (OC-1); none for frames to the guest, and while nothing is held
    /// back.
    fn emit(&mut self, len: usize, epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool;
}
