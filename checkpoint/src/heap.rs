//! The process's heap as the page pipeline wants it.
#![expect(unsafe_code, reason = "settings of the C library")]

/// Allocations below this come from the heap: buffers of messages have a megabyte and their heads.
const FROM_HEAP_BYTES: i32 = 4 << 20;
/// Free memory at the end of a heap that is kept.
const KEPT_BYTES: i32 = 32 << 20;

/// Keeps the memory of buffers that come and go: by itself the C library gives it back to the kernel, and each page of the
/// next buffer costs a fault, several times what a page costs to copy. Holds for the whole process; called once, at its
/// beginning.
pub fn keep_buffers() {
    for (setting, bytes) in [(libc::M_MMAP_THRESHOLD, FROM_HEAP_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES)]
    {
        // SAFETY: it changes numbers under the C library's own lock.
        if unsafe { libc::mallopt(setting, bytes) } == 0 {
            tracing::warn!(
                setting,
                "the C library does not take a setting of its heap: copying pages is slower"
            );
        }
    }
}
