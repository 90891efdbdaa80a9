//! How much may be under way on a link that is Holdfast's alone.
//!
//! Nobody else has to be let in, so that a frame lost now and then is a bad cable and no sign of congestion:
//! Cubic would come down to a fraction of the link at one loss in a hundred. A queue that overflows loses much at
//! once; then the window shrinks, and grows again by an eighth a round trip.

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// At first: an epoch.
const FIRST: u64 = 4 << 20;
const LEAST: u64 = 256 << 10;
const MOST: u64 = 16 << 20;
/// One byte in so many may be lost.
const TOLERATED: u64 = 10;
/// Bytes that say something about the share of losses.
const SAMPLE: u64 = 128 << 10;

/// Makes the window of each path.
#[derive(Debug)]
pub(crate) struct OwnLink;

impl ControllerFactory for OwnLink {
    fn build(self: Arc<Self>, now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Window { bytes: FIRST, doubles: true, shrunk: now, arrived: 0, lost: 0 })
    }
}

#[derive(Clone, Debug)]
struct Window {
    bytes: u64,
    /// Until it shrinks for the first time it grows by what arrives.
    doubles: bool,
    /// When it shrank: what was sent before says nothing about it.
    shrunk: Instant,
    /// Of about the last window.
    arrived: u64,
    lost: u64,
}

impl Controller for Window {
    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        if sent <= self.shrunk {
            return;
        }
        self.arrived += bytes;
        if self.arrived > self.bytes {
            (self.arrived, self.lost) = (self.arrived / 2, self.lost / 2);
        }
        if !app_limited {
            let more = if self.doubles { bytes } else { bytes / 8 };
            self.bytes = (self.bytes + more).min(MOST);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        if sent <= self.shrunk {
            return;
        }
        self.lost += lost;
        let all = self.arrived + self.lost;
        if persistent || (all >= SAMPLE && self.lost * TOLERATED > all) {
            let bytes = if persistent { LEAST } else { self.bytes / 10 * 7 };
            *self = Self { bytes: bytes.max(LEAST), doubles: false, shrunk: now, arrived: 0, lost: 0 };
        }
    }

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        self.bytes
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        FIRST
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test has to begin some time")]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_loss_now_and_then_is_borne_and_many_at_once_are_not() {
        let begin = Instant::now();
        let sent = begin + Duration::from_millis(1);
        let mut window = Window { bytes: FIRST, doubles: true, shrunk: begin, arrived: 1 << 20, lost: 0 };
        for _ in 0..10 {
            window.on_congestion_event(sent, sent, false, 9000);
        }
        assert_eq!(window.window(), FIRST);
        window.on_congestion_event(sent, sent, false, 100_000);
        assert_eq!(window.window(), FIRST / 10 * 7);
        // What was sent before it shrank does not shrink it again.
        window.on_congestion_event(sent, sent, false, 1 << 20);
        assert_eq!(window.window(), FIRST / 10 * 7);
        window.on_congestion_event(sent, sent + Duration::from_millis(1), true, 1);
        assert_eq!(window.window(), LEAST);
    }
}
