//! What a peer sends to the backup as pages: true records, forged ones, and true ones with bytes changed.
//!
//! A second reader of records, with an LZ4 decoder of its own, says what each must come to. Judged: who takes what,
//! what was sent last of each page, that pages of an epoch leave the image as it is (CK-1), and that a batch stands
//! for no more pages, and an epoch for no more bytes, than they may (RB-1).

mod reader;

use crate::Features;
use crate::input::Input;
use holdfast_checkpoint::backup::Staging;
use holdfast_checkpoint::image::{Image, ImageConfig};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex};
use holdfast_checkpoint::protocol::{BATCH_PAGES, PageBatch, PageBatchWriter, RefusalCode};
use holdfast_checkpoint::reduction::{Reducer, Reduction};
use holdfast_epoch::{EpochId, Term};
use reader::{Page, Reader, Target};
use std::cell::RefCell;
use tempfile::TempDir;

/// Pages of the guest.
const PAGES: u64 = 12;
/// Bytes that an epoch may take.
const LIMIT: u64 = 60 * PAGE_SIZE as u64;
/// Batches of one run.
const MAX_BATCHES: usize = 24;

thread_local! {
    /// One image for all runs of a thread: a synchronisation makes it forget what it had.
    static IMAGE: RefCell<Option<(Image, TempDir)>> = const { RefCell::new(None) };
}

/// Plays a synchronisation and an epoch.
///
/// # Errors
/// The backup took what is no page, refused what is one, or made another page of it.
pub fn run(data: &[u8]) -> Result<Features, String> {
    IMAGE.with_borrow_mut(|kept| {
        let (image, _) = match kept {
            Some(kept) => kept,
            None => kept.insert(made()?),
        };
        image.begin_sync(Term::new(1), EpochId::FIRST).map_err(|fault| fault.to_string())?;
        let mut play = Play::new(image);
        let mut input = Input::new(data);
        for _ in 0..MAX_BATCHES {
            if input.is_empty() || !play.batch(&mut input)? {
                break;
            }
        }
        Ok(play.features)
    })
}

fn made() -> Result<(Image, TempDir), String> {
    let dir = tempfile::tempdir_in("/dev/shm").map_err(|error| error.to_string())?;
    let config = ImageConfig {
        vm: "fuzz".to_owned(),
        memory: dir.path().join("memory"),
        record: dir.path().join("record"),
        len: PAGES * PAGE_SIZE as u64,
    };
    Ok((Image::create(config).map_err(|fault| fault.to_string())?, dir))
}

struct Play<'a> {
    image: &'a mut Image,
    staged: Staging,
    scratch: Vec<u8>,
    reader: Reader,
    reducer: Reducer,
    in_epoch: bool,
    /// What the sender has sent of each page, as long as nothing was forged.
    sent: Option<[Option<Page>; PAGES as usize]>,
    features: Features,
}

impl<'a> Play<'a> {
    fn new(image: &'a mut Image) -> Self {
        let reduction = Reduction { adaptive: false, ..Reduction::default() };
        Self {
            image,
            staged: Staging::of_full_sync(),
            scratch: Vec::new(),
            reader: Reader::new(PAGES as usize, BATCH_PAGES, LIMIT),
            reducer: Reducer::new(&reduction, 8 * PAGE_SIZE as u64),
            in_epoch: false,
            sent: Some(Default::default()),
            features: Vec::new(),
        }
    }

    /// Makes a batch, gives it to the backup, and judges; whether the session goes on.
    fn batch(&mut self, input: &mut Input<'_>) -> Result<bool, String> {
        let target = input.of([Target::Base, Target::Epoch]);
        if target == Target::Epoch {
            self.in_epoch = true;
        } else if self.in_epoch {
            // No primary synchronises when it has begun to send the epoch.
            self.sent = None;
        }
        let mut bytes = Vec::new();
        for _ in 0..=input.byte() % 6 {
            match input.byte() % 11 {
                0..=4 => self.true_pages(&mut bytes, input),
                5 | 6 => self.forged(|| head(input), &mut bytes),
                7 => self.forged(|| block(input), &mut bytes),
                8 => self.forged(|| runs(input), &mut bytes),
                9 => {
                    self.sent = None;
                    let at = usize::from(input.word()) % (bytes.len() + 1);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= input.byte();
                    }
                }
                _ => {
                    self.sent = None;
                    bytes.truncate(usize::from(input.word()));
                }
            }
        }
        self.give(target, bytes)
    }

    fn forged(&mut self, make: impl FnOnce() -> Vec<u8>, bytes: &mut Vec<u8>) {
        self.sent = None;
        bytes.extend(make());
    }

    /// Pages as a primary sends them.
    fn true_pages(&mut self, bytes: &mut Vec<u8>, input: &mut Input<'_>) {
        let mut writer = PageBatchWriter::new(bytes);
        let (first, kind) = (u64::from(input.byte()) % PAGES, input.byte());
        for page in first..(first + 1 + u64::from(kind >> 5)).min(PAGES) {
            let before = self.sent.as_ref().and_then(|sent| sent[page as usize].clone());
            let content = content(before, kind % 8, input);
            writer.add(PageIndex(page), self.reducer.reduce(PageIndex(page), &*content));
            if let Some(sent) = &mut self.sent {
                sent[page as usize] = Some(content);
            }
        }
    }

    fn give(&mut self, target: Target, bytes: Vec<u8>) -> Result<bool, String> {
        let batch = PageBatch::from_bytes(bytes);
        let count = batch.records(PAGES).count() as u64;
        if count > BATCH_PAGES + 1 {
            return Err(format!("a batch of {count} pages"));
        }
        let Self { image, staged, scratch, reader, .. } = self;
        let taken = match target {
            Target::Base => staged.base(&batch, image),
            Target::Epoch => staged.pages(&batch, image, LIMIT, scratch),
        };
        let expected = reader.take(target, batch.as_bytes());
        self.features.push((target as u16) << 8 | count.checked_ilog2().unwrap_or(0) as u16);
        match (&taken, &expected) {
            (Ok(()), Ok(forms)) => {
                self.features.extend(forms.iter().map(|form| 0x1000 | (target as u16) << 8 | form))
            }
            (Err(refusal), Err(_)) => self.features.push(0x2000 | crate::ledger::kind(&refusal.text)),
            (taken, expected) => return Err(format!("the backup: {taken:?}, the reader: {expected:?}")),
        }
        if let (Some(_), Err(refusal)) = (&self.sent, &taken) {
            if refusal.code != RefusalCode::NoRoom {
                return Err(format!("what a primary sends is refused: {refusal}"));
            }
        }
        self.judge(taken.is_ok())?;
        Ok(taken.is_ok())
    }

    /// Every page is what it must be.
    fn judge(&self, taken: bool) -> Result<(), String> {
        for page in 0..PAGES {
            let mut found = [0; PAGE_SIZE];
            let is_held = self.staged.recall(self.image, PageIndex(page), &mut found);
            let expected = self.reader.recall(page as usize);
            if is_held.then_some(&found) != expected {
                return Err(format!("page {page} is not what was sent"));
            }
            let held = self.image.has_page(PageIndex(page));
            self.image.read_page(PageIndex(page), &mut found).map_err(|fault| fault.to_string())?;
            if held.then_some(&found) != self.reader.held(page as usize) {
                return Err(format!("page {page} of the image is not what was synchronised"));
            }
            let sent = self.sent.as_ref().and_then(|sent| sent[page as usize].as_deref());
            if taken && sent.is_some() && sent != expected {
                return Err(format!("page {page} is not the primary's"));
            }
        }
        Ok(())
    }
}

/// What a guest makes of a page.
fn content(before: Option<Page>, kind: u8, input: &mut Input<'_>) -> Page {
    let mut page = before.unwrap_or_else(|| Box::new([0; PAGE_SIZE]));
    match kind {
        0 => {}
        1 => page.fill(0),
        2 => page.fill(input.byte()),
        3 | 4 => {
            let at = usize::from(input.word()) % PAGE_SIZE;
            page[at] ^= input.byte();
        }
        5 => page.chunks_mut(64).for_each(|stride| stride[0] = stride[0].wrapping_add(1)),
        // Noise, the same again for the same seed.
        _ => {
            let mut random = crate::mutator::Random::new(u64::from(input.byte() % 4));
            page.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.next_number().to_le_bytes()));
        }
    }
    page
}

/// The head of a record with whatever in it, and some bytes behind it.
fn head(input: &mut Input<'_>) -> Vec<u8> {
    let page = match input.byte() {
        near @ 0..200 => u64::from(near) % (PAGES + 1),
        200..230 => input.word().into(),
        _ => u64::from(input.long()) << 16 | u64::from(input.word()),
    };
    let form = u64::from(input.byte() % 8);
    let number = match input.byte() {
        few @ 0..160 => u64::from(few) % 16,
        160..200 => input.of([4095, 4096, 4097, 8191, 255, 256, 257]),
        _ => u64::from(input.word()) & 8191,
    };
    let mut bytes = (page << 16 | form << 13 | number).to_le_bytes().to_vec();
    let data = input.byte();
    if form == 2 {
        bytes.extend(u64::from(data % (PAGES as u8 + 1)).to_le_bytes());
    } else if data < 64 {
        bytes.resize(bytes.len() + number as usize, data);
    } else {
        bytes.extend(input.bytes(number as usize));
    }
    bytes
}

/// Records of many pages in a row, over and over: a few bytes that stand for much.
fn runs(input: &mut Input<'_>) -> Vec<u8> {
    let (form, number) = (input.of([4, 1]), 1 + u64::from(input.byte()) % PAGES);
    let times = usize::from(input.byte() % 40);
    (form << 13 | number).to_le_bytes().repeat(times)
}

/// A record with a block that comes to a page, or nearly: literals, a match of any distance, literals.
fn block(input: &mut Input<'_>) -> Vec<u8> {
    let literals = 1 + usize::from(input.byte() % 14);
    let distance = match input.byte() {
        any @ 0..16 => u16::from(any) * 4096,
        near => 1 + u16::from(near) % literals as u16,
    };
    let tail = usize::from(input.byte() % 15);
    let rest = PAGE_SIZE - literals - tail;
    let copied = rest.wrapping_add_signed(input.of([0, 0, 0, 0, 0, 1, -1, -2000]));
    let mut block = vec![(literals as u8) << 4 | 15];
    block.resize(1 + literals, input.byte());
    block.extend(distance.to_le_bytes());
    let mut left = copied - 19;
    while left >= 255 {
        block.push(255);
        left -= 255;
    }
    block.extend([left as u8, (tail as u8) << 4]);
    block.resize(block.len() + tail, input.byte());
    let (page, form) = (u64::from(input.byte()) % PAGES, input.of([0, 3]));
    let head = page << 16 | form << 13 | block.len() as u64;
    [&head.to_le_bytes(), &*block].concat()
}
