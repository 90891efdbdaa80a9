//! The handshake between the control thread of a device and the polling core that owns its rings.
//!
//! ```text
//!  control thread                        polling core
//!  call(Park(1)) --> command, flag, wake --> poll_control(): one atomic load finds the flag
//!       waits    <-- reply               <-- the ring is left, its last burst published
//! ```
//!
//! One command is under way at a time. The control thread waits for the reply, so that an answer to
//! the frontend (GET_VRING_BASE above all) is given only when the core has really left the ring.
//! Where several cores have rings of one device, each has a mailbox of its own.
//! What a command replaces travels back in the reply, so that the core frees and unmaps nothing.

use crate::features::Features;
use crate::flag::Flag;
use crate::memory::DirtyLog;
use crate::notifier::Notifier;
use crate::ring::Queue;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select, tick};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Called to wake a sleeping polling core; from any thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// How long the core may stay away before the log says so.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a device that is dropped waits for the core to leave a ring.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// What the control thread asks of the core.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run this ring from now on.
    Start { index: usize, queue: Box<Queue>, features: Features },
    /// Leave this ring.
    Park { index: usize },
    /// The driver uses this ring no more, or another driver comes: nothing waits for it to run again.
    GiveUp { index: usize },
    /// Notify the guest by this descriptor from now on.
    SetCall { index: usize, call: Option<Notifier> },
    /// Log writes here from now on.
    SetLog { index: usize, log: Option<Arc<DirtyLog>>, used_log: Option<u64> },
}

impl Command {
    /// The ring that it is about.
    pub(crate) const fn index(&self) -> usize {
        match self {
            Self::Start { index, .. }
            | Self::Park { index }
            | Self::GiveUp { index }
            | Self::SetCall { index, .. }
            | Self::SetLog { index, .. } => *index,
        }
    }
}

/// What the core answers.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Done; what was replaced comes back to be freed.
    Done {
        #[expect(dead_code, reason = "carried only so that the control thread drops it")]
        replaced: Option<Notifier>,
    },
    /// The ring is left. `queue` is what ran there; `next_available` where it stopped, `None` if it
    /// never ran; `faulted` whether the guest's fault had stopped it before.
    Parked { queue: Option<Box<Queue>>, next_available: Option<u16>, faulted: bool },
}

/// The polling core gave up its end, or the device is being dropped: nobody will answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the polling core of the device is gone")]
pub(crate) struct CoreGone;

/// The control thread's end. Dropping it tells the core to leave all rings for good.
pub(crate) struct ControlSide {
    commands: Option<Sender<Command>>,
    replies: Receiver<Reply>,
    flag: Arc<Flag>,
    waker: Waker,
    /// Disconnected when the device is dropped.
    stop: Receiver<()>,
    name: String,
}

impl ControlSide {
    /// Hands `command` to the core and waits for its answer.
    #[expect(clippy::disallowed_methods, reason = "the control thread waits for the core")]
    pub(crate) fn call(&self, command: Command) -> Result<Reply, CoreGone> {
        self.hand_over(command)?;
        let impatient = tick(PATIENCE);
        loop {
            select! {
                recv(self.replies) -> reply => return reply.map_err(|_| CoreGone),
                // Dropped: by the core's own thread perhaps, which then cannot answer.
                recv(self.stop) -> _ => return self.replies.recv_timeout(LAST_WAIT).map_err(|_| CoreGone),
                recv(impatient) -> _ => {
                    tracing::warn!(device = self.name, "the polling core has not answered: is it stuck?");
                }
            }
        }
    }

    fn hand_over(&self, command: Command) -> Result<(), CoreGone> {
        let commands = self.commands.as_ref().ok_or(CoreGone)?;
        // Full only when an earlier command was given up: the device is being dropped.
        commands.try_send(command).map_err(|_| CoreGone)?;
        self.flag.raise();
        (self.waker)();
        Ok(())
    }
}

impl Drop for ControlSide {
    fn drop(&mut self) {
        self.commands = None;
        self.flag.raise();
        (self.waker)();
    }
}

/// The polling core's end.
pub(crate) struct CoreSide {
    commands: Receiver<Command>,
    replies: Sender<Reply>,
    flag: Arc<Flag>,
    /// The other cores of the device.
    others: Vec<(Arc<Flag>, Waker)>,
}

impl std::fmt::Debug for CoreSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreSide").field("flag", &self.flag).finish_non_exhaustive()
    }
}

/// What the core finds in its mailbox.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A command to carry out and answer.
    Command(Command),
    /// The device was dropped: leave all rings for good.
    Closed,
}

impl CoreSide {
    /// Whether there is anything to do: one atomic load.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.flag.is_raised()
    }

    /// The next piece of mail.
    pub(crate) fn take(&self) -> Option<Mail> {
        // Lowered first: mail that arrives after the look below raises it again.
        self.flag.lower();
        match self.commands.try_recv() {
            Ok(command) => Some(Mail::Command(command)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Mail::Closed),
        }
    }

    /// Makes the device's other cores look into their mailboxes.
    pub(crate) fn alarm_others(&self) {
        for (flag, waker) in &self.others {
            flag.raise();
            waker();
        }
    }

    /// Answers a command.
    pub(crate) fn answer(&self, reply: Reply) {
        // A control thread that is gone needs no answer, and what it would have freed is freed here.
        drop(self.replies.send_timeout(reply, Duration::ZERO));
    }
}

/// Both ends of a mailbox. `stop` ends the control thread's waits when it is disconnected.
pub(crate) fn mailbox(name: &str, waker: Waker, stop: Receiver<()>) -> (ControlSide, CoreSide) {
    let (commands, inbox) = bounded(1);
    let (outbox, replies) = bounded(1);
    let flag = Arc::new(Flag::new());
    let control = ControlSide {
        commands: Some(commands),
        replies,
        flag: Arc::clone(&flag),
        waker,
        stop,
        name: name.to_owned(),
    };
    (control, CoreSide { commands: inbox, replies: outbox, flag, others: Vec::new() })
}

/// A mailbox for each core of a device, in the order of the cores' `wakers`.
pub(crate) fn mailboxes(
    name: &str,
    wakers: Vec<Waker>,
    stop: &Receiver<()>,
) -> (Vec<ControlSide>, Vec<CoreSide>) {
    let ends = wakers.into_iter().map(|waker| mailbox(name, waker, stop.clone()));
    let (controls, mut cores): (Vec<_>, Vec<_>) = ends.unzip();
    let doors: Vec<_> = controls
        .iter()
        .map(|control: &ControlSide| (Arc::clone(&control.flag), Arc::clone(&control.waker)))
        .collect();
    for (own, core) in cores.iter_mut().enumerate() {
        core.others =
            doors.iter().enumerate().filter(|(at, _)| *at != own).map(|(_, door)| door.clone()).collect();
    }
    (controls, cores)
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    use crate::memory::{DirtyBitmap, PAGE_BYTES};
    use loom::sync::Arc as Shared;
    use loom::thread;

    /// Every command is found and answered, and the end as well. The channels are the real ones, of which loom knows
    /// nothing: it tries the orders of looks, raises and lowerings. What a look may see is the flag's own model.
    #[test]
    fn every_command_is_answered_and_the_end_is_seen() {
        loom::model(|| {
            let (_stop, stopped) = bounded(0);
            let (control, core) = mailbox("net0", Arc::new(|| {}), stopped);
            let core = thread::spawn(move || {
                let mut answered = 0;
                loop {
                    if !core.has_mail() {
                        thread::yield_now();
                        continue;
                    }
                    while let Some(mail) = core.take() {
                        let Mail::Command(_) = mail else { return answered };
                        answered += 1;
                        core.answer(Reply::Done { replaced: None });
                    }
                }
            });
            for index in 0..2 {
                control.hand_over(Command::Park { index }).expect("room for one");
                while control.replies.try_recv().is_err() {
                    thread::yield_now();
                }
            }
            drop(control);
            assert_eq!(core.join().expect("it ends"), 2);
        });
    }

    /// CK-2: when a ring is left and the answer is there, a drain gives all that was written before. The answer
    /// stands for the channel's: what comes before it is sent is seen when it is received.
    #[test]
    fn what_a_core_wrote_before_it_left_a_ring_is_drained_after_its_answer() {
        loom::model(|| {
            let answer = AtomicBool::new(false);
            let shared = (Flag::new(), DirtyBitmap::new(PAGE_BYTES), AtomicU64::new(0), answer);
            let shared = Shared::new(shared);
            let theirs = Shared::clone(&shared);
            let core = thread::spawn(move || {
                let (flag, bitmap, page, answer) = &*theirs;
                let mut written = 0;
                while written < 2 && !flag.is_raised() {
                    written += 1;
                    page.store(written, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    bitmap.mark_fenced(0, 1);
                }
                while !flag.is_raised() {
                    thread::yield_now();
                }
                flag.lower();
                answer.store(true, Ordering::Release);
                written
            });
            let (flag, bitmap, page, answer) = &*shared;
            let mut copied = 0;
            // As a pass does that copies pages while the guest runs.
            bitmap.drain(&mut |_| copied = page.load(Ordering::Relaxed));
            flag.raise();
            while !answer.load(Ordering::Acquire) {
                thread::yield_now();
            }
            bitmap.drain(&mut |_| copied = page.load(Ordering::Relaxed));
            assert_eq!(copied, core.join().expect("it ends"));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A core that breaks off makes the others look; its own mailbox is not touched.
    #[test]
    fn an_alarm_is_seen_by_all_others() {
        let woken = Arc::new(std::sync::Mutex::new(Vec::new()));
        let waker = |core: usize| -> Waker {
            let woken = Arc::clone(&woken);
            Arc::new(move || woken.lock().expect("no panic").push(core))
        };
        let (_stop, stopped) = bounded(0);
        let (_controls, cores) = mailboxes("net0", (0..3).map(waker).collect(), &stopped);
        cores[1].alarm_others();
        assert_eq!(cores.iter().map(CoreSide::has_mail).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(*woken.lock().expect("no panic"), [0, 2]);
        assert!(cores.iter().all(|core| core.take().is_none()), "there is no command");
    }

    /// CK-2: whatever is said of a ring, such as where its writes are logged, is said to the core that runs it.
    #[test]
    fn each_command_goes_to_the_core_of_its_ring() {
        let of_pair = [1, 0, 1];
        let (_stop, stopped) = bounded(0);
        let wakers: Vec<Waker> = (0..2).map(|_| -> Waker { Arc::new(|| {}) }).collect();
        let (controls, sides) = mailboxes("net0", wakers, &stopped);
        let cores = crate::control::Cores::new(controls, &of_pair);
        let answering = |side: CoreSide| {
            thread::spawn(move || {
                let mut seen = Vec::new();
                loop {
                    match side.take() {
                        Some(Mail::Command(command)) => {
                            seen.push(command.index());
                            side.answer(Reply::Done { replaced: None });
                        }
                        Some(Mail::Closed) => return seen,
                        None => thread::yield_now(),
                    }
                }
            })
        };
        let cores_run: Vec<_> = sides.into_iter().map(answering).collect();
        for index in 0..6 {
            for command in [
                Command::Park { index },
                Command::GiveUp { index },
                Command::SetCall { index, call: None },
                Command::SetLog { index, log: None, used_log: None },
            ] {
                cores.call(command).expect("answered");
            }
        }
        drop(cores);
        let seen: Vec<Vec<usize>> = cores_run.into_iter().map(|core| core.join().expect("it ends")).collect();
        let four_of = |rings: &[usize]| rings.iter().flat_map(|ring| [*ring; 4]).collect::<Vec<_>>();
        assert_eq!(seen, [four_of(&[2, 3]), four_of(&[0, 1, 4, 5])]);
    }
}
