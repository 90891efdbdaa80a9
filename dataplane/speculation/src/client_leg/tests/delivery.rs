//! Whatever the path and the client do, every byte arrives, once, in order; and the sender ends.

use std::time::Duration;

use proptest::prelude::*;

use super::bench::{MS, START};
use super::world::{Act, Path, World, patience};
use crate::client_leg::{Congestion, SenderConfig};

fn path() -> impl Strategy<Value = Path> {
    let rate = prop_oneof![Just(0_u64), 20_000..2_000_000_u64, Just(125_000_000)];
    // Little enough for R2 never to be reached by chance.
    let chances = (0..500_u32, 0..500_u32, 0..1000_u32, prop_oneof![Just(0), 0..3000_u32]);
    (50..50_000_u64, rate, 3000..500_000_u32, chances).prop_map(|(delay_us, rate, queue, chances)| {
        let (loss, ack_loss, duplication, reordering) = chances;
        Path { delay: Duration::from_micros(delay_us), rate, queue, loss, ack_loss, duplication, reordering }
    })
}

fn config() -> impl Strategy<Value = SenderConfig> {
    let congestion = prop_oneof![Just(Congestion::Cubic), Just(Congestion::NewReno)];
    (16..1500_u16, any::<bool>(), any::<bool>(), congestion)
        .prop_map(|(mss, sack, ecn, congestion)| SenderConfig { mss, sack, ecn, congestion })
}

/// What may happen, but for commits and the end.
fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (16..1500_u16).prop_map(Act::Mss),
        2 => Just(Act::Failover),
        2 => any::<bool>().prop_map(Act::Outage),
        6 => any::<bool>().prop_map(Act::Reading),
        3 => (0..40_000_u32).prop_map(Act::Buffer),
        2 => Just(Act::Renege),
        4 => Just(Act::Talk),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn every_byte_arrives_in_order_whatever_happens(
        path in path(),
        config in config(),
        buffer in prop_oneof![1..3000_u32, 3000..300_000_u32],
        log in prop_oneof![1..20_usize, 20..2000_usize],
        commits in prop::collection::vec((0..200_u64, 1..60_000_u32), 1..12),
        acts in prop::collection::vec((0..2500_u64, act()), 0..12),
        close: bool,
        seed: u64,
    ) {
        let mut world = World::new(config, buffer, path, log, seed);
        let (mut at, mut total) = (0, 0);
        for (pause, bytes) in commits {
            // Small segments are slow to test.
            let bytes = bytes.min(u32::from(config.mss) * 60);
            at += pause;
            total += bytes;
            world.at(at as u32 * MS, Act::Commit(bytes));
        }
        for (at, act) in acts {
            world.at(at as u32 * MS, act);
        }
        if close {
            world.at(at as u32 * MS, Act::Close);
        }
        // In the end the path carries and the application reads.
        for act in [Act::Outage(false), Act::Buffer(buffer.max(3000)), Act::Reading(true)] {
            world.at(2600 * MS, act);
        }
        world.run(patience(total.into()));
        prop_assert!(!world.silent);
        prop_assert!(world.sender.is_done(), "{:?}", world.sender);
        prop_assert_eq!(world.client.received, total);
        prop_assert_eq!(world.client.finished, close);
        prop_assert_eq!(world.sender.unacked(), START + total + u32::from(close));
        prop_assert_eq!(world.log.used(), 0);
        prop_assert_eq!(world.sender.next_deadline(), None);
    }
}
