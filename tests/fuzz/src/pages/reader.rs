//! Records of pages as their format is written down, read once more: slowly, and by other code.

use holdfast_checkpoint::pages::PAGE_SIZE;

/// The bytes of a page.
pub(super) type Page = Box<[u8; PAGE_SIZE]>;

/// What an epoch pays for a record beside its bytes.
const RECORD_COST: u64 = 96;

/// Where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The image, in a synchronisation.
    Base,
    /// An epoch.
    Epoch,
}

/// What every page is after the batches that came.
#[derive(Debug)]
pub(super) struct Reader {
    held: Vec<Option<Page>>,
    staged: Vec<Option<Page>>,
    most: u64,
    room: u64,
}

impl Reader {
    pub(super) fn new(pages: usize, most: u64, room: u64) -> Self {
        Self { held: vec![None; pages], staged: vec![None; pages], most, room }
    }

    /// What was sent of a page last.
    pub(super) fn recall(&self, page: usize) -> Option<&[u8; PAGE_SIZE]> {
        self.staged[page].as_deref().or_else(|| self.held(page))
    }

    /// What the image has of it.
    pub(super) fn held(&self, page: usize) -> Option<&[u8; PAGE_SIZE]> {
        self.held[page].as_deref()
    }

    /// Takes a batch up to what is wrong with it; the forms of its records.
    pub(super) fn take(&mut self, target: Target, mut rest: &[u8]) -> Result<Vec<u16>, &'static str> {
        let mut forms = Vec::new();
        let mut left = self.most;
        while !rest.is_empty() {
            let head = u64::from_le_bytes(*cut(&mut rest, 8)?.first_chunk().ok_or("cut short")?);
            let (page, form, number) = (head >> 16, head >> 13 & 7, (head & 8191) as usize);
            let count = if form == 1 || form == 4 { number as u64 } else { 1 };
            if page + count.max(1) > self.held.len() as u64 {
                return Err("beyond the memory");
            }
            left = left.checked_sub(count).ok_or("too many pages")?;
            forms.push(form as u16);
            let whole: Page = match (form, number) {
                (0, PAGE_SIZE) => as_page(cut(&mut rest, PAGE_SIZE)?)?,
                (0, 1..PAGE_SIZE) => unpack(cut(&mut rest, number)?)?,
                (1 | 4, 1..) => {
                    for page in page..page + count {
                        self.pay(target, 0)?;
                        let page = page as usize;
                        let content = match form {
                            1 => self.recall(page).ok_or("nothing was sent")?.to_owned().into(),
                            _ => Box::new([0; PAGE_SIZE]),
                        };
                        self.put(target, page, content, form == 1);
                    }
                    continue;
                }
                (2, 8) => {
                    let other = u64::from_le_bytes(*cut(&mut rest, 8)?.first_chunk().ok_or("cut short")?);
                    let other = usize::try_from(other).ok().filter(|other| *other < self.held.len());
                    self.recall(other.ok_or("beyond the memory")?)
                        .ok_or("nothing was sent")?
                        .to_owned()
                        .into()
                }
                (3, 1..PAGE_SIZE) => {
                    let block = cut(&mut rest, number)?;
                    let mut page = self.recall(page as usize).ok_or("nothing was sent")?.to_owned();
                    page.iter_mut().zip(*unpack(block)?).for_each(|(byte, change)| *byte ^= change);
                    page.into()
                }
                _ => return Err("no such form, or no such number of it"),
            };
            self.pay(target, PAGE_SIZE as u64)?;
            self.put(target, page as usize, whole, false);
        }
        Ok(forms)
    }

    fn pay(&mut self, target: Target, bytes: u64) -> Result<(), &'static str> {
        if target == Target::Epoch {
            self.room = self.room.checked_sub(RECORD_COST + bytes).ok_or("no room")?;
        }
        Ok(())
    }

    fn put(&mut self, target: Target, page: usize, content: Page, unchanged: bool) {
        match target {
            Target::Base => self.held[page] = Some(content),
            Target::Epoch if unchanged => {}
            Target::Epoch => self.staged[page] = Some(content),
        }
    }
}

fn cut<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], &'static str> {
    let (taken, behind) = rest.split_at_checked(len).ok_or("cut short")?;
    *rest = behind;
    Ok(taken)
}

fn as_page(bytes: &[u8]) -> Result<Page, &'static str> {
    Ok(Box::new(bytes.try_into().map_err(|_| "not a page")?))
}

/// A length of which four bits were in the token.
fn length(nibble: u8, rest: &mut &[u8]) -> Result<usize, &'static str> {
    let mut len = usize::from(nibble);
    let mut more = nibble == 15;
    while more {
        let byte = cut(rest, 1)?[0];
        len += usize::from(byte);
        more = byte == 255;
    }
    Ok(len)
}

/// An LZ4 block of exactly one page.
fn unpack(mut rest: &[u8]) -> Result<Page, &'static str> {
    let mut out = Vec::with_capacity(PAGE_SIZE);
    loop {
        let token = cut(&mut rest, 1)?[0];
        let literals = length(token >> 4, &mut rest)?;
        out.extend(cut(&mut rest, literals)?);
        if out.len() > PAGE_SIZE {
            return Err("more than a page");
        }
        if rest.is_empty() {
            return as_page(&out);
        }
        let distance = usize::from(u16::from_le_bytes(*cut(&mut rest, 2)?.first_chunk().ok_or("cut short")?));
        let copied = 4 + length(token & 15, &mut rest)?;
        if distance == 0 || distance > out.len() || out.len() + copied > PAGE_SIZE {
            return Err("a match from nowhere, or beyond a page");
        }
        for _ in 0..copied {
            out.push(out[out.len() - distance]);
        }
    }
}
