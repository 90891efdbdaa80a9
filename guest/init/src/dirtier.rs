//! Writes to a set number of pages at a set interval, so that a benchmark knows the dirty set.

use holdfast_guest_init::protocol::Dirty;
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

const PAGE_BYTES: usize = 4096;

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
    let mut memory: Vec<u8> = Vec::new();
    let mut order = Dirty { pages: 0, interval_us: 0 };
    let mut round = 0u8;
    loop {
        let wait = if order.pages == 0 {
            Duration::from_secs(3600)
        } else {
            Duration::from_micros(u64::from(order.interval_us.max(100)))
        };
        match orders.recv_timeout(wait) {
            Ok(next) => {
                order = next;
                memory.resize(order.pages as usize * PAGE_BYTES, 0);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        round = round.wrapping_add(1);
        for (number, page) in memory.chunks_exact_mut(PAGE_BYTES).enumerate() {
            // One word that differs from page to page and from round to round: no page is like
            // another, and none is like itself before.
            page[..8].copy_from_slice(&(number as u64 | u64::from(round) << 56).to_le_bytes());
        }
        std::hint::black_box(&mut memory);
    }
}
