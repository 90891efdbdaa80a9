//! One frame in one piece of a pool's memory, with one owner.
#![expect(unsafe_code, reason = "memory of DPDK")]

use holdfast_dpdk_sys as sys;
use std::ptr::NonNull;

/// An owned frame. It goes back to its pool when it is dropped, on whatever thread.
#[derive(Debug)]
pub struct Mbuf {
    raw: NonNull<sys::rte_mbuf>,
    /// Length, [`MARK`], and where the bytes lie behind `raw`. With that a frame is two numbers, which are
    /// moved in registers: a load of pieces that were just written would wait until all that was written
    /// before is in the caches.
    word: u64,
}

/// The bit of the owner's own mark.
const MARK: u64 = 1 << 32;

/// Where the distance of the bytes begins; none there for bytes that lie elsewhere.
const DISTANCE: u32 = 33;

// SAFETY: an mbuf has a single owner (reference count 1, never attached or cloned here), and pools
// take mbufs back on any thread.
unsafe impl Send for Mbuf {}
// SAFETY: through a shared reference only bytes are read.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    /// # Safety
    /// `frame` names an mbuf in one piece that nobody else holds, and where its bytes lie.
    pub(crate) unsafe fn from_raw(frame: sys::hf_frame) -> Self {
        // SAFETY: the shim never hands out null pointers in a frame that it counted.
        let raw = unsafe { NonNull::new_unchecked(frame.mbuf) };
        let distance = (frame.data.addr() as u64).wrapping_sub(frame.mbuf.addr() as u64);
        let distance = if distance < 1 << (u64::BITS - DISTANCE) { distance } else { 0 };
        Self { raw, word: u64::from(frame.len) | distance << DISTANCE }
    }

    /// The mbuf, for a burst; the caller forgets `self` when a port took it.
    pub(crate) const fn as_raw(&self) -> *mut sys::rte_mbuf {
        self.raw.as_ptr()
    }

    /// Where its bytes begin.
    #[inline]
    fn data(&self) -> *mut u8 {
        match self.word >> DISTANCE {
            // SAFETY: reads two fields of an mbuf that `self` owns.
            0 => unsafe { sys::hf_data(self.raw.as_ptr()) },
            distance => self.raw.as_ptr().cast::<u8>().wrapping_add(distance as usize),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        (self.word & (MARK - 1)) as usize
    }

    /// Whether the frame has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer is owned by `self`, holds at least `len` bytes behind `data` and is
        // initialised memory (the EAL maps it zeroed, and it is only ever written over).
        unsafe { std::slice::from_raw_parts(self.data(), self.len()) }
    }

    /// The frame's bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.data(), self.len()) }
    }

    /// Whether its owner marked it.
    #[must_use]
    pub const fn is_marked(&self) -> bool {
        self.word & MARK != 0
    }

    /// Marks it, for whatever its owner wants to know of it. It is not known of once a port has had it.
    pub const fn mark(&mut self) {
        self.word |= MARK;
    }

    /// Has the line fetched that the frame's first bytes are written to. A hint.
    #[inline]
    pub fn prefetch_to_write(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint; processors that do not know it take it for a no-operation.
        unsafe {
            std::arch::asm!("prefetchw [{at}]", at = in(reg) self.data(), options(nostack, preserves_flags));
        }
    }

    /// Has the lines fetched that hold the frame's first bytes and what giving it back looks at. A hint.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint; it has no effect but on caches, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.data().cast_const().cast());
            let own = self.raw.as_ptr().cast_const().cast::<i8>();
            _mm_prefetch::<_MM_HINT_T0>(own);
            _mm_prefetch::<_MM_HINT_T0>(own.wrapping_add(64));
        }
    }

    /// Bytes that the frame may grow to in place.
    #[must_use]
    pub fn room(&self) -> usize {
        // SAFETY: reads two fields of an mbuf that `self` owns.
        (unsafe { sys::hf_room(self.raw.as_ptr()) }) as usize
    }

    /// Sets the length; bytes that are new have unspecified content. `false`, and nothing changed,
    /// when there is no [room](Mbuf::room) for it.
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        let Ok(short) = u16::try_from(len) else { return false };
        if len > self.room() {
            return false;
        }
        // SAFETY: `self` owns the mbuf, and the length was checked against its buffer.
        unsafe { sys::hf_set_len(self.raw.as_ptr(), short) };
        self.word = self.word & !(MARK - 1) | u64::from(short);
        true
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: `self` is the only owner, and is gone after this; pools outlive all mbufs.
        unsafe { sys::hf_free(self.raw.as_ptr()) };
    }
}
