//! What a script says, line by line. The grammar is in the README beside this crate.

use std::fmt;
use std::time::Duration;

/// A script: the rows of the rules that it shows, and its lines.
#[derive(Clone, Debug)]
pub struct Script {
    /// Rows of the table of rules, by their ids.
    pub rows: Vec<String>,
    /// The clauses that the head of the script names.
    pub clauses: Vec<String>,
    /// Families that it is played over.
    pub families: Vec<Family>,
    /// What happens.
    pub lines: Vec<Line>,
}

/// A family of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// The line as it was written.
    pub text: String,
    /// How much later than the line before.
    pub delay: Duration,
    /// What it says.
    pub statement: Statement,
}

/// What a line says.
#[derive(Clone, Debug)]
pub enum Statement {
    /// Limits of the engine; before anything else.
    Config(Vec<(Setting, u64)>),
    /// Flows with this port at the guest do not speculate.
    ExcludePort(u16),
    /// Flows with clients in the range of addresses that all clients here are in do not speculate.
    ExcludeClients,
    /// No flow is excluded any more.
    IncludeAll,
    /// A flow beside the one that needs no name, or a new incarnation of one.
    Flow(FlowDeclaration),
    /// A whole handshake.
    Open(Opening),
    /// A side sends something.
    Send {
        /// Who.
        from: Side,
        /// In which flow.
        flow: String,
        /// What.
        packet: Packet,
    },
    /// The engine emits this, next in its flow and direction.
    Expect {
        /// Whom it is for.
        to: Side,
        /// In which flow.
        flow: String,
        /// What.
        packet: Packet,
        /// How long it may take.
        within: Duration,
    },
    /// The engine emits pure ACKs towards the guest up to this one, at least one: all that have come.
    ExpectAcks {
        /// In which flow.
        flow: String,
        /// What the last one acknowledges.
        ack: u32,
        /// Its window.
        window: Option<Bound>,
    },
    /// The engine emits these bytes towards the client, in order and each once, in as many segments as
    /// it takes.
    ExpectStream {
        /// In which flow.
        flow: String,
        /// First byte and the one behind the last.
        range: (u32, u32),
        /// Whether the client confirms each segment.
        acked: bool,
        /// No segment may have more payload.
        mss: Option<u32>,
        /// How long it may take.
        within: Duration,
    },
    /// Nothing was emitted that was not named.
    Nothing(Option<Side>),
    /// The guest stands still and the epoch is cut, under this name.
    Seal(Option<String>),
    /// The backup keeps the oldest sealed epoch, and its outputs are released.
    Commit {
        /// The name it must have.
        name: Option<String>,
        /// The backup must refuse it (SP-2).
        refused: bool,
    },
    /// The backup's stream takes at most this much.
    Stream(usize),
    /// Whether the backup's stream takes everything at once, as it does by default.
    Streaming(bool),
    /// What was streamed since the last seal is lost on its way to the backup.
    LoseStream,
    /// Whether the guest's queue takes what is emitted.
    GuestTakes(bool),
    /// Whether the wire takes what is emitted.
    WireTakes(bool),
    /// The mode is switched.
    Mode(Mode),
    /// The primary is lost; the backup goes live from what it kept.
    Failover,
    /// The port is fenced: everything is dropped.
    Discard,
    /// The state that the engine reports of a flow; `unknown` when it has none.
    State {
        /// Which flow.
        flow: String,
        /// Its state.
        name: String,
    },
    /// A number that the engine reports.
    Check {
        /// Its name.
        name: String,
        /// What it must be.
        bound: Bound,
    },
}

/// A limit of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Flows in the table.
    Flows,
    /// Bytes held for the port.
    Held,
    /// Bytes held for a flow.
    Flow,
    /// Largest packet of the wire.
    Mtu,
    /// 1 for NewReno.
    NewReno,
}

/// The mode of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No protection.
    Off,
    /// Output commit alone.
    Hold,
    /// Speculation.
    On,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The virtual machine.
    Guest,
    /// The world.
    Client,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Guest => Self::Client,
            Self::Client => Self::Guest,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Client => "client",
        })
    }
}

/// Where a flow's packets go and where its numbers begin.
#[derive(Clone, Debug)]
pub struct FlowDeclaration {
    /// Its name in the script.
    pub name: String,
    /// A new incarnation of the flow of this name: the same addresses and ports.
    pub again: bool,
    /// VLAN numbers, outermost first.
    pub vlans: Vec<u16>,
    /// Ports of the guest and the client.
    pub ports: Option<(u16, u16)>,
    /// Initial sequence numbers of the guest and the client.
    pub start: Option<(u32, u32)>,
}

/// A handshake that succeeds, its epochs committed.
#[derive(Clone, Debug)]
pub struct Opening {
    /// In which flow.
    pub flow: String,
    /// Who begins.
    pub by: Side,
    /// MSS of guest and client.
    pub mss: (Option<u16>, Option<u16>),
    /// Window scale of guest and client.
    pub scale: (Option<u8>, Option<u8>),
    /// Whether SACK is negotiated.
    pub sack: bool,
    /// Whether timestamps are negotiated.
    pub timestamps: bool,
    /// Whether ECN is negotiated.
    pub ecn: bool,
    /// Windows of guest and client behind the SYN, unscaled.
    pub window: (u16, u16),
}

/// A packet to be sent or expected.
#[derive(Clone, Debug)]
pub struct Packet {
    /// What is special about it.
    pub marks: Vec<Mark>,
    /// What it carries.
    pub body: Body,
}

/// What a packet carries.
#[derive(Clone, Debug)]
pub enum Body {
    /// TCP.
    Segment(Segment),
    /// UDP with so much payload.
    Udp(usize),
    /// A frame of a protocol that nobody looks into, of so many bytes.
    Opaque(usize),
    /// ICMP: the packet with these numbers was too big for a link of this MTU.
    TooBig {
        /// The link's MTU.
        mtu: u32,
        /// Sequence number of the packet that is quoted; any when none is given.
        sequence: Option<u32>,
    },
}

/// A TCP segment. What an expectation leaves out is not compared; what is left out of a segment to
/// send has a default.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Control bits.
    pub flags: u8,
    /// Any control bits are right.
    pub any_flags: bool,
    /// Sequence number; any when none is given.
    pub sequence: Option<u32>,
    /// Payload in bytes.
    pub len: u32,
    /// Acknowledgement number.
    pub ack: Option<u32>,
    /// Window, unscaled.
    pub window: Option<Bound>,
    /// Urgent pointer.
    pub urgent: Option<u16>,
    /// Options.
    pub options: Option<Vec<TcpOption>>,
}

/// A TCP option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpOption {
    /// Nothing.
    Nop,
    /// The end of the list.
    End,
    /// Maximum segment size.
    Mss(u16),
    /// Window scale.
    Scale(u8),
    /// SACK permitted.
    SackPermitted,
    /// SACK blocks.
    Sack(Vec<(u32, u32)>),
    /// Timestamps; none in an expectation stands for any.
    Timestamps(Option<u32>, Option<u32>),
    /// Another kind with a body of this many bytes.
    Other(u8, u8),
}

/// What is special about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// ECN-capable transport, codepoint 0.
    Ect0,
    /// Congestion was experienced.
    Ce,
    /// Not ECN-capable.
    NotEct,
    /// The TCP checksum is wrong.
    BadChecksum,
    /// The guest left the checksum to its card.
    Offload,
    /// The payload differs from what belongs to these sequence numbers.
    Other,
    /// It is the first fragment of a larger packet.
    Fragment,
    /// So many extension headers lie before TCP; over IPv4, words of options.
    Extensions(u8),
    /// The AE bit (RFC 9768 §2.2) is set.
    AccurateEcn,
    /// It takes a way on which the engine does not see it.
    Elsewhere,
    /// Bytes of padding behind the packet.
    Padded(u8),
}

/// A comparison with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// How.
    pub comparison: Comparison,
    /// With what.
    pub value: u64,
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Less.
    Below,
    /// Less or equal.
    AtMost,
    /// More.
    Above,
    /// More or equal.
    AtLeast,
}

impl Bound {
    /// Whether `value` is within.
    #[must_use]
    pub const fn admits(self, value: u64) -> bool {
        match self.comparison {
            Comparison::Equal => value == self.value,
            Comparison::Below => value < self.value,
            Comparison::AtMost => value <= self.value,
            Comparison::Above => value > self.value,
            Comparison::AtLeast => value >= self.value,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.comparison {
            Comparison::Equal => "",
            Comparison::Below => "<",
            Comparison::AtMost => "<=",
            Comparison::Above => ">",
            Comparison::AtLeast => ">=",
        };
        write!(f, "{sign}{}", self.value)
    }
}
