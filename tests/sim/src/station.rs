//! A host with a TCP that we did not write: smoltcp, its card, and the card's oddities.

use crate::random::is_one_in;
use crate::scenario::{Offload, Settings};
use crate::segment::{Place, Segment, flag, option};
use crate::surgery::{self, Link, Reassembly};
use holdfast_speculation::{SeqNum, Time};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

thread_local! {
    /// The clock that the timestamps of the station being polled are taken from, in milliseconds:
    /// smoltcp takes a plain function for it.
    static CLOCK: Cell<u32> = const { Cell::new(0) };
}

fn clock() -> u32 {
    CLOCK.get()
}

/// Addresses of guest and client.
pub(crate) fn addresses(v6: bool) -> (IpAddress, IpAddress) {
    if v6 {
        (IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 2), IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 9))
    } else {
        (IpAddress::v4(10, 0, 0, 2), IpAddress::v4(10, 0, 0, 9))
    }
}

/// One host.
pub(crate) struct Station {
    interface: Interface,
    sockets: SocketSet<'static>,
    queue: Queue,
    card: Card,
    address: IpAddress,
    peer: IpAddress,
    settings: Settings,
    clock_offset: u32,
}

/// Milliseconds before its wrap at which a clock may begin.
const BEFORE_WRAP: u32 = 3000;

impl Station {
    pub(crate) fn new(
        guest: bool,
        v6: bool,
        tags: usize,
        mtu: usize,
        settings: &Settings,
        seed: u64,
    ) -> Self {
        let (of_guest, of_client) = addresses(v6);
        let (address, peer) = if guest { (of_guest, of_client) } else { (of_client, of_guest) };
        // smoltcp forgets the timestamp option when it reckons how much fits.
        let room = if settings.timestamps { 12 } else { 0 };
        let large = settings.offload == Offload::Segmentation;
        let mut queue = Queue { mtu: if large { 16 << 10 } else { mtu + room }, ..Queue::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queue, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address, if v6 { 64 } else { 24 })).expect("room for one address");
        });
        let headers = if v6 { 60 } else { 40 };
        let card = Card {
            out: Link::new(guest, tags, v6),
            home: Link::new(!guest, tags, v6),
            settings: settings.clone(),
            announced: (mtu - headers - room) as u16,
            large: large.then_some((16 << 10) - 200),
            edges: HashMap::new(),
            progress: HashMap::new(),
            reassembly: Reassembly::default(),
            sent: 0,
            shifts: HashMap::new(),
            first: settings.wraps.then(|| SeqNum::new(u32::MAX - (seed >> 32) as u32 % (64 << 10))),
        };
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            queue,
            card,
            address,
            peer,
            settings: settings.clone(),
            clock_offset: if settings.wraps { u32::MAX - seed as u32 % BEFORE_WRAP } else { seed as u32 },
        }
    }

    /// Adds a socket that is closed.
    pub(crate) fn add_socket(&mut self, receive: usize, send: usize) -> SocketHandle {
        let mut socket =
            tcp::Socket::new(tcp::SocketBuffer::new(vec![0; receive]), tcp::SocketBuffer::new(vec![0; send]));
        socket.set_nagle_enabled(self.settings.nagle);
        socket.set_ack_delay(self.settings.ack_delay.map(|by| Duration::from_micros(by.as_micros() as u64)));
        self.sockets.add(socket)
    }

    /// The socket.
    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Listens on a port.
    pub(crate) fn listen(&mut self, handle: SocketHandle, port: u16) {
        self.prepare(handle);
        self.socket(handle).listen(port).expect("a closed socket and a port");
    }

    /// Connects to the other host.
    pub(crate) fn connect(&mut self, handle: SocketHandle, from: u16, to: u16) {
        self.prepare(handle);
        let (address, peer) = (self.address, self.peer);
        self.sockets
            .get_mut::<tcp::Socket>(handle)
            .connect(self.interface.context(), (peer, to), (address, from))
            .expect("a closed socket and addresses");
    }

    fn prepare(&mut self, handle: SocketHandle) {
        let timestamps = self.settings.timestamps;
        let interval = Duration::from_micros(self.settings.keepalive.as_micros() as u64);
        let socket = self.socket(handle);
        socket.set_tsval_generator(timestamps.then_some(clock as fn() -> u32));
        socket.set_keep_alive(Some(interval));
    }

    /// Sets the interval of keepalives. In some states smoltcp forgets that it must send again once
    /// anything comes; its own keepalives mend that, if the other side's do not come first.
    pub(crate) fn set_keepalive(&mut self, handle: SocketHandle, guest: bool) {
        let usual = Duration::from_micros(self.settings.keepalive.as_micros() as u64);
        let socket = self.socket(handle);
        let interval = match socket.state() {
            tcp::State::FinWait1 | tcp::State::FinWait2 => Duration::from_secs(15),
            tcp::State::LastAck => Duration::from_millis(1600),
            tcp::State::Closing => Duration::from_millis(if guest { 1600 } else { 4000 }),
            _ => usual,
        };
        if socket.keep_alive().is_some_and(|present| present != interval) {
            socket.set_keep_alive(Some(interval));
        }
    }

    /// Hands frames to the host.
    pub(crate) fn receive(&mut self, frame: Vec<u8>) {
        if let Some(packet) = self.card.receive(frame) {
            self.queue.received.push_back(packet);
        }
    }

    /// Lets the host run at `now` on its own clock, and appends what it sends.
    pub(crate) fn poll(&mut self, now: Time, out: &mut Vec<Vec<u8>>) {
        CLOCK.set(((now.as_ns() / 1_000_000) as u32).wrapping_add(self.clock_offset));
        self.interface.poll(instant(now), &mut self.queue, &mut self.sockets);
        for packet in self.queue.sent.drain(..) {
            self.card.send(packet, out);
        }
    }

    /// When it wants to run again.
    pub(crate) fn deadline(&mut self, now: Time) -> Option<Time> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Time::from_ns(u64::try_from(at.total_micros()).unwrap_or(0) * 1000).max(now))
    }
}

fn instant(now: Time) -> Instant {
    Instant::from_micros((now.as_ns() / 1000) as i64)
}

/// How far a flow has come, as its card sees it.
#[derive(Default)]
struct Progress {
    sent: SeqNum,
    confirmed: SeqNum,
    /// The last ACK of its own.
    said: SeqNum,
    /// ACKs in a row that did not advance.
    repeated: u64,
    /// The other side asked for ECN.
    peer_asks: bool,
    /// Congestion was marked, and the other side has not answered.
    marked: bool,
    /// The other side has seen a mark.
    reduce: bool,
}

/// What lies between the packets of a host and the frames of its link.
struct Card {
    out: Link,
    home: Link,
    settings: Settings,
    /// The MSS that is announced to the other side.
    announced: u16,
    /// The MSS that the host is told of, so that it sends large segments.
    large: Option<u16>,
    /// Right edges of the windows offered, by the ports (own, other).
    edges: HashMap<(u16, u16), (SeqNum, u8)>,
    /// How far each flow has come, by the ports (own, other).
    progress: HashMap<(u16, u16), Progress>,
    reassembly: Reassembly,
    sent: u64,
    /// What is added to the host's own sequence numbers, by the ports (own, other).
    shifts: HashMap<(u16, u16), u32>,
    /// The first sequence number, if they are shifted.
    first: Option<SeqNum>,
}

impl Card {
    fn send(&mut self, packet: Vec<u8>, out: &mut Vec<Vec<u8>>) {
        let mut frame = self.out.frame(&packet);
        self.sent += 1;
        self.shift_out(&mut frame);
        let Some(segment) = Segment::parse(&frame) else {
            out.push(frame);
            return;
        };
        let place = segment.place;
        if !place.v6 {
            surgery::put(&mut frame, place.ip + 4, &(self.sent as u16).to_be_bytes());
        }
        if segment.has(flag::SYN) {
            let (sent, confirmed) = (segment.end(), segment.seq);
            let progress = self.progress.entry(segment.ports).or_default();
            (progress.sent, progress.confirmed, progress.repeated) = (sent, confirmed, 0);
            self.dress_syn(&mut frame, &place);
        } else if let Some(confirmed) = self.is_keepalive(&segment, &frame) {
            surgery::trim(&mut frame, &place, 0);
            surgery::set_seq(&mut frame, &place, confirmed - 1);
        } else if !segment.payload.is_empty() && is_one_in(self.sent, self.settings.urgent_every) {
            frame[place.tcp + 13] |= flag::URG;
        }
        self.notify(&mut frame, &segment);
        self.remember_edge(&frame);
        // Not where smoltcp counts repeated ACKs, which must be alike.
        let progress = self.progress.entry(segment.ports).or_default();
        let news = segment.ack.is_some_and(|ack| std::mem::replace(&mut progress.said, ack) != ack);
        if is_one_in(self.sent, self.settings.shrink_every) && news && !segment.has(flag::SYN | flag::RST) {
            surgery::set_window(&mut frame, &place, segment.window - segment.window / 4);
        }
        surgery::complete(&mut frame);
        if is_one_in(self.sent, self.settings.fragment_every) {
            if let Some(pieces) = surgery::fragments(&frame) {
                out.extend(pieces);
                return;
            }
        }
        if self.settings.offload != Offload::None {
            surgery::leave_to_the_card(&mut frame);
        }
        out.push(frame);
    }

    /// smoltcp's keepalives carry a zero byte, as RFC 1122 §4.2.3.6 allows; but it sends them while
    /// something is in flight as well, where the byte would be taken for one of the stream. What was
    /// confirmed so far, if this is one.
    fn is_keepalive(&mut self, segment: &Segment, frame: &[u8]) -> Option<SeqNum> {
        let Progress { sent, confirmed, .. } = self.progress.get_mut(&segment.ports)?;
        let zero = segment.len() == 1 && frame[segment.payload.start] == 0;
        let keepalive = zero && segment.end() == *sent && !segment.has(flag::PSH | flag::FIN);
        if !segment.has(flag::RST) {
            *sent = sent.later(segment.end());
        }
        (keepalive && !(self.settings.keepalive_byte && *sent == *confirmed)).then_some(*confirmed)
    }

    /// Shifts the host's sequence numbers to where they wrap soon.
    fn shift_out(&mut self, frame: &mut [u8]) {
        let (Some(first), Some(segment)) = (self.first, Segment::parse(frame)) else { return };
        if segment.has(flag::SYN) {
            self.shifts.insert(segment.ports, first.get().wrapping_sub(segment.seq.get()));
        }
        if let Some(&shift) = self.shifts.get(&segment.ports) {
            surgery::set_seq(frame, &segment.place, segment.seq + shift);
        }
    }

    /// Shifts what is said of them back.
    fn shift_in(&self, frame: &mut [u8], segment: &Segment) {
        let Some(&shift) = self.shifts.get(&(segment.ports.1, segment.ports.0)) else { return };
        if let Some(ack) = segment.ack {
            surgery::set_ack(frame, &segment.place, ack - shift);
        }
        if let Some(at) = surgery::find_option(frame, &segment.place, option::SACK) {
            for (block, &(left, right)) in segment.sacks.iter().enumerate() {
                surgery::put(frame, at + 8 * block, &(left - shift).get().to_be_bytes());
                surgery::put(frame, at + 8 * block + 4, &(right - shift).get().to_be_bytes());
            }
        }
        surgery::complete(frame);
    }

    /// Plays ECN (RFC 3168 §6.1): SYNs ask for it, new data allows marks, marks are echoed until CWR.
    fn notify(&mut self, frame: &mut [u8], segment: &Segment) {
        if !self.settings.ecn {
            return;
        }
        let at = segment.place.tcp + 13;
        let answer = segment.has(flag::SYN) && segment.ack.is_some();
        let progress = self.progress.entry(segment.ports).or_default();
        if segment.has(flag::SYN) {
            match answer {
                false => frame[at] |= flag::ECE | flag::CWR,
                true if progress.peer_asks => frame[at] |= flag::ECE,
                true => {}
            }
        } else if progress.peer_asks && !segment.has(flag::RST) {
            if progress.marked {
                frame[at] |= flag::ECE;
            }
            if !segment.payload.is_empty() {
                if std::mem::take(&mut progress.reduce) {
                    frame[at] |= flag::CWR;
                }
                surgery::allow_marks(frame, &segment.place);
            }
        }
    }

    /// Takes note of marks, and of what the other side says of them.
    fn note_marks(&mut self, frame: &[u8], segment: &Segment) {
        let progress = self.progress.entry((segment.ports.1, segment.ports.0)).or_default();
        if segment.has(flag::SYN) {
            progress.peer_asks = segment.has(flag::ECE);
            return;
        }
        progress.reduce |= progress.peer_asks && segment.has(flag::ECE);
        if segment.has(flag::CWR) {
            progress.marked = false;
        }
        if progress.peer_asks && surgery::is_marked(frame, &segment.place) {
            progress.marked = true;
        }
    }

    fn dress_syn(&mut self, frame: &mut Vec<u8>, place: &Place) {
        if let Some(value) = surgery::find_option(frame, place, option::MSS) {
            let mss = self.announced.min(self.settings.mss_limit);
            surgery::put(frame, value, &mss.to_be_bytes());
        }
        self.strip(frame, place);
        if let Some(kind) = self.settings.odd_option {
            surgery::add_option(frame, place, kind);
        }
    }

    /// Takes away from a SYN what the host is not to know.
    fn strip(&self, frame: &mut [u8], place: &Place) {
        if !self.settings.sack {
            surgery::blank_option(frame, place, option::SACK_PERMITTED);
        }
        if !self.settings.window_scale {
            surgery::blank_option(frame, place, option::WINDOW_SCALE);
        }
    }

    fn remember_edge(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame) else { return };
        let Some(ack) = segment.ack else {
            self.edges.insert(segment.ports, (segment.seq, segment.scale.unwrap_or(0)));
            return;
        };
        let entry = self.edges.entry(segment.ports).or_insert((ack, segment.scale.unwrap_or(0)));
        if segment.has(flag::SYN) {
            *entry = (ack + u32::from(segment.window), segment.scale.unwrap_or(0));
        } else {
            let edge = ack + (u32::from(segment.window) << entry.1);
            *entry = (edge, entry.1);
        }
    }

    /// The packet of a frame, as the host gets to see it.
    fn receive(&mut self, frame: Vec<u8>) -> Option<Vec<u8>> {
        let mut frame = self.reassembly.take(frame, &self.home)?;
        let Some(segment) = Segment::parse(&frame) else { return self.home.packet(&frame) };
        let place = segment.place;
        if !crate::segment::adds_up(&frame) {
            return None;
        }
        self.note_marks(&frame, &segment);
        if self.note_ack(&segment) && segment.window > 1 {
            surgery::set_window(&mut frame, &place, segment.window - 1);
            surgery::complete(&mut frame);
        }
        if segment.has(flag::SYN) {
            self.strip(&mut frame, &place);
            if segment.scale.is_none() || !self.settings.window_scale {
                if let Some(entry) = self.edges.get_mut(&(segment.ports.1, segment.ports.0)) {
                    entry.1 = 0;
                }
            }
            if let (Some(large), Some(value)) =
                (self.large, surgery::find_option(&frame, &place, option::MSS))
            {
                surgery::put(&mut frame, value, &large.to_be_bytes());
            }
            surgery::complete(&mut frame);
        } else if !segment.payload.is_empty() {
            self.keep_within_the_window(&mut frame, &segment);
        }
        if let Some(segment) = Segment::parse(&frame) {
            self.shift_in(&mut frame, &segment);
        }
        self.home.packet(&frame)
    }

    /// smoltcp counts repeated ACKs up to three and sends again then, once; where its timer is lost as
    /// well, it would never do so again. A window that changes lets it count anew: true each seventh time.
    fn note_ack(&mut self, segment: &Segment) -> bool {
        let Some(progress) = self.progress.get_mut(&(segment.ports.1, segment.ports.0)) else { return false };
        // A stranger may say anything.
        let Some(ack) = segment.ack.filter(|ack| !ack.after(progress.sent)) else { return false };
        if ack != progress.confirmed {
            progress.repeated = 0;
            progress.confirmed = progress.confirmed.later(ack);
            return false;
        }
        // A probe in between is no repeated ACK to smoltcp, and must not keep the seventh from coming.
        let repeats = segment.end() == segment.seq;
        progress.repeated += u64::from(repeats);
        repeats && progress.repeated % 7 == 6
    }

    /// smoltcp 0.12 panics when it accepts bytes beyond the edge that it offered last, which its
    /// buffer may have room for. A receiver may trim to the offered window (RFC 9293 §3.10.7.4); of
    /// a probe nothing is left, and it must be answered all the same.
    fn keep_within_the_window(&self, frame: &mut Vec<u8>, segment: &Segment) {
        let Some(&(edge, _)) = self.edges.get(&(segment.ports.1, segment.ports.0)) else { return };
        let room = edge.bytes_since(segment.seq);
        if !segment.end().after(edge) {
            return;
        }
        surgery::trim(frame, &segment.place, room as usize);
        if room == 0 {
            surgery::set_seq(frame, &segment.place, edge - 1);
        }
        surgery::complete(frame);
    }
}

/// smoltcp's device: two queues.
#[derive(Default)]
struct Queue {
    mtu: usize,
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Slot<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Queue {
    type RxToken<'a> = Received;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Slot<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Slot(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Slot<'_>> {
        Some(Slot(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
