//! A ring by which the guest receives: frames go in.

use super::chain::{Direction, LOOK};
use super::fault::RingFault;
use super::queue::{MAX_RING_SIZE, Queue};
use crate::header::VirtioNetHdr;

/// Chains that one frame may take, at most.
const MAX_MERGED: usize = 1024;

const _: () = assert!(MAX_MERGED <= MAX_RING_SIZE as usize);

/// A ring by which the guest receives. Parked, it has no room.
#[derive(Debug)]
pub struct RxRing {
    queue: Option<Box<Queue>>,
    header_len: usize,
    merge: bool,
}

impl RxRing {
    pub(crate) fn parked() -> Self {
        Self { queue: None, header_len: VirtioNetHdr::BYTES, merge: false }
    }

    pub(crate) fn start(&mut self, queue: Box<Queue>, header_len: usize, merge: bool) {
        self.header_len = header_len;
        self.merge = merge;
        self.queue = Some(queue);
    }

    /// Whether the ring runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn queue_mut(&mut self) -> &mut Option<Box<Queue>> {
        &mut self.queue
    }

    pub(crate) fn queue(&self) -> Option<&Queue> {
        self.queue.as_deref()
    }

    /// Writes one frame, whose bytes are `parts` one after the other, into as many buffers as it
    /// needs. `Ok(false)`: no room, or the frame is larger than any buffer of a guest that does not
    /// merge them; nothing was taken. The guest sees it at [`Self::flush`].
    ///
    /// Bound: 1024 chains. No allocation, no system call. With the copy into buffers of 2 KiB, on the
    /// project's 2-core machine with nothing beside it: 33 ns for 60 bytes, 43 for 1514, 1.5 us for 65000
    /// (`cargo bench -p holdfast-vhost-user`).
    ///
    /// # Errors
    /// The guest's fault: give it to [`crate::Endpoint::fault`].
    pub fn push(&mut self, header: &VirtioNetHdr, parts: &[&[u8]]) -> Result<bool, RingFault> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let need = (self.header_len + parts.iter().map(|part| part.len()).sum::<usize>()) as u64;
        // Half a look ahead, so that the buffers have been fetched when they are written to. What is broken is
        // found again when it is needed.
        if queue.seen().len() < LOOK / 2 {
            queue.look(usize::MAX, Direction::ToGuest).unwrap_or_default();
        }
        // Most frames are in one part and fit the next buffer, which is in one piece.
        if let ([frame], Some(_)) = (parts, queue.seen().get(0)) {
            let header = VirtioNetHdr { num_buffers: 1, ..*header }.to_bytes();
            if queue.put([&header[..self.header_len], frame]) {
                queue.complete(need as u32);
                return Ok(true);
            }
        }
        let (mut chains, mut room) = (0, 0);
        while room < need {
            if chains == MAX_MERGED || (chains > 0 && !self.merge) {
                return Ok(false);
            }
            let chain = match queue.seen().get(chains) {
                Some(chain) => chain,
                None => {
                    let looked = queue.look(usize::MAX, Direction::ToGuest);
                    // What lies before a broken chain may be enough.
                    match queue.seen().get(chains) {
                        Some(chain) => chain,
                        None => return looked.map(|()| false),
                    }
                }
            };
            room += chain.bytes;
            chains += 1;
        }
        let header = VirtioNetHdr { num_buffers: chains as u16, ..*header }.to_bytes();
        let parts = std::iter::once(&header[..self.header_len]).chain(parts.iter().copied());
        let written = queue.write(chains, parts);
        debug_assert_eq!(written as u64, need, "the chains had room for the frame");
        let mut left = need;
        for _ in 0..chains {
            let bytes = queue.seen().get(0).map_or(0, |chain| chain.bytes.min(left));
            queue.complete(bytes as u32);
            left -= bytes;
        }
        Ok(true)
    }

    /// Shows the guest all frames pushed, and notifies it once if it asked. Call it once a burst.
    ///
    /// Its cost is in the figure of [`Self::push`], but for the notification, which is a system call.
    ///
    /// # Errors
    /// When the ring cannot be accessed any more.
    pub fn flush(&mut self) -> Result<(), RingFault> {
        self.queue.as_mut().map_or(Ok(()), |queue| queue.publish())
    }

    /// Asks the guest to notify when it adds buffers (`true`), or not to (`false`). Returns whether
    /// there are buffers now.
    ///
    /// # Errors
    /// The guest's fault.
    pub fn want_kick(&mut self, wanted: bool) -> Result<bool, RingFault> {
        self.queue.as_mut().map_or(Ok(false), |queue| queue.want_kick(wanted))
    }
}
