//! TUN/TAP and AF_XDP.
#![expect(unsafe_code, reason = "system calls that nobody wraps")]

use super::open_both_ways;
use crate::{Root, Row, State};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Whether TAP interfaces can be made; one is, and goes with its descriptor.
pub(crate) fn tun(root: &Root) -> Row {
    const NEEDED: &str = "tap wires";
    let row = |found: String| Row::ok("tun", "TUN/TAP", found, NEEDED);
    let device = match open_both_ways(root, "dev/net/tun") {
        Ok(device) => device,
        Err(fault) => {
            return row(format!("/dev/net/tun: {fault}"))
                .lacking(State::Missing, "modprobe tun (and in a container: mknod /dev/net/tun c 10 200)");
        }
    };
    // SAFETY: a zeroed `ifreq` is valid; the name is shorter than its field and stays terminated.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"hfprobe%d") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("both fit");
    // SAFETY: the request reads and writes one `ifreq`, which is at hand.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done == 0 {
        return row("/dev/net/tun makes TAP interfaces".to_owned());
    }
    let fault = io::Error::last_os_error();
    row(format!("/dev/net/tun makes no interface: {fault}"))
        .lacking(State::Missing, "run as root or with CAP_NET_ADMIN")
}

/// Whether AF_XDP sockets can be opened.
pub(crate) fn af_xdp() -> Row {
    const NEEDED: &str = "af_xdp wires";
    // SAFETY: no pointers; a descriptor that comes back is owned at once.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    };
    match socket {
        Ok(_) => Row::ok("af_xdp", "AF_XDP", "sockets open", NEEDED),
        Err(fault) => {
            let mend = match fault.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_RAW",
                _ => "a kernel with CONFIG_XDP_SOCKETS; kernel and af_packet wires do without",
            };
            Row::ok("af_xdp", "AF_XDP", format!("no socket: {fault}"), NEEDED).lacking(State::Limited, mend)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::host;

    #[test]
    fn a_file_that_is_no_tun_device_is_found_out() {
        let (_folder, root) = host(&[("dev/net/tun", "")]);
        assert_eq!(tun(&root).state, State::Missing);
        let (_folder, root) = host(&[]);
        assert_eq!(tun(&root).state, State::Missing);
    }
}
