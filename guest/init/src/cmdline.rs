//! The kernel's command line, as far as it concerns this program.

use crate::boot::BootError;
use std::net::{IpAddr, Ipv4Addr};

/// One address of one network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) interface: String,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

/// What the operator of the guest asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    pub(crate) addresses: Vec<Address>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) sysctls: Vec<(String, String)>,
    /// Programs with their arguments.
    pub(crate) exec: Vec<Vec<String>>,
}

impl CommandLine {
    /// Reads `/proc/cmdline`.
    pub(crate) fn read() -> Result<Self, BootError> {
        let text = std::fs::read_to_string("/proc/cmdline")
            .map_err(|source| BootError::File { path: "/proc/cmdline".into(), source })?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, BootError> {
        let mut found = Self::default();
        for word in text.split_whitespace() {
            let Some((key, value)) = word.strip_prefix("holdfast.").and_then(|rest| rest.split_once('='))
            else {
                continue;
            };
            let bad = || BootError::CommandLine { word: word.into() };
            match key {
                "ip" => {
                    for part in value.split(';').filter(|part| !part.is_empty()) {
                        found.addresses.push(parse_address(part).ok_or_else(bad)?);
                    }
                }
                "gateway" => found.gateway = Some(value.parse().map_err(|_| bad())?),
                "mtu" => found.mtu = Some(value.parse().map_err(|_| bad())?),
                "sysctl" => {
                    for part in value.split(';').filter(|part| !part.is_empty()) {
                        let (name, setting) = part.split_once('=').ok_or_else(bad)?;
                        found.sysctls.push((name.into(), setting.into()));
                    }
                }
                "exec" => found.exec.push(value.split(',').map(String::from).collect()),
                _ => return Err(bad()),
            }
        }
        Ok(found)
    }
}

fn parse_address(part: &str) -> Option<Address> {
    let (interface, address) = part.split_once(',')?;
    let (ip, prefix) = address.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= longest && interface.len() < libc::IFNAMSIZ).then(|| Address {
        interface: interface.into(),
        ip,
        prefix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_several_cards_are_read_and_other_words_ignored() {
        let line = "console=ttyS0 quiet holdfast.ip=eth0,10.0.0.2/24;eth1,fd00::2/64 holdfast.mtu=9000 \
                    holdfast.gateway=10.0.0.1 holdfast.sysctl=net/ipv4/tcp_sack=0 panic=-1 \
                    holdfast.exec=/bin/a,-s holdfast.exec=/bin/b";
        let found = CommandLine::parse(line).expect("a good line");
        assert_eq!(found.addresses.len(), 2);
        assert_eq!(found.addresses[1].interface, "eth1");
        assert_eq!(found.addresses[1].prefix, 64);
        assert_eq!(found.mtu, Some(9000));
        assert_eq!(found.exec, [vec!["/bin/a", "-s"], vec!["/bin/b"]]);
        assert_eq!(found.sysctls, [("net/ipv4/tcp_sack".to_owned(), "0".to_owned())]);
    }

    #[test]
    fn a_word_that_is_wrong_is_named() {
        for word in ["holdfast.ip=eth0,10.0.0.2/99", "holdfast.mtu=big", "holdfast.colour=red"] {
            let error = CommandLine::parse(word).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
