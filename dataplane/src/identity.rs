//! Who a port is: the MACs that its guest sends from, and the addresses that it claims.
//!
//! Learned from the guest's own frames, bounded, and carried to the backup with every checkpoint as a
//! versioned encoding, so that after a failover the new host can say to the network where the guest
//! is now. Addresses come from ARP and neighbour discovery alone: the source of other packets may be
//! somebody whose packets the guest routes.
//!
//! Pure: no I/O, no clock, no threads.

use crate::headers::{Address, Claim, MAX_TAGS, Mac, Tags};
use arrayvec::ArrayVec;
use thiserror::Error;

/// MACs, each with its VLAN, that are remembered for a port. Further ones are not learned.
pub const MAX_STATIONS: usize = 16;

/// Addresses that are remembered for a port; the one claimed longest ago makes room for a new one.
pub const MAX_ADDRESSES: usize = 16;

/// Version of the encoding.
const VERSION: u8 = 1;

/// Longest encoding, in bytes.
pub const MAX_ENCODED: usize = 3 + MAX_STATIONS * (7 + 4 * MAX_TAGS) + MAX_ADDRESSES * (24 + 4 * MAX_TAGS);

/// A MAC in a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// The MAC.
    pub mac: Mac,
    /// The VLAN.
    pub tags: Tags,
}

/// What is known of a port's guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    stations: ArrayVec<Station, MAX_STATIONS>,
    addresses: ArrayVec<Claim, MAX_ADDRESSES>,
}

/// Why an encoded identity cannot be read; the peer that sent it is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Another version of the encoding.
    #[error("port state of version {found}, but only {VERSION} is known; run the same release on both hosts")]
    Version {
        /// Version found.
        found: u8,
    },
    /// Cut off, too long, or with values that no port has.
    #[error("port state is broken at byte {offset}; the peer sent something else than it was asked for")]
    Broken {
        /// Where.
        offset: usize,
    },
}

impl Identity {
    /// The guest sent from this MAC in this VLAN. False when that is not remembered, as there is no
    /// room.
    ///
    /// Bound: [`MAX_STATIONS`]. Allocations: none.
    pub fn sent_from(&mut self, mac: Mac, tags: Tags) -> bool {
        let station = Station { mac, tags };
        self.stations.contains(&station) || self.stations.try_push(station).is_ok()
    }

    /// The guest claimed an address.
    pub fn claimed(&mut self, claim: Claim) {
        let same = |known: &Claim| known.address == claim.address && known.tags == claim.tags;
        if let Some(place) = self.addresses.iter().position(same) {
            self.addresses.remove(place);
        } else if self.addresses.is_full() {
            self.addresses.remove(0);
        }
        self.addresses.push(claim);
    }

    /// MACs known.
    #[must_use]
    pub fn stations(&self) -> &[Station] {
        &self.stations
    }

    /// Addresses known, the one claimed last at the end.
    #[must_use]
    pub fn addresses(&self) -> &[Claim] {
        &self.addresses
    }

    /// Appends the encoding, at most [`MAX_ENCODED`] bytes:
    /// version, number of stations, number of addresses, then each station as MAC, number of tags and
    /// tags, and each address as 4 or 6, its bytes, and its station.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.stations.len() as u8, self.addresses.len() as u8]);
        let station = |out: &mut Vec<u8>, mac: Mac, tags: Tags| {
            out.extend(mac.0);
            out.push(tags.as_slice().len() as u8);
            out.extend(tags.as_slice().as_flattened());
        };
        for known in &self.stations {
            station(out, known.mac, known.tags);
        }
        for known in &self.addresses {
            match known.address {
                Address::V4(bytes) => {
                    out.push(4);
                    out.extend(bytes);
                }
                Address::V6(bytes) => {
                    out.push(6);
                    out.extend(bytes);
                }
            }
            station(out, known.mac, known.tags);
        }
    }

    /// Reads an encoding that is exactly `bytes`.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing is allocated before it is checked.
    pub fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let mut reader = Reader { bytes, offset: 0 };
        let [version, stations, addresses] = reader.take()?;
        if version != VERSION {
            return Err(IdentityError::Version { found: version });
        }
        let mut identity = Self::default();
        for _ in 0..stations {
            let station = reader.station()?;
            identity.stations.try_push(station).map_err(|_| reader.broken())?;
        }
        for _ in 0..addresses {
            let address = match reader.take()? {
                [4] => Address::V4(reader.take()?),
                [6] => Address::V6(reader.take()?),
                _ => return Err(reader.broken()),
            };
            let Station { mac, tags } = reader.station()?;
            let claim = Claim { mac, tags, address };
            identity.addresses.try_push(claim).map_err(|_| reader.broken())?;
        }
        if reader.offset != bytes.len() {
            return Err(reader.broken());
        }
        Ok(identity)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Reader<'_> {
    fn broken(&self) -> IdentityError {
        IdentityError::Broken { offset: self.offset }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], IdentityError> {
        let taken = self.bytes.get(self.offset..self.offset + N).and_then(|bytes| bytes.try_into().ok());
        let taken = taken.ok_or_else(|| self.broken())?;
        self.offset += N;
        Ok(taken)
    }

    fn station(&mut self) -> Result<Station, IdentityError> {
        let mac = Mac(self.take()?);
        let [count] = self.take()?;
        let mut tags = Tags::default();
        for _ in 0..count {
            let tag = self.take()?;
            if !tags.push(tag) {
                return Err(self.broken());
            }
        }
        if !mac.is_station() {
            return Err(self.broken());
        }
        Ok(Station { mac, tags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tags(count: usize) -> Tags {
        let mut tags = Tags::default();
        (0..count).for_each(|nth| assert!(tags.push([0x81, 0, 0, nth as u8])));
        tags
    }

    #[test]
    fn more_macs_than_the_bound_are_not_learned() {
        let mut identity = Identity::default();
        for nth in 0..=MAX_STATIONS {
            let learned = identity.sent_from(Mac([2, 0, 0, 0, 0, nth as u8]), tags(0));
            assert_eq!(learned, nth < MAX_STATIONS);
        }
        assert!(identity.sent_from(Mac([2, 0, 0, 0, 0, 1]), tags(0)), "a known one stays known");
    }

    #[test]
    fn the_address_claimed_longest_ago_makes_room() {
        let mut identity = Identity::default();
        let claim = |nth: usize| Claim {
            mac: Mac([2; 6]),
            tags: tags(0),
            address: Address::V4([10, 0, 0, nth as u8]),
        };
        (0..MAX_ADDRESSES).for_each(|nth| identity.claimed(claim(nth)));
        identity.claimed(claim(0));
        identity.claimed(claim(MAX_ADDRESSES));
        assert_eq!(identity.addresses().len(), MAX_ADDRESSES);
        assert!(identity.addresses().contains(&claim(0)));
        assert!(!identity.addresses().contains(&claim(1)));
    }

    #[test]
    fn an_encoding_is_within_its_bound_and_of_one_version() {
        let mut identity = Identity::default();
        for nth in 0..16 {
            let mac = Mac([2, 0, 0, 0, 0, nth]);
            identity.sent_from(mac, tags(MAX_TAGS));
            identity.claimed(Claim { mac, tags: tags(MAX_TAGS), address: Address::V6([nth; 16]) });
        }
        let mut bytes = Vec::new();
        identity.encode(&mut bytes);
        assert_eq!(bytes.len(), MAX_ENCODED);
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        bytes[0] = 9;
        assert_eq!(Identity::decode(&bytes), Err(IdentityError::Version { found: 9 }));
    }

    proptest! {
        /// RB-1: no bytes of a peer make the decoding panic.
        #[test]
        fn no_bytes_make_the_decoding_panic(
            head in (Just(1u8), 0u8..20, 0u8..20),
            rest in prop::collection::vec(prop_oneof![Just(4u8), Just(6), Just(0), any::<u8>()], 0..400),
        ) {
            let mut bytes = vec![head.0, head.1, head.2];
            bytes.extend(rest);
            if let Ok(identity) = Identity::decode(&bytes) {
                let mut again = Vec::new();
                identity.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
