//! One host's end of the link: the paths of all its sessions behind one station of the network.

use crate::counters::{Counter, Counters};
use crate::frame::{Addresses, MTU_MAX, MTU_MIN};
use crate::neighbour::Neighbour;
use crate::path::{Class, Lost, News, Path, Token};
use crate::quic;
use crate::record::Record;
use bytes::{Bytes, BytesMut};
use quinn_proto::{ClientConfig, ConnectionHandle, DatagramEvent, Endpoint, Incoming};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Datagrams that one path makes before another's turn.
const BURST: usize = 8;
/// Paths that may be at their handshake at a time.
const HANDSHAKES: usize = 64;
/// Buffers that are kept for records to come.
const SPARE: usize = 16;
/// Answers to strangers that may wait.
const ANSWERS: usize = 16;
/// Name in each certificate; nobody reads it.
const NAME: &str = "holdfast";

/// Where a port is, and where its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The port's own station.
    pub mac: [u8; 6],
    /// Its address.
    pub address: IpAddr,
    /// The other host's address, on the same network.
    pub peer: IpAddr,
    /// The other host's station, where it shall not be asked for.
    pub peer_mac: Option<[u8; 6]>,
    /// The UDP port of both.
    pub udp_port: u16,
    /// Bytes of a packet: the same on both hosts and all the way.
    pub mtu: u16,
    /// Bytes of a record's body, at most.
    pub record_limit: usize,
}

/// Why no port can be made of the settings.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// One address is of IPv4 and the other of IPv6, both are the same, or one is nobody's.
    #[error("{0} and {1} are not two hosts' addresses of one kind")]
    Addresses(IpAddr, IpAddr),
    /// Nothing can be sent there.
    #[error("0 is no UDP port")]
    UdpPort,
    /// Packets are too small or too large.
    #[error("an MTU of {0} is not between {MTU_MIN} and {MTU_MAX}")]
    Mtu(u16),
    /// TLS lacks what QUIC begins with.
    #[error("TLS has no AES-128-GCM, with which QUIC begins")]
    Tls,
}

/// Names a path of a port; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(u64);

/// What became of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both ends know the session: records can go.
    Up {
        /// The session.
        token: Token,
        /// Its path.
        path: PathId,
        /// Which of the session's paths it is, as the dialling host counts.
        number: u64,
    },
    /// It is no more; what was sent and not received is gone.
    Lost {
        /// The session, if it was known.
        token: Option<Token>,
        /// The path.
        path: PathId,
        /// Why.
        why: Lost,
    },
}

/// Datagrams that were made, and wait to be taken as frames.
#[derive(Default)]
struct Made {
    bytes: Vec<u8>,
    taken: usize,
    segment: usize,
}

impl Made {
    fn next(&self) -> &[u8] {
        let rest = &self.bytes[self.taken..];
        &rest[..rest.len().min(self.segment)]
    }
}

/// One host's end of the link.
pub struct Port {
    addresses: Addresses,
    peer: SocketAddr,
    datagram_max: u16,
    record_limit: usize,
    neighbour: Neighbour,
    endpoint: Endpoint,
    client: ClientConfig,
    paths: BTreeMap<PathId, Path>,
    by_handle: HashMap<ConnectionHandle, PathId>,
    awaited: HashSet<Token>,
    next_id: u64,
    /// Whose turn it was to make datagrams.
    turn: PathId,
    made: Made,
    /// For bodies of bulk records to come.
    spare: Vec<Vec<u8>>,
    answers: VecDeque<Vec<u8>>,
    /// A frame that is no datagram.
    plain: Option<Vec<u8>>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Port {
    /// A port without paths. Both sides of TLS must be there: either host may open a session.
    ///
    /// # Errors
    /// When the settings cannot be.
    pub fn new(
        settings: Settings,
        dialling: &rustls::ClientConfig,
        accepting: &rustls::ServerConfig,
        now: Instant,
    ) -> Result<Self, SettingsError> {
        let Settings { mac, address, peer, peer_mac, udp_port, mtu, record_limit } = settings;
        let nobodys = address.is_unspecified() || peer.is_unspecified();
        if address.is_ipv4() != peer.is_ipv4() || address == peer || nobodys {
            return Err(SettingsError::Addresses(address, peer));
        }
        if udp_port == 0 {
            return Err(SettingsError::UdpPort);
        }
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(SettingsError::Mtu(mtu));
        }
        let addresses = Addresses { own_mac: mac, own: address, peer, port: udp_port };
        let datagram_max = addresses.datagram_max(mtu);
        let server = quic::server(accepting, datagram_max).map_err(|_| SettingsError::Tls)?;
        let client = quic::client(dialling, datagram_max).map_err(|_| SettingsError::Tls)?;
        let endpoint =
            Endpoint::new(Arc::new(quic::endpoint(datagram_max)), Some(Arc::new(server)), false, None);
        Ok(Self {
            addresses,
            peer: SocketAddr::new(peer, udp_port),
            datagram_max,
            record_limit,
            neighbour: Neighbour::new(peer_mac, now),
            endpoint,
            client,
            paths: BTreeMap::new(),
            by_handle: HashMap::new(),
            awaited: HashSet::new(),
            next_id: 0,
            turn: PathId(0),
            made: Made::default(),
            spare: Vec::with_capacity(SPARE),
            answers: VecDeque::new(),
            plain: None,
            events: VecDeque::new(),
            counters: Counters::default(),
        })
    }

    /// Longest frame that is ever made.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.addresses.headers() + usize::from(self.datagram_max)
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        let lost = |path: &Path| path.connection.stats().path.lost_packets;
        counters.add(Counter::Lost, self.paths.values().map(lost).sum());
        counters
    }

    /// Opens the session's path of this number; [`Event::Up`] or [`Event::Lost`] follows.
    pub fn dial(&mut self, token: Token, number: u64, now: Instant) -> PathId {
        let mut client = self.client.clone();
        let address = token.address_of(number);
        client.initial_dst_cid_provider(Arc::new(move || address));
        let dialled = self.endpoint.connect(now, client, self.peer, NAME);
        let (handle, connection) = dialled.expect("an endpoint with room, a valid name and address");
        self.add(handle, connection, Some((token, number)), now)
    }

    /// From now on paths of this session are taken, until [`Port::forget`].
    pub fn await_peer(&mut self, token: Token) {
        self.awaited.insert(token);
    }

    /// The session is over: no path of it is taken any more, and those it has are closed.
    pub fn forget(&mut self, token: Token, now: Instant) {
        self.awaited.remove(&token);
        for path in self.paths.values_mut().filter(|path| path.token == Some(token) && !path.ended) {
            path.close("the session is over", now);
        }
    }

    /// Closes a path; no event follows.
    pub fn close(&mut self, path: PathId, now: Instant) {
        if let Some(path) = self.paths.get_mut(&path).filter(|path| !path.ended) {
            path.close("not used any more", now);
        }
    }

    /// Queues a record; swallowed when the path is not up. Its body is within the limit, or the peer ends
    /// the path.
    ///
    /// Nothing is copied. Its cost is in that of [`Port::next_frame`].
    pub fn send(&mut self, path: PathId, class: Class, tag: u32, body: Bytes) {
        if let Some(path) = self.paths.get_mut(&path).filter(|path| path.is_up()) {
            path.send(class, tag, body);
        }
    }

    /// Bytes of records that wait because the path's window is full; whoever sends looks at this first.
    #[must_use]
    pub fn waiting_bytes(&self, path: PathId) -> usize {
        self.paths.get(&path).map_or(0, Path::waiting_bytes)
    }

    /// The next record that came: urgent ones first. What is not taken stays with the sender, whose window
    /// closes.
    ///
    /// 60 ns for each frame of 1514 bytes that came, 220 of 9014, with the copy into the record (`cargo bench -p
    /// holdfast-bypass`).
    pub fn receive(&mut self, id: PathId, class: Class, now: Instant) -> Option<Record> {
        let path = self.paths.get_mut(&id).filter(|path| path.is_up())?;
        match path.receive(class, &mut self.spare) {
            Ok(record) => record,
            Err(lost) => {
                self.lose(id, lost, now);
                None
            }
        }
    }

    /// Gives back the body of a record that was dealt with, to be filled again.
    pub fn give_back(&mut self, body: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(body);
        }
    }

    /// Takes a frame from the wire.
    ///
    /// Bound: one datagram. Allocations: its copy, and QUIC's own. 0.54 us a frame of 1514 bytes, 1.3 of 9014
    /// (`cargo bench -p holdfast-bypass`).
    pub fn handle_frame(&mut self, frame: &[u8], now: Instant) {
        self.counters.add(Counter::FramesIn, 1);
        if self.neighbour.handle(&self.addresses, frame, now) {
            return;
        }
        if frame.get(12..14) != Some(&self.ethertype()) || frame[..6] != self.addresses.own_mac {
            return self.counters.add(Counter::Foreign, 1);
        }
        match self.addresses.datagram(frame) {
            Ok(datagram) => self.handle_datagram(&frame[datagram], now),
            Err(counter) => self.counters.add(counter, 1),
        }
    }

    const fn ethertype(&self) -> [u8; 2] {
        use holdfast_packet::headers::ethertype;
        let number = if self.addresses.own.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        number.to_be_bytes()
    }

    fn handle_datagram(&mut self, datagram: &[u8], now: Instant) {
        let mut answer = Vec::new();
        match self.endpoint.handle(now, self.peer, None, None, BytesMut::from(datagram), &mut answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(path) = self.by_handle.get(&handle).and_then(|id| self.paths.get_mut(id)) else {
                    return;
                };
                path.connection.handle_event(event);
                if path.refused_packet() {
                    self.counters.add(Counter::Refused, 1);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(incoming, now),
            Some(DatagramEvent::Response(_)) => {
                self.counters.add(Counter::Refused, 1);
                self.answer(answer);
            }
            None => self.counters.add(Counter::Refused, 1),
        }
    }

    fn answer(&mut self, datagram: Vec<u8>) {
        if self.answers.len() < ANSWERS {
            self.answers.push_back(datagram);
        }
    }

    fn accept(&mut self, incoming: Incoming, now: Instant) {
        let address = incoming.orig_dst_cid();
        if !self.awaited.iter().any(|token| token.owns(address)) {
            self.counters.add(Counter::Strange, 1);
            return self.endpoint.ignore(incoming);
        }
        let greeting = self.paths.values().filter(|path| !path.is_up() && !path.ended).count();
        if greeting >= HANDSHAKES {
            self.counters.add(Counter::Crowded, 1);
            return self.endpoint.ignore(incoming);
        }
        let mut answer = Vec::new();
        match self.endpoint.accept(incoming, now, &mut answer, None) {
            Ok((handle, connection)) => {
                self.add(handle, connection, None, now);
            }
            Err(fault) => {
                self.counters.add(Counter::Refused, 1);
                if fault.response.is_some() {
                    self.answer(answer);
                }
            }
        }
    }

    fn add(
        &mut self,
        handle: ConnectionHandle,
        connection: quinn_proto::Connection,
        session: Option<(Token, u64)>,
        now: Instant,
    ) -> PathId {
        self.next_id += 1;
        let id = PathId(self.next_id);
        self.by_handle.insert(handle, id);
        self.paths.insert(id, Path::new(handle, connection, session, self.record_limit, now));
        id
    }

    /// Does what is due, and finds out what became of the paths.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut last = PathId(0);
        while let Some(id) = self.after(last) {
            last = id;
            let path = self.paths.get_mut(&id).expect("found just now");
            if path.connection.poll_timeout().is_some_and(|due| due <= now) {
                path.connection.handle_timeout(now);
            }
            while let Some(event) = path.connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(path.handle, event) {
                    path.connection.handle_event(event);
                }
            }
            match path.poll(now) {
                None => {}
                Some(News::Greeted(token, number)) => self.greeted(id, token, number, now),
                Some(News::Lost(lost)) => self.lose(id, lost, now),
            }
            self.bury(id);
        }
    }

    fn greeted(&mut self, id: PathId, token: Token, number: u64, now: Instant) {
        let path = self.paths.get_mut(&id).expect("it greeted just now");
        match path.token {
            Some(own) if own == token && path.number == number => {}
            None if self.awaited.contains(&token) => {
                (path.token, path.number) = (Some(token), number);
                path.greet();
            }
            _ => return self.lose(id, Lost::Peer("it named a session that is not here".to_owned()), now),
        }
        path.set_up();
        self.counters.add(Counter::PathsUp, 1);
        self.events.push_back(Event::Up { token, path: id, number });
    }

    fn lose(&mut self, id: PathId, why: Lost, now: Instant) {
        let Some(path) = self.paths.get_mut(&id).filter(|path| !path.ended) else { return };
        self.counters.add(Counter::PathsLost, 1);
        self.events.push_back(Event::Lost { token: path.token, path: id, why: why.clone() });
        path.close(&why.to_string(), now);
    }

    /// Forgets a path of which nobody expects anything any more.
    fn bury(&mut self, id: PathId) {
        if self.paths.get(&id).is_some_and(|path| path.ended && path.connection.is_drained()) {
            let path = self.paths.remove(&id).expect("looked at just now");
            self.counters.add(Counter::Lost, path.connection.stats().path.lost_packets);
            self.by_handle.remove(&path.handle);
        }
    }

    /// What became of paths.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Port::handle_timeout`] has something to do, or a frame is due.
    #[must_use]
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let asking = self.neighbour.deadline().filter(|_| !self.paths.is_empty());
        self.paths.values_mut().filter_map(Path::next_deadline).chain(asking).min()
    }

    /// Length of the frame that is to be sent next, if there is one; [`Port::take_frame`] writes it.
    ///
    /// Bound: [`BURST`] datagrams of each path. With [`Port::take_frame`] and all that QUIC and the AEAD do: 0.54 us a frame
    /// of 1514 bytes, 1.5 of 9014 (`cargo bench -p holdfast-bypass`).
    pub fn next_frame(&mut self, now: Instant) -> Option<usize> {
        if let Some(frame) = &self.plain {
            return Some(frame.len());
        }
        if self.made.next().is_empty() {
            if let Some(frame) = self.neighbour.poll(&self.addresses, now) {
                return Some(self.plain.insert(frame).len());
            }
            self.neighbour.mac()?;
            self.make(now);
        }
        let datagram = self.made.next().len();
        (datagram > 0).then(|| self.addresses.headers() + datagram)
    }

    /// The path that was made next after another; there is none of number 0.
    fn after(&self, id: PathId) -> Option<PathId> {
        self.paths.range((Bound::Excluded(id), Bound::Unbounded)).next().map(|(id, _)| *id)
    }

    /// Lets the next path in turn make a burst of datagrams.
    fn make(&mut self, now: Instant) {
        self.made.bytes.clear();
        self.made.taken = 0;
        if let Some(answer) = self.answers.pop_front() {
            self.made.segment = answer.len();
            self.made.bytes = answer;
            return;
        }
        for _ in 0..self.paths.len() {
            let next = self.after(self.turn).or_else(|| self.after(PathId(0)));
            let Some(id) = next else { return };
            self.turn = id;
            let path = self.paths.get_mut(&id).expect("found just now");
            path.flush();
            if let Some(made) = path.connection.poll_transmit(now, BURST, &mut self.made.bytes) {
                self.made.segment = made.segment_size.unwrap_or(made.size);
                return;
            }
        }
    }

    /// Writes the frame that [`Port::next_frame`] spoke of; its cost is in the figure there.
    ///
    /// Bound: one copy. Allocations: none.
    ///
    /// # Panics
    /// When `frame` has another length, or there is none.
    pub fn take_frame(&mut self, frame: &mut [u8]) {
        self.counters.add(Counter::FramesOut, 1);
        if let Some(plain) = self.plain.take() {
            return frame.copy_from_slice(&plain);
        }
        let to = self.neighbour.mac().expect("datagrams are made for a station that is known");
        let datagram = self.made.next();
        self.addresses.write(to, datagram, frame);
        self.made.taken += datagram.len();
    }
}
