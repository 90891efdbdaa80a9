//! A guest that serves one client over a connection that runs ahead.

use crate::host::{Host, Spent};
use crate::machine::Machine;
use crate::recycle;
use holdfast_dataplane::sample;
use std::time::{Duration, Instant};

const GUEST_ISS: u32 = 1000;
const CLIENT_ISS: u32 = 7000;
const SYN: u8 = 2;
const ACK: u8 = 0x10;

/// Segments that the guest sends in an epoch, and their bytes.
const SEGMENTS: u32 = 10;
const BYTES: u32 = 1000;

/// Paced by the clock: how long what was committed may take to leave.
const SOON: Duration = Duration::from_secs(20);

/// The connection; both ends' numbers.
pub(crate) struct Talk {
    /// Bytes of the guest's that were sent.
    sent: u32,
}

impl Talk {
    /// The handshake; epoch 1 is committed with it.
    pub(crate) fn open(host: &Host, machine: &mut Machine<'_>) -> Self {
        // The switch has to know the guest before something can come for it.
        machine.send(&sample::arp(sample::GUEST, [10, 0, 0, 2]));
        host.settle();
        assert!(host.peer.put(&of_client(SYN, CLIENT_ISS, 0)));
        host.settle();
        assert!(recycle(machine), "the guest hears of its client");
        machine.send(&of_guest(SYN | ACK, GUEST_ISS, vec![]));
        host.settle();
        host.commit(1);
        host.settle();
        assert_eq!(host.peer.drop_sent(), 2, "what was said before the connection, and its answer");
        assert!(host.peer.put(&of_client(ACK, CLIENT_ISS + 1, GUEST_ISS + 1)));
        host.settle();
        recycle(machine);
        Self { sent: 0 }
    }

    /// The guest sends an epoch's segments; nothing of them leaves.
    pub(crate) fn guest_sends(&mut self, host: &Host, machine: &mut Machine<'_>) -> Spent {
        for _ in 0..SEGMENTS {
            machine.send(&of_guest(ACK, GUEST_ISS + 1 + self.sent, vec![7; BYTES as usize]));
            self.sent += BYTES;
        }
        let spent = host.settle();
        assert_eq!(host.peer.drop_sent(), 0, "nothing leaves before the commit");
        spent
    }

    /// What was committed leaves for the client, at the pace of the clock.
    pub(crate) fn client_gets(&self, host: &Host) -> Vec<Spent> {
        // Segments of the guest are cut anew for the client.
        let frames = (SEGMENTS * BYTES).div_ceil(1460) as usize;
        let (mut sent, mut spent, began) = (0, Vec::new(), Instant::now());
        while sent < frames {
            spent.push(host.settle());
            sent += host.peer.drop_sent();
            assert!(began.elapsed() < SOON, "{sent} frames of {frames}");
        }
        spent
    }

    /// The client confirms all that it got.
    pub(crate) fn client_confirms(&self, host: &Host, machine: &mut Machine<'_>) -> Spent {
        assert!(host.peer.put(&of_client(ACK, CLIENT_ISS + 1, GUEST_ISS + 1 + self.sent)));
        let spent = host.settle();
        recycle(machine);
        spent
    }
}

fn options(flags: u8) -> Vec<u8> {
    // A largest segment of 1460 bytes.
    if flags & SYN != 0 { vec![2, 4, 5, 180] } else { vec![] }
}

fn of_guest(flags: u8, sequence: u32, payload: Vec<u8>) -> Vec<u8> {
    let acknowledgement = CLIENT_ISS + 1;
    let like = sample::Tcp::data(false, payload);
    sample::Tcp { flags, sequence, acknowledgement, options: options(flags), ..like }.bytes()
}

fn of_client(flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    let guest = sample::Tcp::data(false, vec![]);
    let segment = sample::Tcp {
        flags,
        sequence,
        acknowledgement,
        options: options(flags),
        window: 65535,
        destination: guest.source,
        source: guest.destination,
        ports: (guest.ports.1, guest.ports.0),
        ..guest
    };
    let mut bytes = segment.bytes();
    // The sample has the guest as the sender.
    bytes[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 2]);
    sample::complete(&mut bytes, segment.transport(), false);
    bytes
}
