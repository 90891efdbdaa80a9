//! Zero-window probes (RFC 9293 §3.8.6.1).

use std::time::Duration;

use super::rto::doubled;

/// The state of probing while the client's window is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Persist {
    active: bool,
    /// A probe is to be sent now.
    due: bool,
    /// Probes since the window closed.
    probes: u8,
}

impl Persist {
    pub(super) const fn new() -> Self {
        Self { active: false, due: false, probes: 0 }
    }

    pub(super) const fn is_active(&self) -> bool {
        self.active
    }

    pub(super) const fn is_due(&self) -> bool {
        self.due
    }

    /// The window closed; the first probe follows after an RTO. Answers when that is.
    pub(super) fn begin(&mut self, rto: Duration) -> Duration {
        *self = Self { active: true, due: false, probes: 0 };
        rto
    }

    /// The client took something in spite of its zero window: the next probes come sooner again.
    pub(super) fn progressed(&mut self) {
        self.probes = self.probes.min(1);
    }

    /// The window is open; answers whether there were probes.
    pub(super) fn end(&mut self) -> bool {
        let probed = self.active && self.probes > 0;
        *self = Self::new();
        probed
    }

    /// The timer ran out; answers when the next one does, exponentially later.
    pub(super) fn expired(&mut self, rto: Duration) -> Duration {
        self.due = true;
        self.probes = self.probes.saturating_add(1);
        doubled(rto, self.probes)
    }

    /// The probe has left, or cannot.
    pub(super) fn sent(&mut self) {
        self.due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_begin_after_an_rto_and_come_exponentially_later() {
        // RFC 9293 §3.8.6.1
        let rto = Duration::from_secs(1);
        let mut persist = Persist::new();
        assert_eq!(persist.begin(rto), rto);
        let waits: Vec<u64> = (0..8).map(|_| persist.expired(rto).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(persist.is_due());
        assert!(persist.end());
        assert!(!persist.end());
    }
}
