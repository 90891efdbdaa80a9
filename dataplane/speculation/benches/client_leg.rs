//! Cost of the client leg, a line a situation: `cargo bench -p holdfast-speculation --bench client_leg`.
//!
//! Each line is the median of several rounds over warm caches.

use std::time::{Duration, Instant};

use holdfast_speculation::client_leg::{ClientAck, Congestion, Sender, SenderConfig, SentLog};
use holdfast_speculation::{SeqNum, Time};

const ROUNDS: usize = 15;
const MSS: u32 = 1448;
const START: SeqNum = SeqNum::new(1000);
const CONFIG: SenderConfig =
    SenderConfig { mss: MSS as u16, sack: true, ecn: false, congestion: Congestion::Cubic };
/// An RTT that leaves the window as the only limit.
const RTT: Duration = Duration::from_micros(100);

struct Flow {
    sender: Sender,
    log: SentLog,
    now: Time,
}

impl Flow {
    fn new() -> Self {
        let mut now = Time::from_ns(1_000_000_000);
        let mut flow =
            Self { sender: Sender::new(CONFIG, START, 1 << 30, now), log: SentLog::new(65_536), now };
        // Slow start up to more than a thousand segments.
        while flow.sender.report().cwnd_bytes < 1500 * MSS {
            let end = flow.sender.end() + 3000 * MSS;
            flow.sender.extend(end);
            let _ = flow.send();
            now = now + RTT;
            flow.now = now;
            flow.ack(flow.sender.next(), &[]);
        }
        flow
    }

    fn send(&mut self) -> u32 {
        let mut count = 0;
        while self.sender.poll_transmit(self.now, &mut self.log).is_some() {
            count += 1;
        }
        count
    }

    fn ack(&mut self, ack: SeqNum, sacks: &[(SeqNum, SeqNum)]) {
        let ack =
            ClientAck { seq: SeqNum::new(7), ack, window: 1 << 30, carries_data: false, sacks, ece: false };
        self.sender.handle_ack(self.now, &ack, &mut self.log);
    }
}

fn report(name: &str, what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!("{name:<12} {:>8.1} ns a {what}", times[times.len() / 2]);
}

fn each(begin: Instant, count: u32) -> f64 {
    begin.elapsed().as_nanos() as f64 / f64::from(count)
}

fn main() {
    let (mut sends, mut acks, mut sacks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut flow = Flow::new();
        let una = flow.sender.unacked();
        flow.sender.extend(flow.sender.end() + 3000 * MSS);
        let begin = Instant::now();
        let sent = flow.send();
        sends.push(each(begin, sent));
        flow.now = flow.now + RTT;

        // An ACK for each two segments.
        let half = sent / 2;
        let begin = Instant::now();
        for i in (2..=half).step_by(2) {
            flow.ack(una + i * MSS, &[]);
        }
        acks.push(each(begin, half / 2));

        // One segment is lost, and each later one is answered by a SACK.
        let una = flow.sender.unacked();
        let left = flow.sender.next().bytes_since(una) / MSS;
        let begin = Instant::now();
        for i in 2..=left {
            flow.ack(una, &[(una + MSS, una + i * MSS)]);
        }
        sacks.push(each(begin, left - 1));
    }
    report("send", "segment", sends);
    report("acknowledge", "ACK of two segments", acks);
    report("sack", "ACK with a growing SACK", sacks);
}
