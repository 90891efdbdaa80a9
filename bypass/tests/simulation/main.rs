//! Two ports on a wire that loses, delays, doubles, cuts, flips and replays frames, on virtual time: what is
//! sent comes exact and in order, or the path is said to be lost.

mod keys;
#[expect(dead_code, reason = "the ports of the simulation have settings of their own")]
#[path = "../pair/mod.rs"]
mod pair;
mod world;

use bytes::Bytes;
use holdfast_bypass::{Class, Counter, Lost, Port, Settings, Token};
use pair::identities;
use std::time::{Duration, Instant};
use world::{Dice, Fates, RECORD_LIMIT, TOKEN, World, record, settings};

/// Of a session that nobody awaits.
const STRANGE: Token = Token([8; 32]);
/// Frames that a path may send at one moment: quinn's pacer holds 256, and may be filled again while it is emptied;
/// beside them a few acknowledgements.
const BURST: usize = 2 * 256 + 8;

#[test]
fn a_port_that_could_send_to_nobody_is_refused() {
    let identities = identities();
    let (client, server) = identities[0].configs();
    let good = settings(1, false, 1500);
    let nobody = std::net::Ipv4Addr::UNSPECIFIED.into();
    let bad = [
        Settings { udp_port: 0, ..good },
        Settings { peer: nobody, ..good },
        Settings { address: nobody, ..good },
        Settings { peer: good.address, ..good },
        Settings { mtu: 100, ..good },
    ];
    for settings in bad {
        assert!(Port::new(settings, client, server, Instant::now()).is_err(), "{settings:?}");
    }
    Port::new(good, client, server, Instant::now()).expect("it can be");
}

#[test]
fn records_come_exact_and_in_order_over_a_bad_wire() {
    let identities = identities();
    let fates = Fates { lost: 20, doubled: 20, late: 100, flipped: 20, cut: 10, replayed: 20, dead: false };
    let mut struck = 0;
    for seed in 1..=40 {
        let mtu = [1280, 1500, 9000][seed as usize % 3];
        let mut world = World::connected(seed, &identities, seed % 2 == 0, mtu);
        world.fates = fates;
        let patience = Duration::from_secs(60);
        world.send_all(0, (100, 60), patience);
        world.send_all(1, (100, 2), patience);
        world.run(patience, |world| {
            let [a, b] = &world.sides;
            (a.received == b.sent && b.received == a.sent) || a.lost.is_some() || b.lost.is_some()
        });
        assert!(world.sides.iter().all(|side| side.lost.is_none()), "seed {seed}: a path was lost");
        struck += world.struck;
    }
    assert!(struck > 1000, "the wire did too little: {struck}");
}

/// RB-1: flipped, cut, replayed and doubled frames are refused, counted, and change nothing.
#[test]
fn each_strike_is_counted_and_has_no_effect() {
    let identities = identities();
    for (fates, counters) in [
        (
            Fates { flipped: 300, ..Fates::default() },
            &[Counter::Refused, Counter::Malformed, Counter::Foreign][..],
        ),
        (Fates { cut: 300, ..Fates::default() }, &[Counter::Malformed, Counter::Foreign]),
        (Fates { replayed: 300, ..Fates::default() }, &[Counter::Refused]),
        (Fates { doubled: 300, ..Fates::default() }, &[Counter::Refused]),
    ] {
        let mut world = World::connected(5, &identities, false, 1500);
        let before = world.sides.each_ref().map(|side| side.port.counters());
        world.fates = fates;
        world.send_all(0, (20, 4), Duration::from_secs(60));
        world.run(Duration::from_secs(60), |world| world.sides[1].received == world.sides[0].sent);
        world.fates = Fates::default();
        // What is still under way counts too.
        for _ in 0..200 {
            world.turn();
        }
        let counted: u64 = (0..2)
            .flat_map(|n| counters.iter().map(move |counter| (n, *counter)))
            .map(|(n, counter)| world.sides[n].port.counters().get(counter) - before[n].get(counter))
            .sum();
        assert_eq!(counted, world.struck, "{counters:?}");
        assert!(world.struck > 20);
    }
}

#[test]
fn a_path_on_a_dead_wire_is_lost_on_both_sides() {
    let identities = identities();
    for seed in 1..=5 {
        let mut world = World::connected(seed, &identities, false, 9000);
        world.send_all(0, (10, 10), Duration::from_secs(10));
        world.fates.dead = true;
        world.run(Duration::from_secs(5), |world| world.sides.iter().all(|side| side.lost.is_some()));
        assert!(world.sides.iter().all(|side| side.lost == Some(Lost::Silent)));
        // When the wire is back, so is the path.
        world.fates.dead = false;
        world
            .sides
            .iter_mut()
            .for_each(|side| (side.lost, side.sent, side.received) = (None, [0; 2], [0; 2]));
        world.sides[0].port.dial(TOKEN, 1, world.now);
        world.run(Duration::from_secs(3), |world| world.sides.iter().all(|side| side.path.is_some()));
        world.send_all(0, (10, 10), Duration::from_secs(10));
        world.run(Duration::from_secs(10), |world| world.sides[1].received == world.sides[0].sent);
    }
}

/// One frame in fifty lost and as many late, on virtual time: Cubic would take 140 ms for this.
#[test]
fn a_wire_that_loses_a_little_is_not_a_slow_one() {
    let identities = identities();
    let mut world = World::connected(1, &identities, false, 1500);
    world.fates = Fates { lost: 20, late: 20, ..Fates::default() };
    let began = world.now;
    world.send_all(0, (0, 400), Duration::from_secs(60));
    world.run(Duration::from_secs(60), |world| world.sides[1].received == world.sides[0].sent);
    let took = world.now - began;
    assert!(took < Duration::from_millis(20), "20 MB took {took:?}");
}

/// A window lets thousands of frames out at once, and no queue of a card or a switch would hold them: they go by bursts,
/// the rest a little later.
#[test]
fn a_window_is_not_sent_at_once() {
    let identities = identities();
    for mtu in [1500, 9000] {
        let mut world = World::connected(1, &identities, false, mtu);
        world.delay = Duration::from_millis(5);
        world.send_all(0, (0, 1000), Duration::from_secs(60));
        world.run(Duration::from_secs(60), |world| world.sides[1].received == world.sides[0].sent);
        let (burst, most) = (world.burst, world.most_under_way);
        assert!(most * usize::from(mtu) > 4 << 20, "mtu {mtu}: no more than {most} frames were under way");
        assert!(burst <= BURST, "mtu {mtu}: {burst} frames at one moment, of {most} under way");
    }
}

/// RB-1: a receiver that does not read holds a window and no more, and urgent records pass.
#[test]
fn a_reader_that_stands_still_stops_the_sender_and_urgent_records_pass() {
    let identities = identities();
    let mut world = World::connected(1, &identities, false, 9000);
    world.sides[1].reads_bulk = false;
    for _ in 0..4000 {
        world.send(0, Class::Bulk);
        world.turn();
    }
    let sent = world.sides[0].sent[1];
    assert!(sent < 500, "{sent} records of 50 kB were taken and none was read");
    for _ in 0..5 {
        world.send(0, Class::Urgent);
    }
    world.run(Duration::from_secs(1), |world| world.sides[1].received[0] == 5);
    assert_eq!(world.sides[1].received[1], 0);
    world.sides[1].reads_bulk = true;
    world.run(Duration::from_secs(10), |world| world.sides[1].received == world.sides[0].sent);
}

#[test]
fn a_stranger_and_an_unknown_session_get_no_path() {
    let (ours, others) = (identities(), identities());
    let mixed = [others[0].clone(), ours[1].clone()];
    for (identities, token) in [(&mixed, TOKEN), (&ours, STRANGE)] {
        let mut world = World::new(1, identities, false, 1500);
        world.sides[1].port.await_peer(TOKEN);
        world.sides[0].port.dial(token, 1, world.now);
        world.run(Duration::from_secs(5), |world| world.sides[0].lost.is_some());
        match (token, &world.sides[0].lost) {
            (TOKEN, Some(Lost::Peer(_))) | (STRANGE, Some(Lost::Silent)) => {}
            (_, lost) => panic!("{lost:?}"),
        }
        assert!(world.sides[1].path.is_none());
        assert_eq!(world.sides[1].port.counters().get(Counter::PathsUp), 0);
    }
}

/// RB-1: whoever is on the link and does not know the session's token takes no place of a handshake, however often
/// it knocks.
#[test]
fn strangers_do_not_keep_a_path_from_coming_up() {
    let (ours, others) = (identities(), identities());
    let mut world = World::new(5, &ours, false, 1500);
    let (client, server) = others[0].configs();
    let here = Settings { peer_mac: Some([2, 0, 0, 0, 0, 2]), ..settings(1, false, 1500) };
    let mut stranger = Port::new(here, client, server, world.now).expect("it can be");
    world.sides[1].port.await_peer(TOKEN);
    world.sides[0].port.dial(TOKEN, 1, world.now);
    let mut frame = vec![0; 2048];
    let mut knocked = 0;
    for number in 0..200 {
        stranger.dial(STRANGE, number, world.now);
        stranger.handle_timeout(world.now);
        while let Some(len) = stranger.next_frame(world.now) {
            stranger.take_frame(&mut frame[..len]);
            world.sides[1].port.handle_frame(&frame[..len], world.now);
            knocked += 1;
        }
    }
    assert!(knocked > 0);
    world.run(Duration::from_secs(3), |world| world.sides.iter().all(|side| side.path.is_some()));
    let counters = world.sides[1].port.counters();
    assert!(counters.get(Counter::Strange) >= 200, "{counters:?}");
    assert_eq!(counters.get(Counter::Crowded), 0);
}

/// RB-1: a record beyond the limit ends the path before anything is allocated for it.
#[test]
fn a_record_beyond_the_limit_ends_the_path() {
    let identities = identities();
    let mut world = World::connected(1, &identities, false, 9000);
    let path = world.sides[0].path.expect("connected");
    world.sides[0].port.send(path, Class::Bulk, 1, Bytes::from(vec![0; RECORD_LIMIT + 1]));
    world.run(Duration::from_secs(2), |world| world.sides.iter().all(|side| side.lost.is_some()));
    let Some(Lost::Peer(words)) = &world.sides[1].lost else { panic!("{:?}", world.sides[1].lost) };
    assert!(words.contains("is the limit"), "{words}");
}

/// RB-1: whatever comes from the wire, nothing breaks.
#[test]
fn noise_is_counted_and_nothing_else() {
    let identities = identities();
    let mut world = World::connected(3, &identities, false, 1500);
    let mut dice = Dice::new(99);
    let mut frame = vec![0; 1514];
    let len = {
        let path = world.sides[0].path.expect("connected");
        world.sides[0].port.send(path, Class::Urgent, 0, Bytes::from(record(3, 0, Class::Urgent, 0, 0).1));
        world.sides[0].sent[0] = 1;
        world.sides[0].port.next_frame(world.now).expect("a frame is due")
    };
    world.sides[0].port.take_frame(&mut frame[..len]);
    for _ in 0..20_000 {
        let mut noise = frame[..len].to_vec();
        for _ in 0..=dice.below(4) {
            let at = dice.below(48) as usize;
            noise[at] = dice.roll() as u8;
        }
        noise.truncate(dice.below(len as u64 + 1) as usize);
        world.sides[1].port.handle_frame(&noise, world.now);
    }
    assert_eq!(world.sides[1].lost, None);
    world.sides[1].port.handle_frame(&frame[..len], world.now);
    world.run(Duration::from_secs(2), |world| world.sides[1].received[0] == 1);
}
