//! Where the time of a transfer from idle goes: by a capture in the guest.

use crate::aware::{agent_options, ask, aware, set_mode};
use crate::can;
use holdfast_lab::agent::wait_attached;
use holdfast_lab::bulk::TransferSpec;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::initramfs::Part;
use holdfast_lab::pcap::Pcap;
use holdfast_lab::report::median;
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::all_is_well;
use holdfast_tests::program::seed;
use holdfast_tests::scene::{SOON, Scene, wait_until};
use std::fs;
use std::path::Path;
use std::time::Duration;

const EPOCH_MS: u64 = 100;
const BYTES: u64 = 1 << 20;
const TRANSFERS: usize = 9;
/// Longer than TCP's retransmission timer: the connection is idle.
const REST: Duration = Duration::from_millis(400);
const STREAM_PORT: u16 = 7001;

fn with_tcpdump(spec: &mut GuestSpec) {
    aware(spec);
    let parts = [
        Part::file("/etc/passwd", &b"root:x:0:0:root:/:/bin/false\n"[..]),
        Part::file("/etc/group", &b"root:x:0:\n"[..]),
        Part::program(Path::new("/usr/bin/tcpdump"), "/bin/tcpdump"),
    ];
    spec.add(parts).expect("tcpdump");
}

/// A TCP segment of the stream's connection, as the guest's capture has it.
struct Seen {
    at_ns: u64,
    from_guest: bool,
    payload: u64,
}

/// The segments with data of a capture of the guest.
fn captured(scene: &Scene) -> Vec<Seen> {
    let said = ask(scene, "hexdump -v -e '64/1 \"%02x\" \"\\n\"' /tmp/guest.pcap");
    let digits: Vec<u8> = said.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("a byte");
    let path = scene.pair.scratch.file("guest.pcap");
    fs::write(&path, digits.chunks_exact(2).map(byte).collect::<Vec<_>>()).expect("written");
    let mut pcap = Pcap::open(&path).expect("a capture");
    let mut seen = Vec::new();
    while let Some(frame) = pcap.next_frame().expect("frames") {
        let ip = &frame.bytes[14..];
        let (ip_len, tcp) = (usize::from(ip[0] & 15) * 4, &ip[usize::from(ip[0] & 15) * 4..]);
        let head = 14 + ip_len + usize::from(tcp[12] >> 4) * 4;
        let from_guest = u16::from_be_bytes([tcp[0], tcp[1]]) == STREAM_PORT;
        let payload = u64::from(frame.len).saturating_sub(head as u64);
        if payload > 0 {
            seen.push(Seen { at_ns: frame.realtime_ns, from_guest, payload });
        }
    }
    seen
}

/// From each request to the last of its bytes that the guest handed over, in milliseconds.
fn handed_over_ms(seen: &[Seen]) -> Vec<f64> {
    let requests = seen.iter().enumerate().filter(|(_, segment)| !segment.from_guest);
    let time = |(place, request): (usize, &Seen)| {
        let mut left = BYTES;
        let answer = seen[place + 1..].iter().take_while(|segment| segment.from_guest);
        let last = answer.take_while(|segment| {
            let wanted = left > 0;
            left = left.saturating_sub(segment.payload);
            wanted
        });
        Some((last.last()?.at_ns - request.at_ns) as f64 / 1e6)
    };
    requests.filter_map(time).collect()
}

/// From idle, the guest has handed 1 MiB over in a small part of the time that the transfer takes, be it with the
/// agent or without: what is left is the wait for the commit, and no congestion control shortens that.
#[test]
fn a_guest_that_runs_ahead_has_sent_long_before_the_commit() {
    if !can() || !can_run(&[Need::Agent]) {
        return;
    }
    let mut options = agent_options("speculative", with_tcpdump);
    options.epoch_ms = EPOCH_MS;
    let mut scene = Scene::ready(options, seed(511));
    for mode in ["speculative", "aware"] {
        set_mode(&scene, mode);
        wait_attached(&scene.client(), guest_ip(1).into(), mode == "aware", SOON).expect("as the mode asks");
        let tcpdump = "/bin/tcpdump -Z root -i eth0 -s 96 -U -w /tmp/guest.pcap tcp port 7001";
        ask(&scene, &format!("{tcpdump} </dev/null >/tmp/tcpdump.log 2>&1 &"));
        wait_until("tcpdump listens", SOON, || {
            let said = ask(&scene, "cat /tmp/tcpdump.log");
            assert!(!said.contains("tcpdump: ") || said.contains("listening on"), "{said}");
            said.contains("listening on")
        });
        let spec = TransferSpec {
            guest: guest_ip(1).into(),
            seed: 1,
            bytes: BYTES,
            setup: false,
            most: TRANSFERS,
            time: SOON,
            rest: REST,
            pause: Duration::from_millis(EPOCH_MS),
        };
        let done = scene.client().transfers(&spec).expect("transfers");
        assert!(done.exact);
        ask(&scene, "killall tcpdump");
        wait_until("tcpdump ends", SOON, || ask(&scene, "pidof tcpdump; echo none") == "none");
        let handed_over = handed_over_ms(&captured(&scene));
        // One more than the client timed; a segment may have passed tcpdump by.
        assert!(handed_over.len() >= done.completion_ms.len() / 2, "{handed_over:?}");
        let (sent, whole) = (median(&handed_over), median(&done.completion_ms));
        let (sent, whole) = (sent.expect("some"), whole.expect("some"));
        println!(
            "{mode}: handed over after {sent:.1} ms of {whole:.1} ms: {handed_over:.1?} of {:.1?}",
            done.completion_ms
        );
        assert!(sent < whole / 2.0, "{mode}: {sent} of {whole} ms");
    }
    all_is_well(&mut scene);
}
