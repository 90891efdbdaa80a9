//! Counts the system calls of a thread: the kernel asks another thread about each before it goes on with it.
//!
//! A lock for which somebody else waits, or that somebody else holds, is a system call too.
#![expect(unsafe_code, reason = "seccomp has no safe interface")]

use nix::errno::Errno;
use nix::libc;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};

/// The listener's descriptor before there is one, and when there will be none.
const NOT_YET: i32 = -1;
const NEVER: i32 = -2;

/// The system calls of one thread.
pub(crate) struct Calls(Arc<Counted>);

struct Counted {
    count: AtomicU64,
    last: AtomicI64,
    listener: AtomicI32,
}

impl Calls {
    /// Counts those of the calling thread from now on. Its children are asked about as well, and not counted.
    pub(crate) fn of_this_thread() -> Self {
        let counted =
            Counted { count: AtomicU64::new(0), last: AtomicI64::new(-1), listener: AtomicI32::new(NOT_YET) };
        let counted = Arc::new(counted);
        let (theirs, watched) = (Arc::clone(&counted), nix::unistd::gettid().as_raw());
        std::thread::spawn(move || answer(watched, &theirs));
        let listener = watch();
        // Nothing that is a system call may come before this: nobody would answer it.
        counted.listener.store(*listener.as_ref().unwrap_or(&NEVER), Ordering::Release);
        if let Err(errno) = listener {
            panic!("host: no thread may have its system calls looked at here: {errno}; seccomp is needed");
        }
        Self(counted)
    }

    /// How many there were. Questions of what time it is do not count: hosts answer them without one.
    pub(crate) fn count(&self) -> u64 {
        self.0.count.load(Ordering::Acquire)
    }

    /// Number of the last one.
    pub(crate) fn last(&self) -> i64 {
        self.0.last.load(Ordering::Acquire)
    }
}

/// Has the kernel ask about every system call of this thread; the descriptor to answer by.
fn watch() -> Result<i32, Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut ask = [libc::sock_filter { code, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF }];
    let program = libc::sock_fprog { len: 1, filter: ask.as_mut_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program is one instruction, as it says, and the kernel copies it.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    Errno::result(listener).map(|listener| listener as i32)
}

/// Lets every system call go on, and counts those of the thread `watched`.
fn answer(watched: i32, counted: &Counted) {
    let listener = loop {
        match counted.listener.load(Ordering::Acquire) {
            NOT_YET => std::thread::yield_now(),
            NEVER => return,
            listener => break listener,
        }
    };
    loop {
        // SAFETY: numbers only, for which zero is a value; the kernel wants them to be zero.
        let mut question: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the descriptor is a listener's, and the kernel writes a question of this size.
        match Errno::result(unsafe {
            libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question)
        }) {
            Ok(_) => {}
            // The thread that asked is gone.
            Err(Errno::EINTR | Errno::ENOENT) => continue,
            Err(_) => return,
        }
        let number = i64::from(question.data.nr);
        if question.pid as i32 == watched && number != libc::SYS_clock_gettime {
            counted.last.store(number, Ordering::Release);
            counted.count.fetch_add(1, Ordering::AcqRel);
        }
        let go_on = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        let mut answer = libc::seccomp_notif_resp { id: question.id, val: 0, error: 0, flags: go_on };
        // SAFETY: as above; the kernel reads an answer of this size. If nobody waits for it any more, it is not missed.
        unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}
