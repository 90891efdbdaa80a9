//! What happens in one run: derived wholly from a seed.

use crate::random::Random;
use std::time::Duration;

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The protected guest.
    Guest,
    /// The client out in the world.
    Client,
}

/// What a host leaves to its card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// The checksum.
    Checksum,
    /// The checksum, and the cutting of large segments.
    Segmentation,
}

/// How a host's TCP is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Timestamps (RFC 7323).
    pub timestamps: bool,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Window scaling (RFC 7323).
    pub window_scale: bool,
    /// No larger MSS is announced.
    pub mss_limit: u16,
    /// Nagle's algorithm (RFC 1122 §4.2.3.4).
    pub nagle: bool,
    /// Delayed acknowledgements.
    pub ack_delay: Option<Duration>,
    /// Interval of keepalives. smoltcp has no other probe of a closed window, so there always is one.
    pub keepalive: Duration,
    /// Keepalives carry a byte of no meaning (RFC 1122 §4.2.3.6).
    pub keepalive_byte: bool,
    /// What is left to the card.
    pub offload: Offload,
    /// Its sequence numbers and its timestamps begin shortly before they wrap.
    pub wraps: bool,
    /// Explicit congestion notification (RFC 3168), which smoltcp does not have: its card plays it.
    pub ecn: bool,
    /// Each so many frames, the window that is offered is smaller than it was; 0 for never.
    pub shrink_every: u64,
    /// An option of this kind is in its SYNs.
    pub odd_option: Option<u8>,
    /// Each so many frames, data is marked urgent; 0 for never.
    pub urgent_every: u64,
    /// Each so many frames, a frame is sent in two fragments; 0 for never.
    pub fragment_every: u64,
    /// Each so many frames of data, one has a broken checksum; 0 for never.
    pub broken_every: u64,
}

/// When a reader stops reading, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Bytes it has read before.
    pub after: u64,
    /// How long it stops.
    pub lasts: Duration,
}

/// One direction of a connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Bytes to send.
    pub bytes: u64,
    /// Bytes written at once.
    pub chunk: u64,
    /// Pause after each chunk.
    pub pause: Duration,
    /// Send buffer.
    pub send_buffer: usize,
    /// Receive buffer of the other side, hence its window.
    pub receive_buffer: usize,
    /// The other side's reader stops for a while.
    pub stall: Option<Stall>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who opens it.
    pub opener: Side,
    /// When.
    pub at: Duration,
    /// From guest to client.
    pub to_client: Flow,
    /// From client to guest.
    pub to_guest: Flow,
    /// Who sends its FIN only after the other's.
    pub waits_to_close: Option<Side>,
    /// Who resets it, once that side has sent so many bytes.
    pub reset: Option<(Side, u64)>,
}

/// What a wire does to frames, in one direction. Probabilities are in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Each frame takes at least so long.
    pub delay: Duration,
    /// And up to so much longer, but order is kept.
    pub jitter: Duration,
    /// Lost.
    pub loss: u32,
    /// Sent twice.
    pub duplicate: u32,
    /// Held up for `late`, so that others overtake it.
    pub reorder: u32,
    /// How long.
    pub late: Duration,
    /// One bit flipped.
    pub corrupt: u32,
    /// Congestion is marked where a frame allows it (RFC 3168).
    pub mark: u32,
    /// A stranger sends something that looks like it, or an old one comes back.
    pub stray: u32,
    /// Time that a byte takes, hence the rate.
    pub per_byte: Duration,
    /// Frames that wait at most where the rate is kept; more are lost.
    pub queue: usize,
}

/// How epochs run.
#[derive(Clone, Debug)]
pub struct Epochs {
    /// From seal to seal.
    pub length: Duration,
    /// How long the guest stands still at a seal.
    pub pause: Duration,
    /// From the seal until the backup has it.
    pub transfer: Duration,
    /// From there until the primary knows.
    pub confirmation: Duration,
    /// Both vary by so much.
    pub jitter: Duration,
    /// From a host's loss until the other one runs.
    pub takeover: Duration,
}

/// The point at which something strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long after the beginning.
    At(Duration),
    /// Right after the n-th frame of the guest was taken, before anything else.
    Captured(u32),
    /// After the n-th forged ACK or other frame of the engine's own was given to the guest.
    Forged(u32),
    /// Right after the n-th cut.
    Sealed(u32),
    /// When the backup holds the n-th epoch and the primary does not know.
    Kept(u32),
    /// When the primary knows, and has released nothing.
    Committed(u32),
    /// Amid the n-th release.
    Releasing(u32),
}

/// A mode of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Unprotected.
    Native,
    /// Plain output commit.
    Commit,
    /// With forged ACKs.
    Speculative,
}

/// What goes wrong, or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The host on which the guest runs vanishes.
    Crash,
    /// The link to the backup is gone for so long; the session begins anew after it.
    LinkLost(Duration),
    /// Commits take so much longer, for so long.
    CommitsLate(Duration, Duration),
    /// No commit any more.
    CommitsNever,
    /// The port's mode changes.
    Mode(Mode),
    /// Whether connections of this number and above may speculate, the others always do.
    Rule(u16, bool),
    /// The wire carries nothing, both ways, for so long.
    Outage(Duration),
    /// The client is never heard again.
    ClientGone,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it comes from.
    pub seed: u64,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// VLAN tags.
    pub tags: usize,
    /// MTU of the wire.
    pub mtu: u16,
    /// The guest's TCP.
    pub guest: Settings,
    /// The client's TCP.
    pub client: Settings,
    /// Connections.
    pub connections: Vec<Connection>,
    /// The wire towards the client.
    pub to_client: Impairment,
    /// The wire towards the guest.
    pub to_guest: Impairment,
    /// Epochs.
    pub epochs: Epochs,
    /// Time from a frame's arrival at the guest's ring until the guest has dealt with it.
    pub guest_lag: Duration,
    /// Frames that the engine may send at once.
    pub burst: usize,
    /// Bytes that are streamed to the backup at once.
    pub chunk: usize,
    /// Each turn streams one chunk, and a seal does not wait for the rest.
    pub trickle: bool,
    /// The primary learns of some commits by later ones, in thousandths.
    pub silent_commits: u32,
    /// Frames that wait for the guest at most.
    pub inbound: usize,
    /// Budget of the port, in bytes.
    pub held_bytes: usize,
    /// Budget of a flow, in bytes.
    pub flow_bytes: usize,
    /// Size of the flow table.
    pub max_flows: usize,
    /// CUBIC rather than NewReno.
    pub cubic: bool,
    /// The mode at the beginning.
    pub mode: Mode,
    /// What goes wrong, each with its moment.
    pub faults: Vec<(Moment, Fault)>,
}

const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let random = &mut random;
        let v6 = random.chance(400);
        let calm = random.chance(350);
        let tags = random.pick(&[0, 0, 0, 1, 2]);
        let round_trip = random.span(us(100), ms(40));
        let epoch = random.span(ms(4), ms(100));
        let (to_client, to_guest) =
            (impairment(random, round_trip, calm), impairment(random, round_trip, calm));
        let epochs = Epochs {
            length: epoch,
            pause: random.span(us(10), epoch / 4),
            transfer: random.span(us(100), epoch * 3 / 2),
            confirmation: random.span(us(20), ms(2)),
            jitter: random.span(us(1), epoch / 2),
            takeover: random.span(ms(1), ms(800)),
        };
        let count = if random.chance(600) { 1 } else { random.between(2, 5) };
        let connections = (0..count).map(|_| connection(random, calm)).collect();
        let held_bytes = random.magnitude(24 << 10, 1 << 20) as usize;
        let mut scenario = Self {
            seed,
            v6,
            tags,
            mtu: random.pick(&[1500, 1500, 1500, 1280, 9000]),
            guest: settings(random, calm),
            client: settings(random, calm),
            connections,
            to_client,
            to_guest,
            epochs,
            guest_lag: random.span(us(5), us(200)),
            burst: random.magnitude(1, 64) as usize,
            chunk: random.magnitude(64, 64 << 10) as usize,
            trickle: !calm && random.chance(200),
            silent_commits: if !calm && random.chance(200) { random.between(1, 500) as u32 } else { 0 },
            inbound: random.magnitude(8, 1024) as usize,
            held_bytes,
            flow_bytes: random.magnitude(16 << 10, 512 << 10).min(held_bytes as u64) as usize,
            max_flows: random.pick(&[64, 64, 8, 2]),
            cubic: random.chance(700),
            mode: Mode::Speculative,
            faults: Vec::new(),
        };
        scenario.client.offload = Offload::None;
        scenario.client.broken_every = 0;
        if !calm {
            scenario.faults = faults(random, &scenario);
        }
        scenario
    }

    /// Whether all streams must arrive whole and all connections end, in the end.
    #[must_use]
    pub fn must_end(&self) -> bool {
        !self.faults.iter().any(|(_, fault)| matches!(fault, Fault::CommitsNever | Fault::ClientGone))
    }
}

fn settings(random: &mut Random, calm: bool) -> Settings {
    let odd = |random: &mut Random, per_mille| !calm && random.chance(per_mille);
    Settings {
        timestamps: random.chance(600),
        sack: random.chance(750),
        window_scale: random.chance(800),
        mss_limit: random.pick(&[9000, 9000, 1460, 1220, 536]),
        nagle: random.chance(500),
        ack_delay: random.pick(&[None, Some(ms(10)), Some(ms(1)), Some(ms(40))]),
        keepalive: random.span(ms(150), ms(2000)),
        keepalive_byte: odd(random, 500),
        wraps: random.chance(400),
        ecn: random.chance(300),
        shrink_every: if odd(random, 50) { random.between(2, 40) } else { 0 },
        offload: random.pick(&[Offload::None, Offload::Checksum, Offload::Segmentation]),
        odd_option: odd(random, 40).then(|| random.pick(&[30, 34, 172, 253])),
        urgent_every: if odd(random, 30) { random.between(5, 40) } else { 0 },
        fragment_every: if odd(random, 30) { random.between(5, 40) } else { 0 },
        broken_every: if odd(random, 50) { random.between(5, 40) } else { 0 },
    }
}

fn flow(random: &mut Random, calm: bool) -> Flow {
    let bytes = if random.chance(150) { 0 } else { random.magnitude(1, 192 << 10) };
    let slow = random.chance(250);
    let stalls = !calm && random.chance(200);
    Flow {
        bytes,
        chunk: if slow {
            random.magnitude(bytes / 50 + 1, bytes / 4 + 2)
        } else {
            random.magnitude(2048, 64 << 10)
        },
        pause: if slow { random.span(us(100), ms(30)) } else { Duration::ZERO },
        send_buffer: random.magnitude(4 << 10, 128 << 10) as usize,
        receive_buffer: random.magnitude(2 << 10, 256 << 10) as usize,
        stall: stalls.then(|| Stall { after: random.below(bytes + 1), lasts: random.span(ms(5), ms(4000)) }),
    }
}

fn connection(random: &mut Random, calm: bool) -> Connection {
    let (to_client, to_guest) = (flow(random, calm), flow(random, calm));
    let reset = (!calm && random.chance(80)).then(|| {
        let side = random.pick(&[Side::Guest, Side::Client]);
        let bytes = if side == Side::Guest { to_client.bytes } else { to_guest.bytes };
        (side, random.below(bytes + 1))
    });
    Connection {
        opener: random.pick(&[Side::Guest, Side::Client]),
        at: random.span(us(10), ms(50)),
        to_client,
        to_guest,
        waits_to_close: random.pick(&[None, Some(Side::Guest), Some(Side::Client)]),
        reset,
    }
}

fn impairment(random: &mut Random, round_trip: Duration, calm: bool) -> Impairment {
    let slow = random.chance(300);
    let mut wire = Impairment {
        delay: round_trip / 2,
        jitter: if random.chance(500) { round_trip / random.between(2, 20) as u32 } else { Duration::ZERO },
        per_byte: if slow { Duration::from_nanos(random.magnitude(8, 400)) } else { Duration::from_nanos(1) },
        queue: random.magnitude(16, 512) as usize,
        mark: if random.chance(300) { random.magnitude(1, 200) as u32 } else { 0 },
        ..Impairment::default()
    };
    if !calm {
        let mut rate =
            |per_mille, high| if random.chance(per_mille) { random.magnitude(1, high) as u32 } else { 0 };
        wire.loss = rate(400, 50);
        wire.duplicate = rate(200, 30);
        wire.reorder = rate(300, 60);
        wire.corrupt = rate(150, 15);
        wire.stray = rate(150, 40);
        wire.late = random.span(us(50), ms(10));
    }
    wire
}

fn faults(random: &mut Random, scenario: &Scenario) -> Vec<(Moment, Fault)> {
    let epoch = scenario.epochs.length;
    let mut faults = Vec::new();
    let at = |random: &mut Random| Moment::At(random.span(ms(1), epoch * 20));
    if random.chance(550) {
        let crashes = random.pick(&[1, 1, 1, 2, 2, 3]);
        for _ in 0..crashes {
            let nth = random.magnitude(1, 30) as u32;
            let moment = match random.below(7) {
                0 => Moment::Captured(random.magnitude(1, 300) as u32),
                1 => Moment::Forged(random.magnitude(1, 200) as u32),
                2 => Moment::Sealed(nth),
                3 => Moment::Kept(nth),
                4 => Moment::Committed(nth),
                5 => Moment::Releasing(nth),
                _ => at(random),
            };
            faults.push((moment, Fault::Crash));
        }
    }
    if random.chance(120) {
        faults.push((at(random), Fault::LinkLost(random.span(ms(1), ms(400)))));
    }
    if random.chance(200) {
        let (extra, lasts) = (random.span(ms(5), ms(600)), random.span(ms(20), ms(2000)));
        faults.push((at(random), Fault::CommitsLate(extra, lasts)));
    }
    if random.chance(250) {
        for _ in 0..random.between(1, 4) {
            let mode = random.pick(&[Mode::Commit, Mode::Commit, Mode::Native, Mode::Speculative]);
            faults.push((at(random), Fault::Mode(mode)));
        }
        faults.push((at(random), Fault::Mode(Mode::Speculative)));
    }
    if random.chance(80) {
        let number = random.below(3) as u16;
        faults.push((at(random), Fault::Rule(number, false)));
        faults.push((at(random), Fault::Rule(number, true)));
    }
    if random.chance(100) {
        faults.push((at(random), Fault::Outage(random.span(ms(5), ms(3000)))));
    }
    if random.chance(15) {
        faults.push((at(random), Fault::CommitsNever));
    }
    if random.chance(15) {
        faults.push((at(random), Fault::ClientGone));
    }
    faults
}
