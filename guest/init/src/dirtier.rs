//! Writes to a set number of pages at a set interval, so that a benchmark knows the dirty set.

use holdfast_guest_init::protocol::{Content, Dirty, Pace};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;

/// Steps across an interval in which pages are written one after the other.
const STEP: Duration = Duration::from_millis(1);

static ORDERS: OnceLock<Mutex<mpsc::Sender<Dirty>>> = OnceLock::new();

/// Replaces what is done so far.
pub(crate) fn set(order: Dirty) {
    let sender = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || run(&receiver));
        Mutex::new(sender)
    });
    let sender = sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if sender.send(order).is_err() {
        println!("holdfast-guest: the dirtier has ended");
    }
}

fn run(orders: &mpsc::Receiver<Dirty>) {
    let mut dirtier = Dirtier::new(Dirty::words(0, 0));
    loop {
        match orders.recv_timeout(dirtier.pause()) {
            Ok(order) => dirtier = Dirtier::new(order),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        dirtier.write();
    }
}

/// One order, and how far it is carried out.
struct Dirtier {
    order: Dirty,
    memory: Vec<u8>,
    /// The page that is next.
    next: usize,
    /// Pages written so far; no two are written alike.
    written: u64,
    last: Instant,
}

impl Dirtier {
    fn new(order: Dirty) -> Self {
        let memory = vec![0; order.pages as usize * PAGE_BYTES];
        Self { order, memory, next: 0, written: 0, last: Instant::now() }
    }

    fn interval(&self) -> Duration {
        Duration::from_micros(u64::from(self.order.interval_us.max(100)))
    }

    fn pause(&self) -> Duration {
        match self.order.pace {
            _ if self.order.pages == 0 => Duration::from_secs(3600),
            Pace::AtOnce => self.interval(),
            Pace::Spread => STEP,
        }
    }

    /// Writes what is due: who is late, as the processor was somebody else's, does not catch up.
    fn write(&mut self) {
        let pages = self.order.pages as usize;
        let due = match self.order.pace {
            Pace::AtOnce => pages,
            Pace::Spread => {
                let share = self.last.elapsed().as_secs_f64() / self.interval().as_secs_f64();
                ((pages as f64 * share) as usize).min(pages)
            }
        };
        if due == 0 {
            return;
        }
        // What is less than a page is due the next time.
        self.last += self.interval().mul_f64(due as f64 / pages as f64);
        if self.last.elapsed() > self.interval() {
            self.last = Instant::now();
        }
        for _ in 0..due {
            self.written += 1;
            let page = &mut self.memory[self.next * PAGE_BYTES..][..PAGE_BYTES];
            match self.order.content {
                // One word that no page had before.
                Content::Word => page[..8].copy_from_slice(&self.written.to_le_bytes()),
                Content::Noise => fill(page, self.written),
            }
            self.next = (self.next + 1) % pages;
        }
        std::hint::black_box(&mut self.memory);
    }
}

/// Noise that `seed` chooses.
fn fill(page: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_exact_mut(8) {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}
