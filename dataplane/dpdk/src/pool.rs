//! Pools of mbufs. They live as long as the process: an mbuf never outlives its pool.
#![expect(unsafe_code, reason = "calls into DPDK")]

use crate::{BURST, Eal, Errno, Mbuf, log};
use arrayvec::ArrayVec;
use holdfast_dpdk_sys as sys;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use thiserror::Error;

/// Mbufs that a registered thread keeps at hand, at most.
const CACHE_MAX: u32 = 256;
/// A driver that is handed the pool keeps a full receive ring of mbufs out of it.
const FRAMES_MIN: u32 = 64;
/// Any-socket of DPDK: memory from whichever NUMA node has it.
const SOCKET_ANY: i32 = -1;

/// Pools made so far: their names differ by it.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A pool of mbufs of one size. Copies name the same pool; any thread may allocate from it, and one
/// that is registered does so from its own cache.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    raw: NonNull<sys::rte_mempool>,
    frame_max: u16,
    frames: u32,
}

// SAFETY: a mempool is made for concurrent use by any thread (multi-producer, multi-consumer ring,
// caches by logical core), and this one is never freed.
unsafe impl Send for Pool {}
// SAFETY: as above; `Pool` itself is immutable.
unsafe impl Sync for Pool {}

/// Why a pool could not be made; the configuration or the host is at fault.
#[derive(Debug, Error)]
pub enum PoolError {
    /// Fewer frames than any port needs.
    #[error("a pool of {frames} frames is too small\n  mend: give it at least {FRAMES_MIN}")]
    TooSmall {
        /// Frames asked for.
        frames: u32,
    },
    /// A frame with its headroom would not fit the 16 bits that DPDK has for it.
    #[error("a pool of frames of {frame_max} bytes cannot be made\n  mend: keep the MTU at or below 9216")]
    FrameTooLarge {
        /// Bytes asked for.
        frame_max: u16,
    },
    /// DPDK had no memory for it, or failed otherwise.
    #[error(
        "a pool of {frames} frames of {frame_max} bytes cannot be made: {errno}; DPDK said: {log}\n  \
         mend: raise memory_mb under [dpdk] (and `holdfast check-host --apply` for huge pages), or lower \
         the frames of the pool"
    )]
    Memory {
        /// Frames asked for.
        frames: u32,
        /// Bytes of each.
        frame_max: u16,
        /// What `rte_errno` held.
        errno: Errno,
        /// Its own last warnings and errors.
        log: String,
    },
}

impl Pool {
    /// Makes a pool of `frames` mbufs that hold `frame_max` bytes each.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn new(_running: Eal, frames: u32, frame_max: u16) -> Result<Self, PoolError> {
        if frames < FRAMES_MIN {
            return Err(PoolError::TooSmall { frames });
        }
        let headroom = u16::try_from(sys::HF_MBUF_HEADROOM).expect("the headroom is a few hundred bytes");
        if frame_max.checked_add(headroom).is_none() {
            return Err(PoolError::FrameTooLarge { frame_max });
        }
        let name = CString::new(format!("holdfast{}", MADE.fetch_add(1, Ordering::Relaxed)))
            .expect("digits and letters");
        // A cache may hold half as much again as its size; no cache may starve the other threads.
        let cache = (frames / 8).min(CACHE_MAX);
        // SAFETY: the EAL runs (`_running`); the name is terminated and copied by the callee.
        let raw = unsafe { sys::hf_pool_create(name.as_ptr(), frames, cache, frame_max, SOCKET_ANY) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, frame_max, frames }),
            None => {
                let errno = Errno::last();
                Err(PoolError::Memory { frames, frame_max, errno, log: log::take_recent() })
            }
        }
    }

    /// Bytes that a frame of this pool may have.
    #[must_use]
    pub const fn frame_max(&self) -> usize {
        self.frame_max as usize
    }

    /// Frames that the pool was made with.
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.frames as usize
    }

    /// Frames that this thread could have: those of the pool and of its own cache, not those that other threads keep in
    /// theirs. Other threads change it at any moment. For once a burst, not once a frame: about 4 ns (`tests/cost`).
    #[must_use]
    pub fn free_frames(&self) -> usize {
        // SAFETY: the pool is never freed; the count takes no lock and writes nothing.
        (unsafe { sys::hf_pool_available(self.raw.as_ptr()) }) as usize
    }

    /// A frame of `len` bytes of unspecified content; `None` when the pool is empty or `len` is
    /// more than [`Pool::frame_max`]. No other allocation; about 17 ns with the drop of the frame
    /// (`tests/cost`, on a registered thread).
    #[must_use]
    pub fn alloc(&self, len: usize) -> Option<Mbuf> {
        let len = self.checked(len)?;
        let mut frame = MaybeUninit::<sys::hf_frame>::uninit();
        // SAFETY: the pool lives; `frame` is written whole when the call answers 1.
        unsafe {
            if sys::hf_alloc(self.raw.as_ptr(), frame.as_mut_ptr(), len) == 0 {
                return None;
            }
            Some(Mbuf::from_raw(frame.assume_init()))
        }
    }

    /// Adds `count` frames of `len` bytes each to `out`: all of them or none. At most [`BURST`], and
    /// what `out` has room for.
    pub fn alloc_burst(&self, count: usize, len: usize, out: &mut ArrayVec<Mbuf, BURST>) -> bool {
        let Some(len) = self.checked(len) else { return false };
        if count > out.remaining_capacity() {
            return false;
        }
        let mut frames = [const { MaybeUninit::<sys::hf_frame>::uninit() }; BURST];
        let wanted = u32::try_from(count).expect("at most a burst");
        // SAFETY: the pool lives; `frames` has room for a burst, and `wanted` is no more than that.
        let done = unsafe { sys::hf_alloc_bulk(self.raw.as_ptr(), frames.as_mut_ptr().cast(), wanted, len) };
        if done == 0 {
            return false;
        }
        for frame in &frames[..count] {
            // SAFETY: the call answered 1, so that the first `count` frames are written; each is
            // taken once.
            out.push(unsafe { Mbuf::from_raw(frame.assume_init_read()) });
        }
        true
    }

    fn checked(&self, len: usize) -> Option<u16> {
        u16::try_from(len).ok().filter(|&len| len <= self.frame_max)
    }

    pub(crate) fn as_raw(self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }
}
