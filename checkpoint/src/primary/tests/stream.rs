//! The gate's stream across a real link.

use super::*;
use crate::gate::spoken::seeded;

impl Bench {
    fn say(&self, epoch: u64, bytes: &[u8]) -> bool {
        self.told.speaker.lock().unwrap().say(epoch, bytes)
    }

    /// Says bytes as soon as there is room for them; somebody takes them.
    fn say_in_time(&self, epoch: u64, bytes: &[u8]) {
        let deadline = Instant::now() + SOON;
        while !self.say(epoch, bytes) {
            assert!(Instant::now() < deadline, "nobody takes what is said");
            std::thread::yield_now();
        }
    }

    fn spoken(&self) -> Spoken {
        self.told.speaker.lock().unwrap().spoken.clone()
    }

    fn kept(&self) -> Spoken {
        self.told.kept.lock().unwrap().clone()
    }

    /// Chunks that nobody has taken.
    fn waiting(&self) -> usize {
        self.told.speaker.lock().unwrap().chunks.len()
    }

    fn await_waiting(&self, chunks: usize) {
        let deadline = Instant::now() + SOON;
        while self.waiting() != chunks {
            assert!(Instant::now() < deadline, "{} chunks wait", self.waiting());
            std::thread::yield_now();
        }
    }
}

/// SP-2: an epoch is not confirmed before all its stream bytes are at the backup, whenever in the epoch they
/// were said; what the client confirmed is not needed any more.
#[test]
fn an_epoch_is_not_confirmed_before_all_its_stream_bytes_are_at_the_backup() {
    let mut bench = Bench::begin(PAGES, true);
    bench.synchronise();
    let mut streamed = 0;
    for epoch in 2..20u64 {
        for part in 0..epoch % 5 {
            let bytes = seeded(epoch << 8 | part, 1 + 977 * usize::try_from(part).expect("small"));
            bench.say_in_time(epoch, &bytes);
            streamed += bytes.len();
        }
        bench.memory.write(epoch, 1);
        bench.told.speaker.lock().unwrap().spoken.confirm_all_but(5000);
        // The session's thread stands still, with the first of these: the others are in the channel, and behind
        // them the next epoch's, when it comes to the seal.
        bench.await_waiting(0);
        let stats = Arc::clone(&bench.told.stats);
        let still = stats.lock().unwrap();
        for part in 0..6 {
            bench.say_in_time(epoch, &seeded(part, 100));
            streamed += 100;
        }
        let sealed = bench.seal(|_| {});
        let spoken = bench.spoken();
        bench.say_in_time(epoch + 1, &seeded(epoch, 30));
        streamed += 30;
        drop(still);
        bench.backup.gather(1);
        assert_eq!(bench.committed(), epoch);
        assert_eq!((bench.kept(), bench.backup.image.digest()), (spoken, sealed), "after epoch {epoch}");
    }
    bench.await_waiting(0);
    bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.told.stats.lock().unwrap().shown().streamed_bytes, streamed as u64);
}

/// SP-2: a chunk longer than a message travels in pieces.
#[test]
fn a_long_chunk_travels_in_pieces() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    bench.say_in_time(2, &seeded(1, 2 * crate::protocol::STREAM_LIMIT + 1));
    bench.seal(|_| {});
    let mut pieces = 0;
    loop {
        match bench.backup.take().0 {
            "Stream" => pieces += 1,
            "Seal" => break,
            _ => {}
        }
    }
    assert_eq!((pieces, bench.kept()), (3, bench.spoken()));
}

/// SP-2: chunks of epoch k + 1 wait until the seal of epoch k was sent, one of them in the session and the
/// others with the gate; pages are not held up by them.
#[test]
fn chunks_of_the_next_epoch_wait_for_the_seal() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    bench.say_in_time(2, &seeded(1, 100));
    let at_the_cut = bench.spoken();
    for part in 2..6 {
        bench.say_in_time(3, &seeded(part, 100));
    }
    bench.await_waiting(3);
    bench.memory.write(1, 1);
    let round = bench.capture.round(Round { whole: false, ahead_of: Some(EpochId::new(2)) });
    assert!(round.recv_timeout(SOON).expect("an answer").outcome.is_ok());
    let mut seen = vec![bench.backup.take(), bench.backup.take()];
    assert_eq!(bench.waiting(), 3, "nothing more is taken");
    // The state of the cut of epoch 2 knows nothing of what was said since.
    let later = std::mem::replace(&mut bench.told.speaker.lock().unwrap().spoken, at_the_cut.clone());
    bench.seal(|_| {});
    bench.told.speaker.lock().unwrap().spoken = later;
    while !seen.iter().any(|(name, _)| *name == "Seal") {
        seen.push(bench.backup.take());
    }
    let two = Some(EpochId::new(2));
    assert!(seen.iter().all(|(_, epoch)| epoch.is_none() || *epoch == two), "{seen:?}");
    assert_eq!(bench.kept(), at_the_cut);
    bench.await_waiting(0);
    bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.kept(), bench.spoken());
}

/// SP-2, CK-2: a session that ends amid the stream leaves nothing to the next one but a whole state: neither
/// what was sent of epochs that were given up, nor chunks that nobody took, come twice or are missed.
#[test]
fn a_session_lost_amid_the_stream_is_resumed_without_a_gap() {
    let mut bench = Bench::begin(PAGES, false);
    bench.say_in_time(1, &seeded(1, 300));
    bench.synchronise();
    bench.say_in_time(2, &seeded(2, 300));
    bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!((bench.committed(), bench.kept()), (2, bench.spoken()));
    let mut next = 3;
    for round in 0..5 {
        let committed = bench.kept();
        // In flight, sealed, and not confirmed; then some of the epoch that runs, more than is taken.
        bench.say_in_time(next, &seeded(next, 3000));
        bench.seal(|_| {});
        bench.say_in_time(next + 1, &seeded(next + 100, 2000));
        if round % 2 == 0 {
            bench.await_waiting(0);
        }
        bench.backup.link.close();
        let Report::Ended(ending) = bench.report() else { panic!("the session ends") };
        bench.capture.give_up();
        ending.into_sets().for_each(|set| bench.capture.take_back(set));
        assert_eq!(bench.kept(), committed, "an epoch that was not whole is not kept");
        // No session: the gate says what there is room for, and no more.
        while bench.say(next + 1, &seeded(next + 200, 700)) {}
        bench.go_on(next + 1, WINDOW);
        bench.say_in_time(next + 1, &seeded(next + 300, 50));
        for epoch in [next + 1, next + 2] {
            bench.say_in_time(epoch, &seeded(next + 400, 60));
            bench.memory.write(epoch, 1);
            let sealed = bench.seal(|_| {});
            let spoken = bench.spoken();
            bench.backup.gather(1);
            assert_eq!(bench.committed(), epoch);
            assert_eq!((bench.kept(), bench.backup.image.digest()), (spoken, sealed), "at epoch {epoch}");
        }
        next += 3;
    }
}

/// A link without credit holds up the stream, and nobody else: the gate says no more, epochs are cut, and all
/// gets across when the backup takes again.
#[test]
fn a_stream_that_waits_for_the_link_keeps_nobody() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    // Credit goes back in pieces of an eighth of the usual window.
    bench.go_on(2, WINDOW / 4);
    bench.backup.session = BackupSession::new(TERM, 64 << 20);
    bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.committed(), 2);
    let deadline = Instant::now() + SOON;
    let mut said = 0;
    while !(bench.session.link.bulk().is_full() && bench.waiting() == 8) {
        said += u64::from(bench.say(3, &seeded(said, 100_000)));
        assert!(Instant::now() < deadline, "the link never fills: {said}");
    }
    for page in 0..PAGES {
        bench.memory.write(page, 7);
    }
    let (sealed, spoken) = (bench.seal(|_| {}), bench.spoken());
    // There is hardly room for it; either way the gate is told at once.
    let said = bench.say(4, b"of the next epoch");
    bench.backup.gather(1);
    assert_eq!(bench.committed(), 3);
    assert_eq!((bench.kept(), bench.backup.image.digest()), (spoken, sealed));
    if !said {
        bench.say_in_time(4, b"of the next epoch");
    }
    bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.kept(), bench.spoken());
}

/// SP-2, CK-2: a gate that breaks its word, or is gone, ends the session; the pages of the epoch that is sealed
/// in this moment come back.
#[test]
fn a_stream_that_ends_or_comes_late_ends_the_session() {
    // Whether the seal or the stream is looked at first is open: each a few times.
    for (gone, seal) in [[(false, true), (true, true)].repeat(5), vec![(true, false)]].concat() {
        let mut bench = Bench::begin(PAGES, false);
        bench.synchronise();
        bench.seal(|_| {});
        bench.backup.gather(1);
        assert_eq!(bench.committed(), 2);
        bench.memory.write(5, 5);
        let sealed = bench.cut(|_| {});
        if gone {
            // The channel closes with its last sender.
            bench.told.speaker.lock().unwrap().chunks = crossbeam_channel::bounded(1).0;
        } else {
            assert!(bench.say(2, b"late"));
        }
        // If the session has ended already, it gives nothing back: the supervisor has the epoch still.
        let sent = seal && bench.session.work.send(Work::Seal(Box::new(sealed))).is_ok();
        let Report::Ended(ending) = bench.report() else { panic!("the session ends") };
        assert_eq!(ending.fault, crate::vm::Fault::Host);
        let text = if gone { "stopped" } else { "after its cut" };
        assert!(ending.text.contains(text), "{}", ending.text);
        let returned: u64 = ending.into_sets().map(|set| set.len()).sum();
        assert_eq!(returned, u64::from(sent), "its page comes back");
    }
}
