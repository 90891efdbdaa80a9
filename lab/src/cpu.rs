//! Processor time of a process and of its threads, looked at from outside.
//!
//! The kernel keeps a thread's own time only as long as it lives; the whole of a process has that of its ended
//! threads as well.

use nix::time::ClockId;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// The kernel does not tell.
#[derive(Debug, Error)]
#[error("the processor time of process {pid} cannot be read: {source}; does it still run?")]
pub struct CpuError {
    pid: i32,
    source: io::Error,
}

/// What a process has spent until a moment.
#[derive(Debug, Clone)]
pub struct CpuTimes {
    whole: Duration,
    /// Name and time of each thread that lives.
    threads: BTreeMap<i32, (String, Duration)>,
}

/// What a process spent between two moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSpent {
    whole: Duration,
    by_name: BTreeMap<String, Duration>,
}

impl CpuTimes {
    /// Of that process, now.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: i32) -> Result<Self, CpuError> {
        Self::read(pid).map_err(|source| CpuError { pid, source })
    }

    fn read(pid: i32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            if let (Some(id), Some(thread)) = (id, read_thread(&path)?) {
                threads.insert(id, thread);
            }
        }
        let whole = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?.now()?.into();
        Ok(Self { whole, threads })
    }

    /// What was spent since an earlier look.
    pub fn since(&self, earlier: &Self) -> CpuSpent {
        let mut by_name: BTreeMap<String, Duration> = BTreeMap::new();
        for (id, (name, time)) in &self.threads {
            // Another name is another thread, which has the number of one that ended.
            let known = earlier.threads.get(id).filter(|(known, _)| known == name);
            let before = known.map_or(Duration::ZERO, |(_, time)| *time);
            *by_name.entry(name.clone()).or_default() += time.saturating_sub(before);
        }
        CpuSpent { whole: self.whole.saturating_sub(earlier.whole), by_name }
    }
}

impl CpuSpent {
    /// By all threads, those that ended meanwhile among them.
    pub const fn whole(&self) -> Duration {
        self.whole
    }

    /// By the threads whose name is such, as far as they live at the end.
    pub fn of_threads(&self, wanted: impl Fn(&str) -> bool) -> Duration {
        self.by_name.iter().filter(|(name, _)| wanted(name)).map(|(_, time)| *time).sum()
    }
}

/// Name and time of a thread; none if it has ended.
fn read_thread(folder: &Path) -> io::Result<Option<(String, Duration)>> {
    let read = |file: &str| match fs::read_to_string(folder.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    };
    // The first number of `schedstat` is the time in nanoseconds.
    let (Some(name), Some(text)) = (read("comm")?, read("schedstat")?) else { return Ok(None) };
    let nanos = text.split_whitespace().next().and_then(|word| word.parse().ok());
    let nanos = nanos.ok_or_else(|| io::Error::other(format!("a thread's schedstat says {text:?}")))?;
    Ok(Some((name.trim_end().to_owned(), Duration::from_nanos(nanos))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    /// Keeps a processor busy until this thread has spent so much.
    fn spend(time: Duration) {
        let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
        while Duration::from(clock.now().expect("a clock")) < time {}
    }

    #[test]
    fn time_is_told_by_the_name_of_its_thread_and_the_whole_keeps_that_of_ended_ones() {
        let look = || CpuTimes::of(std::process::id() as i32).expect("this process");
        let before = look();
        let (tell, told) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let busy = thread::Builder::new().name("hf-busy".into());
        let busy = busy.spawn(move || {
            spend(Duration::from_millis(60));
            tell.send(()).expect("awaited");
            held.recv().expect_err("only let go");
        });
        told.recv().expect("it has spent it");
        let spent = look().since(&before);
        // What a running thread has spent since the last tick is told at the next one.
        let least = Duration::from_millis(40);
        assert!(spent.of_threads(|name| name == "hf-busy") >= least, "{spent:?}");
        assert_eq!(spent.of_threads(|name| name == "hf-busier"), Duration::ZERO);
        drop(hold);
        busy.expect("it began").join().expect("it ended");
        assert!(look().since(&before).whole() >= Duration::from_millis(60));
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let fault = CpuTimes::of(i32::MAX).expect_err("no such process").to_string();
        assert!(fault.contains(&i32::MAX.to_string()), "{fault}");
    }
}
