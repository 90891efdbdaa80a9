//! System calls made in another process's name.
//!
//! The main thread of the process is seized with ptrace and interrupted, wherever it is; the calls run
//! one after the other at a `syscall` instruction that the process already has (its vDSO's), and everything
//! is put back: registers, signal mask, and the system call that was interrupted.
//!
//! ```text
//! seize, interrupt ──> event stop: save registers and mask, block all signals
//!    for each call:    registers for the call ──> entry stop ──> exit stop: take the result
//! interrupt, go on ──> event stop: put registers and mask back, detach
//! ```
//!
//! The second event stop is what makes an interrupted `poll` whole again: the kernel decides whether to
//! restart a system call on its way out of that kind of stop, from the registers that it finds there. As all
//! signals are blocked meanwhile, they arrive after the detaching, at the place where they would have.
//!
//! The work is done in a thread of its own, for a tracer's threads are not interchangeable, and a thread that
//! ends detaches whatever it holds. The process stands still for a fraction of a millisecond. A process that
//! is stopped (SIGSTOP) is served too, and stays stopped.
#![expect(unsafe_code, reason = "ptrace requests that nix does not wrap")]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the registers of a system call are written down for x86-64 only");

use super::maps::mappings_of;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::{from_mut, from_ref};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use thiserror::Error;

/// How long a process may take to stop; one that waits for a disk or a dead server takes its time.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Code segment of 64-bit programs.
const CS_64: u64 = 0x33;

/// The `syscall` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Most bytes of a piece of program text that are searched for a `syscall` instruction.
const SEARCH_LIMIT: u64 = 4 << 20;

/// Why no system call could be made in a process's name.
#[derive(Debug, Error)]
pub enum InjectError {
    /// The process ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The operator: a right is missing.
    #[error("process {pid} may not be traced: {mend}")]
    NotPermitted {
        /// The process.
        pid: i32,
        /// What to do.
        mend: String,
    },
    /// The process did not stop.
    #[error(
        "process {pid} did not stop within {STOP_LIMIT:?}: it waits for a disk or a server that does not answer"
    )]
    Stuck {
        /// The process.
        pid: i32,
    },
    /// The process is not of a kind that is understood.
    #[error("process {pid} cannot be made to do a system call: {reason}")]
    Unfit {
        /// The process.
        pid: i32,
        /// What it is.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("process {pid} cannot be traced ({what}): {source}")]
    Kernel {
        /// The process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Runs `work` while the main thread of process `pid` stands still and makes the system calls that `work`
/// asks for.
///
/// # Errors
/// When the process cannot be traced or does not stop in time. The process goes on as if nothing had been.
pub(crate) fn in_process<T: Send + 'static>(
    pid: i32,
    work: impl FnOnce(&mut Stopped) -> Result<T, InjectError> + Send + 'static,
) -> Result<T, InjectError> {
    let instruction = find_syscall(pid)?;
    let (done, result) = mpsc::channel();
    let abandoned = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&abandoned);
    let tracer = thread::Builder::new().name("holdfast-trace".to_owned()).spawn(move || {
        let outcome = Stopped::seize(pid, instruction).and_then(|mut stopped| {
            // Nobody wants the result any more; the stop came too late.
            if seen.load(Ordering::Acquire) {
                stopped.release()?;
                return Err(InjectError::Stuck { pid });
            }
            stopped.save()?;
            let made = work(&mut stopped);
            stopped.restore()?;
            stopped.release()?;
            made
        });
        // The receiver may have given up; then nobody is to be told.
        drop(done.send(outcome));
    });
    tracer.map_err(|source| InjectError::Kernel { pid, what: "start a thread", source })?;
    result.recv_timeout(STOP_LIMIT).unwrap_or_else(|_| {
        abandoned.store(true, Ordering::Release);
        Err(InjectError::Stuck { pid })
    })
}

/// A process whose main thread stands still.
#[derive(Debug)]
pub(crate) struct Stopped {
    pid: Pid,
    instruction: u64,
    saved: Option<(libc::user_regs_struct, u64)>,
}

impl Stopped {
    /// Makes a system call in the process; returns what the kernel returned to it.
    ///
    /// # Errors
    /// When the process ends or leaves the expected path; the inner error is the system call's own.
    pub(crate) fn call(
        &mut self,
        number: i64,
        arguments: [u64; 3],
    ) -> Result<Result<u64, Errno>, InjectError> {
        let (saved, _) = self.saved.expect("saved before the work begins");
        let mut regs = saved;
        regs.rip = self.instruction;
        regs.rax = u64::try_from(number).expect("system calls have positive numbers");
        // No system call is under way here, so that the kernel restarts none.
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx] = arguments;
        (regs.r10, regs.r8, regs.r9) = (0, 0, 0);
        self.set_regs(regs)?;
        self.run_to_syscall_stop()?;
        self.run_to_syscall_stop()?;
        let returned = self.regs()?.rax;
        // The last 4095 numbers are errors.
        Ok(match i32::try_from(returned.wrapping_neg()) {
            Ok(errno @ 1..=4095) => Err(Errno::from_raw(errno)),
            _ => Ok(returned),
        })
    }

    fn seize(pid: i32, instruction: u64) -> Result<Self, InjectError> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).map_err(|errno| match errno {
            Errno::EPERM => {
                InjectError::NotPermitted { pid: pid.as_raw(), mend: permission_mend(pid.as_raw()) }
            }
            errno => kernel(pid, "seize")(errno),
        })?;
        let stopped = Self { pid, instruction, saved: None };
        stopped.interrupt()?;
        Ok(stopped)
    }

    /// Stops the process in the one kind of stop from which it resumes as if nothing had been.
    fn interrupt(&self) -> Result<(), InjectError> {
        ptrace::interrupt(self.pid).map_err(kernel(self.pid, "interrupt"))?;
        loop {
            match self.wait()? {
                // A stop of its own (SIGSTOP) is reported alike.
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP) => return Ok(()),
                // A signal came first: it goes where it belongs, and the interrupt is still to come.
                WaitStatus::Stopped(_, signal) => self.go_on(Some(signal))?,
                _ => self.go_on(None)?,
            }
        }
    }

    fn save(&mut self) -> Result<(), InjectError> {
        let regs = self.regs()?;
        if regs.cs != CS_64 {
            return Err(self.unfit("it is not a 64-bit program"));
        }
        let mask = self.signal_mask()?;
        self.set_signal_mask(u64::MAX)?;
        self.saved = Some((regs, mask));
        Ok(())
    }

    fn restore(&mut self) -> Result<(), InjectError> {
        let Some((regs, mask)) = self.saved.take() else { return Ok(()) };
        ptrace::interrupt(self.pid).map_err(kernel(self.pid, "interrupt"))?;
        self.go_on(None)?;
        loop {
            match self.wait()? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP) => break,
                WaitStatus::Stopped(_, signal) => self.go_on(Some(signal))?,
                _ => self.go_on(None)?,
            }
        }
        self.set_regs(regs)?;
        self.set_signal_mask(mask)
    }

    fn release(&self) -> Result<(), InjectError> {
        ptrace::detach(self.pid, None).map_err(kernel(self.pid, "detach"))
    }

    /// Runs to the next entry into or exit from a system call.
    fn run_to_syscall_stop(&self) -> Result<(), InjectError> {
        let mut signal = None;
        loop {
            ptrace::syscall(self.pid, signal).map_err(kernel(self.pid, "continue"))?;
            signal = match self.wait()? {
                WaitStatus::PtraceSyscall(_) => return Ok(()),
                // All signals but SIGSTOP are blocked; it has its effect once the process is let go.
                WaitStatus::Stopped(_, signal) => Some(signal),
                _ => None,
            };
        }
    }

    fn go_on(&self, signal: Option<Signal>) -> Result<(), InjectError> {
        ptrace::cont(self.pid, signal).map_err(kernel(self.pid, "continue"))
    }

    fn wait(&self) -> Result<WaitStatus, InjectError> {
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                    return Err(InjectError::Gone { pid: self.pid.as_raw() });
                }
                Ok(status) => return Ok(status),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(kernel(self.pid, "wait")(errno)),
            }
        }
    }

    fn regs(&self) -> Result<libc::user_regs_struct, InjectError> {
        ptrace::getregs(self.pid).map_err(kernel(self.pid, "read registers"))
    }

    fn set_regs(&self, regs: libc::user_regs_struct) -> Result<(), InjectError> {
        ptrace::setregs(self.pid, regs).map_err(kernel(self.pid, "write registers"))
    }

    fn signal_mask(&self) -> Result<u64, InjectError> {
        let mut mask = 0_u64;
        // SAFETY: PTRACE_GETSIGMASK writes as many bytes as `addr` says, the size of the kernel's mask, to
        // `data`, which points to a value of that size.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_GETSIGMASK,
                self.pid.as_raw(),
                size_of::<u64>(),
                from_mut(&mut mask).cast::<libc::c_void>(),
            )
        };
        Errno::result(result).map_err(kernel(self.pid, "read the signal mask"))?;
        Ok(mask)
    }

    fn set_signal_mask(&self, mask: u64) -> Result<(), InjectError> {
        // SAFETY: PTRACE_SETSIGMASK reads as many bytes as `addr` says, the size of the kernel's mask, from
        // `data`, which points to a value of that size.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_SETSIGMASK,
                self.pid.as_raw(),
                size_of::<u64>(),
                from_ref(&mask).cast_mut().cast::<libc::c_void>(),
            )
        };
        Errno::result(result).map(drop).map_err(kernel(self.pid, "write the signal mask"))
    }

    const fn unfit(&self, reason: &'static str) -> InjectError {
        InjectError::Unfit { pid: self.pid.as_raw(), reason }
    }
}

impl Drop for Stopped {
    /// Lets the process go, as it was, when something failed on the way.
    fn drop(&mut self) {
        if self.saved.is_some() {
            // The process may be gone, which is then what failed.
            if let Err(error) = self.restore().and_then(|()| self.release()) {
                tracing::warn!(%error, "a traced process could not be put back");
            }
        }
    }
}

/// Address of a `syscall` instruction of the process: in its vDSO, or else anywhere in its text.
fn find_syscall(pid: i32) -> Result<u64, InjectError> {
    let fault = |what| move |source| InjectError::Kernel { pid, what, source };
    let mut texts = mappings_of(pid).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => InjectError::Gone { pid },
        io::ErrorKind::PermissionDenied => InjectError::NotPermitted { pid, mend: permission_mend(pid) },
        _ => fault("read its mappings")(source),
    })?;
    texts.retain(|mapping| mapping.executable);
    texts.sort_by_key(|mapping| mapping.name != "[vdso]");
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => InjectError::Gone { pid },
        io::ErrorKind::PermissionDenied => InjectError::NotPermitted { pid, mend: permission_mend(pid) },
        _ => fault("open its memory")(source),
    })?;
    for text in texts.iter().filter(|text| text.name != "[vsyscall]") {
        let bytes = usize::try_from((text.end - text.start).min(SEARCH_LIMIT)).unwrap_or(0);
        let mut program = vec![0; bytes];
        let read = memory.read_at(&mut program, text.start).map_err(fault("read its text"))?;
        if let Some(at) = program[..read].windows(2).position(|bytes| bytes == SYSCALL) {
            return Ok(text.start + at as u64);
        }
    }
    Err(InjectError::Unfit { pid, reason: "it has no system call instruction" })
}

/// Why tracing is not permitted, as far as can be told, and what to do.
pub(super) fn permission_mend(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse::<i32>().ok());
    if let Some(tracer) = tracer.filter(|&tracer| tracer != 0) {
        return format!("process {tracer} (a debugger?) traces it already; end that one");
    }
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match yama.trim() {
        "3" => "tracing is forbidden until the next boot (kernel.yama.ptrace_scope=3)".to_owned(),
        _ => {
            "run Holdfast as root or give it CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE)".to_owned()
        }
    }
}

fn kernel(pid: Pid, what: &'static str) -> impl Fn(Errno) -> InjectError {
    let pid = pid.as_raw();
    move |errno| match errno {
        Errno::ESRCH => InjectError::Gone { pid },
        errno => InjectError::Kernel { pid, what, source: errno.into() },
    }
}
