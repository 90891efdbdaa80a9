//! Two hosts and a client on one wire, and a link of their own between the hosts.
//!
//! ```text
//!   host A                       client 10.99.0.1                      host B
//!   wire0 --------------- porta [ br0 ] portb --------------- wire0
//!   repl0 10.98.0.1 ------------------------------------- repl0 10.98.0.2
//!   byp0 ------------------------------------------------- byp0        where asked for
//! ```
//!
//! `wire0` has no address: it is the port of the appliance. Unless asked otherwise, frames on it are
//! as on a cable: no longer than the MTU, checksums filled in.
//!
//! With [`TopologyOptions::long_wire`] the client stands at the far end of a wire that
//! [`crate::emulator`] makes, whichever host it speaks to; the bridge is in a namespace of its own then:
//!
//! ```text
//!   host A                     switch                         client 10.99.0.1
//!   wire0 --------------- porta [ br0 ] portc --- emu0 ~~ emu1 --- client0
//!   host B                       |
//!   wire0 --------------- portb -'
//! ```

use crate::netns::{Namespace, NetnsError};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The client's address on the wire, a /24.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The client's IPv6 address on the wire, a /64.
pub const CLIENT_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
/// The bridge between the hosts' wires and the client: the client's own interface, unless a long wire
/// lies between them.
pub const CLIENT_BRIDGE: &str = "br0";
/// The client's interface at the end of a long wire.
const CLIENT_PORT: &str = "client0";
/// The interfaces in the switch's namespace between which the wire emulator stands: the first towards the
/// hosts, the second towards the client.
pub const LONG_WIRE: (&str, &str) = ("emu0", "emu1");
/// The interface of each host on the wire.
pub const WIRE: &str = "wire0";
/// The interface of each host on the replication link.
pub const REPLICATION: &str = "repl0";
/// The interface of each host on the bypass, where there is one.
pub const BYPASS: &str = "byp0";
/// The interfaces between which the wire emulator stands on a long bypass: the first towards host A.
pub const LONG_BYPASS: (&str, &str) = ("bypa", "bypb");
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
    /// Leaves a gap between bridge and client, [`LONG_WIRE`], that the wire emulator has to fill.
    pub long_wire: bool,
    /// Lays a second link between the hosts, without addresses: the bypass.
    pub bypass: bool,
    /// MTU of the bypass.
    pub bypass_mtu: u16,
    /// Leaves a gap in the bypass, [`LONG_BYPASS`], that the wire emulator has to fill.
    pub long_bypass: bool,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            replication_mtu: 9000,
            wire_offloads: false,
            long_wire: false,
            bypass: false,
            bypass_mtu: 1500,
            long_bypass: false,
        }
    }
}

/// One of the two hosts.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address on the replication link, a /24.
    pub replication_ip: Ipv4Addr,
    /// The far end of its wire, in the switch's namespace: what arrives there, this host sent.
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
    /// The namespace of the bridge between the wires: the client's, unless a long wire lies between.
    pub switch: Namespace,
    /// The namespace of the gap in a long bypass.
    pub bypass_gap: Option<Namespace>,
    /// The client's namespace.
    pub client: Namespace,
    /// The client's interface.
    pub client_interface: &'static str,
}

impl Topology {
    /// Lays it.
    pub fn create(options: &TopologyOptions) -> Result<Self, NetnsError> {
        let client = Namespace::create("client")?;
        let (switch, client_interface) = if options.long_wire {
            let switch = Namespace::create("switch")?;
            silence(&switch)?;
            (switch, CLIENT_PORT)
        } else {
            (client.clone(), CLIENT_BRIDGE)
        };
        switch.ip(&format!(
            "link add {CLIENT_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        if options.long_wire {
            lay_long_wire(&switch, &client, options.mtu)?;
        }
        client.set(&format!("net/ipv6/conf/{client_interface}/accept_dad"), "0")?;
        switch.ip(&format!("link set {CLIENT_BRIDGE} mtu {} up", options.mtu))?;
        client.ip(&format!("link set {client_interface} up"))?;
        client.ip(&format!("addr add {CLIENT_IP}/24 dev {client_interface}"))?;
        client.ip(&format!("addr add {CLIENT_IP6}/64 dev {client_interface} nodad"))?;

        let host = |name: &str, last: u8, client_port| -> Result<Host, NetnsError> {
            let namespace = Namespace::create(name)?;
            silence(&namespace)?;
            switch.ip(&format!(
                "link add {client_port} mtu {} type veth peer name {WIRE} mtu {} netns {}",
                options.mtu,
                options.mtu,
                namespace.path()
            ))?;
            switch.set(&format!("net/ipv6/conf/{client_port}/disable_ipv6"), "1")?;
            if !options.wire_offloads {
                switch.disable_offloads(client_port)?;
                namespace.disable_offloads(WIRE)?;
            }
            switch.ip(&format!("link set {client_port} master {CLIENT_BRIDGE} up"))?;
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
        let bypass_gap = lay_bypass(options, &a, &b)?;
        Ok(Self { a, b, switch, bypass_gap, client, client_interface })
    }

    /// Cuts the bypass or mends it; frames under way are lost.
    pub fn set_bypass(&self, up: bool) -> Result<(), NetnsError> {
        for host in [&self.a, &self.b] {
            host.set_link(BYPASS, up)?;
        }
        Ok(())
    }

    /// Cuts the replication link or mends it; frames under way are lost.
    pub fn set_replication(&self, up: bool) -> Result<(), NetnsError> {
        for host in [&self.a, &self.b] {
            host.set_link(REPLICATION, up)?;
        }
        Ok(())
    }
}

/// The kernel of a namespace must not speak on the wires that end in it.
fn silence(namespace: &Namespace) -> Result<(), NetnsError> {
    namespace.set("net/ipv6/conf/all/disable_ipv6", "1")?;
    namespace.set("net/ipv6/conf/default/disable_ipv6", "1")?;
    namespace.set("net/ipv4/ip_forward", "0")?;
    namespace.set("net/ipv4/conf/all/arp_ignore", "1")
}

/// From the bridge to one end of the gap, and from its other end to the client. Frames are as on a cable
/// here whatever the hosts' wires do: the emulator takes no others.
fn lay_long_wire(switch: &Namespace, client: &Namespace, mtu: u16) -> Result<(), NetnsError> {
    let (left, right) = LONG_WIRE;
    switch.ip(&format!("link add portc mtu {mtu} type veth peer name {left} mtu {mtu}"))?;
    switch.ip(&format!(
        "link add {right} mtu {mtu} type veth peer name {CLIENT_PORT} mtu {mtu} netns {}",
        client.path()
    ))?;
    for interface in ["portc", left, right] {
        switch.disable_offloads(interface)?;
        switch.ip(&format!("link set {interface} up"))?;
    }
    client.disable_offloads(CLIENT_PORT)?;
    switch.ip(&format!("link set portc master {CLIENT_BRIDGE}"))?;
    Ok(())
}

/// The bypass, if there is to be one: straight, or with a gap in a namespace of its own.
fn lay_bypass(options: &TopologyOptions, a: &Host, b: &Host) -> Result<Option<Namespace>, NetnsError> {
    if !options.bypass {
        return Ok(None);
    }
    let mtu = options.bypass_mtu;
    let lay = |from: &Namespace, name: &str, to: &Namespace| {
        from.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name {BYPASS} mtu {mtu} netns {}",
            to.path()
        ))
    };
    let gap = if options.long_bypass {
        let gap = Namespace::create("bypass")?;
        silence(&gap)?;
        for (name, host) in [(LONG_BYPASS.0, a), (LONG_BYPASS.1, b)] {
            lay(&gap, name, &host.namespace)?;
            gap.disable_offloads(name)?;
            gap.ip(&format!("link set {name} up"))?;
        }
        Some(gap)
    } else {
        lay(&a.namespace, BYPASS, &b.namespace)?;
        None
    };
    for host in [a, b] {
        host.namespace.disable_offloads(BYPASS)?;
        host.set_link(BYPASS, true)?;
    }
    Ok(gap)
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
