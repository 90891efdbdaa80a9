//! The flows of a script: names, ports, numbers, clocks, and what was seen of each.

use crate::frame::{self, Checksum, Header, Path};
use crate::parse::DEFAULT_FLOW;
use crate::script::{Bound, Family, FlowDeclaration, Mark, Segment, Side, TcpOption};
use crate::seen::{Seen, SeenPacket};
use crate::witness::Witness;
use holdfast_packet::headers::flag;
use holdfast_speculation::Time;

/// Initial sequence numbers, close to where they wrap, so that every script of some length wraps both.
const START: (u32, u32) = (u32::MAX - 4999, u32::MAX - 99);
/// Ports of the first flow at guest and client.
const PORTS: (u16, u16) = (5001, 40_000);
/// Timestamp clocks of guest and client at the beginning; they count milliseconds.
const CLOCKS: (u32, u32) = (1000, 5000);

/// One flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its name in the script.
    pub name: String,
    /// VLAN numbers, outermost first.
    pub vlans: Vec<u16>,
    /// Ports of guest and client.
    pub ports: (u16, u16),
    /// Whether guest and client have a timestamp in their SYN.
    stamped: (bool, bool),
    /// Windows of guest and client unless a line says another.
    pub window: (u16, u16),
    /// What was seen of it.
    pub witness: Witness,
}

/// All flows of a script.
#[derive(Clone, Debug)]
pub struct Flows {
    family: Family,
    list: Vec<Flow>,
}

/// A frame to be sent.
#[derive(Clone, Debug)]
pub struct Made {
    /// As its sender gives it away.
    pub frame: Vec<u8>,
    /// With a whole checksum, as a card would send it.
    pub finished: Vec<u8>,
    /// Whether the sender has filled in the checksum.
    pub checksum_done: bool,
}

impl Flows {
    /// The flow that needs no declaration.
    #[must_use]
    pub fn new(family: Family) -> Self {
        let mut flows = Self { family, list: Vec::new() };
        let first = FlowDeclaration {
            name: DEFAULT_FLOW.to_owned(),
            again: false,
            vlans: Vec::new(),
            ports: None,
            start: None,
        };
        flows.declare(&first).unwrap_or_default();
        flows
    }

    /// Adds a flow, or begins a new incarnation of one.
    ///
    /// # Errors
    /// A new name that is known, or a known one that is not; whose fault: the script's.
    pub fn declare(&mut self, flow: &FlowDeclaration) -> Result<(), String> {
        let nth = self.list.len() as u32;
        let spread = |start: u32| start.wrapping_add(nth.wrapping_mul(0x1357_9bdf));
        let start = flow.start.unwrap_or((spread(START.0), spread(START.1)));
        if flow.again {
            let old = self.get_mut(&flow.name)?;
            old.witness = Witness::new(start);
            old.vlans = if flow.vlans.is_empty() { old.vlans.clone() } else { flow.vlans.clone() };
            return Ok(());
        }
        let known = Flow {
            name: flow.name.clone(),
            vlans: flow.vlans.clone(),
            ports: flow.ports.unwrap_or((PORTS.0, PORTS.1 + nth as u16)),
            stamped: (false, false),
            window: (502, 512),
            witness: Witness::new(start),
        };
        if flow.name == DEFAULT_FLOW {
            self.list.retain(|flow| flow.name != DEFAULT_FLOW);
        }
        if self.list.iter().any(|flow| flow.name == known.name) {
            return Err(format!("there is a flow {} already", known.name));
        }
        self.list.push(known);
        Ok(())
    }

    /// A flow by its name.
    ///
    /// # Errors
    /// There is none of this name; whose fault: the script's.
    pub fn get(&self, name: &str) -> Result<&Flow, String> {
        self.list.iter().find(|flow| flow.name == name).ok_or_else(|| format!("there is no flow {name}"))
    }

    /// A flow by its name.
    ///
    /// # Errors
    /// There is none of this name; whose fault: the script's.
    pub fn get_mut(&mut self, name: &str) -> Result<&mut Flow, String> {
        self.list.iter_mut().find(|flow| flow.name == name).ok_or_else(|| format!("there is no flow {name}"))
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flow> {
        self.list.iter_mut()
    }

    /// The flow that a frame to `to` belongs to, if any.
    #[must_use]
    pub fn of(&self, to: Side, seen: &Seen) -> Option<usize> {
        let towards_guest = to == Side::Guest;
        let ports = match &seen.packet {
            SeenPacket::Tcp(tcp) if towards_guest => (tcp.ports.1, tcp.ports.0),
            SeenPacket::Udp(ports, _) if towards_guest => (ports.1, ports.0),
            SeenPacket::Tcp(tcp) => tcp.ports,
            SeenPacket::Udp(ports, _) => *ports,
            SeenPacket::TooBig { ports, .. } => *ports,
            SeenPacket::Opaque(_) => (0, 0),
        };
        let exactly = |flow: &Flow| flow.ports == ports && flow.vlans == seen.vlans;
        self.list.iter().position(exactly)
    }

    /// The flow under which a frame without ports is told: the first in its VLAN.
    #[must_use]
    pub fn beside(&self, seen: &Seen) -> usize {
        self.list.iter().position(|flow| flow.vlans == seen.vlans).unwrap_or_default()
    }

    /// The flow at this place.
    ///
    /// # Panics
    /// When there is none.
    pub fn at(&mut self, index: usize) -> &mut Flow {
        &mut self.list[index]
    }

    /// Makes the frame of a segment; a side's defaults fill in what the script leaves out.
    ///
    /// # Errors
    /// There is no flow of this name; whose fault: the script's.
    pub fn segment(
        &mut self,
        from: Side,
        name: &str,
        marks: &[Mark],
        segment: &Segment,
        now: Time,
    ) -> Result<Made, String> {
        let family = self.family;
        let flow = self.get_mut(name)?;
        let path = path(family, from, &flow.vlans, marks);
        let mut header = flow.header(from, segment, now);
        header.accurate_ecn = marks.contains(&Mark::AccurateEcn);
        let sequence = segment.sequence.unwrap_or_default();
        let mut payload = frame::payload(from, sequence, segment.len);
        if marks.contains(&Mark::Other) {
            payload.iter_mut().for_each(|byte| *byte = !*byte);
        }
        let large = payload.len() > 1500;
        let checksum = match marks {
            _ if marks.contains(&Mark::BadChecksum) => Checksum::Wrong,
            _ if large || marks.contains(&Mark::Offload) => Checksum::Partial,
            _ => Checksum::Right,
        };
        let make = |checksum| {
            let mut bytes = frame::tcp(&path, &header, &payload, checksum);
            for mark in marks {
                if let Mark::Padded(count) = mark {
                    bytes.extend(vec![0xee; usize::from(*count)]);
                }
            }
            bytes
        };
        let frame = make(checksum);
        let finished = if checksum == Checksum::Partial { make(Checksum::Right) } else { frame.clone() };
        let made = Made { frame, finished, checksum_done: checksum != Checksum::Partial };
        let honest = !marks.iter().any(|mark| matches!(mark, Mark::BadChecksum | Mark::Fragment));
        if !honest && from == Side::Guest {
            flow.witness.tried(sequence.wrapping_add(segment.len));
        }
        if honest {
            let seen = Seen::read(&made.finished).map_err(|broken| broken.to_string())?;
            if let SeenPacket::Tcp(tcp) = seen.packet {
                flow.witness.sent(from, &tcp);
                if tcp.flags & flag::SYN != 0 {
                    flow.stamped(from, tcp.timestamps().is_some());
                }
            }
        }
        Ok(made)
    }

    /// A UDP frame between the ends of a flow.
    ///
    /// # Errors
    /// There is no flow of this name; whose fault: the script's.
    pub fn udp(&self, from: Side, name: &str, marks: &[Mark], len: usize) -> Result<Vec<u8>, String> {
        let flow = self.get(name)?;
        let ports = if from == Side::Guest { flow.ports } else { (flow.ports.1, flow.ports.0) };
        Ok(frame::udp(&path(self.family, from, &flow.vlans, marks), ports, len))
    }

    /// A frame of no protocol that is looked into.
    ///
    /// # Errors
    /// There is no flow of this name; whose fault: the script's.
    pub fn opaque(&self, from: Side, name: &str, len: usize) -> Result<Vec<u8>, String> {
        let flow = self.get(name)?;
        Ok(frame::opaque(&path(self.family, from, &flow.vlans, &[]), len))
    }

    /// ICMP to the guest: its segment with this sequence number was too big.
    ///
    /// # Errors
    /// There is no flow of this name; whose fault: the script's.
    pub fn too_big(
        &self,
        from: Side,
        name: &str,
        mtu: u32,
        sequence: Option<u32>,
    ) -> Result<Vec<u8>, String> {
        let flow = self.get(name)?;
        let sequence = flow.witness.start.0.wrapping_add(sequence.unwrap_or(1));
        Ok(frame::too_big(&path(self.family, from, &flow.vlans, &[]), flow.ports, sequence, mtu))
    }
}

impl Flow {
    fn stamped(&mut self, from: Side, with: bool) {
        match from {
            Side::Guest => self.stamped.0 = with,
            Side::Client => self.stamped.1 = with,
        }
    }

    /// Initial sequence numbers of a side and of its peer.
    #[must_use]
    pub const fn starts(&self, side: Side) -> (u32, u32) {
        match side {
            Side::Guest => self.witness.start,
            Side::Client => (self.witness.start.1, self.witness.start.0),
        }
    }

    fn header(&self, from: Side, segment: &Segment, now: Time) -> Header {
        let (own, peer) = self.starts(from);
        let (got, window, clock, echo, ports) = match from {
            Side::Guest => {
                (self.witness.guest_got, self.window.0, CLOCKS.0, self.witness.shown_to_guest, self.ports)
            }
            Side::Client => (
                self.witness.client_got,
                self.window.1,
                CLOCKS.1,
                self.witness.shown_to_client,
                (self.ports.1, self.ports.0),
            ),
        };
        let acknowledges = segment.flags & flag::ACK != 0;
        let clock = clock + (now.as_ns() / 1_000_000) as u32;
        let stamped = self.stamped == (true, true) && segment.flags & (flag::SYN | flag::RST) == 0;
        let default = if stamped {
            vec![
                TcpOption::Nop,
                TcpOption::Nop,
                TcpOption::Timestamps(Some(clock), Some(echo.unwrap_or_default())),
            ]
        } else {
            Vec::new()
        };
        let options = segment.options.as_ref().unwrap_or(&default);
        Header {
            ports,
            sequence: own.wrapping_add(segment.sequence.unwrap_or_default()),
            ack: if acknowledges { peer.wrapping_add(segment.ack.unwrap_or(got)) } else { 0 },
            flags: segment.flags,
            accurate_ecn: false,
            window: segment.window.map_or(window, |Bound { value, .. }| value as u16),
            urgent: segment.urgent.unwrap_or_default(),
            options: encoded(options, peer, clock, echo.unwrap_or_default()),
        }
    }
}

fn path(family: Family, from: Side, vlans: &[u16], marks: &[Mark]) -> Path {
    let mut path = Path { vlans: vlans.to_vec(), ..Path::plain(family, from) };
    for mark in marks {
        match mark {
            Mark::Ect0 => path.ecn = 2,
            Mark::Ce => path.ecn = 3,
            Mark::Fragment => path.fragment = true,
            Mark::Extensions(count) => path.extensions = *count,
            _ => {}
        }
    }
    path
}

/// Options as they are in a header, padded to whole words. SACK blocks are of the peer's numbers.
fn encoded(options: &[TcpOption], peer: u32, clock: u32, echo: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for option in options {
        match option {
            TcpOption::Nop => bytes.push(1),
            TcpOption::End => bytes.push(0),
            TcpOption::Mss(mss) => {
                bytes.extend([2, 4]);
                bytes.extend(mss.to_be_bytes());
            }
            TcpOption::Scale(shift) => bytes.extend([3, 3, *shift]),
            TcpOption::SackPermitted => bytes.extend([4, 2]),
            TcpOption::Sack(blocks) => {
                bytes.extend([5, (2 + 8 * blocks.len()) as u8]);
                for (left, right) in blocks {
                    bytes.extend(peer.wrapping_add(*left).to_be_bytes());
                    bytes.extend(peer.wrapping_add(*right).to_be_bytes());
                }
            }
            TcpOption::Timestamps(value, echoed) => {
                bytes.extend([8, 10]);
                bytes.extend(value.unwrap_or(clock).to_be_bytes());
                bytes.extend(echoed.unwrap_or(echo).to_be_bytes());
            }
            TcpOption::Other(kind, len) => {
                bytes.extend([*kind, 2 + len]);
                bytes.extend((0..*len).map(|byte| byte.wrapping_mul(7)));
            }
        }
    }
    bytes.resize(bytes.len().div_ceil(4) * 4, 1);
    bytes
}
