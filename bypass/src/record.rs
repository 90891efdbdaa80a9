//! Records in a stream of bytes.
//!
//! ```text
//!   length of the body (32 bits) | tag (32) | urgent records sent before (64) | body
//! ```
//!
//! All numbers are little-endian. A length is judged before anything is allocated for it (RB-1).

use crate::path::Lost;

/// Bytes of a record's head.
pub const RECORD_HEAD: usize = 16;

/// What one end hands to the other, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is, for whoever takes it.
    pub tag: u32,
    /// What it says.
    pub body: Vec<u8>,
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    pub(crate) tag: u32,
    /// Urgent records that must have come before it.
    pub(crate) after: u64,
}

impl Head {
    pub(crate) fn bytes(self) -> [u8; RECORD_HEAD] {
        let mut bytes = [0; RECORD_HEAD];
        bytes[..4].copy_from_slice(&u32::try_from(self.len).expect("judged before").to_le_bytes());
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..].copy_from_slice(&self.after.to_le_bytes());
        bytes
    }

    fn parse(bytes: [u8; RECORD_HEAD], limit: usize) -> Result<Self, Lost> {
        let [l0, l1, l2, l3, t0, t1, t2, t3, after @ ..] = bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > limit {
            return Err(Lost::Peer(format!(
                "a record of {len} bytes is announced, and {limit} is the limit"
            )));
        }
        Ok(Self { len, tag: u32::from_le_bytes([t0, t1, t2, t3]), after: u64::from_le_bytes(after) })
    }
}

/// Puts the records of one stream together.
#[derive(Debug)]
pub(crate) struct Assembler {
    limit: usize,
    head: [u8; RECORD_HEAD],
    body: Option<(Head, Vec<u8>)>,
    filled: usize,
}

impl Assembler {
    /// Bodies of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, head: [0; RECORD_HEAD], body: None, filled: 0 }
    }

    /// Bytes that it takes next; none when a record is whole, or waits for urgent ones. A body is put into a buffer of
    /// `spare` if that has one: fresh memory costs a fault a page.
    pub(crate) fn wants(
        &mut self,
        urgent: u64,
        spare: &mut impl FnMut() -> Option<Vec<u8>>,
    ) -> Result<usize, Lost> {
        if self.body.is_none() && self.filled == RECORD_HEAD {
            let head = Head::parse(self.head, self.limit)?;
            self.filled = 0;
            let mut body = spare().unwrap_or_default();
            body.clear();
            body.reserve_exact(head.len);
            self.body = Some((head, body));
        }
        Ok(match &self.body {
            None => RECORD_HEAD - self.filled,
            Some((head, _)) if head.after > urgent => 0,
            Some((head, body)) => head.len - body.len(),
        })
    }

    /// Takes no more bytes than [`Assembler::wants`] said.
    ///
    /// Its cost is in that of [`receive`](crate::Port::receive).
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        match &mut self.body {
            None => {
                self.head[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
                self.filled += bytes.len();
            }
            Some((_, body)) => body.extend_from_slice(bytes),
        }
    }

    /// The record that is whole.
    pub(crate) fn whole(&mut self, urgent: u64) -> Option<Record> {
        let (head, body) =
            self.body.take_if(|(head, body)| head.after <= urgent && body.len() == head.len)?;
        Some(Record { tag: head.tag, body })
    }
}
