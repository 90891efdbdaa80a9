//! `[[wire]]`: the ports to the world, checked, and the devices that DPDK makes of them.

use crate::{CoreMap, Problems};
use serde::Deserialize;
use std::collections::HashSet;

/// `[[wire]]` as written. Which keys belong to which kind is checked, not parsed, so that all faults
/// are found at once.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWire {
    /// What other sections call it.
    pub name: Option<String>,
    /// `kernel`, `tap`, `af_packet`, `af_xdp`, `memif` or `pci`.
    pub kind: Option<String>,
    /// Interface: made by `tap`, taken by `kernel`, `af_packet` and `af_xdp`.
    pub iface: Option<String>,
    /// Address of the interface that `tap` makes, or of the end of a `memif`.
    pub mac: Option<String>,
    /// Receive queue of the interface that `af_xdp` takes.
    pub queue: Option<u16>,
    /// `server` or `client` of a `memif`.
    pub role: Option<String>,
    /// Socket of a `memif`.
    pub socket: Option<String>,
    /// Number of a `memif` on its socket.
    pub id: Option<u32>,
    /// Address of a card: `0000:03:00.0`.
    pub address: Option<String>,
    /// Payload of a frame in bytes.
    pub mtu: Option<u16>,
    /// Frames in the pool of this wire.
    pub frames: Option<u32>,
    /// Processor of the polling thread that has this wire and the NICs on it; none: the first one.
    pub core: Option<u32>,
}

/// Which end of a memif this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemifRole {
    /// Makes the socket.
    Server,
    /// Connects to it.
    Client,
}

/// The kind of a wire with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireKind {
    /// A TAP interface that is made.
    Tap {
        /// Its name.
        iface: String,
        /// Its address; none: a random one.
        mac: Option<[u8; 6]>,
    },
    /// An interface that is there, by packet sockets with segmentation offload; not by DPDK.
    Kernel {
        /// Its name.
        iface: String,
    },
    /// An interface that is there, by a packet socket of DPDK's.
    AfPacket {
        /// Its name.
        iface: String,
    },
    /// An interface that is there, by AF_XDP.
    AfXdp {
        /// Its name.
        iface: String,
        /// Its receive queue.
        queue: u16,
    },
    /// Shared memory with another process.
    Memif {
        /// Which end this is.
        role: MemifRole,
        /// Its control socket.
        socket: String,
        /// Its number on the socket.
        id: u32,
        /// Its address; none: a random one.
        mac: Option<[u8; 6]>,
    },
    /// A card that is bound to a driver for DPDK.
    Pci {
        /// Domain, bus, device and function.
        address: String,
    },
}

/// A wire, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// What other sections call it.
    pub name: String,
    /// Its kind.
    pub kind: WireKind,
    /// Payload of a frame in bytes.
    pub mtu: u16,
    /// Frames in its pool.
    pub frames: u32,
    /// Processor of its polling thread; none: the first one.
    pub core: Option<u32>,
    index: usize,
}

/// A device, and who is to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireDevice {
    /// An interface that is not DPDK's to open.
    Kernel {
        /// Its name.
        interface: String,
    },
    /// One that a driver makes up.
    Virtual {
        /// Name, which chooses the driver.
        name: String,
        /// Its arguments.
        arguments: String,
    },
    /// A card.
    Pci {
        /// Domain, bus, device and function.
        address: String,
    },
}

const KINDS: &str = "kind = \"pci\", \"kernel\", \"af_xdp\", \"af_packet\", \"tap\" or \"memif\"";
/// Of the kernel: 16 bytes with the zero.
const IFACE_MAX: usize = 15;
/// Of a `sockaddr_un`: 108 bytes with the zero.
const SOCKET_MAX: usize = 107;
const NAME_MAX: usize = 32;
/// Least of IPv4.
const MTU_MIN: u16 = 576;
/// Most that common cards take.
const MTU_MAX: u16 = 9216;
/// Most of memif, which nothing but memory carries: what a bypass makes use of.
const MTU_MAX_MEMIF: u16 = 16_384;
/// Most of AF_XDP: a frame with what the kernel and DPDK keep before it must fit a page.
const MTU_MAX_XDP: u16 = 3400;
/// What the kernel keeps free before a frame of AF_XDP.
const XDP_HEADROOM: u16 = 256;
const MTU_DEFAULT: u16 = 1500;
const FRAMES_MIN: u32 = 1024;
/// Its driver fills rings of 2048 in both directions, and keeps as many again on their way.
const FRAMES_MIN_XDP: u32 = 8192;
const FRAMES_MAX: u32 = 1 << 22;
const FRAMES_DEFAULT: u32 = 16384;
/// Ports that DPDK has room for, as distributions build it.
const WIRES_MAX: usize = 32;
/// Ethernet header and one VLAN tag.
const OVERHEAD: u16 = 14 + 4;
/// Bytes of a pool beside a frame: its descriptor, headroom, header and alignment.
const FRAME_EXTRA: u64 = 128 + 128 + 128;
/// Bytes of a packet socket's ring beside a frame.
const RING_EXTRA: u16 = 128;
/// Frames in a packet socket's ring of longer ones come in whole pages: no block of it has a rest then.
const RING_PAGE: u16 = 4096;
/// Bytes of a memif's ring, about: what the one end wrote is still in the cache when the other reads it.
const MEMIF_RING_BYTES: u32 = 4 << 20;
/// Buffers of a memif's ring, as a power of two: as many as a burst at least, and as its driver takes at most.
const MEMIF_RING_LOG2: std::ops::RangeInclusive<u32> = 6..=10;

impl Wire {
    /// Checks every wire; what is wrong goes to `problems`, and the rest is answered.
    pub fn check_all(raw: &[RawWire], problems: &mut Problems) -> Vec<Self> {
        if raw.len() > WIRES_MAX {
            problems.add(
                "wire",
                format!("{} wires are more than DPDK has room for", raw.len()),
                format!("keep to {WIRES_MAX}"),
            );
            return Vec::new();
        }
        let mut wires = Vec::with_capacity(raw.len());
        let mut names = HashSet::new();
        let mut devices = HashSet::new();
        for (index, raw) in raw.iter().enumerate() {
            let Some(wire) = (Section { raw, index, problems }).check() else { continue };
            if !names.insert(wire.name.clone()) {
                problems.add(
                    format!("wire[{index}].name"),
                    format!("another wire is called {:?} too", wire.name),
                    "give each wire its own name",
                );
            }
            if !devices.insert(wire.identity()) {
                problems.add(
                    format!("wire[{index}]"),
                    format!("another wire uses {} too", wire.identity()),
                    "give each wire its own interface, memif or card",
                );
            }
            wires.push(wire);
        }
        wires
    }

    /// Notes every wire that is to be polled where no polling thread is.
    pub(crate) fn check_cores(wires: &[Self], cores: &CoreMap, problems: &mut Problems) {
        for wire in wires {
            let Some(core) = wire.core.filter(|core| !cores.polling.contains(core)) else { continue };
            problems.add(
                format!("wire[{}].core", wire.index),
                format!("processor {core} has no polling thread"),
                format!("add {core} to polling in [cores], or name one that is there"),
            );
        }
    }

    /// The device that is to be opened.
    #[must_use]
    pub fn device(&self) -> WireDevice {
        let index = self.index;
        let virtual_device = |driver: &str, arguments: String| WireDevice::Virtual {
            name: format!("{driver}{index}"),
            arguments,
        };
        match &self.kind {
            WireKind::Tap { iface, mac } => {
                virtual_device("net_tap", format!("iface={iface}{}", mac_argument(*mac)))
            }
            WireKind::Kernel { iface } => WireDevice::Kernel { interface: iface.clone() },
            WireKind::AfPacket { iface } => {
                let frame = u32::from(self.frame_bytes());
                let block = frame.max(4096);
                let count = (4096 * 2048 / frame).max(256).next_multiple_of(block / frame);
                virtual_device(
                    "net_af_packet",
                    format!("iface={iface},blocksz={block},framesz={frame},framecnt={count}"),
                )
            }
            WireKind::AfXdp { iface, queue } => {
                virtual_device("net_af_xdp", format!("iface={iface},start_queue={queue},queue_count=1"))
            }
            WireKind::Memif { role, socket, id, mac } => {
                let role = match role {
                    MemifRole::Server => "server",
                    MemifRole::Client => "client",
                };
                let buffer = self.frame_bytes();
                let ring = (MEMIF_RING_BYTES / u32::from(buffer)).ilog2();
                let ring = ring.clamp(*MEMIF_RING_LOG2.start(), *MEMIF_RING_LOG2.end());
                virtual_device(
                    "net_memif",
                    format!(
                        "role={role},id={id},socket={socket},socket-abstract=no,bsize={buffer},rsize={ring}{}",
                        mac_argument(*mac)
                    ),
                )
            }
            WireKind::Pci { address } => WireDevice::Pci { address: address.clone() },
        }
    }

    /// Bytes that a frame of this wire's pool must hold: header, a VLAN tag and the MTU, not less than
    /// the 2048 that drivers count on.
    #[must_use]
    pub fn frame_bytes(&self) -> u16 {
        let frame = self.mtu + OVERHEAD;
        match self.kind {
            WireKind::AfXdp { .. } => (frame + XDP_HEADROOM).next_multiple_of(64).max(2048),
            // As long as one of the packet socket's ring, which the driver insists on.
            WireKind::AfPacket { .. } if frame + RING_EXTRA <= 2048 => 2048,
            WireKind::AfPacket { .. } => (frame + RING_EXTRA).next_multiple_of(RING_PAGE),
            _ => frame.next_multiple_of(64).max(2048),
        }
    }

    /// Memory of this wire's pool, in MiB, rounded up.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        let bytes = u64::from(self.frames) * (u64::from(self.frame_bytes()) + FRAME_EXTRA);
        bytes.div_ceil(1 << 20)
    }

    /// What no two wires can share.
    fn identity(&self) -> String {
        match &self.kind {
            WireKind::Kernel { iface } | WireKind::Tap { iface, .. } | WireKind::AfPacket { iface } => {
                format!("interface {iface}")
            }
            WireKind::AfXdp { iface, queue } => format!("interface {iface} queue {queue}"),
            WireKind::Memif { socket, id, role, .. } => format!("memif {id} of {socket} as {role:?}"),
            WireKind::Pci { address } => format!("card {address}"),
        }
    }
}

fn mac_argument(mac: Option<[u8; 6]>) -> String {
    mac.map_or_else(String::new, |mac| {
        let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(",mac={}", parts.join(":"))
    })
}

/// One section under check.
struct Section<'a> {
    raw: &'a RawWire,
    index: usize,
    problems: &'a mut Problems,
}

impl Section<'_> {
    fn check(mut self) -> Option<Wire> {
        let before = self.problems.0.len();
        let name = self.name();
        let kind = self.kind();
        let mtu = self.raw.mtu.unwrap_or(MTU_DEFAULT);
        let of_xdp = self.raw.kind.as_deref() == Some("af_xdp");
        let most = match self.raw.kind.as_deref() {
            Some("af_xdp") => MTU_MAX_XDP,
            Some("memif") => MTU_MAX_MEMIF,
            _ => MTU_MAX,
        };
        if !(MTU_MIN..=most).contains(&mtu) {
            self.fault("mtu", format!("{mtu} bytes are out of range"), format!("use {MTU_MIN} to {most}"));
        }
        let frames = self.raw.frames.unwrap_or(FRAMES_DEFAULT);
        let least = if of_xdp { FRAMES_MIN_XDP } else { FRAMES_MIN };
        if !(least..=FRAMES_MAX).contains(&frames) {
            self.fault(
                "frames",
                format!("a pool of {frames} frames is out of range"),
                format!("use {least} to {FRAMES_MAX}; {FRAMES_DEFAULT} when left out"),
            );
        }
        let sound = self.problems.0.len() == before;
        match (name, kind) {
            (Some(name), Some(kind)) if sound => {
                let (core, index) = (self.raw.core, self.index);
                Some(Wire { name, kind, mtu, frames, core, index })
            }
            _ => None,
        }
    }

    fn fault(&mut self, key: &str, what: impl Into<String>, mend: impl Into<String>) {
        self.problems.add(format!("wire[{}].{key}", self.index), what, mend);
    }

    fn name(&mut self) -> Option<String> {
        let Some(name) = self.raw.name.clone() else {
            self.fault("name", "it is missing", "name = \"wan\"");
            return None;
        };
        let fits = (1..=NAME_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !fits {
            self.fault(
                "name",
                format!("{name:?} is no name"),
                format!("use 1 to {NAME_MAX} letters, digits, '_' or '-'"),
            );
            return None;
        }
        Some(name)
    }

    fn kind(&mut self) -> Option<WireKind> {
        let Some(kind) = self.raw.kind.as_deref() else {
            self.fault("kind", "it is missing", KINDS);
            return None;
        };
        match kind {
            "tap" => {
                self.only(kind, &["iface", "mac"]);
                let (iface, mac) = (self.iface(kind), self.mac());
                Some(WireKind::Tap { iface: iface?, mac: mac? })
            }
            "kernel" => {
                self.only(kind, &["iface"]);
                Some(WireKind::Kernel { iface: self.iface(kind)? })
            }
            "af_packet" => {
                self.only(kind, &["iface"]);
                Some(WireKind::AfPacket { iface: self.iface(kind)? })
            }
            "af_xdp" => {
                self.only(kind, &["iface", "queue"]);
                Some(WireKind::AfXdp { iface: self.iface(kind)?, queue: self.raw.queue.unwrap_or(0) })
            }
            "memif" => {
                self.only(kind, &["role", "socket", "id", "mac"]);
                let (role, socket, mac) = (self.role(), self.socket(), self.mac());
                Some(WireKind::Memif {
                    role: role?,
                    socket: socket?,
                    id: self.raw.id.unwrap_or(0),
                    mac: mac?,
                })
            }
            "pci" => {
                self.only(kind, &["address"]);
                Some(WireKind::Pci { address: self.address()? })
            }
            other => {
                self.fault("kind", format!("{other:?} is no kind of wire"), KINDS);
                None
            }
        }
    }

    /// Notes every key that is written but does not belong to `kind`.
    fn only(&mut self, kind: &str, allowed: &[&str]) {
        let written = [
            ("iface", self.raw.iface.is_some()),
            ("mac", self.raw.mac.is_some()),
            ("queue", self.raw.queue.is_some()),
            ("role", self.raw.role.is_some()),
            ("socket", self.raw.socket.is_some()),
            ("id", self.raw.id.is_some()),
            ("address", self.raw.address.is_some()),
        ];
        for (key, _) in written.iter().filter(|(key, there)| *there && !allowed.contains(key)) {
            self.fault(
                key,
                format!("it means nothing for a wire of kind {kind:?}"),
                format!("leave it out; {kind} knows: {}", allowed.join(", ")),
            );
        }
    }

    fn iface(&mut self, kind: &str) -> Option<String> {
        let Some(iface) = self.raw.iface.clone() else {
            self.fault("iface", format!("a wire of kind {kind:?} needs it"), "iface = \"eth1\"");
            return None;
        };
        let fits = (1..=IFACE_MAX).contains(&iface.len())
            && iface.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
            && iface != "."
            && iface != "..";
        if !fits {
            self.fault(
                "iface",
                format!("{iface:?} cannot name an interface"),
                format!("use 1 to {IFACE_MAX} letters, digits, '_', '-' or '.'"),
            );
            return None;
        }
        Some(iface)
    }

    /// `Some(None)` when none is written, `None` when what is written is wrong.
    #[expect(clippy::option_option, reason = "absent and wrong are different things")]
    fn mac(&mut self) -> Option<Option<[u8; 6]>> {
        let Some(text) = self.raw.mac.clone() else { return Some(None) };
        let parts: Vec<&str> = text.split(':').collect();
        let mut mac = [0u8; 6];
        let whole = parts.len() == mac.len()
            && mac.iter_mut().zip(&parts).all(|(byte, part)| match u8::from_str_radix(part, 16) {
                Ok(value) if part.len() == 2 && !part.starts_with('+') => {
                    *byte = value;
                    true
                }
                _ => false,
            });
        if !whole || mac[0] & 1 != 0 || mac == [0; 6] {
            self.fault(
                "mac",
                format!("{text:?} is no address of one station"),
                "mac = \"02:00:00:00:00:01\" (six pairs; the first even)",
            );
            return None;
        }
        Some(Some(mac))
    }

    fn role(&mut self) -> Option<MemifRole> {
        match self.raw.role.as_deref() {
            Some("server") => Some(MemifRole::Server),
            Some("client") => Some(MemifRole::Client),
            other => {
                let what = other.map_or_else(
                    || "a wire of kind \"memif\" needs it".to_owned(),
                    |other| format!("{other:?} is no role"),
                );
                self.fault("role", what, "role = \"server\" at one end, \"client\" at the other");
                None
            }
        }
    }

    fn socket(&mut self) -> Option<String> {
        let Some(socket) = self.raw.socket.clone() else {
            self.fault(
                "socket",
                "a wire of kind \"memif\" needs it",
                "socket = \"/run/holdfast/memif.sock\"",
            );
            return None;
        };
        let fits = socket.starts_with('/')
            && (2..=SOCKET_MAX).contains(&socket.len())
            && socket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte));
        if !fits {
            self.fault(
                "socket",
                format!("{socket:?} cannot be given to DPDK"),
                format!("use a full path of at most {SOCKET_MAX} letters, digits, '_', '-', '.' and '/'"),
            );
            return None;
        }
        Some(socket)
    }

    fn address(&mut self) -> Option<String> {
        let Some(address) = self.raw.address.clone() else {
            self.fault(
                "address",
                "a wire of kind \"pci\" needs it",
                "address = \"0000:03:00.0\" (see `lspci -D`)",
            );
            return None;
        };
        let Some(full) = pci_address(&address) else {
            self.fault(
                "address",
                format!("{address:?} is no address of a card"),
                "address = \"0000:03:00.0\" (see `lspci -D`)",
            );
            return None;
        };
        Some(full)
    }
}

/// An address in full and lower case; the domain may be left out.
fn pci_address(text: &str) -> Option<String> {
    let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let (front, function) = text.split_once('.')?;
    let parts: Vec<&str> = front.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [bus, device] => ("0000", bus, device),
        [domain, bus, device] => (domain, bus, device),
        _ => return None,
    };
    let sound = hex(domain, 4..=8)
        && hex(bus, 2..=2)
        && hex(device, 2..=2)
        && u8::from_str_radix(device, 16).is_ok_and(|device| device < 32)
        && function.len() == 1
        && function.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    sound.then(|| format!("{domain}:{bus}:{device}.{function}").to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
