//! What a segment costs the engine: `cargo bench -p holdfast-speculation`.
//!
//! A bulk flow of segments of 1448 bytes; nanoseconds a segment, or an ACK, least of the rounds.

mod traffic;

use holdfast_speculation::Time;
use std::time::{Duration, Instant};
use traffic::Traffic;

const SEGMENTS: u32 = 64;
const ROUNDS: u64 = 2000;

fn main() {
    let mut traffic = Traffic::new();
    let mut least = [Duration::MAX; 4];
    for round in 0..ROUNDS {
        let frames = traffic.guest_frames(SEGMENTS);
        let mut acks = traffic.client_acks(SEGMENTS);
        let mut times = [Duration::ZERO; 4];
        let start = Instant::now();
        traffic.take(&frames);
        times[0] = start.elapsed();
        let start = Instant::now();
        traffic.stream_and_acknowledge();
        times[1] = start.elapsed();
        traffic.seal_and_commit();
        let start = Instant::now();
        let before = traffic.sink.frames;
        traffic.send();
        let sent = traffic.sink.frames - before;
        times[2] = start.elapsed() * SEGMENTS / sent.max(1) as u32;
        let start = Instant::now();
        traffic.confirm(&mut acks);
        times[3] = start.elapsed();
        for (least, time) in least.iter_mut().zip(times) {
            *least = (*least).min(time);
        }
        traffic.advance(Time::from_ns(50_000_000 * (round + 1)));
    }
    let each = |time: Duration| time.as_nanos() as f64 / f64::from(SEGMENTS);
    println!("take           {:7.1} ns a segment", each(least[0]));
    println!("stream and ACK {:7.1} ns a segment, one ACK a burst of {SEGMENTS}", each(least[1]));
    println!("send           {:7.1} ns a segment", each(least[2]));
    println!("confirm, send  {:7.1} ns a segment, every second one confirmed", each(least[3]));
}
