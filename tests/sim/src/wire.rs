//! The wire of one direction: delay, rate, loss, duplication, reordering, corruption.

use crate::random::Random;
use crate::scenario::Impairment;
use crate::surgery;
use holdfast_speculation::Time;
use std::time::Duration;

/// One direction.
#[derive(Debug)]
pub(crate) struct Wire {
    impairment: Impairment,
    random: Random,
    /// When the last byte is out.
    free: Time,
    /// When the last frame that kept its place arrives.
    last: Time,
    /// Nothing arrives that is sent before.
    pub(crate) out_until: Time,
}

/// What becomes of a frame that was sent: its arrivals.
pub(crate) type Arrivals = Vec<(Time, Vec<u8>)>;

impl Wire {
    pub(crate) fn new(impairment: &Impairment, seed: u64) -> Self {
        Self {
            impairment: impairment.clone(),
            random: Random::new(seed),
            free: Time::ZERO,
            last: Time::ZERO,
            out_until: Time::ZERO,
        }
    }

    /// Sends a frame at `now`.
    pub(crate) fn send(&mut self, now: Time, frame: Vec<u8>) -> Arrivals {
        let wire = &self.impairment;
        let random = &mut self.random;
        let start = self.free.max(now);
        let waiting = start.since(now).as_nanos() / (wire.per_byte.as_nanos().max(1) * 1500);
        let lost = random.chance(wire.loss) || now < self.out_until || waiting > wire.queue as u128;
        if lost {
            return Vec::new();
        }
        self.free = start + wire.per_byte * frame.len() as u32;
        let wander = Duration::from_nanos(random.below(wire.jitter.as_nanos() as u64 + 1));
        let mut arrives = self.free + wire.delay + wander;
        if random.chance(wire.reorder) {
            arrives = arrives + wire.late;
        } else {
            arrives = arrives.max(self.last);
            self.last = arrives;
        }
        let mut frame = frame;
        if random.chance(wire.mark) {
            surgery::mark(&mut frame);
        }
        let mut arrivals = Vec::new();
        if random.chance(wire.duplicate) {
            arrivals.push((arrives + wire.late, frame.clone()));
        }
        arrivals.push((arrives, self.touch(frame)));
        arrivals
    }

    /// Flips a bit behind the link header, perhaps.
    fn touch(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.random.chance(self.impairment.corrupt) {
            // The transport alone: IPv6 has no checksum of its own header.
            let at = self.random.between(66, frame.len().max(67) as u64 - 1) as usize;
            if let Some(byte) = frame.get_mut(at) {
                *byte ^= 1 << self.random.below(8);
            }
        }
        frame
    }
}
