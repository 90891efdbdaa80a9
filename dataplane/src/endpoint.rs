//! A vhost-user endpoint as a guest's network card.
//!
//! A ring fault of the guest stops its device: [`Endpoint::fault`] counts it and leaves all rings, and
//! the port is still for the core from then on (RB-1).

use crate::guest::{GuestFrame, GuestPort, Offloads, Verdict, VirtioNetHdr};
use holdfast_vhost_user::{Endpoint, GuestBytes, RingFault};
use std::os::fd::BorrowedFd;

impl GuestFrame for GuestBytes<'_> {
    fn len(&self) -> usize {
        GuestBytes::len(self)
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let copied = GuestBytes::copy_to(self, offset, out);
        out[copied..].fill(0);
    }
}

impl GuestPort for Endpoint {
    fn poll_control(&mut self) {
        // A ring that starts asks for notifications, which a core that polls has no use for.
        if Self::poll_control(self) {
            self.disarm();
        }
    }

    fn is_running(&self) -> bool {
        Self::is_running(self)
    }

    fn offloads(&self) -> Offloads {
        let features = self.negotiated();
        Offloads {
            checksum: features.guest_csum(),
            tso4: features.guest_csum() && features.guest_tso4(),
            tso6: features.guest_csum() && features.guest_tso6(),
        }
    }

    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize {
        let mut taken = 0;
        let mut fault = None;
        for ring in self.tx_rings() {
            let left = max - taken;
            let mut counted = 0;
            let polled = ring.poll(left, |header, bytes| {
                let verdict = sink(header, &bytes);
                counted += usize::from(verdict == Verdict::Taken);
                verdict
            });
            taken += counted;
            if let Err(found) = polled {
                fault = Some(found);
                break;
            }
        }
        self.stop_at(fault);
        taken
    }

    fn receive_queues(&mut self) -> usize {
        self.rx_rings().iter().filter(|ring| ring.is_running()).count()
    }

    fn deliver(&mut self, queue: usize, header: &VirtioNetHdr, parts: &[&[u8]]) -> bool {
        let mut running = self.rx_rings().iter_mut().filter(|ring| ring.is_running());
        let pushed = running.nth(queue).map_or(Ok(false), |ring| ring.push(header, parts));
        let done = *pushed.as_ref().unwrap_or(&false);
        self.stop_at(pushed.err());
        done
    }

    fn flush(&mut self) {
        let (tx, rx) = self.rings();
        let sent = tx.iter_mut().find_map(|ring| ring.flush().err());
        let received = rx.iter_mut().find_map(|ring| ring.flush().err());
        self.stop_at(sent.or(received));
    }

    fn arm(&mut self, capturing: bool, delivering: bool) -> bool {
        let (tx, rx) = self.rings();
        let mut waiting = false;
        let mut fault = None;
        for ring in tx.iter_mut().filter(|_| capturing) {
            match ring.want_kick(true) {
                Ok(found) => waiting |= found,
                Err(found) => fault = Some(found),
            }
        }
        for ring in rx.iter_mut().filter(|_| delivering) {
            fault = ring.want_kick(true).err().or(fault);
        }
        self.stop_at(fault);
        waiting
    }

    fn disarm(&mut self) {
        self.drain_kicks();
        let (tx, rx) = self.rings();
        let sent = tx.iter_mut().find_map(|ring| ring.want_kick(false).err());
        let received = rx.iter_mut().find_map(|ring| ring.want_kick(false).err());
        self.stop_at(sent.or(received));
    }

    fn kick_fds<'a>(&'a self, take: &mut dyn FnMut(BorrowedFd<'a>)) {
        Self::kick_fds(self).for_each(take);
    }
}

/// What a ring fault means to an endpoint.
trait StopAt {
    fn stop_at(&mut self, fault: Option<RingFault>);
}

impl StopAt for Endpoint {
    #[inline]
    fn stop_at(&mut self, fault: Option<RingFault>) {
        if let Some(fault) = fault {
            self.fault(fault);
        }
    }
}
