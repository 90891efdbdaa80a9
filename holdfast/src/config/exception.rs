//! Flows that keep plain output commit where others speculate: by port, or by the client's network.

use holdfast_dataplane::{Prefix, Rule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One of them; as text for those who read or carry it: `22`, `10.0.0.0/8=commit`, `443=speculative`. Of several that
/// fit a flow the first decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Exception {
    /// Which flows.
    place: Place,
    /// Whether they speculate where others do: an exception to one that follows, which does not let them.
    speculate: bool,
}

/// Which flows an exception is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
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
        let (place, mode) = text.split_once('=').unwrap_or((text, "commit"));
        let speculate = match mode {
            "commit" => false,
            "speculative" => true,
            // OC-1: the world would see what a checkpoint that is resumed knows nothing of.
            "native" => {
                return Err(
                    "asks for output that leaves before its commit, which a failover would take back: only a \
                            whole VM can be native (`holdfast mode VM native`), and is not protected then",
                );
            }
            "aware" => {
                return Err(
                    "is for the guest's agent to choose: name the mode of the VM aware, and the ports to the \
                            agent (`holdfast-guest run --port`)",
                );
            }
            _ => return Err("has a mode that is neither commit nor speculative"),
        };
        Ok(Self { place: place.parse()?, speculate })
    }
}

impl FromStr for Place {
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
        match self.place {
            Place::Port(port) => port.fmt(f),
            Place::Network { address, prefix } => write!(f, "{address}/{prefix}"),
        }?;
        f.write_str(if self.speculate { "=speculative" } else { "" })
    }
}

impl Exception {
    /// As many a VM may have: two rules each are as many as the engine looks at.
    pub(crate) const MOST: usize = 128;

    /// The same for the engine: a rule for each end that it may be about.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        let rule = Rule { guest_ports: None, client_ports: None, client: None, speculate: self.speculate };
        match self.place {
            Place::Port(port) => vec![
                Rule { guest_ports: Some(port..=port), ..rule.clone() },
                Rule { client_ports: Some(port..=port), ..rule },
            ],
            Place::Network { address, prefix } => {
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
            let place = Place::Network { address: address.parse().expect("an address"), prefix };
            Ok(Exception { place, speculate: false })
        };
        let port = |port, speculate| Ok(Exception { place: Place::Port(port), speculate });
        let cases = [
            ("22", port(22, false)),
            ("443=speculative", port(443, true)),
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
        assert_eq!("22=commit".parse(), port(22, false));
        for (mode, mend) in
            [("native", "before its commit"), ("aware", "--port"), ("fast", "neither commit nor speculative")]
        {
            let fault = format!("22={mode}").parse::<Exception>().expect_err("no mode of a port");
            assert!(fault.contains(mend), "{fault}");
        }
        for text in [
            "",
            "0",
            "=commit",
            "22=",
            "22=commit=commit",
            "65536",
            "ssh",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "fd00::1/64",
            "10.0.0.0/",
            "/8",
        ] {
            assert!(text.parse::<Exception>().is_err(), "{text}");
        }
    }
}
