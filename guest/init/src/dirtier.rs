//! Writes to a set number of pages at a set interval, so that a benchmark knows the dirty set.

use holdfast_guest_init::protocol::{Content, Dirty, Pace};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;

/// Steps across an interval in which pages are written one after the other.
const STEP: Duration = Duration::from_millis(1);

/// Pages of which all others are copies, where copies are written.
const POOL_PAGES: usize = 256;

/// What to do, and where to say that it has begun.
type Order = (Dirty, mpsc::Sender<()>);

static ORDERS: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();

/// Replaces what is done so far. Where all pages are written at once they have been written when this returns.
pub(crate) fn set(order: Dirty) {
    let sender = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || run(&receiver));
        Mutex::new(sender)
    });
    let (tell, begun) = mpsc::channel();
    let sent = sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send((order, tell));
    if sent.is_err() || begun.recv().is_err() {
        println!("holdfast-guest: the dirtier has ended");
    }
}

fn run(orders: &mpsc::Receiver<Order>) {
    let mut dirtier = Dirtier::new(Dirty::words(0, 0));
    loop {
        let begun = match orders.recv_timeout(dirtier.pause()) {
            Ok((order, begun)) => {
                dirtier = Dirtier::new(order);
                Some(begun)
            }
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        dirtier.write();
        if let Some(Err(gone)) = begun.map(|begun| begun.send(())) {
            println!("holdfast-guest: nobody waits for the dirtier: {gone}");
        }
    }
}

/// One order, and how far it is carried out.
struct Dirtier {
    order: Dirty,
    memory: Vec<u8>,
    /// What copies are made of.
    pool: Vec<u8>,
    /// The page that is next.
    next: usize,
    /// Pages written so far; no two are written alike.
    written: u64,
    last: Instant,
}

impl Dirtier {
    fn new(order: Dirty) -> Self {
        let memory = vec![0; order.pages as usize * PAGE_BYTES];
        let pool = if order.content == Content::Copies { pool() } else { Vec::new() };
        Self { order, memory, pool, next: 0, written: 0, last: Instant::now() }
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
            let round = self.written / pages as u64;
            self.written += 1;
            let page = &mut self.memory[self.next * PAGE_BYTES..][..PAGE_BYTES];
            match self.order.content {
                // One word that no page had before.
                Content::Word => page[..8].copy_from_slice(&self.written.to_le_bytes()),
                Content::Noise => fill(page, self.written),
                Content::Copies => {
                    // The neighbour of the one that it had in the round before.
                    let origin = (self.next + round as usize) % POOL_PAGES;
                    page.copy_from_slice(&self.pool[origin * PAGE_BYTES..][..PAGE_BYTES]);
                }
            }
            self.next = (self.next + 1) % pages;
        }
        std::hint::black_box(&mut self.memory);
    }
}

/// Pages of noise, no two alike.
fn pool() -> Vec<u8> {
    let mut pool = vec![0; POOL_PAGES * PAGE_BYTES];
    for (page, seed) in pool.chunks_exact_mut(PAGE_BYTES).zip(1..) {
        fill(page, seed);
    }
    pool
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn pages(dirtier: &Dirtier) -> Vec<Vec<u8>> {
        dirtier.memory.chunks_exact(PAGE_BYTES).map(<[u8]>::to_vec).collect()
    }

    fn at_once(pages: u32, content: Content) -> Dirtier {
        Dirtier::new(Dirty { content, ..Dirty::words(pages, 1000) })
    }

    #[test]
    fn copies_are_of_pages_of_the_pool_and_each_round_writes_others() {
        // Rounds that begin with the same page of the pool again if it is only counted on, and others.
        for count in [3, POOL_PAGES as u32, 2 * POOL_PAGES as u32 - 1] {
            let mut dirtier = at_once(count, Content::Copies);
            let pool: HashSet<Vec<u8>> = pool().chunks_exact(PAGE_BYTES).map(<[u8]>::to_vec).collect();
            assert_eq!(pool.len(), POOL_PAGES);
            dirtier.write();
            let first = pages(&dirtier);
            assert!(first.iter().all(|page| pool.contains(page)), "{count} pages");
            dirtier.write();
            let second = pages(&dirtier);
            assert!(second.iter().all(|page| pool.contains(page)), "{count} pages");
            assert!(first.iter().zip(&second).all(|(one, other)| one != other), "{count} pages");
        }
    }

    #[test]
    fn no_two_pages_of_noise_are_alike() {
        let mut dirtier = at_once(200, Content::Noise);
        let mut seen = HashSet::new();
        for _ in 0..3 {
            dirtier.write();
            seen.extend(pages(&dirtier));
        }
        assert_eq!(seen.len(), 600);
    }

    #[test]
    fn an_order_is_answered_once_its_pages_are_written() {
        let (orders, taken) = mpsc::channel();
        let worker = thread::spawn(move || run(&taken));
        let (tell, begun) = mpsc::channel();
        orders.send((Dirty::words(10, u32::MAX), tell)).expect("taken");
        assert_eq!(begun.recv(), Ok(()));
        drop(orders);
        worker.join().expect("it ends with its orders");
    }
}
