//! A host with its application: it opens connections, writes its streams, reads what comes.
//!
//! A party is a pure function of the calls made to it, so that the same calls make the same party: the
//! guest's checkpoint rests on it.

use crate::content::History;
use crate::scenario::{Connection, Flow, Scenario, Side};
use crate::station::Station;
use holdfast_speculation::Time;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use std::time::Duration;

/// Port of a connection at the side that listens.
pub(crate) const SERVICE: u16 = 5000;
/// Port of a connection at the side that opens it.
pub(crate) const EPHEMERAL: u16 = 40000;

/// Number of the stream of one direction of a connection.
pub(crate) const fn stream(connection: usize, from: Side) -> u64 {
    (connection as u64) << 1 | matches!(from, Side::Client) as u64 | 0x5eed << 48
}

/// One end of a connection, and the application behind it.
#[derive(Debug)]
pub(crate) struct Session {
    /// Number of the connection.
    pub(crate) connection: usize,
    side: Side,
    opens: bool,
    opened: bool,
    begins: Time,
    writes: Flow,
    reads: Flow,
    waits: bool,
    reset_after: Option<u64>,
    handle: SocketHandle,
    next_write: Time,
    resumes: Option<Time>,
    stalled: bool,
    /// Bytes written so far.
    pub(crate) written: u64,
    /// In which lives.
    pub(crate) history: History,
    /// What was read so far.
    pub(crate) received: Vec<u8>,
    /// The other side has closed, and everything was read.
    pub(crate) peer_closed: bool,
    /// This side has reset it.
    pub(crate) aborted: bool,
    closed: bool,
    /// What the socket's state was when it was looked at last.
    pub(crate) state: State,
    /// It was established once.
    pub(crate) established: bool,
}

impl Session {
    fn new(connection: usize, side: Side, plan: &Connection, station: &mut Station) -> Self {
        let (writes, reads) = match side {
            Side::Guest => (&plan.to_client, &plan.to_guest),
            Side::Client => (&plan.to_guest, &plan.to_client),
        };
        let mut session = Self {
            connection,
            side,
            opens: plan.opener == side,
            opened: false,
            begins: Time::ZERO + plan.at,
            writes: writes.clone(),
            reads: reads.clone(),
            waits: plan.waits_to_close == Some(side),
            reset_after: plan.reset.and_then(|(who, after)| (who == side).then_some(after)),
            handle: station.add_socket(reads.receive_buffer, writes.send_buffer),
            next_write: Time::ZERO,
            resumes: None,
            stalled: false,
            written: 0,
            history: History::default(),
            received: Vec::new(),
            peer_closed: false,
            aborted: false,
            closed: false,
            state: State::Closed,
            established: false,
        };
        if !session.opens {
            station.listen(session.handle, SERVICE + connection as u16);
            session.opened = true;
            session.state = State::Listen;
        }
        session
    }

    /// All was written and read, and both sides have closed.
    pub(crate) fn finished(&self) -> bool {
        self.closed && self.peer_closed && matches!(self.state, State::Closed | State::TimeWait)
    }

    /// The connection is gone, whatever became of the streams.
    pub(crate) fn gone(&self) -> bool {
        self.opened && matches!(self.state, State::Closed | State::TimeWait)
    }

    /// It ended though neither this side reset it nor the streams were done.
    pub(crate) fn cut_off(&self) -> bool {
        self.gone() && !self.aborted && !self.finished() && self.resumes.is_none()
    }

    fn step(&mut self, now: Time, life: u32, station: &mut Station) {
        if !self.opened {
            if now < self.begins {
                return;
            }
            self.opened = true;
            let number = self.connection as u16;
            station.connect(self.handle, EPHEMERAL + number, SERVICE + number);
        }
        let socket = station.socket(self.handle);
        self.established |= socket.may_send();
        self.read(now, socket);
        self.write(now, life, socket);
        if self.reset_after.is_some_and(|after| self.written >= after) && self.established && !self.aborted {
            socket.abort();
            self.aborted = true;
        }
        let done = self.written == self.writes.bytes && (!self.waits || self.peer_closed);
        if done && !self.closed && self.established && !self.aborted {
            socket.close();
            self.closed = true;
        }
        self.state = socket.state();
    }

    fn read(&mut self, now: Time, socket: &mut smoltcp::socket::tcp::Socket<'static>) {
        if self.resumes.is_some_and(|at| at <= now) {
            self.resumes = None;
        }
        loop {
            if self.resumes.is_some() {
                return;
            }
            let mut most = usize::MAX;
            if let (Some(stall), false) = (self.reads.stall, self.stalled) {
                most = (stall.after - self.received.len() as u64) as usize;
                if most == 0 {
                    self.stalled = true;
                    self.resumes = Some(now + stall.lasts);
                    return;
                }
            }
            let before = self.received.len();
            let received = &mut self.received;
            let read = socket.recv(|bytes| {
                let len = bytes.len().min(most);
                received.extend(&bytes[..len]);
                (len, ())
            });
            if read == Err(smoltcp::socket::tcp::RecvError::Finished) {
                self.peer_closed = true;
            }
            if read.is_err() || self.received.len() == before {
                return;
            }
        }
    }

    fn write(&mut self, now: Time, life: u32, socket: &mut smoltcp::socket::tcp::Socket<'static>) {
        while self.written < self.writes.bytes && now >= self.next_write && socket.can_send() {
            let most = self.reset_after.unwrap_or(u64::MAX).min(self.writes.bytes) - self.written;
            let len = self.writes.chunk.min(most);
            if len == 0 {
                return;
            }
            self.history.mark(self.written, life);
            let stream = stream(self.connection, self.side);
            let (history, written) = (&self.history, self.written);
            let wrote = socket
                .send(|room| {
                    let len = room.len().min(len as usize);
                    history.fill(stream, written, &mut room[..len]);
                    (len, len)
                })
                .unwrap_or(0);
            self.written += wrote as u64;
            if !self.writes.pause.is_zero() {
                self.next_write = now + self.writes.pause;
            }
        }
    }

    /// When the application wants to run again by itself.
    fn deadline(&self, now: Time) -> Option<Time> {
        if !self.opened {
            return Some(self.begins);
        }
        let writes = (self.written < self.writes.bytes && self.next_write > now).then_some(self.next_write);
        [writes, self.resumes].into_iter().flatten().min()
    }

    /// Bytes that this side is to send in all.
    pub(crate) const fn to_write(&self) -> u64 {
        self.writes.bytes
    }

    /// Bytes that this side is to receive in all.
    pub(crate) const fn to_read(&self) -> u64 {
        self.reads.bytes
    }
}

/// One host with its application.
pub(crate) struct Party {
    station: Station,
    pub(crate) sessions: Vec<Session>,
    life: u32,
    last: Time,
}

impl Party {
    pub(crate) fn new(side: Side, scenario: &Scenario) -> Self {
        let guest = side == Side::Guest;
        let settings = if guest { &scenario.guest } else { &scenario.client };
        let seed = crate::random::spread(scenario.seed ^ if guest { 0x6e57 } else { 0xc11e });
        let mtu = usize::from(scenario.mtu);
        let mut station = Station::new(guest, scenario.v6, scenario.tags, mtu, settings, seed);
        let sessions = scenario
            .connections
            .iter()
            .enumerate()
            .map(|(number, plan)| Session::new(number, side, plan, &mut station))
            .collect();
        Self { station, sessions, life: 0, last: Time::ZERO }
    }

    /// A new life begins: what is written from now on differs.
    pub(crate) fn begin_life(&mut self, life: u32) {
        self.life = life;
    }

    /// Runs at `now`, on its own clock, with these frames; appends what it sends.
    pub(crate) fn run(
        &mut self,
        now: Time,
        frames: impl IntoIterator<Item = Vec<u8>>,
        out: &mut Vec<Vec<u8>>,
    ) {
        self.last = now;
        for frame in frames {
            self.station.receive(frame);
        }
        self.station.poll(now, out);
        for session in &mut self.sessions {
            session.step(now, self.life, &mut self.station);
        }
        self.station.poll(now, out);
        for session in &mut self.sessions {
            session.state = self.station.socket(session.handle).state();
            self.station.set_keepalive(session.handle, session.side == Side::Guest);
        }
    }

    /// When it wants to run again, on its own clock.
    pub(crate) fn deadline(&mut self) -> Option<Time> {
        let stack = self.station.deadline(self.last);
        let application = self.sessions.iter().filter_map(|session| session.deadline(self.last)).min();
        // What is due at once waits a little: nothing happens twice at one moment.
        let soonest = self.last + Duration::from_micros(20);
        [stack, application].into_iter().flatten().min().map(|at| at.max(soonest))
    }
}
