//! Ethernet and its VLAN tags.

use super::{array, word};
use std::fmt;

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_LEN: usize = 14;

/// VLAN tags that are followed: 802.1Q within 802.1ad.
pub const MAX_TAGS: usize = 2;

/// Numbers of what an Ethernet frame carries.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Reverse ARP.
    pub const RARP: u16 = 0x8035;
    /// An 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// An 802.1ad tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it stands for several receivers: multicast or broadcast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether a card can have it: neither a group nor all zero.
    #[must_use]
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The VLAN tags of a frame, outermost first, each with its tag protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tags {
    bytes: [[u8; 4]; MAX_TAGS],
    count: u8,
}

impl Tags {
    /// Adds an inner tag; false when there are [`MAX_TAGS`] already.
    pub fn push(&mut self, tag: [u8; 4]) -> bool {
        let Some(slot) = self.bytes.get_mut(usize::from(self.count)) else { return false };
        *slot = tag;
        self.count += 1;
        true
    }

    /// The tags as they are in the frame: protocol, then priority and number.
    #[must_use]
    pub fn as_slice(&self) -> &[[u8; 4]] {
        &self.bytes[..usize::from(self.count)]
    }
}

/// The link header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Receiver.
    pub destination: Mac,
    /// Sender.
    pub source: Mac,
    /// VLAN tags.
    pub tags: Tags,
    /// What follows the tags; a tag's own number when there are more than [`MAX_TAGS`].
    pub ethertype: u16,
}

impl Link {
    /// Parses the head of a frame; none when it is too short.
    ///
    /// Its cost is in that of [`Layout::parse`](super::Layout::parse).
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let destination = Mac(array(bytes, 0)?);
        let source = Mac(array(bytes, 6)?);
        let mut ethertype = word(bytes, 12)?;
        let mut tags = Tags::default();
        let mut offset = 12;
        while matches!(ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN) {
            let (Some(tag), Some(next)) = (array(bytes, offset), word(bytes, offset + 4)) else { break };
            if !tags.push(tag) {
                break;
            }
            ethertype = next;
            offset += 4;
        }
        Some(Self { destination, source, tags, ethertype })
    }

    /// Length of the header with its tags, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        ETHERNET_LEN + 4 * self.tags.as_slice().len()
    }

    /// Never: a link header has at least [`ETHERNET_LEN`] bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tags_are_followed_and_a_third_is_not() {
        let mut bytes = vec![1; 12];
        bytes.extend([0x88, 0xa8, 0, 7, 0x81, 0x00, 0x20, 9, 0x08, 0x00]);
        let link = Link::parse(&bytes).expect("a whole header");
        assert_eq!(link.tags.as_slice(), [[0x88, 0xa8, 0, 7], [0x81, 0, 0x20, 9]]);
        assert_eq!((link.ethertype, link.len()), (ethertype::IPV4, 22));
        bytes.splice(12..12, [0x81, 0x00, 0, 1]);
        let link = Link::parse(&bytes).expect("a whole header");
        assert_eq!((link.ethertype, link.len()), (ethertype::VLAN, 22));
    }

    #[test]
    fn a_tag_that_is_cut_off_is_not_followed() {
        let mut bytes = vec![1; 12];
        bytes.extend([0x81, 0x00, 0, 7, 0x08]);
        let link = Link::parse(&bytes).expect("a whole header");
        assert_eq!((link.ethertype, link.len()), (ethertype::VLAN, 14));
    }
}
