//! Pages that are copied ahead of the seal of their epoch.

use super::*;

/// CK-2: pages sent ahead of an epoch belong to it; when it is given up they are captured again.
#[test]
fn pages_sent_ahead_count_for_their_epoch() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    let epoch = bench.open.as_ref().expect("one is open").id();
    for give_up in [true, false] {
        if give_up {
            // Once only: the second round has this page from the first, or it is lost.
            bench.memory.write(10, 1);
        }
        let round = bench.capture.round(Round { whole: false, ahead_of: Some(epoch) });
        assert_eq!(round.recv().expect("an answer").pages, if give_up { 1 } else { 2 });
        if give_up {
            bench.capture.give_up();
        }
        bench.memory.write(20, 2);
    }
    bench.capture.first(epoch).recv().expect("an answer").expect("captured");
    let captured = bench.capture.last(epoch).recv().expect("an answer").expect("captured");
    assert_eq!(captured.set.iter().map(|page| page.0).collect::<Vec<_>>(), [10, 20]);
    assert_eq!(captured.copies, 1, "page 10 was sent ahead and not written since");
}

/// CK-1, CK-2: the image is the memory of the seal, whether a page was copied ahead and left alone, copied ahead
/// and written again by whomever, or written after all passes.
#[test]
fn what_was_copied_ahead_is_copied_again_only_if_it_was_written_again() {
    let mut bench = Bench::begin(4096, false);
    bench.synchronise();
    bench.write_much(2);
    let epoch = bench.open.as_ref().expect("one is open").id();
    let ahead = 2 * CHUNK_PAGES as u64;
    (0..ahead).for_each(|page| bench.memory.write(2 * page, 3));
    bench.capture.ahead(epoch, Instant::now());
    for _ in 0..2 {
        assert_eq!(bench.backup.take(), ("Pages", Some(epoch)), "while the guest runs");
    }
    [0, 2, 4].into_iter().for_each(|page| bench.memory.write(page, 4));
    bench.memory.write_by_ring(6, 4);
    bench.memory.write(1, 4);
    let sealed = bench.seal(|_| {});
    assert_eq!(bench.captured, [ahead + 1, ahead, 5]);
    bench.backup.gather(1);
    assert_eq!(bench.committed(), epoch.get());
    assert_eq!(bench.backup.image.digest(), sealed);
}

/// CK-2: when an epoch is given up, what was copied ahead of it is captured again: it was on its way only.
#[test]
fn what_was_copied_ahead_of_an_epoch_that_was_given_up_is_captured_again() {
    let mut bench = Bench::begin(4096, false);
    bench.synchronise();
    bench.write_much(2);
    let epoch = bench.open.as_ref().expect("one is open").id();
    (0..2 * CHUNK_PAGES as u64).for_each(|page| bench.memory.write(page, 3));
    bench.capture.ahead(epoch, Instant::now());
    for _ in 0..2 {
        assert_eq!(bench.backup.take(), ("Pages", Some(epoch)), "while the guest runs");
    }
    bench.capture.give_up();
    let sealed = bench.seal(|_| {});
    assert_eq!(bench.captured, [2 * CHUNK_PAGES as u64, 0, 2 * CHUNK_PAGES as u64]);
    bench.backup.gather(1);
    assert_eq!(bench.backup.image.digest(), sealed);
}

/// Ends the writers of a test.
struct Ends<'a>(&'a RwLock<bool>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// CK-1, CK-2: pages are copied ahead while others write to them, in a line, over and over, and by Holdfast's rings;
/// after each commit the image is the memory of the seal.
#[test]
fn the_image_is_the_memory_however_the_guest_writes_while_pages_are_copied_ahead() {
    const SIZE: u64 = 6000;
    const IN_A_LINE: u64 = 3000;
    let mut bench = Bench::with_chunks(SIZE, false, 32);
    bench.synchronise();
    bench.write_much(2);
    let runs = RwLock::new(true);
    let memory = bench.memory.clone();
    let written = AtomicU64::new(0);
    let mut ahead = 0;
    std::thread::scope(|scope| {
        let write = |by: fn(&Memory, u64, u64)| {
            let (runs, memory, written) = (&runs, &memory, &written);
            scope.spawn(move || {
                for turn in 0.. {
                    // Held over the write: a guest that is halted has none under way.
                    let running = runs.read().unwrap();
                    if !*running {
                        return;
                    }
                    by(memory, turn, written.fetch_add(1, Ordering::Relaxed));
                }
            });
        };
        write(|memory, turn, fill| memory.write(turn % IN_A_LINE, fill as u8));
        write(|memory, turn, fill| memory.write(IN_A_LINE + turn % 20, fill as u8));
        write(|memory, turn, fill| {
            let scrambled = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            memory.write_by_ring(scrambled % SIZE, fill as u8);
        });
        // Also when an assertion fails, or this would wait for the writers without end.
        let _end = Ends(&runs);
        for epoch in 3..15 {
            let id = bench.open.as_ref().expect("one is open").id();
            let until = written.load(Ordering::Relaxed) + 2 * IN_A_LINE;
            bench.capture.ahead(id, Instant::now() + Duration::from_millis(10));
            while written.load(Ordering::Relaxed) < until {
                std::thread::yield_now();
            }
            if ahead == 0 {
                assert_eq!(bench.backup.take(), ("Pages", Some(id)), "while the guest runs");
            }
            // As a guest that is halted.
            let halted = runs.write().unwrap();
            let sealed = bench.seal(|_| {});
            drop(halted);
            ahead += bench.captured[1];
            bench.backup.gather(1);
            assert_eq!(bench.committed(), epoch);
            assert_eq!(bench.backup.image.digest(), sealed, "after epoch {epoch}");
        }
    });
    println!("{ahead} pages were copied ahead");
}

/// A pass that finds its session gone says nothing of the next one, which goes on as if it had not been.
#[test]
fn a_session_that_ends_amid_a_pass_does_not_stand_in_the_way_of_the_next() {
    let mut bench = Bench::begin(4096, false);
    bench.synchronise();
    bench.write_much(2);
    let epoch = bench.open.as_ref().expect("one is open").id();
    (0..2 * CHUNK_PAGES as u64).for_each(|page| bench.memory.write(page, 3));
    // As of a session whose end nobody has told the capture of yet.
    let (work, gone) = unbounded();
    let (spare, free) = unbounded();
    bench.capture.open(work, free, staging(CHUNKS));
    drop((gone, spare));
    bench.capture.ahead(epoch, Instant::now());
    // Orders are obeyed one after the other, and a pass that is due comes before the next one.
    let deadline = Instant::now() + SOON;
    while !bench.memory.tracked.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "no pass came");
        std::thread::yield_now();
    }
    let (work, taken) = unbounded();
    let (_spare, free) = unbounded();
    bench.capture.open(work, free, staging(CHUNKS));
    let round = bench.capture.round(Round { whole: false, ahead_of: Some(epoch) }).recv().expect("an answer");
    round.outcome.expect("the session is a new one");
    assert_eq!(round.pages, 2 * CHUNK_PAGES as u64);
    drop(taken);
}
