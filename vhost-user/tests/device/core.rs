//! A polling core: it runs any number of endpoints, echoes what guests send, and sleeps when idle.

use crossbeam_channel::{Receiver, Sender, unbounded};
use holdfast_vhost_user::{Endpoint, Verdict, VirtioNetHdr, Waker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

pub(crate) struct Core {
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    gate: Arc<Mutex<()>>,
    /// Every frame that a guest sent.
    pub(crate) frames: Receiver<Vec<u8>>,
    report: Sender<Vec<u8>>,
    errors: Errors,
    thread: Option<JoinHandle<()>>,
}

/// Counts errors in the log of a thread.
#[derive(Clone, Default)]
struct Errors(Arc<AtomicU64>);

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Core {
    pub(crate) fn new() -> Self {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let (report, frames) = unbounded();
        Self {
            wake: Arc::new(wake),
            stop: Arc::default(),
            gate: Arc::default(),
            frames,
            report,
            errors: Errors::default(),
            thread: None,
        }
    }

    pub(crate) fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.wake);
        Arc::new(move || {
            wake.write(1).expect("an eventfd");
        })
    }

    pub(crate) fn run(&mut self, mut endpoints: Vec<Endpoint>) {
        let (wake, stop, gate) = (Arc::clone(&self.wake), Arc::clone(&self.stop), Arc::clone(&self.gate));
        let (report, errors) = (self.report.clone(), self.errors.clone());
        self.thread = Some(std::thread::spawn(move || {
            let _counted = tracing::subscriber::set_default(errors);
            while !stop.load(Ordering::Acquire) {
                let held = gate.lock().expect("the gate");
                let mut idle = true;
                for endpoint in &mut endpoints {
                    idle &= turn(endpoint, &report);
                }
                drop(held);
                if idle {
                    sleep(&wake, &endpoints);
                }
                // Taken before the next look at the mailboxes, so that no wake-up is lost.
                if wake.read().is_ok() {
                    continue;
                }
            }
        }));
    }

    /// Errors that the core has logged.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.0.load(Ordering::SeqCst)
    }

    /// Keeps the core from taking another turn.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().expect("the gate")
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.write(1).expect("an eventfd");
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking(), "the polling core panicked");
        }
    }
}

/// One turn for one device; whether it may sleep now.
fn turn(endpoint: &mut Endpoint, report: &Sender<Vec<u8>>) -> bool {
    endpoint.poll_control();
    endpoint.drain_kicks();
    let (tx, rx) = endpoint.rings();
    let mut idle = true;
    for (pair, (tx, rx)) in tx.iter_mut().zip(rx).enumerate() {
        // An echo needs both rings: what cannot be answered stays with the guest.
        if !rx.is_running() {
            continue;
        }
        let mut frames: Vec<(VirtioNetHdr, Vec<u8>)> = Vec::new();
        let taken = tx.poll(32, |header, bytes| {
            let mut frame = vec![0; bytes.len()];
            assert_eq!(bytes.copy_to(0, &mut frame), frame.len());
            frames.push((*header, frame));
            Verdict::Taken
        });
        let mut outcome = taken.map(|_| ());
        for (header, frame) in &frames {
            outcome = outcome.and_then(|()| rx.push(header, &[frame]).map(|_| ()));
        }
        for (_, frame) in frames {
            report.send(frame).expect("the core's owner is there");
        }
        let outcome =
            outcome.and_then(|()| tx.flush()).and_then(|()| rx.flush()).and_then(|()| tx.want_kick(true));
        match outcome {
            Ok(more) => idle &= !more,
            Err(fault) => {
                endpoint.fault(2 * pair + 1, fault);
                return false;
            }
        }
    }
    idle
}

fn sleep(wake: &EventFd, endpoints: &[Endpoint]) {
    let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
    for fd in endpoints.iter().flat_map(Endpoint::kick_fds) {
        fds.push(PollFd::new(fd, PollFlags::POLLIN));
    }
    poll(&mut fds, PollTimeout::NONE).expect("poll");
}
