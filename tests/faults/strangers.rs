//! Others find the replication port.

use crate::{SOME, can};
use holdfast_guest_init::stream::Stream;
use holdfast_lab::pair::{Appliance, REPLICATION_PORT, Victim};
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_epochs};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Connections that stay open and say nothing.
const MUTE: usize = 100;
/// Connections that say something that is not TLS, or begins as TLS and is not.
const LOUD: u64 = 100;
/// More memory than this must not be taken for strangers.
const MOST_GROWTH_KIB: u64 = 32 * 1024;

fn resident_kib(host: &Appliance) -> u64 {
    let pid = host.process.as_ref().expect("it runs").pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// Connections from the peer's namespace to `to`'s replication port; gives those that stay open.
fn pester(from: &Appliance, to: &Appliance, seed: u64) -> Vec<TcpStream> {
    let target = SocketAddr::new(to.host.replication_ip.into(), REPLICATION_PORT);
    let connect = || {
        from.host
            .namespace
            .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))
            .expect("the namespace")
            .expect("a connection")
    };
    let noise = Stream::new(seed);
    for number in 0..LOUD {
        let mut bytes = vec![0; 1 + number as usize * 97];
        noise.fill(number << 20, &mut bytes);
        match number % 3 {
            // A handshake record of TLS of the greatest length, a hello that claims 16 MiB, then noise.
            0 if bytes.len() > 9 => {
                bytes[..9].copy_from_slice(&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
            }
            1 => bytes.fill(0xff),
            _ => {}
        }
        // It may hang up amid our words.
        if let Err(fault) = connect().write_all(&bytes) {
            assert_ne!(fault.kind(), std::io::ErrorKind::TimedOut, "{fault}");
        }
    }
    (0..MUTE).map(|_| connect()).collect()
}

/// RB-1 (fault 15): noise, half handshakes and mute connections on the replication ports of both hosts
/// change nothing: the session and the term stay, epochs are committed, little memory is taken, and the
/// guest then survives its host.
#[test]
fn strangers_on_the_replication_port_change_nothing() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(options("commit"), seed(212));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    let (a, b) = (&scene.pair.a, &scene.pair.b);
    let before = a.vm(VM).expect("a status");
    let memory = [resident_kib(a), resident_kib(b)];
    let mute = [pester(a, b, scene.seed), pester(b, a, scene.seed ^ 1)];
    streams.flow(SOME);
    let after = wait_epochs(a, VM, 20);
    for same in ["state", "term", "role"] {
        assert_eq!(after[same], before[same], "{after}");
    }
    assert_eq!(after["link"]["sessions"], before["link"]["sessions"], "{after}");
    for (host, before) in [a, b].into_iter().zip(memory) {
        let grown = resident_kib(host).saturating_sub(before);
        println!("{} has grown by {grown} KiB", host.name);
        assert!(grown < MOST_GROWTH_KIB, "{} has grown by {grown} KiB", host.name);
    }
    drop(mute);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);
    all_is_well_after_the_move(&mut scene);
}
