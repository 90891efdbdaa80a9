//! How fast a sender is that is fed by commits, in virtual time.

use std::time::Duration;

use super::bench::MS;
use super::world::{Act, PERFECT, Path, World};
use crate::client_leg::{Congestion, SenderConfig};

const MSS: u16 = 1448;
const CONFIG: SenderConfig = SenderConfig { mss: MSS, sack: true, ecn: false, congestion: Congestion::Cubic };
/// 1 Gbit/s.
const GIGABIT: Path = Path { rate: 125_000_000, queue: 500_000, ..PERFECT };
/// Payload bytes a second that it takes.
const LINE: f64 = 125e6 * 1448.0 / 1538.0;

fn world(config: SenderConfig, path: Path, seed: u64) -> World {
    let mut world = World::new(config, 16 << 20, path, 32_768, seed);
    world.check_every = 5000;
    world
}

/// Payload bytes a second that arrive within `time` after `warm_up`, while `bytes` are committed every
/// `epoch`.
fn rate(world: &mut World, bytes: u32, epoch: Duration, warm_up: Duration, time: Duration) -> f64 {
    let mut at = Duration::ZERO;
    while at <= warm_up + time {
        world.at(at, Act::Commit(bytes));
        at += epoch;
    }
    world.run(warm_up);
    let before = world.client.received;
    world.run(time);
    f64::from(world.client.received - before) / time.as_secs_f64()
}

#[test]
fn a_fast_short_path_is_full_although_bytes_come_by_the_epoch() {
    let path = Path { delay: Duration::from_micros(50), ..GIGABIT };
    for epoch in [10, 50, 200] {
        let mut world = world(CONFIG, path, 1);
        // A little more than the path takes.
        let rate = rate(&mut world, 125_000 * epoch, epoch * MS, 200 * MS, 600 * MS);
        assert!(rate > 0.99 * LINE, "{rate} with {epoch} ms: {:?}", world.sender.report());
    }
}

#[test]
fn what_a_fast_short_path_takes_within_an_epoch_leaves_within_it() {
    // 6 MB every 50 ms: the path is full with it, and idle for 1 ms.
    let path = Path { delay: Duration::from_micros(50), ..GIGABIT };
    let mut world = world(CONFIG, path, 1);
    let rate = rate(&mut world, 5_700_000, 50 * MS, 200 * MS, 1000 * MS);
    assert!(rate > 0.99 * 5_700_000.0 * 20.0, "{rate}: {:?}", world.sender.report());
}

#[test]
fn a_long_path_is_full_although_bytes_come_by_the_epoch() {
    let path = Path { delay: 10 * MS, queue: 2_500_000, ..GIGABIT };
    for congestion in [Congestion::Cubic, Congestion::NewReno] {
        let mut world = world(SenderConfig { congestion, ..CONFIG }, path, 1);
        let rate = rate(&mut world, 12_500_000, 100 * MS, 1000 * MS, 1000 * MS);
        assert!(rate > 0.98 * LINE, "{rate}: {:?}", world.sender.report());
    }
}

#[test]
fn the_window_grows_although_an_epoch_leaves_the_path_idle_most_of_the_time() {
    // 2 MB every 100 ms at 20 ms of RTT: a tenth of the path, in bursts that need a window of 2 MB to
    // be through in an RTT or two.
    let path = Path { delay: 10 * MS, queue: 2_500_000, ..GIGABIT };
    let mut world = world(CONFIG, path, 1);
    let rate = rate(&mut world, 2_000_000, 100 * MS, 1000 * MS, 2000 * MS);
    assert!(rate > 0.99 * 20e6, "{rate}: {:?}", world.sender.report());
    assert!(world.sender.report().cwnd_bytes > 1_000_000, "{:?}", world.sender.report());
}

#[test]
fn a_lossy_path_gives_what_the_formula_of_the_standard_gives() {
    // RFC 9438 §4.3: with p = 0.5 % and 20 ms the Reno-friendly region rules, whose average window is
    // that of Reno: sqrt(3 / 2p) segments = 17.3, so 1.25 MB/s.
    let formula = (1.5_f64 / 0.005).sqrt() * f64::from(MSS) / 0.02;
    let path = Path { delay: 10 * MS, loss: 50, ..GIGABIT };
    for congestion in [Congestion::Cubic, Congestion::NewReno] {
        let mut sum = 0.0;
        for seed in 1..=4 {
            let mut world = world(SenderConfig { congestion, ..CONFIG }, path, seed);
            sum += rate(&mut world, 500_000, 50 * MS, 1000 * MS, 20_000 * MS);
            assert_eq!(world.sender.report().timeouts, 0);
        }
        let share = sum / 4.0 / formula;
        // Reno is a little below its formula, which does not count the time of recovery.
        let least = if congestion == Congestion::Cubic { 1.0 } else { 0.9 };
        assert!(share > least, "{congestion:?}: {share} of the formula");
    }
}

#[test]
fn a_short_lossy_path_stays_nearly_full() {
    // RACK repairs within a round: 0.5 % at 100 us.
    let path = Path { delay: Duration::from_micros(50), loss: 50, ..GIGABIT };
    let mut world = world(CONFIG, path, 1);
    let rate = rate(&mut world, 6_250_000, 50 * MS, 200 * MS, 1000 * MS);
    assert!(rate > 0.95 * LINE, "{rate}: {:?}", world.sender.report());
}

#[test]
fn a_commit_on_a_known_path_leaves_in_small_bursts() {
    // A flow with a large window and an RTT of 20 ms gets 4 MB at once, again and again.
    let path = Path { delay: 10 * MS, queue: 2_500_000, ..GIGABIT };
    let mut world = world(CONFIG, path, 1);
    let _ = rate(&mut world, 4_000_000, 150 * MS, 1000 * MS, 500 * MS);
    let report = world.sender.report();
    world.bursts.clear();
    world.at(200 * MS, Act::Commit(4_000_000));
    world.run(400 * MS);
    // Congestion avoidance: 5/4 of the window an RTT, for a millisecond, and the segment on its edge.
    let pace = 1.25 * f64::from(report.cwnd_bytes) / 0.02;
    let bound = pace * 0.001 + f64::from(MSS);
    let largest = world.bursts.iter().map(|&(_, bytes)| bytes).max().unwrap_or(0);
    assert!(f64::from(report.cwnd_bytes.min(4_000_000)) > 10.0 * bound, "it would not show: {report:?}");
    assert!(f64::from(largest) <= bound, "{largest} bytes at once, bound {bound}: {report:?}");
}
