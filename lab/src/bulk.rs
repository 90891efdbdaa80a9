//! The client as a meter of downloads: transfers of a size, one at a time, and many flows for a time.
//!
//! Every byte is checked against the stream of its connection as it comes. Times are the client's own: a
//! guest that is paused has a slow clock.

use crate::client::{Client, ClientError};
use holdfast_guest_init::protocol::{Direction, Request, STREAM_PORT};
use holdfast_guest_init::stream::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// Fewer say nothing of the median.
pub const LEAST_TRANSFERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes of one request of a timed download.
const PIECE: u64 = 64 << 10;
/// Of all flows together: asked for and not come yet, at least and at most.
const LEAST_AHEAD: u64 = 2 << 20;
const MOST_AHEAD: u64 = 256 << 20;
/// How often the rate of a flow is looked at, and how many of the last times count.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: usize = 10;
/// Records of requests that wait for room in a socket.
const MOST_WAITING: usize = 64 * Request::LEN;

/// Transfers of one size, one after the other.
#[derive(Debug, Clone)]
pub struct TransferSpec {
    /// The guest.
    pub guest: IpAddr,
    /// Seed of the streams.
    pub seed: u64,
    /// Bytes of each.
    pub bytes: u64,
    /// Whether each has a connection of its own, whose set-up counts; otherwise one connection, which is
    /// open and has carried one transfer before, has them all.
    pub setup: bool,
    /// How many at most.
    pub most: usize,
    /// No further one begins after that time, once there are [`LEAST_TRANSFERS`].
    pub time: Duration,
    /// The connection rests for so long before each.
    pub rest: Duration,
    /// Longest pause before one, after that, evenly from none: so that they do not all begin at the same moment of an
    /// epoch, the one in which the last one ended.
    pub pause: Duration,
}

/// How the transfers went.
#[derive(Debug, Clone, Default)]
pub struct Transfers {
    /// How long each took, in milliseconds.
    pub completion_ms: Vec<f64>,
    /// Whether every byte was right.
    pub exact: bool,
}

/// Downloads on many connections for a time.
#[derive(Debug, Clone)]
pub struct FlowSpec {
    /// The guest.
    pub guest: IpAddr,
    /// Seed of the streams; each connection has its own.
    pub seed: u64,
    /// How many.
    pub connections: usize,
    /// What is not counted at the beginning.
    pub warm_up: Duration,
    /// What is.
    pub time: Duration,
}

/// How the flows went.
#[derive(Debug, Clone, Default)]
pub struct Flows {
    /// Of all together, in 10^6 bits a second.
    pub throughput_mbit_s: f64,
    /// The same in each whole second of the time that counts.
    pub each_second_mbit_s: Vec<f64>,
    /// Bytes of each in the time that counts.
    pub bytes: Vec<u64>,
    /// Jain's index of these: 1 when all are equal, 1/n when one has all.
    pub fairness: f64,
    /// Whether every byte was right and what was asked for came to its end.
    pub exact: bool,
    /// What was wrong first, if anything.
    pub fault: Option<String>,
}

/// Jain's fairness index: (sum x)^2 / (n * sum x^2).
pub fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    if squares == 0.0 { 0.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

impl Client {
    /// Makes transfers and times each from its beginning to its last byte.
    ///
    /// # Errors
    /// When a connection cannot be had or breaks; a wrong byte is in the result.
    pub fn transfers(&self, spec: &TransferSpec) -> Result<Transfers, ClientError> {
        let target = SocketAddr::new(spec.guest, STREAM_PORT);
        let failed = |source| ClientError::Exchange { what: "transfer", target, source };
        let stream = Stream::new(spec.seed);
        let mut done = Transfers { exact: true, ..Transfers::default() };
        let mut open = None;
        if !spec.setup {
            let mut connection = self.open(target)?;
            done.exact &= fetch(&mut connection, &stream, spec.bytes).map_err(failed)?;
            open = Some(connection);
        }
        let began = Instant::now();
        while done.completion_ms.len() < spec.most
            && (began.elapsed() < spec.time || done.completion_ms.len() < LEAST_TRANSFERS)
        {
            let throw =
                holdfast_guest_init::stream::mix(spec.seed ^ (done.completion_ms.len() as u64 + 1) << 20);
            // Not a wait for an event: the moment in the epoch at which a client asks is no one's choice.
            thread::sleep(spec.rest + spec.pause.mul_f64((throw >> 11) as f64 / (1u64 << 53) as f64));
            let at = Instant::now();
            done.exact &= match &mut open {
                Some(connection) => fetch(connection, &stream, spec.bytes).map_err(failed)?,
                None => fetch(&mut self.open(target)?, &stream, spec.bytes).map_err(failed)?,
            };
            done.completion_ms.push(at.elapsed().as_secs_f64() * 1e3);
        }
        Ok(done)
    }

    /// Runs flows side by side.
    ///
    /// # Errors
    /// When a connection cannot be had; one that breaks is in the result.
    pub fn flows(&self, spec: &FlowSpec) -> Result<Flows, ClientError> {
        let target = SocketAddr::new(spec.guest, STREAM_PORT);
        let failed = |source| ClientError::Exchange { what: "begin a flow", target, source };
        // At once: each handshake may have to wait for its commit. Each is served before the load begins: amid the
        // load of those that came first a guest takes many seconds to accept the others.
        let begin = |number: usize| {
            let mut connection = self.open(target)?;
            let stream = Stream::new(spec.seed ^ (number as u64) << 32);
            let exact = fetch(&mut connection, &stream, PIECE).map_err(failed)?;
            connection.set_nonblocking(true).map_err(failed)?;
            let ahead = (LEAST_AHEAD / spec.connections as u64).max(2 * PIECE);
            Ok(Flow::begun(connection, stream, exact, ahead))
        };
        let flows: Result<Vec<Flow>, ClientError> = thread::scope(|scope| {
            let begin = &begin;
            let threads: Vec<_> =
                (0..spec.connections).map(|number| scope.spawn(move || begin(number))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        Ok(run(flows?, spec))
    }

    fn open(&self, target: SocketAddr) -> Result<TcpStream, ClientError> {
        let connection = self.connect(target, PATIENCE)?;
        let failed = |source| ClientError::Exchange { what: "connect", target, source };
        connection.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(connection)
    }
}

/// One transfer on an open connection; whether every byte was right.
fn fetch(connection: &mut TcpStream, stream: &Stream, bytes: u64) -> io::Result<bool> {
    let request = Request { direction: Direction::Download, seed: stream.seed(), offset: 0, length: bytes };
    connection.write_all(&request.encode())?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut done, mut exact) = (0, true);
    while done < bytes {
        let most = (bytes - done).min(buffer.len() as u64) as usize;
        let read = match connection.read(&mut buffer[..most]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        exact &= stream.first_difference(done, &buffer[..read]).is_none();
        done += read as u64;
    }
    Ok(exact)
}

/// A connection of which more is asked than comes in a second.
struct Flow {
    connection: TcpStream,
    stream: Stream,
    asked: u64,
    received: u64,
    /// Received when the time that counts began.
    before: u64,
    /// Asked for and not come yet, at most; never less than the second number.
    ahead: u64,
    least_ahead: u64,
    /// What had been received at the last looks.
    seen: VecDeque<u64>,
    /// Bytes of requests that found no room.
    waiting: Vec<u8>,
    fault: Option<String>,
}

impl Flow {
    /// On a connection that has carried one piece.
    fn begun(connection: TcpStream, stream: Stream, exact: bool, ahead: u64) -> Self {
        Self {
            connection,
            stream,
            asked: PIECE,
            received: PIECE,
            before: PIECE,
            ahead,
            least_ahead: ahead,
            seen: VecDeque::from([PIECE]),
            waiting: Vec::new(),
            fault: (!exact).then(|| "a byte of the first piece is wrong".into()),
        }
    }

    fn is_done(&self, ending: bool) -> bool {
        self.fault.is_some() || (ending && self.received == self.asked && self.waiting.is_empty())
    }

    /// Asks for more, as far as the rate of late demands and the socket has room.
    fn ask(&mut self) {
        while self.asked - self.received < self.ahead && self.waiting.len() < MOST_WAITING {
            let request = Request {
                direction: Direction::Download,
                seed: self.stream.seed(),
                offset: self.asked,
                length: PIECE,
            };
            self.waiting.extend_from_slice(&request.encode());
            self.asked += PIECE;
            self.send();
        }
    }

    fn send(&mut self) {
        while !self.waiting.is_empty() {
            match self.connection.write(&self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.fault = Some(format!("request: {error}")),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        match self.connection.read(buffer) {
            Ok(0) => self.fault = Some("the guest closed the connection".into()),
            Ok(read) => {
                if let Some(offset) = self.stream.first_difference(self.received, &buffer[..read]) {
                    self.fault = Some(format!("the byte at {offset} is wrong"));
                }
                self.received += read as u64;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => self.fault = Some(error.to_string()),
        }
    }

    /// What comes in two seconds, by the last looks.
    fn in_two_seconds(&self) -> u64 {
        let oldest = self.seen.front().copied().unwrap_or(0);
        (self.received - oldest) * 2 * LOOKS as u64 / self.seen.len() as u64
    }

    /// Once a [`LOOK`]: as much ahead as comes in two seconds, so that an answer that takes many epochs does
    /// not hold the flow up, and the end does not take for ever; of a slow flow as much as of the average one,
    /// or asking for little would keep it slow.
    fn look(&mut self, average: u64, most: u64) {
        self.ahead = self.in_two_seconds().max(average).min(most).max(self.least_ahead);
        self.seen.push_back(self.received);
        if self.seen.len() > LOOKS {
            self.seen.pop_front();
        }
    }
}

fn run(mut flows: Vec<Flow>, spec: &FlowSpec) -> Flows {
    let mut buffer = vec![0; BUFFER_BYTES];
    let began = Instant::now();
    let (mut counting, mut counted) = (None, None);
    let (mut looked, mut progress) = (began, (began, 0));
    let mut seconds = Seconds::default();
    let most = MOST_AHEAD / spec.connections.max(1) as u64;
    loop {
        let now = Instant::now();
        if counting.is_none() && now - began >= spec.warm_up {
            counting = Some(now);
            flows.iter_mut().for_each(|flow| flow.before = flow.received);
            seconds.begin(now, total(&flows));
        }
        if let Some(since) = counting.filter(|since| counted.is_none() && now - *since >= spec.time) {
            counted = Some((now - since, flows.iter().map(|flow| flow.received - flow.before).collect()));
        }
        let ending = counted.is_some();
        if seconds.rates.len() < spec.time.as_secs() as usize {
            seconds.look(now, || total(&flows));
        }
        if now - looked >= LOOK {
            looked = now;
            let average = flows.iter().map(Flow::in_two_seconds).sum::<u64>() / flows.len().max(1) as u64;
            flows.iter_mut().for_each(|flow| flow.look(average, most));
            let all = total(&flows);
            if all > progress.1 {
                progress = (now, all);
            }
        }
        let stalled = now - progress.0 >= PATIENCE;
        if stalled || flows.iter().all(|flow| flow.is_done(ending)) {
            return Flows { each_second_mbit_s: seconds.rates, ..outcome(&flows, counted, stalled) };
        }
        if !ending {
            flows.iter_mut().filter(|flow| flow.fault.is_none()).for_each(Flow::ask);
        }
        wait(&mut flows, ending, &mut buffer);
    }
}

fn total(flows: &[Flow]) -> u64 {
    flows.iter().map(|flow| flow.received).sum()
}

/// The rate second by second.
#[derive(Default)]
struct Seconds {
    since: Option<(Instant, u64)>,
    rates: Vec<f64>,
}

impl Seconds {
    fn begin(&mut self, now: Instant, received: u64) {
        self.since = Some((now, received));
    }

    /// Ends a second when it is over.
    fn look(&mut self, now: Instant, received: impl Fn() -> u64) {
        let Some((since, before)) = self.since else { return };
        let time = now - since;
        if time >= Duration::from_secs(1) {
            let received = received();
            self.rates.push((received - before) as f64 * 8e-6 / time.as_secs_f64());
            self.since = Some((now, received));
        }
    }
}

/// Waits for the sockets, at most until the next look, and serves those that are ready.
fn wait(flows: &mut [Flow], ending: bool, buffer: &mut [u8]) {
    let live: Vec<usize> = (0..flows.len()).filter(|index| !flows[*index].is_done(ending)).collect();
    let mut watched: Vec<PollFd<'_>> = live
        .iter()
        .map(|index| {
            let flow = &flows[*index];
            let room = if flow.waiting.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            PollFd::new(flow.connection.as_fd(), PollFlags::POLLIN | room)
        })
        .collect();
    let patience = PollTimeout::from(LOOK.as_millis() as u16);
    if let Err(error) = poll(&mut watched, patience) {
        // A signal, most likely; the sockets tell the rest.
        tracing::debug!("wait for flows: {error}");
        return;
    }
    let ready: Vec<PollFlags> =
        watched.iter().map(|socket| socket.revents().unwrap_or(PollFlags::empty())).collect();
    for (index, ready) in live.into_iter().zip(ready) {
        if ready.contains(PollFlags::POLLOUT) {
            flows[index].send();
        }
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            flows[index].receive(buffer);
        }
    }
}

fn outcome(flows: &[Flow], counted: Option<(Duration, Vec<u64>)>, stalled: bool) -> Flows {
    let fault = flows.iter().find_map(|flow| flow.fault.clone()).or(stalled.then(|| "nothing comes".into()));
    let (time, bytes) = counted.unwrap_or_default();
    let all: u64 = bytes.iter().sum();
    Flows {
        each_second_mbit_s: Vec::new(),
        throughput_mbit_s: if time.is_zero() { 0.0 } else { all as f64 * 8e-6 / time.as_secs_f64() },
        fairness: fairness(&bytes),
        exact: fault.is_none() && all > 0,
        bytes,
        fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Namespace;
    use crate::requirements::{Need, can_run};
    use std::net::TcpListener;

    /// A guest that serves any number of connections; one byte of the first is wrong if that is asked for.
    fn serve(namespace: &Namespace, wrong_at: Option<u64>) {
        let listener =
            namespace.run(|| TcpListener::bind(("127.0.0.1", STREAM_PORT))).expect("entered").expect("bound");
        thread::spawn(move || {
            let mut wrong_at = wrong_at;
            while let Ok((mut client, _)) = listener.accept() {
                let wrong = wrong_at.take();
                thread::spawn(move || {
                    let mut record = [0; Request::LEN];
                    while client.read_exact(&mut record).is_ok() {
                        let request = Request::decode(&record).expect("a request");
                        let mut answer = vec![0; request.length as usize];
                        Stream::new(request.seed).fill(request.offset, &mut answer);
                        if let Some(at) = wrong.and_then(|at| at.checked_sub(request.offset)) {
                            if let Some(byte) = answer.get_mut(at as usize) {
                                *byte ^= 1;
                            }
                        }
                        if client.write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }

    fn spec(connections: usize) -> FlowSpec {
        FlowSpec {
            guest: [127, 0, 0, 1].into(),
            seed: 5,
            connections,
            warm_up: Duration::from_millis(50),
            time: Duration::from_millis(300),
        }
    }

    #[test]
    fn many_flows_are_exact_and_end_when_their_time_is_over() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        serve(&namespace, None);
        let flows = Client::new(&namespace).flows(&spec(40)).expect("ran");
        assert!(flows.exact, "{flows:?}");
        assert_eq!(flows.bytes.len(), 40);
        assert!(flows.throughput_mbit_s > 1.0 && flows.fairness > 0.1, "{flows:?}");
    }

    #[test]
    fn a_wrong_byte_in_one_of_many_flows_is_found() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        serve(&namespace, Some(100_000));
        let flows = Client::new(&namespace).flows(&spec(3)).expect("ran");
        assert!(!flows.exact && flows.fault.is_some_and(|fault| fault.contains("wrong")));
    }

    #[test]
    fn transfers_are_timed_with_and_without_the_set_up() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        serve(&namespace, None);
        for setup in [false, true] {
            let spec = TransferSpec {
                guest: [127, 0, 0, 1].into(),
                seed: 5,
                bytes: 300_000,
                setup,
                most: 4,
                time: Duration::from_secs(20),
                rest: Duration::ZERO,
                pause: Duration::from_millis(1),
            };
            let done = Client::new(&namespace).transfers(&spec).expect("ran");
            assert!(done.exact && done.completion_ms.len() == 4, "{done:?}");
            assert!(done.completion_ms.iter().all(|time| *time > 0.0));
        }
    }

    #[test]
    fn fairness_is_one_for_equals_and_one_nth_for_one_alone() {
        assert!((fairness(&[5, 5, 5, 5]) - 1.0).abs() < 1e-9);
        assert!((fairness(&[8, 0, 0, 0]) - 0.25).abs() < 1e-9);
        assert!(fairness(&[]) < 1e-9 && fairness(&[0, 0]) < 1e-9);
    }
}
