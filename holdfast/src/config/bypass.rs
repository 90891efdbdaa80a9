//! `[replication.bypass]`, checked: a wire of its own for the epochs.

use super::checked::Faults;
use super::raw::{RawBypass, RawReplication, RawTransport, RawVm};
use holdfast_dpdk_config::Wire;
use std::net::IpAddr;

/// QUIC needs datagrams of 1200 bytes.
const MTU_MIN: u16 = 1280;

/// How this host and its peer reach each other past the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Bypass {
    /// Name of the wire.
    pub(crate) wire: String,
    pub(crate) address: IpAddr,
    pub(crate) peer: IpAddr,
    pub(crate) peer_mac: Option<[u8; 6]>,
    pub(crate) port: u16,
    /// Processor of its thread; none: the system places it.
    pub(crate) core: Option<u32>,
}

impl Bypass {
    /// None when there is none, or what there is cannot be.
    pub(super) fn check(
        raw: &RawReplication,
        wires: Option<&[Wire]>,
        vms: &[RawVm],
        faults: &mut Faults,
    ) -> Option<Self> {
        let bypass = match (raw.transport, &raw.bypass) {
            (RawTransport::Tcp, None) => return None,
            (RawTransport::Tcp, Some(_)) => {
                faults.add(
                    "replication.bypass",
                    "it says nothing while the transport is \"tcp\"",
                    "transport = \"bypass\" in [replication], or remove the section",
                );
                return None;
            }
            (RawTransport::Bypass, None) => {
                faults.add(
                    "replication.bypass",
                    "it is missing, and the transport is \"bypass\"",
                    "add [replication.bypass] with wire, address and peer, as in docs/examples/bypass.toml",
                );
                return None;
            }
            (RawTransport::Bypass, Some(bypass)) => bypass,
        };
        if raw.keys.is_none() {
            faults.add(
                "replication.transport",
                "the bypass is sealed with the pair's keys, and there are none",
                "keys = \"/etc/holdfast/keys\", or transport = \"tcp\"",
            );
        }
        check_wire(bypass, wires, vms, faults);
        if bypass.address == bypass.peer || bypass.address.is_ipv4() != bypass.peer.is_ipv4() {
            faults.add(
                "replication.bypass.peer",
                format!("{} is not another host's address beside {}", bypass.peer, bypass.address),
                "the address that the other host has there: address = \"10.0.2.1\", peer = \"10.0.2.2\"",
            );
        }
        if bypass.port == 0 || bypass.address.is_unspecified() || bypass.peer.is_unspecified() {
            faults.add(
                "replication.bypass",
                "port 0 and the address of no host cannot be sent to",
                "a UDP port that is the same on both hosts, and each host's own address",
            );
        }
        let peer_mac = bypass.peer_mac.as_deref().map(station);
        if peer_mac == Some(None) {
            faults.add(
                "replication.bypass.peer_mac",
                "it is no address of one station",
                "peer_mac = \"02:00:00:00:00:02\", or leave it out: the other host is asked",
            );
        }
        Some(Self {
            wire: bypass.wire.clone(),
            address: bypass.address,
            peer: bypass.peer,
            peer_mac: peer_mac.flatten(),
            port: bypass.port,
            core: bypass.core,
        })
    }
}

fn check_wire(bypass: &RawBypass, wires: Option<&[Wire]>, vms: &[RawVm], faults: &mut Faults) {
    // Without wires their own faults are told.
    let Some(wires) = wires else { return };
    let key = "replication.bypass.wire";
    let Some(wire) = wires.iter().find(|wire| wire.name == bypass.wire) else {
        let mend = "the name of a [[wire]] that no NIC uses";
        return faults.add(key, format!("there is no wire '{}'", bypass.wire), mend);
    };
    if wire.mtu < MTU_MIN {
        faults.add(
            key,
            format!("packets of {} bytes are too short for it", wire.mtu),
            format!("mtu = 9000 in the [[wire]] where the way carries it, {MTU_MIN} at least"),
        );
    }
    if let Some(vm) = vms.iter().position(|vm| vm.nics.iter().any(|nic| nic.wire == bypass.wire)) {
        faults.add(
            key,
            format!("a NIC of vm[{vm}] uses '{}' too", bypass.wire),
            "give the bypass a [[wire]] of its own",
        );
    }
}

/// Six pairs of hexadecimal digits.
fn station(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<u8> = text
        .split(':')
        .filter(|part| part.len() == 2)
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let mac: [u8; 6] = parts.try_into().ok()?;
    (mac[0] & 1 == 0 && text.len() == 17).then_some(mac)
}
