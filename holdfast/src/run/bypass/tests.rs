//! Two links' ends over two real DPDK ports, on a veth way with the wire emulator in it.

use super::BypassNic;
use crate::run::dataplane::open;
use crate::wire::eal_of_tests;
use holdfast_bypass::Counter;
use holdfast_checkpoint::keys::{Identity, make_pair};
use holdfast_checkpoint::protocol::{DeviceDigest, Hello, Message, PROTOCOL_VERSION, PageBatch, encode};
use holdfast_checkpoint::transport::{
    Bypass, BypassSettings, Link, LinkEvent, Listener, Security, TcpTransport, Transport, WINDOW,
};
use holdfast_dataplane::frame::Wire as _;
use holdfast_dpdk_config::{Problems, RawWire, Wire};
use holdfast_epoch::Term;
use holdfast_lab::emulator::{Pump, Report, WireSpec};
use holdfast_lab::netns::Namespace;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// The way between the ports: two veth pairs, and the emulator between them.
struct Way {
    namespace: Namespace,
    stop: Arc<EventFd>,
    pump: JoinHandle<Report>,
}

struct Ends {
    way: Way,
    primary: Link,
    backup: Link,
    bypass: [Bypass; 2],
    _listener: Listener,
}

/// None where the host cannot. `pair` tells the DPDK devices of the tests apart.
fn ends(pair: usize, wire: &str, (kind, mtu): (&str, u16), v6: bool) -> Option<Ends> {
    let namespace = match Namespace::create("bypass-ports") {
        Ok(namespace) => namespace,
        Err(fault) => {
            println!("cannot run here: {fault}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{fault}");
            return None;
        }
    };
    for (port, gap) in [("port-a", "gap-a"), ("port-b", "gap-b")] {
        namespace.add_veth([port, gap], mtu.into(), false).expect("a veth pair");
    }
    let way = Way::begin(namespace, wire.parse().expect("a wire"));
    let keys = tempfile::tempdir().expect("a folder");
    let (a, b) = (keys.path().join("a"), keys.path().join("b"));
    make_pair(&a, &b).expect("keys");
    let [a, b] = [a, b].map(|dir| Identity::load(&dir).expect("keys load"));
    let ports = ports(pair, kind, mtu);
    let start = |last: u8, identity: &Identity| {
        let address = |last: u8| match v6 {
            true => std::net::Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, last.into()).into(),
            false => [10, 97, 0, last].into(),
        };
        let port = &ports[usize::from(last) - 1];
        let wire = way.namespace.run(|| open(eal_of_tests(), port)).expect("a namespace of ours");
        let wire = wire.unwrap_or_else(|fault| panic!("{fault}"));
        let settings = BypassSettings {
            address: address(last),
            peer: address(3 - last),
            peer_mac: None,
            udp_port: 7401,
            mtu: wire.mtu(),
            poll: false,
        };
        let (came, going) = (Vec::with_capacity(64), VecDeque::with_capacity(64));
        let nic = BypassNic { eal: eal_of_tests(), core: None, wire, came, going };
        Bypass::start(nic, &settings, identity).expect("it starts")
    };
    let bypass = [start(1, &a), start(2, &b)];
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), Security::Tls(b)).expect("a port");
    listener.over(bypass[1].clone());
    let sessions = listener.route("web");
    let dialer = TcpTransport::new(listener.address(), Security::Tls(a)).over(Some(bypass[0].clone()));
    let primary = dialer.dial(SOON).expect("the listener answers");
    primary.send(&Message::Hello(hello()));
    let backup = sessions.recv_timeout(SOON).expect("the session arrives").link;
    primary.set_window(WINDOW);
    backup.allow(WINDOW);
    backup.send(&Message::Summon { term: Term::new(1) });
    primary.events().recv_timeout(SOON).expect("the backup's window is set");
    primary.start_heartbeats(Duration::from_millis(20), SOON);
    let ends = Ends { way, primary, backup, bypass, _listener: listener };
    ends.wait_until("a path", || ends.primary.uses_bypass() && ends.backup.uses_bypass());
    Some(ends)
}

/// The two ports, as the configuration would have them.
fn ports(pair: usize, kind: &str, mtu: u16) -> Vec<Wire> {
    let unused = (0..pair * 2).map(|n| ("unused".to_owned() + &n.to_string(), format!("unused{n}")));
    let used = ["port-a", "port-b"].map(|port| (port.to_owned(), port.to_owned()));
    let raw: Vec<RawWire> = unused
        .chain(used)
        .map(|(name, iface)| {
            let place = match (kind, iface.as_str()) {
                ("memif", "port-a") => format!("role = \"server\"\nsocket = {:?}", socket()),
                ("memif", "port-b") => format!("role = \"client\"\nsocket = {:?}", socket()),
                ("memif", other) => format!("role = \"client\"\nsocket = \"/{other}\""),
                _ => format!("iface = {iface:?}"),
            };
            let text = format!("name = {name:?}\nkind = {kind:?}\n{place}\nmtu = {mtu}\nframes = 1024\n");
            toml::from_str(&text).expect("a wire")
        })
        .collect();
    let mut problems = Problems::default();
    let wires = Wire::check_all(&raw, &mut problems);
    assert!(problems.0.is_empty(), "{:?}", problems.0);
    wires[pair * 2..].to_vec()
}

/// Where the ends of shared memory meet.
fn socket() -> String {
    std::env::temp_dir().join(format!("holdfast-bypass-{}.sock", std::process::id())).display().to_string()
}

fn hello() -> Hello {
    Hello {
        ports: Vec::new(),
        version: PROTOCOL_VERSION,
        vm: "web".into(),
        host: "host-a".into(),
        term: Term::new(1),
        memory: 64 << 20,
        page_size: 4096,
        session: 7,
        lease_ms: 300,
        devices: DeviceDigest::default(),
    }
}

impl Way {
    fn begin(namespace: Namespace, wire: WireSpec) -> Self {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("a descriptor"));
        let (stopped, inside) = (Arc::clone(&stop), namespace.clone());
        let pump = std::thread::spawn(move || {
            inside
                .run(|| Pump::open("gap-a", "gap-b", &wire, 7).and_then(|mut pump| pump.run(stopped.as_fd())))
                .expect("a namespace of ours")
                .expect("the emulator runs")
        });
        Self { namespace, stop, pump }
    }

    fn end(self) -> Report {
        self.stop.write(1).expect("room for one");
        self.pump.join().expect("no panic")
    }

    fn set(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        self.namespace.ip(&format!("link set gap-a {state}")).expect("it obeys");
    }
}

/// The bulk frame of this number, of a length of its own.
fn numbered(number: u64, least: usize) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(least + (number as usize * 7919) % 50_000, number as u8);
    encode(&Message::Base(PageBatch::from_bytes(body)))
}

impl Ends {
    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !done() {
            assert!(
                Instant::now() < deadline,
                "never: {what}; {:?}",
                self.bypass.each_ref().map(|bypass| bypass.counters().iter().collect::<Vec<_>>())
            );
            std::thread::yield_now();
        }
    }

    /// Sends so many; each comes once, in order and exact.
    fn stream(&self, count: u64, least: usize, mut strike: impl FnMut(u64)) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..count {
                    match self.backup.events().recv_timeout(SOON) {
                        Ok(LinkEvent::Message { message: Message::Base(batch), charge }) => {
                            let same = encode(&Message::Base(batch)) == numbered(number, least);
                            assert!(same, "number {number} is not what was sent");
                            self.backup.grant(charge);
                        }
                        other => panic!("expected {number}, found {other:?}; {:?}", self.backup.end()),
                    }
                }
            });
            for number in 0..count {
                strike(number);
                let mut frame = numbered(number, least);
                let deadline = Instant::now() + SOON;
                while let Err(full) = self.primary.try_send_bulk(frame) {
                    assert!(Instant::now() < deadline, "no room: {:?}", self.primary.end());
                    frame = full.into_inner();
                    std::thread::yield_now();
                }
            }
        });
    }

    fn count(&self, counter: Counter) -> u64 {
        self.bypass.iter().map(|bypass| bypass.counters().get(counter)).sum()
    }
}

#[test]
fn messages_are_exact_over_ports_whose_way_loses_reorders_doubles_and_flips() {
    let wire = "delay=200us,loss=1%,reorder=1%,reorder-by=1ms,duplicate=1%,corrupt=1%";
    for (pair, port, v6) in [(0, ("af_packet", 1500), false), (1, ("kernel", 9000), true)] {
        let Some(ends) = ends(pair, wire, port, v6) else { return };
        ends.stream(400, 8, |_| {});
        ends.wait_until("counters", || ends.count(Counter::Lost) > 0 && ends.count(Counter::Refused) > 0);
        assert_eq!(ends.primary.bypass_returns(), 0, "the path held");
        let Ends { way, primary, backup, bypass, .. } = ends;
        drop((primary, backup, bypass));
        let report = way.end();
        assert!(report.missing_frames() > 0, "{report:?}");
    }
}

#[test]
fn a_way_that_goes_down_and_up_again_loses_no_message() {
    let Some(ends) = ends(2, "", ("af_packet", 1500), false) else { return };
    ends.stream(600, 8, |number| match number {
        200 => ends.way.set(false),
        400 => {
            ends.wait_until("back", || ends.primary.bypass_returns() == 1);
            ends.way.set(true);
            ends.wait_until("over it again", || ends.primary.uses_bypass() && ends.backup.uses_bypass());
        }
        _ => {}
    });
    assert_eq!((ends.primary.bypass_returns(), ends.backup.bypass_returns()), (1, 1));
}

/// Two Holdfasts of one machine need no interface, and no cable bounds their packets.
#[test]
fn messages_go_through_shared_memory() {
    let Some(ends) = ends(3, "", ("memif", 16_384), false) else { return };
    ends.stream(400, 8, |_| {});
    assert_eq!(ends.primary.bypass_returns(), 0);
}
