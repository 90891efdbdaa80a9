//! Two ports that know each other.

use holdfast_bypass::{Port, Settings};
use holdfast_checkpoint::keys::{Identity, make_pair};
use std::time::Instant;

/// Identities of two hosts.
pub(crate) fn identities() -> [Identity; 2] {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    make_pair(&a, &b).expect("keys");
    [a, b].map(|dir| Identity::load(&dir).expect("keys load"))
}

/// The port of the first host or of the second.
pub(crate) fn port(last: u8, mtu: u16, record_limit: usize, identity: &Identity) -> Port {
    let settings = Settings {
        mac: [2, 0, 0, 0, 0, last],
        address: [10, 0, 0, last].into(),
        peer: [10, 0, 0, 3 - last].into(),
        peer_mac: None,
        udp_port: 7401,
        mtu,
        record_limit,
    };
    let (client, server) = identity.configs();
    Port::new(settings, client, server, Instant::now()).expect("it can be")
}
