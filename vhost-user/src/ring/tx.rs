//! A ring by which the guest sends: frames come out.

use super::chain::{Direction, LOOK};
use super::fault::RingFault;
use super::queue::Queue;
use crate::header::VirtioNetHdr;
use crate::memory::{GuestMemory, Segment};

/// Bytes of a frame with its header, at most: a large TCP frame of 64 KiB and its headers.
pub const MAX_FRAME_BYTES: u64 = 68 * 1024;

/// What became of a frame that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame was copied or dropped: its buffers go back to the guest.
    Taken,
    /// There is no room: the frame stays in the ring and polling ends (backpressure).
    Refused,
}

/// The bytes of one frame, still in guest memory. They may change until they are copied out; judge
/// the copy.
#[derive(Clone, Copy, Debug)]
pub struct GuestBytes<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    skip: usize,
    len: usize,
}

impl GuestBytes<'_> {
    /// Bytes in the frame.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes from `offset` on, as many as there are and fit; returns how many.
    #[inline]
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> usize {
        let take = out.len().min(self.len.saturating_sub(offset));
        if take == 0 {
            return 0;
        }
        self.memory.gather(self.segments, self.skip + offset, &mut out[..take])
    }
}

/// A ring by which the guest sends. Parked, it gives nothing.
#[derive(Debug)]
pub struct TxRing {
    queue: Option<Box<Queue>>,
    header_len: usize,
}

impl TxRing {
    pub(crate) fn parked() -> Self {
        Self { queue: None, header_len: VirtioNetHdr::BYTES }
    }

    pub(crate) fn start(&mut self, queue: Box<Queue>, header_len: usize) {
        self.header_len = header_len;
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

    /// Offers up to `max` frames to `sink`, in the guest's order; returns how many it took. Their
    /// buffers go back to the guest at [`Self::flush`].
    ///
    /// Bound: `max` chains of at most [`MAX_CHAIN`] descriptors. No allocation, no system call. With
    /// the copy, in bursts of 32, on the project's 2-core machine: 0.12 us for 60 bytes, 0.16 us for
    /// 1514, 5 us for 65000 (`cargo bench -p holdfast-vhost-user`).
    ///
    /// # Errors
    /// The guest's fault: give it to [`crate::Endpoint::fault`]. Frames taken before it stay taken.
    pub fn poll(
        &mut self,
        max: usize,
        mut sink: impl FnMut(&VirtioNetHdr, GuestBytes<'_>) -> Verdict,
    ) -> Result<usize, RingFault> {
        let Some(queue) = &mut self.queue else { return Ok(0) };
        let mut taken = 0;
        let mut broken = None;
        while taken < max {
            // Half a look ahead of those that are taken, so that their memory has been fetched by then.
            let ahead = queue.seen().len();
            if broken.is_none() && ahead <= LOOK / 2 {
                broken = queue.look(max - taken - ahead, Direction::FromGuest).err();
            }
            if queue.seen().len() == 0 {
                break;
            }
            for _ in 0..LOOK / 2 {
                let Some(chain) = queue.seen().get(0) else { break };
                let header_len = self.header_len;
                if chain.bytes < header_len as u64 {
                    queue.look_again();
                    return Err(RingFault::HeaderTooShort { len: chain.bytes });
                }
                if chain.bytes > MAX_FRAME_BYTES {
                    queue.look_again();
                    return Err(RingFault::FrameTooLong { len: chain.bytes });
                }
                let segments = queue.seen().segments(1);
                let mut header = [0; VirtioNetHdr::BYTES];
                queue.memory().gather(segments, 0, &mut header[..header_len]);
                let len = chain.bytes as usize - header_len;
                let frame = GuestBytes { memory: queue.memory(), segments, skip: header_len, len };
                if sink(&VirtioNetHdr::parse(&header), frame) == Verdict::Refused {
                    queue.look_again();
                    return Ok(taken);
                }
                queue.complete(0);
                taken += 1;
            }
        }
        // Those before a broken one are taken.
        broken.map_or(Ok(taken), Err)
    }

    /// Gives the buffers of all frames taken back to the guest, and notifies it once if it asked.
    /// Call it once a burst.
    ///
    /// # Errors
    /// When the ring cannot be accessed any more.
    pub fn flush(&mut self) -> Result<(), RingFault> {
        self.queue.as_mut().map_or(Ok(()), |queue| queue.publish())
    }

    /// Asks the guest to notify (`true`, before the core sleeps) or not to (`false`, while it polls).
    /// Returns whether frames wait now: if so, the core must not sleep.
    ///
    /// # Errors
    /// The guest's fault.
    pub fn want_kick(&mut self, wanted: bool) -> Result<bool, RingFault> {
        self.queue.as_mut().map_or(Ok(false), |queue| queue.want_kick(wanted))
    }
}
