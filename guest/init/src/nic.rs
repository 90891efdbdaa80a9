//! Network cards: addresses, MTU, up, default route, by the classic `ioctl` calls.
#![expect(unsafe_code, reason = "the ioctl calls of network interfaces have no safe wrapper")]

use crate::boot::BootError;
use crate::cmdline::{Address, CommandLine};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// `struct in6_ifreq`.
#[repr(C)]
struct Ipv6Request {
    address: libc::in6_addr,
    prefix: u32,
    index: i32,
}

/// Sets up every card that the command line names, and the loopback.
pub(crate) fn set_up(command_line: &CommandLine) -> Result<(), BootError> {
    bring_up("lo", None)?;
    for address in &command_line.addresses {
        // The MTU comes before "up", and the addresses after it: an interface that goes up drops the
        // IPv6 addresses it had.
        bring_up(&address.interface, command_line.mtu)?;
        add_address(address)?;
        println!("holdfast-guest: {} has {}/{}", address.interface, address.ip, address.prefix);
    }
    if let Some(gateway) = command_line.gateway {
        add_default_route(gateway)?;
    }
    Ok(())
}

fn error(interface: &str, step: &'static str) -> impl FnOnce(io::Error) -> BootError {
    let interface = interface.to_owned();
    move |source| BootError::Nic { interface, step, source }
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// A socket to direct the calls at.
fn control_socket(six: bool) -> io::Result<UdpSocket> {
    if six {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    }
}

fn call<T>(socket: &UdpSocket, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the structure that `number` is defined to take, valid for reads and
    // writes during the call; the kernel keeps no pointer to it.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), number as libc::Ioctl, std::ptr::from_mut(argument)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bring_up(interface: &str, mtu: Option<u32>) -> Result<(), BootError> {
    let socket = control_socket(false).map_err(error(interface, "open a socket"))?;
    if let Some(mtu) = mtu {
        let mut wanted = request(interface);
        wanted.ifr_ifru.ifru_mtu = mtu as i32;
        call(&socket, libc::SIOCSIFMTU, &mut wanted).map_err(error(interface, "set the MTU"))?;
    }
    let mut flags = request(interface);
    call(&socket, libc::SIOCGIFFLAGS, &mut flags).map_err(error(interface, "find it"))?;
    // SAFETY: SIOCGIFFLAGS filled in the flags of the union.
    let now = unsafe { flags.ifr_ifru.ifru_flags };
    flags.ifr_ifru.ifru_flags = now | (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    call(&socket, libc::SIOCSIFFLAGS, &mut flags).map_err(error(interface, "bring it up"))
}

fn add_address(address: &Address) -> Result<(), BootError> {
    let name = &address.interface;
    match address.ip {
        IpAddr::V4(ip) => {
            let socket = control_socket(false).map_err(error(name, "open a socket"))?;
            let mut wanted = request(name);
            wanted.ifr_ifru.ifru_addr = socket_address(ip);
            call(&socket, libc::SIOCSIFADDR, &mut wanted).map_err(error(name, "set the address"))?;
            let mask = u32::MAX.checked_shl(32 - u32::from(address.prefix)).unwrap_or(0);
            let mut wanted = request(name);
            wanted.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::from(mask));
            call(&socket, libc::SIOCSIFNETMASK, &mut wanted).map_err(error(name, "set the mask"))
        }
        IpAddr::V6(ip) => {
            // The address must be usable at once: nobody else has it.
            let accept = format!("/proc/sys/net/ipv6/conf/{name}/accept_dad");
            std::fs::write(&accept, "0").map_err(error(name, "switch off address detection"))?;
            let socket = control_socket(true).map_err(error(name, "open a socket"))?;
            let index = nix::net::if_::if_nametoindex(name.as_str())
                .map_err(|source| error(name, "find it")(source.into()))?;
            let mut wanted = Ipv6Request {
                address: libc::in6_addr { s6_addr: ip.octets() },
                prefix: u32::from(address.prefix),
                index: index as i32,
            };
            call(&socket, libc::SIOCSIFADDR, &mut wanted).map_err(error(name, "set the address"))
        }
    }
}

fn add_default_route(gateway: Ipv4Addr) -> Result<(), BootError> {
    let socket = control_socket(false).map_err(error("default route", "open a socket"))?;
    // SAFETY: `rtentry` is plain old data, for which all zeroes is a valid value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    call(&socket, libc::SIOCADDRT, &mut route).map_err(error("default route", "set it"))
}

fn socket_address(ip: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(ip.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}
