//! The client's window (RFC 9293 §3.10.7.4), and when it is worth a segment (RFC 9293 §3.8.6.2.1).

use crate::SeqNum;

/// The window of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientWindow {
    /// SND.WND.
    size: u32,
    /// The largest ever seen: Max(SND.WND).
    largest: u32,
    /// SND.WL1 and SND.WL2, once an ACK came.
    updated_by: Option<(SeqNum, SeqNum)>,
}

impl ClientWindow {
    pub(super) const fn new(size: u32) -> Self {
        Self { size: capped(size), largest: capped(size), updated_by: None }
    }

    pub(super) const fn size(&self) -> u32 {
        self.size
    }

    pub(super) const fn is_zero(&self) -> bool {
        self.size == 0
    }

    /// Takes the window of an acceptable ACK, unless a later segment has told another one
    /// (RFC 9293 §3.10.7.4: SND.WL1 < SEG.SEQ, or equal and SND.WL2 <= SEG.ACK). A smaller one is taken
    /// too: the sender has to bear it (RFC 9293 §3.8.6).
    pub(super) fn update(&mut self, seq: SeqNum, ack: SeqNum, size: u32) {
        let newer =
            self.updated_by.is_none_or(|(wl1, wl2)| wl1.before(seq) || (wl1 == seq && !wl2.after(ack)));
        if newer {
            self.size = capped(size);
            self.largest = self.largest.max(self.size);
            self.updated_by = Some((seq, ack));
        }
    }

    /// Whether a segment of `len` new bytes is worth sending when `data` wait and `usable` bytes of
    /// window are left (RFC 9293 §3.8.6.2.1): a full one; or all there is, at once, as the guest's TCP
    /// has done what Nagle asks for; or half of the largest window.
    pub(super) const fn is_worth(&self, usable: u32, data: u32, len: u32, mss: u32) -> bool {
        len >= mss || (data <= usable && len > 0) || (len > 0 && len >= self.largest / 2)
    }
}

/// RFC 7323 §2.3: no window is above 2^30; a larger one would reach beyond what sequence numbers tell.
const fn capped(size: u32) -> u32 {
    if size > 1 << 30 { 1 << 30 } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQ: SeqNum = SeqNum::new(u32::MAX);
    const ACK: SeqNum = SeqNum::new(1000);

    #[test]
    fn an_older_segment_does_not_change_the_window() {
        // RFC 9293 §3.10.7.4
        let mut window = ClientWindow::new(100);
        window.update(SEQ, ACK, 200);
        assert_eq!(window.size(), 200);
        window.update(SEQ - 1, ACK + 5, 300);
        assert_eq!(window.size(), 200);
        window.update(SEQ, ACK - 1, 300);
        assert_eq!(window.size(), 200);
        window.update(SEQ, ACK, 50);
        assert_eq!(window.size(), 50);
        window.update(SEQ + 1, ACK - 1, 300);
        assert_eq!(window.size(), 300);
    }

    #[test]
    fn a_silly_window_is_not_used_but_for_the_last_bytes() {
        // RFC 9293 §3.8.6.2.1
        let window = ClientWindow::new(10_000);
        assert!(window.is_worth(5000, 9000, 1000, 1000));
        assert!(!window.is_worth(900, 9000, 900, 1000));
        assert!(window.is_worth(900, 900, 900, 1000));
        assert!(!ClientWindow::new(1000).is_worth(400, 9000, 400, 1460));
        assert!(ClientWindow::new(1000).is_worth(500, 9000, 500, 1460));
        assert!(!window.is_worth(0, 9000, 0, 1000));
    }
}
