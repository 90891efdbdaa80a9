//! A host whose polling cores are watched: their thread turns them when it is told to, and says what that has cost.

use crate::calls::Calls;
use holdfast_counting::allocations_here;
use holdfast_dataplane::heap::{HeapPeer, HeapWire};
use holdfast_dataplane::{Card, Core, Handle, IdlePolicy, Limits, PortConfig, PortId};
use holdfast_epoch::{Confirmation, Digest, Epoch, EpochId, ReleaseToken, Term};
use holdfast_speculation::EngineConfig;
use holdfast_vhost_user::{Device, DeviceConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for something that should come at once.
const SOON: Duration = Duration::from_secs(20);

pub(crate) const PORT: [PortId; 1] = [PortId(1)];

/// What the core's thread has spent on turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    pub(crate) allocations: u64,
    pub(crate) calls: u64,
    /// Number of the last system call of the thread, if there was one in these turns.
    pub(crate) last_call: Option<i64>,
}

impl Spent {
    pub(crate) const NOTHING: Self = Self { allocations: 0, calls: 0, last_call: None };
}

/// What the core's thread is told.
enum Order {
    /// To turn until a turn finds nothing.
    UntilIdle,
    /// To turn until this is set.
    Until(Arc<AtomicBool>),
}

pub(crate) struct Host {
    pub(crate) handle: Handle,
    pub(crate) peer: HeapPeer,
    /// Where the frontend of the device connects.
    pub(crate) socket: PathBuf,
    device: Arc<Device>,
    orders: Option<Sender<Order>>,
    spent: Receiver<Spent>,
    curious: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _dir: TempDir,
}

impl Host {
    /// A core with a port, whose guest has one network card.
    pub(crate) fn new(speculation: Option<Box<EngineConfig>>) -> Self {
        Self::over(0, speculation)
    }

    /// The same; the card's queues are the first core's, which has the port, or a second one carries them.
    pub(crate) fn over(core_of_pair: usize, speculation: Option<Box<EngineConfig>>) -> Self {
        let (wire, peer) = HeapWire::new(1500, 8192, false).expect("a wire");
        let (core, handle) = Core::new(vec![wire], IdlePolicy::Poll, None).expect("a core");
        let (second, carrying) = Core::new(Vec::new(), IdlePolicy::Poll, None).expect("a core");
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("net0");
        let config = DeviceConfig::listening(&socket, 1);
        let wakers = vec![handle.waker(), carrying.waker()];
        let (device, mut endpoints) = Device::spawn_over(config, wakers, &[core_of_pair]).expect("a device");
        let ((orders, taken), (answers, spent)) = (channel(), channel());
        let core = thread::spawn(move || turn_when_told(&mut [core, second], &taken, &answers));
        let (device, curious) = (Arc::new(device), Arc::new(AtomicBool::new(true)));
        let curiosity = thread::spawn({
            let (handle, device, curious) = (handle.clone(), Arc::clone(&device), Arc::clone(&curious));
            move || look_around(&handle, &device, &curious)
        });
        let (orders, threads) = (Some(orders), vec![core, curiosity]);
        let host = Self { handle, peer, socket, device, orders, spent, curious, threads, _dir: dir };
        let limits = Limits { frames: 4096, ..Limits::default() };
        let config = PortConfig { limits, speculation, ..PortConfig::default() };
        host.meanwhile(|host| {
            let carried = carrying.carry(endpoints.remove(1), &host.handle).expect("carried");
            let card = Card::new(endpoints.remove(0)).with_carried(carried);
            host.handle.add_port(PORT[0], Box::new(card), config).expect("a port")
        });
        host
    }

    /// The core turns until there is nothing left to do.
    pub(crate) fn settle(&self) -> Spent {
        self.tell(Order::UntilIdle);
        self.spent.recv_timeout(SOON).expect("the core ends its turns")
    }

    /// The core turns while something is done that waits for it.
    pub(crate) fn meanwhile<T>(&self, work: impl FnOnce(&Self) -> T) -> (T, Spent) {
        let done = Arc::new(AtomicBool::new(false));
        self.tell(Order::Until(Arc::clone(&done)));
        let outcome = work(self);
        done.store(true, Ordering::Release);
        (outcome, self.spent.recv_timeout(SOON).expect("the core ends its turns"))
    }

    fn tell(&self, order: Order) {
        self.orders.as_ref().expect("there until dropped").send(order).expect("the core's thread is there");
    }

    /// An epoch is cut and committed; what was held of it begins to leave.
    pub(crate) fn commit(&self, epoch: u64) -> Spent {
        let ((), spent) = self.meanwhile(|host| {
            host.handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
            host.handle.release(&PORT, token(epoch)).expect("released");
        });
        spent
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.curious.store(false, Ordering::Release);
        let done = Arc::new(AtomicBool::new(false));
        // The device's control thread needs the core to answer.
        if let Some(orders) = self.orders.take() {
            drop(orders.send(Order::Until(Arc::clone(&done))));
            self.device.close();
            done.store(true, Ordering::Release);
        }
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || thread::panicking(), "a thread of the host panicked");
        }
    }
}

/// The cores' thread. Waiting for orders is not the cores', and not counted.
fn turn_when_told(cores: &mut [Core<HeapWire>], orders: &Receiver<Order>, answers: &Sender<Spent>) {
    let mut turn = || cores.iter_mut().map(Core::turn).sum::<usize>();
    let calls = Calls::of_this_thread();
    for order in orders {
        let before = (allocations_here(), calls.count());
        match order {
            Order::UntilIdle => while turn() > 0 {},
            Order::Until(done) => {
                while !done.load(Ordering::Acquire) {
                    turn();
                }
            }
        }
        let (allocations, calls_made) = (allocations_here() - before.0, calls.count() - before.1);
        let last_call = (calls_made > 0).then(|| calls.last());
        // A test that failed does not wait for it.
        answers.send(Spent { allocations, calls: calls_made, last_call }).unwrap_or_default();
    }
}

/// Looks at everything that may be looked at beside a core, over and over: a lock that the core shares with that is
/// contended soon, and then a system call.
fn look_around(handle: &Handle, device: &Device, curious: &AtomicBool) {
    while curious.load(Ordering::Acquire) {
        drop(handle.counters());
        drop(handle.port_counters(PORT[0]));
        drop(device.snapshot());
        drop(device.memory());
    }
}

/// Waits for something that another thread does, and fails when it does not happen.
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        thread::yield_now();
    }
}

/// The proof that an epoch was committed, as the checkpointing makes it.
fn token(epoch: u64) -> ReleaseToken {
    let (term, id, digest) = (Term::new(1), EpochId::new(epoch), Digest([1; 32]));
    let (sealed, _) = Epoch::open(term, id).seal(());
    let sent = sealed.replicated(digest, |()| ());
    let word = Confirmation { term, epoch: id, digest };
    let (done, ()) = sent.commit(&word).map_err(|(_, fault)| fault).expect("the right word");
    done.into_release_token()
}
