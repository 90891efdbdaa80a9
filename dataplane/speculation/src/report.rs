//! What an engine says of its flows.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Where a flow is in its life, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// The handshake has not been seen in full.
    Opening,
    /// Known, but passed through.
    Plain,
    /// Bytes are held, but the client has not confirmed all that went through before.
    Joining,
    /// The guest runs ahead.
    Speculating,
    /// Held bytes are delivered, then the flow is passed through.
    Draining,
    /// The guest has reset it; the client gets what came before.
    Resetting,
    /// Both directions are closed, or it was reset.
    Finished,
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Plain => "plain",
            Self::Joining => "joining",
            Self::Speculating => "speculating",
            Self::Draining => "draining",
            Self::Resetting => "resetting",
            Self::Finished => "finished",
        })
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// VLAN numbers, outermost first; zero for none.
    pub vlans: [u16; 2],
    /// The guest's end.
    pub guest: (IpAddr, u16),
    /// The client's end.
    pub client: (IpAddr, u16),
    /// Where it is in its life.
    pub state: FlowState,
    /// Bytes by which the ACK that the guest was shown is ahead of the client's.
    pub ahead_bytes: u32,
    /// Bytes held.
    pub held_bytes: u32,
    /// Bytes that the guest may still send into its window.
    pub window_bytes: u32,
    /// Smoothed round-trip time to the client.
    pub srtt: Option<Duration>,
    /// Congestion window towards the client, in bytes.
    pub cwnd_bytes: u32,
    /// Segments sent again to the client.
    pub retransmissions: u64,
}
