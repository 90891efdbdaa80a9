//! Cuts of what has left the guest's rings already and waits in between, as it does when another core carries a pair.

use super::*;
use crate::guest::{GuestFrame, GuestPort, Offloads, Verdict};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

/// Frames that wait, two of which are given at a time.
struct Behind(VecDeque<Vec<u8>>);

impl GuestPort for Behind {
    fn poll_control(&mut self) {}

    fn is_running(&self) -> bool {
        true
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn capture(
        &mut self,
        _max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize {
        for taken in 0..2 {
            let Some(frame) = self.0.front() else { return taken };
            if sink(&VirtioNetHdr::default(), &&frame[..]) == Verdict::Refused {
                return taken;
            }
            self.0.pop_front();
        }
        2
    }

    fn deliver(&mut self, _header: &VirtioNetHdr, _parts: &[&[u8]]) -> bool {
        true
    }

    fn has_backlog(&self) -> bool {
        !self.0.is_empty()
    }

    fn flush(&mut self) {}

    fn arm(&mut self, _capturing: bool, _delivering: bool) -> bool {
        false
    }

    fn disarm(&mut self) {}

    fn kick_fds<'a>(&'a self, _take: &mut dyn FnMut(BorrowedFd<'a>)) {}
}

/// A core that turns when it is told to, and frames behind its port.
fn behind(limits: Limits) -> (Core<HeapWire>, Handle, Vec<Vec<u8>>) {
    let (wire, _) = HeapWire::new(1500, 4096, true).expect("a wire");
    let (mut core, handle) = Core::new(vec![wire], IdlePolicy::Poll, None).expect("a core");
    let frames: Vec<_> = (0..11).map(|fill| frame(1, fill)).collect();
    let config = PortConfig { limits, ..PortConfig::default() };
    asked(&mut core, &handle, |handle| {
        handle.add_port(PortId(1), Box::new(Behind(VecDeque::new())), config).expect("a port");
        handle.set_mode(&ONE, COMMIT).expect("protected");
    });
    core.ports[0].guest = Box::new(Behind(frames.clone().into()));
    (core, handle, frames)
}

/// Gives a command that is there before the core turns for it.
fn cut(core: &mut Core<HeapWire>, handle: &Handle, epoch: u64) -> u64 {
    thread::scope(|scope| {
        let asking = scope.spawn(|| handle.cut(&ONE, EpochId::new(epoch), false));
        wait_until(|| !core.requests.is_empty());
        core.turn();
        asking.join().expect("no panic").expect("cut").frames
    })
}

/// OC-1: what has left the rings when the guest stands still is the output of the epoch that is cut then.
#[test]
fn a_cut_takes_what_waits_outside_the_rings() {
    let (mut core, handle, frames) = behind(Limits::default());
    assert_eq!(cut(&mut core, &handle, 1), frames.len() as u64);
}

/// OC-1: what finds no room is output of later epochs, in its order.
#[test]
fn a_cut_leaves_what_has_no_room() {
    let (mut core, handle, _) = behind(Limits { frames: 4, ..Limits::default() });
    assert_eq!([1, 2].map(|epoch| cut(&mut core, &handle, epoch)), [4, 0]);
    for (epoch, expected) in [(3, 4), (4, 3), (5, 0)] {
        asked(&mut core, &handle, |handle| handle.release(&ONE, token(1, epoch - 1)).expect("released"));
        assert_eq!(cut(&mut core, &handle, epoch), expected, "epoch {epoch}");
    }
}

/// RB-1: a guest whose large frames are cut into a thousand pieces each and then refused, as their sender is no station,
/// costs a core no more of a turn than one whose frames go.
#[test]
fn pieces_of_what_is_refused_count() {
    let (wire, peer) = HeapWire::new(1500, 4096, true).expect("a wire");
    let (mut core, handle) = Core::new(vec![wire], IdlePolicy::Poll, None).expect("a core");
    let (guest, driver) = HeapGuest::new().expect("a guest");
    asked(&mut core, &handle, |handle| {
        handle.add_port(PortId(1), Box::new(guest), PortConfig::default()).expect("a port");
    });
    let (header, mut bytes) = sample::Tcp::data(false, vec![5; 1000]).offloaded(1);
    bytes[6] |= 1;
    for _ in 0..20 {
        driver.send_offloaded(header, bytes.clone());
    }
    for left in (0..20).rev() {
        core.turn();
        assert_eq!(driver.unsent(), left);
    }
    let counted = handle.port_counters(PortId(1)).expect("a port");
    assert_eq!(counted.drops.snapshot().0.iter().map(|(_, count)| count).sum::<u64>(), 20);
    assert!(peer.take().is_empty());
}
