//! What pages cost on their way: nothing of ours is allocated for a page, and a stated number of times for an epoch.
//!
//! Capture, replication, link and backup are the real ones, in a process of their own: their threads are told apart by
//! their names.

use super::*;
use holdfast_counting::{allocations_here, allocations_of, in_process_of_its_own};

/// Below what makes the next epoch copy ahead, which has a time of its own.
const MANY: u64 = LEAST_OF_EPOCH - 1;
const FEW: u64 = 16;
/// So many that the buffers which a held-up link makes necessary once do not count for one epoch each.
const EPOCHS: u64 = 24;

/// States of devices and gate with their messages, seal, and reports; whatever the pages.
const REPLICATION_AN_EPOCH: u64 = 12;
/// Its record, its names, and lists that grow by doubling.
const BACKUP_AN_EPOCH: u64 = 64;
/// Small messages that come, with their heads, and the credit that goes back; frames that grow.
const LINK_AN_EPOCH: u64 = 4;
const LINK_A_CHUNK: u64 = 2;
/// TLS allocates for each of its records, of 16 KiB at the most, at either end: not ours to change. An epoch's states
/// make some too.
const LINK_TLS_A_PAGE: f64 = 0.6;
const LINK_TLS_AN_EPOCH: u64 = 30;

/// Allocations by thread.
#[derive(Clone, Copy, Debug)]
struct Spent {
    capture: u64,
    replication: u64,
    /// Both ends of it.
    link: u64,
    backup: u64,
}

impl Spent {
    fn so_far(backup: u64) -> Self {
        Self {
            capture: allocations_of("hf-capture"),
            replication: allocations_of("hf-replicate"),
            link: allocations_of("hf-link"),
            backup,
        }
    }
}

impl Bench {
    /// An epoch in which so many pages were written, half of them hard to compress; what the backup allocated for it.
    fn epoch_of(&mut self, epoch: u64, pages: u64) -> u64 {
        for page in 0..pages {
            let mut state = epoch << 32 | page << 1 | 1;
            self.memory.write(page, epoch as u8);
            if page % 2 == 0 {
                let from = usize::try_from(page).expect("small") * PAGE_SIZE;
                for byte in &mut self.memory.bytes.lock().unwrap()[from..from + PAGE_SIZE] {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (state >> 56) as u8;
                }
            }
        }
        self.seal(|_| {});
        let before = allocations_here();
        while self.backup.take().0 != "Seal" {
            let Backup { session, link, .. } = &mut self.backup;
            session.spent().for_each(|buffer| link.give_back(buffer));
        }
        let spent = allocations_here() - before;
        match self.report() {
            Report::Committed { epoch: committed, set } => {
                assert_eq!((committed.get(), set.len()), (epoch, pages));
                self.capture.recycle(set);
            }
            other => panic!("a commit was due, not {other:?}"),
        }
        spent
    }

    /// What `EPOCHS` epochs of so many pages each allocate.
    fn spend(&mut self, next: &mut u64, pages: u64) -> Spent {
        let before = Spent::so_far(0);
        let mut backup = 0;
        for _ in 0..EPOCHS {
            backup += self.epoch_of(*next, pages);
            *next += 1;
        }
        let after = Spent::so_far(backup);
        Spent {
            capture: after.capture - before.capture,
            replication: after.replication - before.replication,
            link: after.link - before.link,
            backup: after.backup,
        }
    }
}

/// Epochs of few pages and of many.
fn few_and_many(tls: bool) -> [Spent; 2] {
    let mut bench = Bench::with_chunks(4096, tls, 8);
    bench.synchronise();
    let mut next = 2;
    // What is kept for later is made by the first ones; nothing by a pause, be it the first.
    for pages in [MANY, FEW, MANY] {
        assert_eq!(bench.spend(&mut next, pages).capture, 0, "capture of the first epochs");
    }
    [FEW, MANY].map(|pages| bench.spend(&mut next, pages))
}

#[test]
fn pages_cost_no_allocation_each() {
    if !in_process_of_its_own("primary::tests::allocations::pages_cost_no_allocation_each") {
        return;
    }
    for tls in [false, true] {
        let spent = few_and_many(tls);
        println!("tls={tls} epochs={EPOCHS} pages={FEW},{MANY} {spent:?}");
        for (pages, spent) in [FEW, MANY].into_iter().zip(spent) {
            let records = LINK_TLS_A_PAGE * pages as f64;
            let link = if tls { LINK_TLS_AN_EPOCH + records as u64 } else { 0 };
            let chunks = pages.div_ceil(CHUNK_PAGES as u64);
            let link = link + LINK_AN_EPOCH + LINK_A_CHUNK * chunks;
            assert_eq!(spent.capture, 0, "capture");
            assert!(spent.replication <= EPOCHS * REPLICATION_AN_EPOCH, "{spent:?}");
            assert!(spent.link <= EPOCHS * link, "{spent:?}, {link} an epoch");
            assert!(spent.backup <= EPOCHS * BACKUP_AN_EPOCH, "{spent:?}");
        }
    }
}
