//! The environment abstraction layer: started once in a process, never stopped before its end.
//!
//! It is never cleaned up on purpose: cleaning up unmaps the memory of every pool while mbufs may
//! still be held. The end of the process gives back everything that was not shared, and nothing is.
#![expect(unsafe_code, reason = "calls into DPDK and the scheduler")]

use crate::{Errno, log};
use holdfast_dpdk_sys as sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem;
use std::sync::atomic::{AtomicU8, Ordering};
use thiserror::Error;

const NEVER_STARTED: u8 = 0;
const STARTED: u8 = 1;

/// Whether a start was tried. DPDK cannot be started again after most of its failures.
static STATE: AtomicU8 = AtomicU8::new(NEVER_STARTED);

/// Proof that the EAL runs. Copies are free; it runs until the end of the process.
#[derive(Clone, Copy, Debug)]
pub struct Eal(());

/// Why the EAL did not start. The host or the configuration is at fault.
#[derive(Debug, Error)]
pub enum EalError {
    /// It was started before, or a start failed before; DPDK allows one start in a process.
    #[error("DPDK was already started in this process, and can be started only once")]
    SecondStart,
    /// An argument has a zero byte inside.
    #[error("argument {argument:?} for DPDK holds a zero byte")]
    Argument {
        /// The argument, lossily.
        argument: String,
    },
    /// The affinity of the calling thread could not be read.
    #[error("the affinity of the starting thread cannot be read: {0}")]
    Affinity(#[source] std::io::Error),
    /// DPDK's log could not be redirected.
    #[error("DPDK's log cannot be redirected: {0}")]
    Log(Errno),
    /// DPDK itself refused.
    #[error("DPDK did not start: {errno}; it said: {log}\n  mend: {mend}")]
    Refused {
        /// What `rte_errno` held.
        errno: Errno,
        /// Its own last warnings and errors.
        log: String,
        /// What to do.
        mend: &'static str,
    },
}

impl Eal {
    /// Starts the EAL with `arguments` (without the program's name). `--lcores` is added unless it
    /// is there: one logical core that may run wherever the calling thread may. The calling thread
    /// keeps its affinity.
    ///
    /// # Errors
    /// [`EalError`]; after an error no further start is possible in this process.
    pub fn init(arguments: &[String]) -> Result<Self, EalError> {
        if STATE.swap(STARTED, Ordering::AcqRel) != NEVER_STARTED {
            return Err(EalError::SecondStart);
        }
        log::install().map_err(EalError::Log)?;
        let affinity = Affinity::of_this_thread().map_err(EalError::Affinity)?;

        let mut words = vec!["holdfast".to_owned()];
        if !arguments.iter().any(|word| word.starts_with("--lcores") || word == "-l" || word == "-c") {
            words.push(format!("--lcores=0@({})", affinity.list()));
        }
        words.extend(arguments.iter().cloned());
        let words = words
            .into_iter()
            .map(|word| CString::new(word.clone()).map_err(|_| EalError::Argument { argument: word }))
            .collect::<Result<Vec<_>, _>>()?;
        // DPDK reorders the vector and keeps pointers into the words: both stay for good.
        let words: &'static [CString] = Vec::leak(words);
        let vector: Vec<*mut c_char> =
            words.iter().map(|word| word.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
        let vector = Vec::leak(vector);
        let count = c_int::try_from(words.len()).expect("a handful of arguments");

        // SAFETY: `vector` holds `count` terminated strings and a null behind them, all of them
        // static; the state above makes this the only call in the life of the process.
        let returned = unsafe { sys::rte_eal_init(count, vector.as_mut_ptr()) };
        let errno = Errno::last();
        affinity.put_back();
        if returned < 0 {
            let log = log::take_recent();
            let mend = mend_of(errno, &log);
            return Err(EalError::Refused { errno, log, mend });
        }
        log::install_for_xdp();
        Ok(Self(()))
    }

    /// The version of DPDK that runs, as it names itself: "DPDK 22.11.11".
    #[must_use]
    pub fn version() -> &'static str {
        // SAFETY: returns a terminated string in static memory; it needs no EAL.
        let text = unsafe { CStr::from_ptr(sys::rte_version()) };
        text.to_str().unwrap_or("DPDK of an unreadable version")
    }
}

fn mend_of(errno: Errno, log: &str) -> &'static str {
    let log = log.to_ascii_lowercase();
    if log.contains("hugepage") || log.contains("huge page") || errno.0 == libc::ENOMEM {
        "reserve huge pages with `holdfast check-host --apply`, or set huge_pages = \"off\" under [dpdk]"
    } else if errno.0 == libc::EACCES || errno.0 == libc::EPERM || log.contains("permission") {
        "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN and CAP_IPC_LOCK"
    } else if log.contains("plugin") || log.contains("cannot open shared object") {
        "install the drivers of the distribution: apt-get install dpdk libdpdk-dev"
    } else {
        "see `holdfast check-host`; log_level = \"debug\" under [dpdk] shows more"
    }
}

/// The processors that a thread may run on.
struct Affinity(libc::cpu_set_t);

impl Affinity {
    fn of_this_thread() -> std::io::Result<Self> {
        // SAFETY: a zeroed `cpu_set_t` is an empty set; the call writes at most its size.
        unsafe {
            let mut set: libc::cpu_set_t = mem::zeroed();
            if libc::sched_getaffinity(0, mem::size_of::<libc::cpu_set_t>(), &mut set) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Self(set))
        }
    }

    /// The processors as DPDK reads them: "0,1,4".
    fn list(&self) -> String {
        let all = usize::try_from(libc::CPU_SETSIZE).expect("positive");
        let members: Vec<String> = (0..all)
            // SAFETY: reads one bit of a set that is at hand; the index is below its size.
            .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
            .map(|cpu| cpu.to_string())
            .collect();
        members.join(",")
    }

    fn put_back(&self) {
        // SAFETY: the set is at hand and of the size given; 0 is the calling thread.
        let done = unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &self.0) };
        if done != 0 {
            tracing::warn!("the affinity of the starting thread cannot be put back");
        }
    }
}
