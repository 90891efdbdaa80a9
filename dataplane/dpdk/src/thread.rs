//! Threads that the EAL did not create but that use pools and queues.
#![expect(unsafe_code, reason = "calls into DPDK")]

use crate::{Eal, Errno};
use holdfast_dpdk_sys as sys;
use std::marker::PhantomData;
use thiserror::Error;

/// The calling thread is a logical core of DPDK as long as this lives, and has its own cache of every
/// pool. Without it everything works, only slower: each mbuf then goes through the pool's ring.
#[derive(Debug)]
pub struct RegisteredThread {
    /// Whether this registration made the thread a logical core, and so ends it.
    owns: bool,
    /// What was registered is the thread: this must not leave it.
    bound: PhantomData<*const ()>,
}

/// The calling thread could not be registered.
#[derive(Debug, Error)]
#[error(
    "this thread cannot be registered with DPDK: {0}\n  mend: run fewer polling threads (DPDK has 128 slots)"
)]
pub struct ThreadError(Errno);

impl RegisteredThread {
    /// Registers the calling thread; its affinity is left alone.
    ///
    /// # Errors
    /// When DPDK has no slot left.
    pub fn new(_running: Eal) -> Result<Self, ThreadError> {
        // SAFETY: reads a thread-local variable of the EAL's library.
        if unsafe { sys::hf_lcore() } != u32::MAX {
            // The thread that started the EAL, or one that is registered: a second registration would
            // take a second slot and lose the first.
            return Ok(Self { owns: false, bound: PhantomData });
        }
        // SAFETY: the EAL runs (`_running`), and the thread is not registered.
        let returned = unsafe { sys::rte_thread_register() };
        if returned == 0 {
            Ok(Self { owns: true, bound: PhantomData })
        } else {
            Err(ThreadError(Errno::last()))
        }
    }
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        if self.owns {
            // SAFETY: runs on the thread that this registered (`!Send`), which is no EAL thread.
            unsafe { sys::rte_thread_unregister() };
        }
    }
}
