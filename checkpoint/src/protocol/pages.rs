//! Records of pages as they travel.
//!
//! A record is a 64-bit head and its data. The head has the page's number in its upper 48 bits, then three bits
//! that say in what form the page comes, then a number of 13 bits:
//!
//! | form | number | data |
//! |---|---|---|
//! | 0 | length of the data | 4096 bytes: the page; fewer: an LZ4 block of it |
//! | 1 | how many pages in a row | none: each is as it was sent last |
//! | 2 | 8 | the number of another page: this one is as that was sent last |
//! | 3 | length of the data | an LZ4 block of what differs from the page as it was sent last |
//! | 4 | how many pages in a row | none: each is all zeroes |
//!
//! What *was sent last* is said in [`reduction`](crate::reduction).

use crate::pages::{PAGE_SIZE, PageIndex};
use crate::protocol::Payload;
use crate::reduction::Reduced;
use std::ops::Range;
use thiserror::Error;

/// Bytes in the head of a record.
const RECORD_HEAD: usize = 8;
/// Largest page number that a record can carry, plus one.
const INDEX_LIMIT: u64 = 1 << 48;
/// Largest number in the head of a record beside the page's.
const NUMBER_LIMIT: u64 = (1 << 13) - 1;
/// Bytes of the number of another page.
const REFERENCE: usize = 8;
/// Most pages in a batch, which is what a primary sends at a time. A few bytes can stand for many pages, and each
/// costs the backup work (RB-1).
pub const BATCH_PAGES: u64 = 256;

mod form {
    pub(super) const CONTENT: u64 = 0;
    pub(super) const UNCHANGED: u64 = 1;
    pub(super) const SAME: u64 = 2;
    pub(super) const DELTA: u64 = 3;
    pub(super) const ZEROES: u64 = 4;
}

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
    ///
    /// Costs 130 ns for a page as it is, with its copy out (`cargo bench -p holdfast-checkpoint -- decode`).
    #[must_use]
    pub fn records(&self, pages: u64) -> PageBatchReader<'_> {
        PageBatchReader { rest: &self.bytes, pages, run: 0..0, of_run: Reduced::Zero, left: BATCH_PAGES }
    }
}

/// Writes records behind what a buffer holds, such as the head of a message.
#[derive(Debug)]
pub struct PageBatchWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Pages of the record that was written last, if it takes more, and its form.
    run: Range<u64>,
    form: u64,
}

impl<'a> PageBatchWriter<'a> {
    /// Records come behind what `out` holds.
    #[must_use]
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, run: 0..0, form: form::UNCHANGED }
    }

    /// Adds a page; says how many bytes it took.
    ///
    /// Costs 190 ns for a page as it is, which is the copy, and 2 ns for one of a row of zeros (`cargo bench -p
    /// holdfast-checkpoint -- encode`).
    ///
    /// # Panics
    /// When a page number takes more than 48 bits: no file is that large.
    pub fn add(&mut self, page: PageIndex, reduced: Reduced<'_>) -> usize {
        assert!(page.0 < INDEX_LIMIT, "page {page} is beyond any file");
        let before = self.out.len();
        let reference;
        let (form, data): (u64, &[u8]) = match reduced {
            Reduced::Unchanged | Reduced::Zero => {
                self.add_to_run(page, if reduced == Reduced::Zero { form::ZEROES } else { form::UNCHANGED });
                return self.out.len() - before;
            }
            Reduced::Raw(bytes) | Reduced::Lz4(bytes) => (form::CONTENT, bytes),
            Reduced::Same(other) => {
                reference = other.0.to_le_bytes();
                (form::SAME, &reference)
            }
            Reduced::Delta(bytes) => (form::DELTA, bytes),
        };
        self.run = 0..0;
        put_head(self.out, page, form, data.len() as u64);
        self.out.extend_from_slice(data);
        self.out.len() - before
    }

    /// Pages in a row share a record.
    fn add_to_run(&mut self, page: PageIndex, form: u64) {
        let Range { start, end } = self.run;
        if self.form == form && start < end && end == page.0 && end - start < NUMBER_LIMIT {
            self.run.end += 1;
            self.out.truncate(self.out.len() - RECORD_HEAD);
        } else {
            (self.run, self.form) = (page.0..page.0 + 1, form);
        }
        let Range { start, end } = self.run;
        put_head(self.out, PageIndex(start), form, end - start);
    }
}

fn put_head(out: &mut Vec<u8>, page: PageIndex, form: u64, number: u64) {
    debug_assert!(number <= NUMBER_LIMIT, "{number} does not fit the head of a record");
    out.extend_from_slice(&((page.0 << 16) | (form << 13) | number).to_le_bytes());
}

/// Why records are refused; the peer is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PagesError {
    /// The bytes end within a record.
    #[error("a page record is cut short")]
    Truncated,
    /// A page beyond the memory, or one that refers to such a page.
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
    /// A form that this version does not have.
    #[error("page {page} comes in the unknown form {form}")]
    Form {
        /// Page named.
        page: PageIndex,
        /// Form named.
        form: u8,
    },
    /// A number that the form cannot have.
    #[error("page {page} comes in form {form} with the impossible number {number}")]
    Number {
        /// Page named.
        page: PageIndex,
        /// Form named.
        form: u8,
        /// The number in the head.
        number: usize,
    },
    /// More pages than a batch may have.
    #[error("a batch has more than {BATCH_PAGES} pages")]
    TooMany,
}

/// Walks records, checking each.
#[derive(Debug)]
pub struct PageBatchReader<'a> {
    rest: &'a [u8],
    pages: u64,
    /// Pages of the record that was read last that are still to be given, and what each is.
    run: Range<u64>,
    of_run: Reduced<'a>,
    /// Pages that may still come.
    left: u64,
}

impl<'a> Iterator for PageBatchReader<'a> {
    type Item = Result<(PageIndex, Reduced<'a>), PagesError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(page) = self.run.next() {
            return Some(Ok((PageIndex(page), self.of_run)));
        }
        if self.rest.is_empty() {
            return None;
        }
        let record = self.take_record();
        if record.is_err() {
            (self.rest, self.run) = (&[], 0..0);
        }
        Some(record)
    }
}

impl<'a> PageBatchReader<'a> {
    fn take_record(&mut self) -> Result<(PageIndex, Reduced<'a>), PagesError> {
        let head = u64::from_le_bytes(*self.rest.split_first_chunk().ok_or(PagesError::Truncated)?.0);
        self.rest = &self.rest[RECORD_HEAD..];
        let (page, form) = (PageIndex(head >> 16), (head >> 13) & 7);
        let number = (head & NUMBER_LIMIT) as usize;
        let pages = if matches!(form, form::UNCHANGED | form::ZEROES) { number as u64 } else { 1 };
        self.check_pages(page, pages)?;
        let wrong_number = PagesError::Number { page, form: form as u8, number };
        let reduced = match (form, number) {
            (form::CONTENT, PAGE_SIZE) => Reduced::Raw(self.take(PAGE_SIZE)?),
            (form::CONTENT, 1..PAGE_SIZE) => Reduced::Lz4(self.take(number)?),
            (form::UNCHANGED | form::ZEROES, 1..) => {
                self.run = page.0 + 1..page.0 + pages;
                self.of_run = if form == form::ZEROES { Reduced::Zero } else { Reduced::Unchanged };
                self.of_run
            }
            (form::SAME, REFERENCE) => Reduced::Same(self.take_reference()?),
            (form::DELTA, 1..PAGE_SIZE) => Reduced::Delta(self.take(number)?),
            (form::CONTENT, 0) | (form::UNCHANGED | form::SAME | form::DELTA | form::ZEROES, _) => {
                return Err(wrong_number);
            }
            (form::CONTENT, len) => return Err(PagesError::TooLong { page, len }),
            (form, _) => return Err(PagesError::Form { page, form: form as u8 }),
        };
        Ok((page, reduced))
    }

    /// RB-1: pages are within the memory, and no more than a batch may have.
    fn check_pages(&mut self, first: PageIndex, count: u64) -> Result<(), PagesError> {
        let last = PageIndex(first.0 + count.saturating_sub(1));
        if last.0 >= self.pages {
            return Err(PagesError::Beyond { page: last, pages: self.pages });
        }
        self.left = self.left.checked_sub(count).ok_or(PagesError::TooMany)?;
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PagesError> {
        let (data, rest) = self.rest.split_at_checked(len).ok_or(PagesError::Truncated)?;
        self.rest = rest;
        Ok(data)
    }

    fn take_reference(&mut self) -> Result<PageIndex, PagesError> {
        let bytes = self.take(REFERENCE)?.try_into().expect("as many as were asked for");
        let page = PageIndex(u64::from_le_bytes(bytes));
        if page.0 < self.pages { Ok(page) } else { Err(PagesError::Beyond { page, pages: self.pages }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were_written() {
        let raw = [7u8; PAGE_SIZE];
        let records = [
            (0, Reduced::Unchanged),
            (1, Reduced::Zero),
            (1 << 33, Reduced::Raw(&raw)),
            (5, Reduced::Lz4(&[1, 2, 3])),
            (6, Reduced::Same(PageIndex((1 << 40) - 1))),
            (7, Reduced::Delta(&[4, 5])),
            (8, Reduced::Unchanged),
            (9, Reduced::Unchanged),
            (11, Reduced::Unchanged),
            (12, Reduced::Zero),
            (13, Reduced::Zero),
            (14, Reduced::Unchanged),
            (15, Reduced::Zero),
            (17, Reduced::Zero),
        ]
        .map(|(page, reduced)| (PageIndex(page), reduced));
        let mut bytes = Vec::new();
        let mut writer = PageBatchWriter::new(&mut bytes);
        let lengths = records.map(|(page, reduced)| writer.add(page, reduced));
        assert_eq!(lengths, [8, 8, 8 + PAGE_SIZE, 11, 16, 10, 8, 0, 8, 8, 0, 8, 8, 8]);
        assert_eq!(bytes.len(), lengths.iter().sum::<usize>());
        let batch = PageBatch::from_bytes(bytes);
        let found: Vec<_> = batch.records(1 << 40).map(|record| record.expect("valid")).collect();
        assert_eq!(found, records);
    }

    /// Pages of huge pages that were not written to cost next to nothing, whatever the size of a batch.
    #[test]
    fn pages_in_a_row_that_are_unchanged_or_zero_share_a_record() {
        for reduced in [Reduced::Unchanged, Reduced::Zero] {
            let mut bytes = vec![9; 3];
            let mut writer = PageBatchWriter::new(&mut bytes);
            (0..BATCH_PAGES).for_each(|page| {
                writer.add(PageIndex(page), reduced);
            });
            assert_eq!(bytes.len(), 3 + RECORD_HEAD);
            let batch = PageBatch::from_bytes(bytes.split_off(3));
            let records =
                batch.records(BATCH_PAGES).filter(|record| matches!(record, Ok((_, one)) if *one == reduced));
            assert_eq!(records.count() as u64, BATCH_PAGES);
        }
    }

    /// RB-1: records that lie are refused, each with its reason, and nothing after them is read.
    #[test]
    fn lying_records_are_refused() {
        let head =
            |page: u64, form: u64, number: u64| ((page << 16) | (form << 13) | number).to_le_bytes().to_vec();
        let same = |other: u64| [head(1, form::SAME, 8), other.to_le_bytes().to_vec()].concat();
        let beyond = |page| PagesError::Beyond { page: PageIndex(page), pages: 8 };
        let number = |form: u64, number| PagesError::Number { page: PageIndex(1), form: form as u8, number };
        let cases = [
            (vec![1, 2, 3], PagesError::Truncated),
            (head(3, form::CONTENT, 10), PagesError::Truncated),
            (head(3, form::DELTA, 10), PagesError::Truncated),
            (head(3, form::SAME, 8), PagesError::Truncated),
            (head(8, form::CONTENT, 0), beyond(8)),
            (head(8, form::DELTA, 9), beyond(8)),
            (head(8, form::UNCHANGED, 1), beyond(8)),
            (head(1, form::UNCHANGED, 8), beyond(8)),
            (head((1 << 48) - 1, form::UNCHANGED, 8191), beyond((1 << 48) + 8189)),
            (same(8), beyond(8)),
            (same(u64::MAX), beyond(u64::MAX)),
            (head(1, form::CONTENT, 4097), PagesError::TooLong { page: PageIndex(1), len: 4097 }),
            (head(8, form::ZEROES, 1), beyond(8)),
            (head(1, form::ZEROES, 8), beyond(8)),
            (head(1, form::CONTENT, 0), number(form::CONTENT, 0)),
            (head(1, form::UNCHANGED, 0), number(form::UNCHANGED, 0)),
            (head(1, form::ZEROES, 0), number(form::ZEROES, 0)),
            (head(1, form::SAME, 7), number(form::SAME, 7)),
            (head(1, form::DELTA, 0), number(form::DELTA, 0)),
            (head(1, form::DELTA, 4096), number(form::DELTA, 4096)),
            (head(1, 5, 0), PagesError::Form { page: PageIndex(1), form: 5 }),
            (head(1, 7, 8191), PagesError::Form { page: PageIndex(1), form: 7 }),
        ];
        for (bytes, fault) in cases {
            let batch = PageBatch::from_bytes(bytes);
            let mut records = batch.records(8);
            assert_eq!(records.next(), Some(Err(fault)));
            assert_eq!(records.next(), None);
        }
    }

    /// RB-1: a few bytes do not stand for more pages than a batch may have.
    #[test]
    fn a_batch_of_too_many_pages_is_refused() {
        let mut bytes = Vec::new();
        let mut writer = PageBatchWriter::new(&mut bytes);
        for page in 0..2 * BATCH_PAGES {
            writer.add(PageIndex(page % 4), Reduced::Unchanged);
        }
        let batch = PageBatch::from_bytes(bytes);
        let mut records = batch.records(4).skip_while(|record| record.is_ok());
        assert_eq!(records.next(), Some(Err(PagesError::TooMany)));
        assert_eq!(records.next(), None);
    }

    /// RB-1: whatever bytes come, they are records or a reason, and never more pages than a batch may have.
    #[test]
    fn any_bytes_are_records_or_refused() {
        for seed in 0..2000u64 {
            let mut bytes = vec![0; (seed % 200) as usize];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
            // Small page numbers, or none would be within the memory.
            bytes.chunks_mut(8).for_each(|word| word.iter_mut().skip(3).for_each(|byte| *byte = 0));
            let batch = PageBatch::from_bytes(bytes);
            assert!(batch.records(1 << 8).count() as u64 <= BATCH_PAGES + 1);
        }
    }
}
