//! A ring by which the guest sends: frames come out.

use super::chain::{Direction, LOOK};
use super::fault::RingFault;
use super::queue::Queue;
use crate::header::VirtioNetHdr;
use crate::memory::{GuestMemory, Segment};

/// Bytes of a frame with its header, at most: a large TCP frame of 64 KiB and its headers.
pub const MAX_FRAME_BYTES: u64 = 68 * 1024;

/// Bytes of a frame that is copied out with its burst, at most.
pub const SMALL_FRAME_BYTES: usize = 512;

/// Frames of a burst.
const BURST: usize = LOOK / 2;

/// What became of a frame that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame was copied or dropped: its buffers go back to the guest.
    Taken,
    /// There is no room: the frame stays in the ring and polling ends (backpressure).
    Refused,
}

/// The bytes of one frame, still in guest memory or copied out. In guest memory they may change until they are
/// copied out; judge the copy.
#[derive(Clone, Copy, Debug)]
pub struct GuestBytes<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    skip: usize,
    len: usize,
    /// As long as the frame, or empty.
    copied: &'a [u8],
}

impl<'a> GuestBytes<'a> {
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

    /// All bytes of the frame, if they have been copied out: those of most frames of up to [`SMALL_FRAME_BYTES`] have.
    #[inline]
    #[must_use]
    pub const fn copied(&self) -> Option<&'a [u8]> {
        if self.copied.is_empty() { None } else { Some(self.copied) }
    }

    /// Copies bytes from `offset` on, as many as there are and fit; returns how many.
    #[inline]
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> usize {
        let take = out.len().min(self.len.saturating_sub(offset));
        if take == 0 {
            return 0;
        }
        if let Some(copied) = self.copied() {
            out[..take].copy_from_slice(&copied[offset..offset + take]);
            return take;
        }
        self.memory.gather(self.segments, self.skip + offset, &mut out[..take])
    }
}

/// Small frames of a burst with their headers, copied out of guest memory one after the other before any of them is
/// looked at: the processor waits for the memory of all at once.
#[derive(Debug)]
struct Copies {
    slots: Box<[[u8; VirtioNetHdr::BYTES + SMALL_FRAME_BYTES]; BURST]>,
    /// Bytes in each slot; zero for a chain that was not copied.
    lens: [usize; BURST],
}

impl Copies {
    fn new() -> Self {
        Self { slots: Box::new([[0; VirtioNetHdr::BYTES + SMALL_FRAME_BYTES]; BURST]), lens: [0; BURST] }
    }

    /// Copies those of the oldest chains that are in one piece and small.
    #[inline]
    fn take(&mut self, queue: &Queue) {
        for (ahead, (slot, len)) in self.slots.iter_mut().zip(&mut self.lens).enumerate() {
            let Some(chain) = queue.seen().get(ahead) else { break };
            *len = match queue.seen().segments_at(ahead) {
                segments @ [_] if chain.bytes <= slot.len() as u64 => {
                    queue.memory().gather(segments, 0, &mut slot[..chain.bytes as usize])
                }
                _ => 0,
            };
        }
    }

    /// What was copied of the chain at this place.
    #[inline]
    fn get(&self, place: usize) -> &[u8] {
        &self.slots[place][..self.lens[place]]
    }
}

/// A ring by which the guest sends. Parked, it gives nothing.
#[derive(Debug)]
pub struct TxRing {
    queue: Option<Box<Queue>>,
    header_len: usize,
    copies: Copies,
}

impl TxRing {
    pub(crate) fn parked() -> Self {
        Self { queue: None, header_len: VirtioNetHdr::BYTES, copies: Copies::new() }
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
    /// Bound: `max` chains of at most [`MAX_CHAIN`](super::chain::MAX_CHAIN) descriptors. No allocation, no system call. With
    /// the copy, in bursts of 32, on the project's 2-core machine with nothing beside it: 42 ns for 60 bytes,
    /// 39 for 1514, 550 for 65000 (`cargo bench -p holdfast-vhost-user`).
    ///
    /// # Errors
    /// The guest's fault: give it to [`crate::Endpoint::fault`]. Frames taken before it stay taken.
    pub fn poll(
        &mut self,
        max: usize,
        mut sink: impl FnMut(&VirtioNetHdr, GuestBytes<'_>) -> Verdict,
    ) -> Result<usize, RingFault> {
        let Self { queue: Some(queue), header_len, copies } = self else { return Ok(0) };
        let header_len = *header_len;
        let mut taken = 0;
        let mut broken = None;
        while taken < max {
            // Half a look ahead of those that are taken, so that their memory has been fetched by then.
            let ahead = queue.seen().len();
            if broken.is_none() && ahead <= BURST {
                broken = queue.look(max - taken - ahead, Direction::FromGuest).err();
            }
            if queue.seen().len() == 0 {
                break;
            }
            copies.take(queue);
            for place in 0..BURST {
                let Some(chain) = queue.seen().get(0) else { break };
                if chain.bytes < header_len as u64 {
                    queue.look_again();
                    return Err(RingFault::HeaderTooShort { len: chain.bytes });
                }
                if chain.bytes > MAX_FRAME_BYTES {
                    queue.look_again();
                    return Err(RingFault::FrameTooLong { len: chain.bytes });
                }
                let segments = queue.seen().segments_at(0);
                let copied = copies.get(place);
                let header = match copied.first_chunk() {
                    Some(header) if header_len == VirtioNetHdr::BYTES => VirtioNetHdr::parse(header),
                    _ => {
                        let mut header = [0; VirtioNetHdr::BYTES];
                        match copied.get(..header_len) {
                            Some(copied) => header[..header_len].copy_from_slice(copied),
                            None => {
                                queue.memory().gather(segments, 0, &mut header[..header_len]);
                            }
                        }
                        VirtioNetHdr::parse(&header)
                    }
                };
                let len = chain.bytes as usize - header_len;
                let copied = copied.get(header_len..).unwrap_or_default();
                let frame = GuestBytes { memory: queue.memory(), segments, skip: header_len, len, copied };
                if sink(&header, frame) == Verdict::Refused {
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
    /// Its cost is in the figure of [`Self::poll`], but for the notification, which is a system call.
    ///
    /// # Errors
    /// When the ring cannot be accessed any more.
    pub fn flush(&mut self) -> Result<(), RingFault> {
        self.queue.as_mut().map_or(Ok(()), |queue| queue.publish())
    }

    /// As [`Self::flush`], but the buffers of the last `kept` frames that were taken stay: somebody has yet to deal with
    /// those frames, and the guest is not to take them for sent. A ring that is left gives them back.
    ///
    /// # Errors
    /// As of [`Self::flush`].
    pub fn flush_but(&mut self, kept: usize) -> Result<(), RingFault> {
        self.queue.as_mut().map_or(Ok(()), |queue| queue.publish_but(kept))
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
