//! Which flows may speculate: by port and by prefix of the client's address.
//!
//! A switch that keeps flows end to end, as RFC 3135 §4.1.2 asks of whoever splits connections. Rules
//! are looked at when a flow is established and when they change, never for each segment. The first
//! one that matches decides; without a match a flow may speculate.

use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Rules of a port, at most this many are kept.
pub const MAX_RULES: usize = 256;

/// A prefix of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Any address of it.
    pub address: IpAddr,
    /// Leading bits that count; more than the address has count as all.
    pub bits: u8,
}

impl Prefix {
    /// Whether `address` is one of it. An IPv4 prefix holds no IPv6 address, and the other way round.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let ignored = 32 - u32::from(self.bits.min(32));
                let differs = u32::from(ours) ^ u32::from(theirs);
                differs.checked_shr(ignored).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let ignored = 128 - u32::from(self.bits.min(128));
                let differs = u128::from(ours) ^ u128::from(theirs);
                differs.checked_shr(ignored).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// One rule: all of its conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Ports of the guest; none for any.
    pub guest_ports: Option<RangeInclusive<u16>>,
    /// Ports of the client; none for any.
    pub client_ports: Option<RangeInclusive<u16>>,
    /// Addresses of the client; none for any.
    pub client: Option<Prefix>,
    /// Whether flows that match may speculate.
    pub speculate: bool,
}

/// Which flows of a port may speculate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    list: Vec<Rule>,
}

impl Rules {
    /// These rules, in this order; those beyond [`MAX_RULES`] are left out.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { list: rules.into_iter().take(MAX_RULES).collect() }
    }

    /// Whether a flow of these ends may speculate.
    ///
    /// Bound: O([`MAX_RULES`]). Allocations: none.
    #[must_use]
    pub fn permit(&self, guest_port: u16, client: IpAddr, client_port: u16) -> bool {
        let within = |range: &Option<RangeInclusive<u16>>, port| {
            range.as_ref().is_none_or(|range| range.contains(&port))
        };
        let decisive = self.list.iter().find(|rule| {
            within(&rule.guest_ports, guest_port)
                && within(&rule.client_ports, client_port)
                && rule.client.is_none_or(|prefix| prefix.contains(client))
        });
        decisive.is_none_or(|rule| rule.speculate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |guest: Option<RangeInclusive<u16>>, client: Option<Prefix>, speculate| Rule {
            guest_ports: guest,
            client_ports: None,
            client,
            speculate,
        };
        let lan = Prefix { address: address("10.1.0.0"), bits: 16 };
        let rules = Rules::new([
            rule(Some(5060..=5061), None, false),
            rule(None, Some(lan), true),
            rule(Some(80..=80), None, false),
        ]);
        assert!(!rules.permit(5060, address("10.1.2.3"), 1), "the port's rule comes first");
        assert!(rules.permit(80, address("10.1.2.3"), 1));
        assert!(!rules.permit(80, address("10.2.2.3"), 1));
        assert!(rules.permit(81, address("10.2.2.3"), 1), "no rule matches");
        assert!(!rules.permit(80, address("::ffff:10.1.2.3"), 1), "families are kept apart");
    }

    #[test]
    fn a_prefix_of_no_bits_holds_its_family_and_one_of_all_bits_itself() {
        let any = Prefix { address: address("1.2.3.4"), bits: 0 };
        assert!(any.contains(address("9.9.9.9")) && !any.contains(address("fd00::1")));
        let one = Prefix { address: address("fd00::1"), bits: 128 };
        assert!(one.contains(address("fd00::1")) && !one.contains(address("fd00::2")));
        assert!(Prefix { address: address("fd00::"), bits: 8 }.contains(address("fdff::2")));
    }
}
