//! The client: sessions of the seeded stream with the guest, checked byte for byte as they run.
//!
//! A session is one TCP connection made in the client's namespace. It asks for the stream in pieces,
//! two or more of them under way, so that the bytes flow without a break and the session can be ended
//! at any time with both sides agreeing on its length. Times are the client's own: a guest that is
//! paused has a slow clock.

use crate::netns::{Namespace, NetnsError};
use crate::report::Summary;
pub use holdfast_guest_init::protocol::{Content, Direction, Dirty, Pace, STREAM_PORT};
use holdfast_guest_init::protocol::{DIRTY_PORT, ECHO_PORT, Request, Verdict};
use holdfast_guest_init::stream::Stream;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Bytes asked for at a time when downloading.
const DOWNLOAD_PIECE: u64 = 4 << 20;
const DOWNLOADS_UNDER_WAY: usize = 2;
/// Bytes between two verdicts when uploading: how finely a gap can be seen.
const UPLOAD_PIECE: u64 = 256 << 10;
const UPLOADS_UNDER_WAY: usize = 16;
/// Bytes sent and not yet returned when echoing, at most: less than fits into the sockets' buffers.
const ECHO_PIECE: u64 = 16 << 10;
const ECHOES_UNDER_WAY: usize = 4;
const BUFFER_BYTES: usize = 256 << 10;
/// A service that has not begun to listen is tried again after this.
const LOOK: Duration = Duration::from_millis(20);
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// Longer sessions are sampled no further (an hour and a half).
const MOST_SAMPLES: usize = 108_000;

/// The client could not begin.
#[derive(Debug, Error)]
pub enum ClientError {
    /// See there.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The guest's service does not answer.
    #[error("no answer from {target} within {seconds} s: {source}")]
    NoService {
        /// The address.
        target: SocketAddr,
        /// How long it was tried.
        seconds: u64,
        /// The last error.
        source: io::Error,
    },
    /// The exchange failed.
    #[error("{what} with {target}: {source}")]
    Exchange {
        /// What was being done.
        what: &'static str,
        /// The address.
        target: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
}

/// How long a session lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// That many bytes.
    Bytes(u64),
    /// Until [`Session::stop`].
    UntilStopped,
}

/// What a session does.
#[derive(Debug, Clone)]
pub struct SessionSpec {
    /// Which way the bytes go.
    pub direction: Direction,
    /// The guest.
    pub guest: IpAddr,
    /// Seed of the stream.
    pub seed: u64,
    /// How long.
    pub amount: Amount,
    /// No byte for that long ends the session as stalled.
    pub patience: Duration,
}

impl SessionSpec {
    /// With a patience of a minute.
    pub fn new(direction: Direction, guest: impl Into<IpAddr>, seed: u64, amount: Amount) -> Self {
        Self { direction, guest: guest.into(), seed, amount, patience: Duration::from_secs(60) }
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// All that was asked for came, or was confirmed.
    Complete,
    /// A byte was wrong: the first one's offset in the stream.
    Wrong {
        /// The offset.
        offset: u64,
    },
    /// The connection was reset.
    Reset,
    /// TCP gave up.
    TimedOut,
    /// Nothing came for the patience of the session.
    Stalled,
    /// The guest closed the connection too early.
    Closed,
    /// Anything else.
    Failed(String),
}

/// What a session saw.
#[derive(Debug, Clone)]
pub struct SessionReport {
    /// Which way the bytes went.
    pub direction: Direction,
    /// How it ended.
    pub end: SessionEnd,
    /// Bytes received and checked, or confirmed by the guest's verdict.
    pub bytes: u64,
    /// From the first request to the last byte.
    pub duration: Duration,
    /// The longest time without progress.
    pub max_gap: Duration,
    /// When that began.
    pub max_gap_began: Instant,
    /// When the session began.
    pub began: Instant,
    /// Bytes so far, about every 50 ms since the beginning.
    pub samples: Vec<(Duration, u64)>,
}

impl SessionReport {
    /// Whether every byte was right and none is missing.
    pub fn exact(&self) -> bool {
        self.end == SessionEnd::Complete
    }

    /// Over the whole session, in 10^6 bits a second.
    pub fn throughput_mbit_s(&self) -> f64 {
        mbit_s(self.bytes, self.duration)
    }

    /// Between two moments of the session, from the samples.
    pub fn throughput_between(&self, from: Instant, to: Instant) -> f64 {
        let at = |moment: Instant| {
            let since = moment.saturating_duration_since(self.began);
            let after = self.samples.partition_point(|(time, _)| *time <= since);
            after.checked_sub(1).map_or((Duration::ZERO, 0), |index| self.samples[index])
        };
        let ((start, before), (end, until)) = (at(from), at(to));
        mbit_s(until.saturating_sub(before), end.saturating_sub(start))
    }
}

fn mbit_s(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 * 8.0 / 1e6 / time.as_secs_f64() }
}

/// A running session.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    thread: JoinHandle<SessionReport>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    bytes: AtomicU64,
}

impl Session {
    /// Bytes received and checked, or confirmed, so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Asks for no more; the session ends when what is under way has come.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for its end.
    pub fn finish(self) -> SessionReport {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Makes connections in one namespace.
#[derive(Debug, Clone)]
pub struct Client {
    namespace: Namespace,
}

impl Client {
    /// In that namespace.
    pub fn new(namespace: &Namespace) -> Self {
        Self { namespace: namespace.clone() }
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Connects once.
    pub fn connect(&self, target: SocketAddr, patience: Duration) -> Result<TcpStream, ClientError> {
        let what = "connect";
        let stream = self
            .namespace
            .run(|| TcpStream::connect_timeout(&target, patience))?
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        stream.map_err(|source| ClientError::Exchange { what, target, source })
    }

    /// Connects, again as long as nothing listens yet: a guest's init says that it is ready before it starts
    /// programs.
    pub fn connect_listening(
        &self,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<TcpStream, ClientError> {
        let until = Instant::now() + patience;
        loop {
            // Never no time at all: that would be refused as such.
            let left = until.saturating_duration_since(Instant::now()).max(LOOK);
            match self.connect(target, left) {
                Err(ClientError::Exchange { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until =>
                {
                    thread::sleep(LOOK);
                }
                connected => return connected,
            }
        }
    }

    /// Waits until no connection to that port is left but for such that both ends have closed (TIME-WAIT):
    /// whether that came to be in time.
    ///
    /// # Errors
    /// When the kernel does not list its connections.
    pub fn wait_closed(&self, port: u16, patience: Duration) -> Result<bool, ClientError> {
        let until = Instant::now() + patience;
        let list = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        loop {
            let listed = self.namespace.run(|| io::Result::Ok(list("tcp")? + &list("tcp6")?))?;
            let target = SocketAddr::from(([0, 0, 0, 0], port));
            let listed = listed.map_err(|source| ClientError::Exchange { what: "look", target, source })?;
            if !has_connections(&listed, port) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            // The kernel tells nobody that a socket has left its table.
            thread::sleep(LOOK);
        }
    }

    /// Starts a session.
    pub fn start(&self, spec: SessionSpec) -> Result<Session, ClientError> {
        let target = SocketAddr::new(spec.guest, STREAM_PORT);
        let stream = self.connect(target, spec.patience)?;
        let failed = |source| ClientError::Exchange { what: "begin a session", target, source };
        stream.set_read_timeout(Some(spec.patience)).map_err(failed)?;
        stream.set_write_timeout(Some(spec.patience)).map_err(failed)?;
        let sender = stream.try_clone().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || run_session(&spec, stream, sender, &theirs));
        Ok(Session { shared, thread })
    }

    /// Starts a session and waits for its end.
    pub fn run(&self, spec: SessionSpec) -> Result<SessionReport, ClientError> {
        Ok(self.start(spec)?.finish())
    }

    /// Times `count` exchanges of `bytes` bytes, one at a time, in microseconds.
    pub fn round_trips(&self, guest: IpAddr, bytes: usize, count: usize) -> Result<Summary, ClientError> {
        self.request_times_us(guest, bytes, count, Duration::MAX).map(|times| Summary::of(&times))
    }

    /// How long each of `count` exchanges of `bytes` with the echo service took, in microseconds; no further
    /// one begins after `time`.
    pub fn request_times_us(
        &self,
        guest: IpAddr,
        bytes: usize,
        count: usize,
        time: Duration,
    ) -> Result<Vec<f64>, ClientError> {
        let target = SocketAddr::new(guest, ECHO_PORT);
        let patience = Duration::from_secs(30);
        let mut stream = self.connect(target, patience)?;
        let failed = |source| ClientError::Exchange { what: "time an exchange", target, source };
        stream.set_read_timeout(Some(patience)).map_err(failed)?;
        let message = vec![0x5a; bytes.max(1)];
        let mut answer = vec![0; message.len()];
        let mut times = Vec::with_capacity(count);
        let first = Instant::now();
        while times.len() < count && first.elapsed() < time {
            let began = Instant::now();
            stream.write_all(&message).and_then(|()| stream.read_exact(&mut answer)).map_err(failed)?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    /// Sets how the guest dirties its memory; no pages stops it. Where all pages are written at once, they have
    /// been for the first time then.
    pub fn dirty(&self, guest: IpAddr, order: Dirty) -> Result<(), ClientError> {
        let target = SocketAddr::new(guest, DIRTY_PORT);
        // A guest under translation on a busy machine writes some 40 MiB a second at the least.
        let patience = Duration::from_secs(30 + u64::from(order.pages) / 10_000);
        let mut stream = self.connect(target, patience)?;
        let failed = |source| ClientError::Exchange { what: "set the dirtying", target, source };
        stream.set_read_timeout(Some(patience)).map_err(failed)?;
        let mut answer = [0; Verdict::LEN];
        stream
            .write_all(&order.encode())
            .and_then(|()| stream.read_exact(&mut answer))
            .and_then(|()| Verdict::decode(&answer).map(drop).map_err(io::Error::other))
            .map_err(failed)
    }
}

/// What the sending half may put on the way: pieces, as many as there are credits.
fn run_session(
    spec: &SessionSpec,
    mut receiver: TcpStream,
    sender: TcpStream,
    shared: &Arc<Shared>,
) -> SessionReport {
    let mut progress = Progress::new(shared);
    let stream = Arc::new(Stream::new(spec.seed));
    let (under_way, piece) = match spec.direction {
        Direction::Download => (DOWNLOADS_UNDER_WAY, DOWNLOAD_PIECE),
        Direction::Upload => (UPLOADS_UNDER_WAY, UPLOAD_PIECE),
        Direction::Echo => (ECHOES_UNDER_WAY, ECHO_PIECE),
    };
    // The queue of pieces that were asked for is the credit: it is that long and no longer.
    let (asked, pieces) = mpsc::sync_channel(under_way);
    let plan = Plan { direction: spec.direction, seed: spec.seed, amount: spec.amount, piece };
    let writer = {
        let (stream, shared) = (Arc::clone(&stream), Arc::clone(shared));
        thread::spawn(move || write_pieces(&plan, sender, &stream, &shared, &asked))
    };
    let received = receive_pieces(spec, &mut receiver, &stream, &pieces, &mut progress);
    let last = progress.last;
    // Ends the writer if it still writes: its queue is gone and its socket shut.
    drop(pieces);
    if received.is_err() {
        shut(&receiver);
    }
    let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let end = match (received, written) {
        (Ok(()), Ok(())) => SessionEnd::Complete,
        (Ok(()), Err(error)) => end_of(&error),
        // The reader's word is the better one, unless all it saw is that the writer gave up.
        (Err(SessionEnd::Closed), Err(error)) => end_of(&error),
        (Err(end), _) => end,
    };
    SessionReport {
        direction: spec.direction,
        end,
        bytes: shared.bytes.load(Ordering::Relaxed),
        duration: last - progress.began,
        max_gap: progress.max_gap,
        max_gap_began: progress.max_gap_began,
        began: progress.began,
        samples: progress.samples,
    }
}

fn shut(stream: &TcpStream) {
    if let Err(error) = stream.shutdown(Shutdown::Both) {
        tracing::debug!("shut a session down: {error}");
    }
}

fn end_of(error: &io::Error) -> SessionEnd {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => SessionEnd::Reset,
        io::ErrorKind::TimedOut => SessionEnd::TimedOut,
        io::ErrorKind::WouldBlock => SessionEnd::Stalled,
        io::ErrorKind::UnexpectedEof => SessionEnd::Closed,
        _ => SessionEnd::Failed(error.to_string()),
    }
}

struct Plan {
    direction: Direction,
    seed: u64,
    amount: Amount,
    piece: u64,
}

/// Sends requests, and the bytes that go with them, until all is asked for or the session is stopped;
/// then says that no more comes.
fn write_pieces(
    plan: &Plan,
    mut sender: TcpStream,
    stream: &Stream,
    shared: &Shared,
    asked: &mpsc::SyncSender<Request>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0u64;
    loop {
        let length = match plan.amount {
            Amount::Bytes(all) => plan.piece.min(all - offset),
            Amount::UntilStopped if shared.stop.load(Ordering::Relaxed) => 0,
            Amount::UntilStopped => plan.piece,
        };
        if length == 0 {
            break;
        }
        let request = Request { direction: plan.direction, seed: plan.seed, offset, length };
        if asked.send(request).is_err() {
            // The reader has ended; it knows why.
            return Ok(());
        }
        sender.write_all(&request.encode())?;
        if plan.direction != Direction::Download {
            let mut done = 0;
            while done < length {
                let part = (length - done).min(buffer.len() as u64) as usize;
                stream.fill(offset + done, &mut buffer[..part]);
                sender.write_all(&buffer[..part])?;
                done += part as u64;
            }
        }
        offset += length;
    }
    sender.shutdown(Shutdown::Write)
}

fn receive_pieces(
    spec: &SessionSpec,
    receiver: &mut TcpStream,
    stream: &Stream,
    pieces: &mpsc::Receiver<Request>,
    progress: &mut Progress<'_>,
) -> Result<(), SessionEnd> {
    let mut buffer = vec![0; BUFFER_BYTES];
    // Ends when the writer has dropped its side: all that was asked for has then been received.
    for request in pieces {
        if spec.direction == Direction::Upload {
            let mut record = [0; Verdict::LEN];
            receiver.read_exact(&mut record).map_err(|error| end_of(&error))?;
            match Verdict::decode(&record).map_err(|error| SessionEnd::Failed(error.to_string()))? {
                Verdict::Exact { bytes } if bytes == request.length => progress.advance(bytes),
                Verdict::Exact { bytes } => {
                    return Err(SessionEnd::Wrong { offset: request.offset + bytes });
                }
                Verdict::Differs { first, .. } => return Err(SessionEnd::Wrong { offset: first }),
            }
            continue;
        }
        let mut done = 0;
        while done < request.length {
            let most = (request.length - done).min(buffer.len() as u64) as usize;
            let read = match receiver.read(&mut buffer[..most]) {
                Ok(0) => return Err(SessionEnd::Closed),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(end_of(&error)),
            };
            if let Some(offset) = stream.first_difference(request.offset + done, &buffer[..read]) {
                return Err(SessionEnd::Wrong { offset });
            }
            done += read as u64;
            progress.advance(read as u64);
        }
    }
    Ok(())
}

struct Progress<'a> {
    shared: &'a Shared,
    began: Instant,
    last: Instant,
    max_gap: Duration,
    max_gap_began: Instant,
    samples: Vec<(Duration, u64)>,
    total: u64,
}

impl<'a> Progress<'a> {
    fn new(shared: &'a Shared) -> Self {
        let began = Instant::now();
        Self {
            shared,
            began,
            last: began,
            max_gap: Duration::ZERO,
            max_gap_began: began,
            samples: Vec::new(),
            total: 0,
        }
    }

    fn advance(&mut self, bytes: u64) {
        let now = Instant::now();
        let gap = now - self.last;
        if gap > self.max_gap {
            (self.max_gap, self.max_gap_began) = (gap, self.last);
        }
        self.last = now;
        self.total += bytes;
        self.shared.bytes.store(self.total, Ordering::Relaxed);
        let since = now - self.began;
        let due = self.samples.last().is_none_or(|(at, _)| since - *at >= SAMPLE_EVERY);
        if due && self.samples.len() < MOST_SAMPLES {
            self.samples.push((since, self.total));
        }
    }
}

/// Whether a table of the kernel's, as in `/proc/net/tcp`, has a connection to that port that still lives.
fn has_connections(table: &str, port: u16) -> bool {
    const TIME_WAIT: &str = "06";
    let port = format!(":{port:04X}");
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(2).is_some_and(|remote| remote.ends_with(&port)) && words.get(3) != Some(&TIME_WAIT)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requirements::{Need, can_run};
    use std::net::TcpListener;

    /// A guest of one connection that answers a download with the stream of `answer_seed`, and stops
    /// after `bytes` bytes.
    fn serve(namespace: &Namespace, answer_seed: u64, bytes: usize) -> JoinHandle<()> {
        let listener =
            namespace.run(|| TcpListener::bind(("127.0.0.1", STREAM_PORT))).expect("entered").expect("bound");
        thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("accepted");
            let mut record = [0; Request::LEN];
            client.read_exact(&mut record).expect("asked");
            Request::decode(&record).expect("a request");
            let mut answer = vec![0; bytes];
            Stream::new(answer_seed).fill(0, &mut answer);
            client.write_all(&answer).expect("answered");
        })
    }

    fn download(bytes: u64) -> SessionSpec {
        let mut spec = SessionSpec::new(Direction::Download, [127, 0, 0, 1], 5, Amount::Bytes(bytes));
        spec.patience = Duration::from_secs(5);
        spec
    }

    #[test]
    fn a_connection_is_there_until_both_ends_have_closed_it() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        let client = Client::new(&namespace);
        let listener =
            namespace.run(|| TcpListener::bind(("127.0.0.1", 0))).expect("entered").expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let connection = client
            .connect(SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(5))
            .expect("connected");
        let (guest, _) = listener.accept().expect("accepted");
        let closed = |ms| client.wait_closed(port, Duration::from_millis(ms)).expect("listed");
        assert!(!closed(0), "it is open");
        drop(connection);
        assert!(!closed(0), "the other end is open");
        drop(guest);
        assert!(closed(5000));
    }

    #[test]
    fn an_exact_stream_is_complete_and_a_wrong_byte_is_named() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        let client = Client::new(&namespace);
        let guest = serve(&namespace, 5, 100_000);
        let report = client.run(download(100_000)).expect("ran");
        assert!(report.exact(), "{report:?}");
        assert_eq!(report.bytes, 100_000);
        guest.join().expect("ended");

        let guest = serve(&namespace, 6, 100_000);
        let report = client.run(download(100_000)).expect("ran");
        assert!(matches!(report.end, SessionEnd::Wrong { offset: 0..8 }), "{report:?}");
        guest.join().expect("ended");
    }

    #[test]
    fn a_stream_cut_short_is_not_exact() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        let guest = serve(&namespace, 5, 50_000);
        let report = Client::new(&namespace).run(download(100_000)).expect("ran");
        assert!(!report.exact());
        assert_eq!(report.bytes, 50_000);
        guest.join().expect("ended");
    }
}
