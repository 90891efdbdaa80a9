//! No call with any values in any order panics or breaks an invariant.

use std::time::Duration;

use proptest::prelude::*;

use super::bench::START;
use crate::client_leg::{ClientAck, Congestion, Sender, SenderConfig, SentLog, TimeoutOutcome};
use crate::{SeqNum, Time};

#[derive(Clone, Debug)]
enum Call {
    Extend(u32),
    Close,
    Mss(u16),
    Ack { seq: u32, ack: u32, window: u32, carries_data: bool, ece: bool, sacks: Vec<(u32, u32)> },
    Wait(u64),
    Deadline,
    Poll(u8),
}

/// Near the stream, or anywhere.
fn number() -> impl Strategy<Value = u32> {
    let near = |limit: u32| (0..limit).prop_map(|offset| (START + offset).get());
    prop_oneof![8 => near(30_000), 4 => near(3000), 1 => any::<u32>()]
}

fn call() -> impl Strategy<Value = Call> {
    let window = prop_oneof![2 => Just(0_u32), 2 => 0..100_u32, 6 => 0..100_000_u32, 1 => any::<u32>()];
    let sacks = prop::collection::vec((number(), number()), 0..4);
    let ack = (0..50_u32, number(), window, any::<bool>(), any::<bool>(), sacks).prop_map(
        |(seq, ack, window, carries_data, ece, sacks)| Call::Ack {
            seq,
            ack,
            window,
            carries_data,
            ece,
            sacks,
        },
    );
    prop_oneof![
        4 => number().prop_map(Call::Extend),
        1 => Just(Call::Close),
        2 => prop_oneof![0..2000_u16, any::<u16>()].prop_map(Call::Mss),
        16 => ack,
        4 => prop_oneof![0..1_000_000_u64, 0..100_000_000_000_u64].prop_map(Call::Wait),
        8 => Just(Call::Deadline),
        12 => (1..30_u8).prop_map(Call::Poll),
    ]
}

proptest! {
    #[test]
    fn any_calls_keep_the_invariants(
        mss in prop_oneof![0..2000_u16, any::<u16>()],
        flags: (bool, bool, bool, bool),
        ahead in 0..20_000_u32,
        window in prop_oneof![0..100_000_u32, any::<u32>()],
        capacity in 0..64_usize,
        calls in prop::collection::vec(call(), 1..80),
    ) {
        let (sack, ecn, resumed, fin) = flags;
        let congestion = if ecn { Congestion::Cubic } else { Congestion::NewReno };
        let config = SenderConfig { mss, sack, ecn, congestion };
        let mut now = Time::from_ns(5);
        let mut log = SentLog::new(capacity);
        let mut sender = if resumed {
            Sender::resumed(config, START, START + ahead, fin, window, now)
        } else {
            Sender::new(config, START, window, now)
        };
        let mut freed = START;
        for call in calls {
            match call {
                Call::Extend(end) => sender.extend(SeqNum::new(end)),
                Call::Close => sender.close(),
                Call::Mss(mss) => sender.set_mss(mss),
                Call::Wait(ns) => now = now + Duration::from_nanos(ns),
                Call::Deadline => {
                    if let Some(at) = sender.next_deadline() {
                        now = now.max(at);
                        prop_assert_ne!(sender.handle_timeout(now, &mut log), TimeoutOutcome::Nothing);
                    }
                }
                Call::Poll(count) => {
                    for _ in 0..count {
                        let Some(segment) = sender.poll_transmit(now, &mut log) else { break };
                        prop_assert!(segment.len > 0 || segment.fin);
                        prop_assert!(!(segment.seq + segment.len).after(sender.end()));
                        prop_assert!(!segment.seq.before(sender.unacked()));
                    }
                }
                Call::Ack { seq, ack, window, carries_data, ece, sacks } => {
                    let sacks: Vec<_> =
                        sacks.iter().map(|&(left, right)| (SeqNum::new(left), SeqNum::new(right))).collect();
                    let (seq, ack) = (SeqNum::new(seq), SeqNum::new(ack));
                    let ack = ClientAck { seq, ack, window, carries_data, sacks: &sacks, ece };
                    let progress = sender.handle_ack(now, &ack, &mut log);
                    prop_assert!(!progress.freed_to.before(freed) && !progress.freed_to.after(sender.end()));
                    freed = progress.freed_to;
                }
            }
            let in_flight = sender.board.check(&log, sender.una, sender.nxt);
            prop_assert_eq!(in_flight, sender.report().in_flight_bytes);
            prop_assert!(!sender.nxt.after(sender.last()) || sender.reach.after(sender.last()));
        }
        sender.clear(&mut log);
        prop_assert_eq!(log.used(), 0);
    }
}
