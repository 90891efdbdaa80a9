//! Flows that keep plain output commit where others speculate: by port, or by the client's network.

use holdfast_dataplane::{Prefix, Rule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One of them; as text for those who read or carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Exception {
    /// Flows with that port at either end.
    Port(u16),
    /// Flows with clients in that network.
    Network {
        /// Its first address: all bits behind the prefix are zero.
        address: IpAddr,
        /// Length of the prefix.
        prefix: u8,
    },
}

impl FromStr for Exception {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const NEITHER: &str = "is neither a port nor a network";
        if let Ok(port) = text.parse::<u16>() {
            return if port == 0 { Err("is no port that a flow can have") } else { Ok(Self::Port(port)) };
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| NEITHER)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NEITHER)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return Err("has a prefix longer than its address");
        }
        if behind(address, prefix) != 0 {
            return Err("names an address inside a network, not the network: bits behind the prefix are set");
        }
        Ok(Self::Network { address, prefix })
    }
}

impl TryFrom<String> for Exception {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

impl From<Exception> for String {
    fn from(exception: Exception) -> Self {
        exception.to_string()
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Network { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

impl Exception {
    /// As many a VM may have: two rules each are as many as the engine looks at.
    pub(crate) const MOST: usize = 128;

    /// The same for the engine: a rule for each end that it may be about.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        let rule = Rule { guest_ports: None, client_ports: None, client: None, speculate: false };
        match *self {
            Self::Port(port) => vec![
                Rule { guest_ports: Some(port..=port), ..rule.clone() },
                Rule { client_ports: Some(port..=port), ..rule },
            ],
            Self::Network { address, prefix } => {
                vec![Rule { client: Some(Prefix { address, bits: prefix }), ..rule }]
            }
        }
    }
}

/// The bits of an address behind a prefix.
fn behind(address: IpAddr, prefix: u8) -> u128 {
    match address {
        IpAddr::V4(address) => {
            u128::from(u32::from(address) & u32::MAX.checked_shr(prefix.into()).unwrap_or(0))
        }
        IpAddr::V6(address) => u128::from(address) & u128::MAX.checked_shr(prefix.into()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_networks_are_read_and_slips_named() {
        let network = |address: &str, prefix| {
            Ok(Exception::Network { address: address.parse().expect("an address"), prefix })
        };
        let cases = [
            ("22", Ok(Exception::Port(22))),
            ("10.0.0.0/8", network("10.0.0.0", 8)),
            ("192.0.2.7", network("192.0.2.7", 32)),
            ("0.0.0.0/0", network("0.0.0.0", 0)),
            ("fd00::/8", network("fd00::", 8)),
            ("::1", network("::1", 128)),
            ("::/0", network("::", 0)),
        ];
        for (text, wanted) in cases {
            assert_eq!(text.parse(), wanted, "{text}");
            assert_eq!(wanted.map(|exception| exception.to_string().parse()), Ok(wanted), "{text}");
        }
        for text in ["", "0", "65536", "ssh", "10.0.0.1/8", "10.0.0.0/33", "fd00::1/64", "10.0.0.0/", "/8"] {
            assert!(text.parse::<Exception>().is_err(), "{text}");
        }
    }
}
