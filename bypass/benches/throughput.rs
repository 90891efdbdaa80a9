//! Two ports in one thread with nothing between them: what a core carries, records, QUIC, AEAD and frames
//! included. `cargo bench -p holdfast-bypass`.

#[path = "../tests/pair/mod.rs"]
mod pair;

use bytes::Bytes;
use holdfast_bypass::{Class, Event, PathId, Port, Token};
use holdfast_checkpoint::keys::Identity;
use pair::{identities, port};
use std::time::{Duration, Instant};

const TOKEN: Token = Token([7; 32]);
const TOTAL: usize = 4 << 30;
const RECORD: usize = 1 << 20;
const WAITING: usize = 2 << 20;
/// Frames that a side sends before the other's turn, as a ring holds them.
const RING: usize = 256;

struct Side {
    port: Port,
    path: Option<PathId>,
    cpu: Duration,
    spent: Spent,
}

/// Where a side's time went.
#[derive(Clone, Copy, Default)]
struct Spent {
    /// Frames that came, opened and put together.
    handled: Duration,
    /// Records taken.
    received: Duration,
    /// Datagrams made and sealed, and written as frames.
    made: Duration,
    frames_in: u64,
    frames_out: u64,
}

fn side(last: u8, mtu: u16, identity: &Identity) -> Side {
    let port = port(last, mtu, RECORD, identity);
    Side { port, path: None, cpu: Duration::ZERO, spent: Spent::default() }
}

/// One turn of a side: what came is handled, what is due is made; gives bytes of the records that came.
fn turn(side: &mut Side, frames: &mut Vec<Vec<u8>>, out: &mut Vec<Vec<u8>>) -> usize {
    let now = Instant::now();
    side.spent.frames_in += frames.len() as u64;
    for frame in frames.drain(..) {
        side.port.handle_frame(&frame, now);
    }
    side.spent.handled += now.elapsed();
    side.port.handle_timeout(now);
    while let Some(event) = side.port.poll_event() {
        match event {
            Event::Up { path, .. } => side.path = Some(path),
            Event::Lost { why, .. } => panic!("{why}"),
        }
    }
    let (mut received, began) = (0, Instant::now());
    if let Some(path) = side.path {
        while let Some(record) = side.port.receive(path, Class::Bulk, now) {
            received += record.body.len();
        }
    }
    side.spent.received += began.elapsed();
    let began = Instant::now();
    for _ in 0..RING {
        let Some(len) = side.port.next_frame(now) else { break };
        let mut frame = vec![0; len];
        side.port.take_frame(&mut frame);
        out.push(frame);
    }
    side.spent.frames_out += out.len() as u64;
    side.spent.made += began.elapsed();
    side.cpu += now.elapsed();
    received
}

fn main() {
    let [a, b] = identities();
    for mtu in [1500, 9000] {
        let (mut from, mut to) = (side(1, mtu, &a), side(2, mtu, &b));
        to.port.await_peer(TOKEN);
        from.port.dial(TOKEN, 1, Instant::now());
        let (mut ahead, mut back) = (Vec::new(), Vec::new());
        while from.path.is_none() || to.path.is_none() {
            turn(&mut from, &mut back, &mut ahead);
            turn(&mut to, &mut ahead, &mut back);
        }
        for side in [&mut from, &mut to] {
            (side.cpu, side.spent) = (Duration::ZERO, Spent::default());
        }
        let body = Bytes::from(vec![0x5a; RECORD]);
        let (mut received, started) = (0, Instant::now());
        while received < TOTAL {
            let path = from.path.expect("up");
            while from.port.waiting_bytes(path) < WAITING {
                from.port.send(path, Class::Bulk, 1, body.clone());
            }
            turn(&mut from, &mut back, &mut ahead);
            received += turn(&mut to, &mut ahead, &mut back);
        }
        let rate = |time: Duration| received as f64 * 8e-9 / time.as_secs_f64();
        println!(
            "mtu {mtu}: {:.1} Gbit/s with both ends on one core; {:.1} Gbit/s a sending core, {:.1} a receiving one",
            rate(started.elapsed()),
            rate(from.cpu),
            rate(to.cpu)
        );
        let each = |time: Duration, frames: u64| time.as_nanos() as f64 / frames as f64;
        println!(
            "mtu {mtu}: {:.0} ns a frame made, sealed and written; {:.0} a frame opened, {:.0} more until its record is taken",
            each(from.spent.made, from.spent.frames_out),
            each(to.spent.handled, to.spent.frames_in),
            each(to.spent.received, to.spent.frames_in)
        );
    }
}
