//! Devices on a bus: what is plugged in at run time before a port can be opened on it.
#![expect(unsafe_code, reason = "calls into DPDK")]

use crate::{Eal, Errno, log, signals};
use holdfast_dpdk_sys as sys;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// A device by its bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// One that a driver makes up: `net_tap0` with `iface=hf0`.
    Virtual {
        /// Its name; the driver is chosen by the start of it.
        name: String,
        /// Its arguments, `key=value` with commas between.
        arguments: String,
    },
    /// A card, bound to a driver that DPDK can use.
    Pci {
        /// Domain, bus, device and function: `0000:03:00.0`.
        address: String,
    },
}

/// A device could not be plugged in.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The name or the arguments hold a zero byte.
    #[error("device {device}: its name or arguments hold a zero byte")]
    ZeroByte {
        /// The device in question.
        device: Device,
    },
    /// The bus or the driver refused.
    #[error("device {device} cannot be plugged in: {errno}; DPDK said: {log}\n  mend: {mend}")]
    Refused {
        /// The device in question.
        device: Device,
        /// The error that the bus gave.
        errno: Errno,
        /// Its own last warnings and errors.
        log: String,
        /// What to do.
        mend: &'static str,
    },
    /// It is there, but no port came of it.
    #[error(
        "device {device} has no network port\n  mend: name a network device; check its driver with `dpdk-devbind.py --status`"
    )]
    NoPort {
        /// The device in question.
        device: Device,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtual { name, arguments } if arguments.is_empty() => f.write_str(name),
            Self::Virtual { name, arguments } => write!(f, "{name},{arguments}"),
            Self::Pci { address } => f.write_str(address),
        }
    }
}

impl Device {
    /// The name that the bus and the port know it by.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Virtual { name, .. } => name,
            Self::Pci { address } => address,
        }
    }

    fn bus(&self) -> &'static str {
        match self {
            Self::Virtual { .. } => "vdev",
            Self::Pci { .. } => "pci",
        }
    }

    /// Whether its frames may be as long as its rings are made for: the longest frame that these drivers tell of is a
    /// constant of 1518 bytes, to which they do not keep.
    pub(crate) fn carries_what_its_rings_hold(&self) -> bool {
        let drivers = ["net_memif", "net_af_packet"];
        matches!(self, Self::Virtual { name, .. } if drivers.iter().any(|driver| name.starts_with(driver)))
    }

    /// Plugs the device in unless it is, and answers the number of its port.
    pub(crate) fn plug(&self, _running: Eal) -> Result<Plugged, DeviceError> {
        let zero = |_| DeviceError::ZeroByte { device: self.clone() };
        let bus = CString::new(self.bus()).map_err(zero)?;
        let name = CString::new(self.name()).map_err(zero)?;
        let arguments = match self {
            Self::Virtual { arguments, .. } => arguments.as_str(),
            Self::Pci { .. } => "",
        };
        let arguments = CString::new(arguments).map_err(zero)?;
        let plugged = Plugged { bus, name, port: 0 };
        // A card named among the EAL's arguments was probed at the start.
        if let Some(port) = plugged.port_by_name() {
            return Ok(Plugged { port, ..plugged });
        }
        log::take_recent();
        self.remove_stale_socket();
        let add = || {
            let _alone = alone();
            // SAFETY: the EAL runs; three terminated strings, which the callee copies.
            unsafe {
                sys::rte_eal_hotplug_add(plugged.bus.as_ptr(), plugged.name.as_ptr(), arguments.as_ptr())
            }
        };
        let returned = signals::none_free_for(self.name(), add);
        if let Err(errno) = Errno::check(returned) {
            let log = log::take_recent();
            let mend = self.mend(errno, &log);
            return Err(DeviceError::Refused { device: self.clone(), errno, log, mend });
        }
        match plugged.port_by_name() {
            Some(port) => Ok(Plugged { port, ..plugged }),
            None => {
                plugged.unplug();
                Err(DeviceError::NoPort { device: self.clone() })
            }
        }
    }

    /// A memif server does not bind over the socket that a killed process left behind.
    fn remove_stale_socket(&self) {
        let Self::Virtual { name, arguments } = self else { return };
        let words: Vec<&str> = arguments.split(',').collect();
        if !name.starts_with("net_memif") || !words.contains(&"role=server") {
            return;
        }
        let Some(path) = words.iter().find_map(|word| word.strip_prefix("socket=")) else { return };
        // Nobody listens when the connection is refused; a live server is of another type, which is
        // another error.
        let dead =
            UnixStream::connect(path).is_err_and(|fault| fault.kind() == io::ErrorKind::ConnectionRefused);
        if dead {
            if let Err(fault) = std::fs::remove_file(path) {
                tracing::warn!(%fault, path, "the socket of a process that is gone cannot be removed");
            }
        }
    }

    fn mend(&self, errno: Errno, log: &str) -> &'static str {
        let log = log.to_ascii_lowercase();
        let forbidden = ["not permitted", "permission denied"].iter().any(|text| log.contains(text));
        match self {
            _ if forbidden || errno.0 == libc::EACCES => {
                "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN and CAP_IPC_LOCK"
            }
            _ if errno.0 == libc::EEXIST => "give each port its own name: one of this name is already there",
            Self::Virtual { name, .. } if name.starts_with("net_tap") => {
                "the interface must not be there yet (`ip link`), and /dev/net/tun must be (`modprobe tun`)"
            }
            Self::Virtual { name, .. } if name.starts_with("net_af_") => {
                "name an interface that exists in this network namespace (`ip link`) and that no other \
                 AF_XDP program holds"
            }
            Self::Virtual { name, .. } if name.starts_with("net_memif") => {
                "the folder of the socket must be there and writable"
            }
            Self::Virtual { .. } => "see `holdfast check-host`: the drivers of DPDK may not be installed",
            Self::Pci { .. } => {
                "bind the card to vfio-pci (`dpdk-devbind.py -b vfio-pci ADDRESS`); see `holdfast check-host`"
            }
        }
    }
}

/// Held while a device comes, is set up, or goes: drivers keep what they share without a lock (`net_memif` its table
/// of sockets), so that no two threads may do so at once.
#[expect(clippy::disallowed_methods, reason = "of control threads, that open and close devices")]
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that is plugged in and has a port.
#[derive(Debug)]
pub(crate) struct Plugged {
    bus: CString,
    name: CString,
    pub(crate) port: u16,
}

impl Plugged {
    fn port_by_name(&self) -> Option<u16> {
        let mut port = 0u16;
        // SAFETY: a terminated name, and a place for the answer.
        let returned = unsafe { sys::rte_eth_dev_get_port_by_name(self.name.as_ptr(), &raw mut port) };
        (returned == 0).then_some(port)
    }

    /// Takes the device out; its port must be closed, or never have been set up.
    pub(crate) fn unplug(&self) {
        let _alone = alone();
        // SAFETY: the EAL runs; two terminated strings.
        let returned = unsafe { sys::rte_eal_hotplug_remove(self.bus.as_ptr(), self.name.as_ptr()) };
        if let Err(errno) = Errno::check(returned) {
            tracing::warn!(device = %self.name.to_string_lossy(), %errno, "the device cannot be taken out");
        }
    }
}
