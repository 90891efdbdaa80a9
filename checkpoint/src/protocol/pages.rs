//! Records of pages as they travel.
//!
//! A record is a 64-bit head - page number in the upper 48 bits, length of the data in the lower 16 -
//! and the data: nothing for a page of zeroes, 4096 bytes as they are, or fewer as an LZ4 block.

use crate::pages::{PAGE_SIZE, PageIndex};
use crate::protocol::Payload;
use crate::reduction::Reduced;
use thiserror::Error;

/// Bytes in the head of a record.
const RECORD_HEAD: usize = 8;
/// Largest page number that a record can carry, plus one.
const INDEX_LIMIT: u64 = 1 << 48;

/// Some records, still as they travel.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PageBatch {
    bytes: Payload,
}

impl std::fmt::Debug for PageBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBatch({} bytes)", self.bytes.len())
    }
}

impl PageBatch {
    /// Takes records as received; they are looked at by [`PageBatch::records`].
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Payload>) -> Self {
        Self { bytes: bytes.into() }
    }

    /// The buffer, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes.into_buffer()
    }

    /// The records as they travel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Walks the records of a file of `pages` pages.
    #[must_use]
    pub fn records(&self, pages: u64) -> PageBatchReader<'_> {
        PageBatchReader { rest: &self.bytes, pages }
    }

    /// Appends a record to `out`, which may already hold the head of a message.
    ///
    /// # Panics
    /// When the page number takes more than 48 bits: no file is that large.
    pub fn append(out: &mut Vec<u8>, page: PageIndex, reduced: Reduced<'_>) {
        assert!(page.0 < INDEX_LIMIT, "page {page} is beyond any file");
        let data: &[u8] = match reduced {
            Reduced::Zero => &[],
            Reduced::Raw(bytes) => bytes,
            Reduced::Lz4(bytes) => bytes,
        };
        out.extend_from_slice(&((page.0 << 16) | data.len() as u64).to_le_bytes());
        out.extend_from_slice(data);
    }
}

/// Why records are refused; the peer is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PagesError {
    /// The bytes end within a record.
    #[error("a page record is cut short")]
    Truncated,
    /// A page beyond the memory.
    #[error("page {page} lies beyond a memory of {pages} pages")]
    Beyond {
        /// Page named.
        page: PageIndex,
        /// Pages there are.
        pages: u64,
    },
    /// A record longer than a page.
    #[error("page {page} comes with {len} bytes, more than a page")]
    TooLong {
        /// Page named.
        page: PageIndex,
        /// Bytes announced.
        len: usize,
    },
}

/// Walks records, checking each.
#[derive(Debug)]
pub struct PageBatchReader<'a> {
    rest: &'a [u8],
    pages: u64,
}

impl<'a> Iterator for PageBatchReader<'a> {
    type Item = Result<(PageIndex, Reduced<'a>), PagesError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = take_record(&mut self.rest, self.pages);
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn take_record<'a>(rest: &mut &'a [u8], pages: u64) -> Result<(PageIndex, Reduced<'a>), PagesError> {
    let (head, after) = rest.split_first_chunk::<RECORD_HEAD>().ok_or(PagesError::Truncated)?;
    let head = u64::from_le_bytes(*head);
    let page = PageIndex(head >> 16);
    let len = usize::from(head as u16);
    if page.0 >= pages {
        return Err(PagesError::Beyond { page, pages });
    }
    if len > PAGE_SIZE {
        return Err(PagesError::TooLong { page, len });
    }
    let (data, after) = after.split_at_checked(len).ok_or(PagesError::Truncated)?;
    *rest = after;
    Ok((
        page,
        match len {
            0 => Reduced::Zero,
            PAGE_SIZE => Reduced::Raw(data),
            _ => Reduced::Lz4(data),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were_written() {
        let raw = [7u8; PAGE_SIZE];
        let mut bytes = Vec::new();
        PageBatch::append(&mut bytes, PageIndex(0), Reduced::Zero);
        PageBatch::append(&mut bytes, PageIndex(1 << 33), Reduced::Raw(&raw));
        PageBatch::append(&mut bytes, PageIndex(5), Reduced::Lz4(&[1, 2, 3]));
        let batch = PageBatch::from_bytes(bytes);
        let found: Vec<_> = batch.records(1 << 40).map(|record| record.expect("valid")).collect();
        assert_eq!(found[0], (PageIndex(0), Reduced::Zero));
        assert_eq!(found[1], (PageIndex(1 << 33), Reduced::Raw(&raw)));
        assert_eq!(found[2], (PageIndex(5), Reduced::Lz4(&[1, 2, 3])));
    }

    /// RB-1: records that lie are refused, each with its reason, and nothing after them is read.
    #[test]
    fn lying_records_are_refused() {
        let head = |page: u64, len: u64| (page << 16 | len).to_le_bytes().to_vec();
        let cases = [
            (vec![1, 2, 3], PagesError::Truncated),
            (head(3, 10), PagesError::Truncated),
            (head(8, 0), PagesError::Beyond { page: PageIndex(8), pages: 8 }),
            (head(1, 4097), PagesError::TooLong { page: PageIndex(1), len: 4097 }),
        ];
        for (bytes, fault) in cases {
            let batch = PageBatch::from_bytes(bytes);
            let mut records = batch.records(8);
            assert_eq!(records.next(), Some(Err(fault)));
            assert_eq!(records.next(), None);
        }
    }
}
