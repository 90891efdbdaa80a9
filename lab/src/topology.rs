//! Two hosts and a client on one wire, and a link of their own between the hosts.
//!
//! ```text
//!   host A                       client 10.99.0.1                      host B
//!   wire0 --------------- porta [ br0 ] portb --------------- wire0
//!   repl0 10.98.0.1 ------------------------------------- repl0 10.98.0.2
//! ```
//!
//! `wire0` has no address: it is the port of the appliance. Unless asked otherwise, frames on it are
//! as on a cable: no longer than the MTU, checksums filled in.

use crate::netns::{Namespace, NetnsError};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The client's address on the wire, a /24.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The client's IPv6 address on the wire, a /64.
pub const CLIENT_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
/// The client's bridge.
pub const CLIENT_BRIDGE: &str = "br0";
/// The interface of each host on the wire.
pub const WIRE: &str = "wire0";
/// The interface of each host on the replication link.
pub const REPLICATION: &str = "repl0";
/// The bridge of a host whose wire has more than one interface.
const HOST_BRIDGE: &str = "wirebr0";

/// The address of the `n`-th network card of all guests (from 0).
pub fn guest_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + n)
}

/// The IPv6 address of the `n`-th network card of all guests (from 0).
pub fn guest_ip6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 1, u16::from(n))
}

/// The MAC address of the `n`-th network card of all guests (from 0).
pub fn guest_mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0x00, 0x48, 0x46, n]
}

/// How the wire is laid.
#[derive(Debug, Clone)]
pub struct TopologyOptions {
    /// MTU of the wire.
    pub mtu: u16,
    /// MTU of the replication link.
    pub replication_mtu: u16,
    /// Lets the kernel pass unsegmented frames of up to 64 KiB without checksums along the wire, which
    /// no cable does.
    pub wire_offloads: bool,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        Self { mtu: 1500, replication_mtu: 9000, wire_offloads: false }
    }
}

/// One of the two hosts.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address on the replication link, a /24.
    pub replication_ip: Ipv4Addr,
    /// The client's end of its wire: what arrives there, this host sent.
    pub client_port: &'static str,
    mtu: u16,
}

/// All of it; ends with this value.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The host that starts as primary.
    pub a: Host,
    /// The host that starts as backup.
    pub b: Host,
    /// The client's namespace.
    pub client: Namespace,
}

impl Topology {
    /// Lays it.
    pub fn create(options: &TopologyOptions) -> Result<Self, NetnsError> {
        let client = Namespace::create("client")?;
        client.ip(&format!(
            "link add {CLIENT_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        client.set(&format!("net/ipv6/conf/{CLIENT_BRIDGE}/accept_dad"), "0")?;
        client.ip(&format!("link set {CLIENT_BRIDGE} mtu {} up", options.mtu))?;
        client.ip(&format!("addr add {CLIENT_IP}/24 dev {CLIENT_BRIDGE}"))?;
        client.ip(&format!("addr add {CLIENT_IP6}/64 dev {CLIENT_BRIDGE} nodad"))?;

        let host = |name: &str, last: u8, client_port| -> Result<Host, NetnsError> {
            let namespace = Namespace::create(name)?;
            // The kernel of a host must not speak on the appliance's wire.
            namespace.set("net/ipv6/conf/all/disable_ipv6", "1")?;
            namespace.set("net/ipv6/conf/default/disable_ipv6", "1")?;
            namespace.set("net/ipv4/ip_forward", "0")?;
            namespace.set("net/ipv4/conf/all/arp_ignore", "1")?;
            client.ip(&format!(
                "link add {client_port} mtu {} type veth peer name {WIRE} mtu {} netns {}",
                options.mtu,
                options.mtu,
                namespace.path()
            ))?;
            client.set(&format!("net/ipv6/conf/{client_port}/disable_ipv6"), "1")?;
            if !options.wire_offloads {
                client.disable_offloads(client_port)?;
                namespace.disable_offloads(WIRE)?;
            }
            client.ip(&format!("link set {client_port} master {CLIENT_BRIDGE} up"))?;
            namespace.ip(&format!("link set {WIRE} up"))?;
            Ok(Host {
                namespace,
                replication_ip: Ipv4Addr::new(10, 98, 0, last),
                client_port,
                mtu: options.mtu,
            })
        };
        let a = host("host-a", 1, "porta")?;
        let b = host("host-b", 2, "portb")?;
        a.namespace.ip(&format!(
            "link add {REPLICATION} mtu {} type veth peer name {REPLICATION} mtu {} netns {}",
            options.replication_mtu,
            options.replication_mtu,
            b.namespace.path()
        ))?;
        for host in [&a, &b] {
            host.namespace.ip(&format!("addr add {}/24 dev {REPLICATION}", host.replication_ip))?;
            host.namespace.ip(&format!("link set {REPLICATION} up"))?;
        }
        Ok(Self { a, b, client })
    }

    /// Cuts the replication link or mends it; frames under way are lost.
    pub fn set_replication(&self, up: bool) -> Result<(), NetnsError> {
        for host in [&self.a, &self.b] {
            host.set_link(REPLICATION, up)?;
        }
        Ok(())
    }
}

impl Host {
    /// Takes one of its interfaces down or up.
    pub fn set_link(&self, interface: &str, up: bool) -> Result<(), NetnsError> {
        let state = if up { "up" } else { "down" };
        self.namespace.ip(&format!("link set {interface} {state}"))?;
        Ok(())
    }

    /// Makes a TAP interface bridged to the wire: how a guest is attached without Holdfast.
    pub fn add_tap(&self, name: &str) -> Result<(), NetnsError> {
        self.namespace.ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
        self.bridge_to_wire(name)
    }

    /// Puts an interface of the host on the wire.
    pub fn bridge_to_wire(&self, interface: &str) -> Result<(), NetnsError> {
        let space = &self.namespace;
        if space.ip(&format!("link show {HOST_BRIDGE}")).is_err() {
            space.ip(&format!(
                "link add {HOST_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            ))?;
            space.ip(&format!("link set {WIRE} master {HOST_BRIDGE}"))?;
            space.ip(&format!("link set {HOST_BRIDGE} up"))?;
        }
        space.ip(&format!("link set {interface} mtu {} master {HOST_BRIDGE} up", self.mtu))?;
        Ok(())
    }
}
