//! A station on an interface: a packet socket that sends frames and waits for their echo.
#![expect(unsafe_code, reason = "packet sockets need an address that nobody wraps")]

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The socket, bound to one interface and to one kind of frames.
pub(crate) struct Station(OwnedFd);

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

impl Station {
    /// For experiments on one's own wire (IEEE 802).
    pub(crate) const ETHERTYPE: u16 = 0x88b5;

    pub(crate) fn on(interface: &str) -> Self {
        let name = CString::new(interface).expect("no zero inside");
        let protocol = Self::ETHERTYPE.to_be();
        // SAFETY: a terminated name; a zeroed `sockaddr_ll` is valid, is filled and passed with its
        // size; the descriptor is owned at once.
        unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            assert_ne!(index, 0, "{interface}: {}", io::Error::last_os_error());
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).expect("small");
            address.sll_protocol = protocol;
            address.sll_ifindex = i32::try_from(index).expect("small");
            let size = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
            assert_eq!(
                libc::bind(fd, (&raw const address).cast(), size),
                0,
                "{}",
                io::Error::last_os_error()
            );
            Self(socket)
        }
    }

    /// A frame of `len` bytes whose content follows from `number`.
    pub(crate) fn frame(number: usize, len: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(len);
        frame.extend_from_slice(&THEIRS);
        frame.extend_from_slice(&OURS);
        frame.extend_from_slice(&Self::ETHERTYPE.to_be_bytes());
        frame.extend((14..len).map(|at| (number.wrapping_mul(31) + at).to_le_bytes()[0]));
        frame
    }

    pub(crate) fn is_ours(frame: &[u8]) -> bool {
        frame.get(12..14) == Some(&Self::ETHERTYPE.to_be_bytes())
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: reads the frame's bytes.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "{}", io::Error::last_os_error());
    }

    /// The next frame that came in, or `None` when none does in time.
    pub(crate) fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(patience.as_millis()).expect("short");
        let mut frame = vec![0u8; 65536];
        // SAFETY: one `pollfd`; `recv` writes at most the size given.
        unsafe {
            if libc::poll(&raw mut poll, 1, timeout) <= 0 {
                return None;
            }
            let got = libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0);
            frame.truncate(usize::try_from(got).expect("there was one"));
        }
        Some(frame)
    }

    /// Sends `count` frames of all sizes up to `longest`, a few at a time, and checks that each comes
    /// back with its addresses swapped and every byte as it was.
    pub(crate) fn exchange(&self, count: usize, longest: usize) {
        const AT_A_TIME: usize = 16;
        let span = longest - 60 + 1;
        let frame = |number: usize| Self::frame(number, 60 + number * 97 % span);
        for start in (0..count).step_by(AT_A_TIME) {
            let numbers = start..count.min(start + AT_A_TIME);
            for number in numbers.clone() {
                self.send(&frame(number));
            }
            for number in numbers {
                let mut expected = frame(number);
                expected[..6].copy_from_slice(&OURS);
                expected[6..12].copy_from_slice(&THEIRS);
                let echo =
                    self.receive(super::PATIENCE).unwrap_or_else(|| panic!("no echo of frame {number}"));
                assert!(echo == expected, "frame {number} of {} bytes came back changed", expected.len());
            }
        }
    }
}

/// A descriptor of an open port, which the caller keeps open.
pub(crate) fn borrowed(fd: std::os::fd::RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the port that owns it is open for the whole test.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
