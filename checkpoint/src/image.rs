//! The backup's image of a guest's memory: always exactly one committed checkpoint (CK-1).
//!
//! Two files make an image: a copy of the guest's memory, on tmpfs or hugetlbfs, which the standby
//! QEMU maps (so its inode never changes), and a record beside it, which says what the copy is.
//!
//! ```text
//! Empty --begin_sync--> Syncing --apply(first)--> Valid --apply(next)--> Valid ...
//!   ^                      |                        '--mark_live--> Live (the guest runs on it)
//!   '--- create -----------'
//! ```
//!
//! An epoch is applied in two steps. [`Image::prepare`] checks it and writes its record, with device state,
//! gate state and all its pages, under a temporary name; whatever can be lacking for it is found out there.
//! [`Image::commit`] renames it over the old record: that is the commit, whole or not at all. Then its pages
//! are copied into the memory. A process that dies amid the copy leaves a complete record, and
//! [`Image::open`] copies its pages once more; as the copying of an epoch ends before the record of the next
//! one is renamed, this always gives that one checkpoint. An image that was still being synchronised, that a
//! guest has run on, or whose memory is not the memory which the record speaks of (another inode, another
//! boot) is refused with the reason.
//!
//! Between the two steps the gate is given what it has to keep of the epoch. A gate's state that is not
//! self-contained counts on that, and the gate keeps it in the memory of its process: a later process refuses
//! such a checkpoint, and when a commit fails after the gate took its part, the image lets go of it.
//!
//! Both files live as long as the host's memory does, so nothing is synced to a disk; put the record on
//! tmpfs too, since it carries the epoch's pages. The whole memory is allocated when the image is made:
//! a host without room for it says so then, and no later write can fail.
//!
//! One thread owns the image; a lock on the memory file keeps a second process out.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod error;
mod memory;
mod record;
mod staged;

pub use error::ImageError;
pub(crate) use staged::KEPT_PAGES;
pub use staged::{StagedEpoch, StagedPages};

use crate::gate::GateState;
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use holdfast_epoch::{Digest, EpochId, Term};
use memory::Memory;
use record::{Record, What};
use std::path::{Path, PathBuf};

/// Most bytes of device state that a checkpoint may carry. QEMU writes about half a megabyte; more than
/// this means that guest memory went into the stream.
pub const STATE_LIMIT: usize = 64 << 20;

/// Most bytes of gate state that a checkpoint may carry: the first one of a session has all that the gate
/// holds for the guest's clients.
pub const GATE_STATE_LIMIT: usize = 512 << 20;

/// Where an image lies and what it is an image of.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// Name of the VM.
    pub vm: String,
    /// The copy of the guest's memory, on tmpfs or hugetlbfs.
    pub memory: PathBuf,
    /// The record beside it; best on tmpfs as well.
    pub record: PathBuf,
    /// Bytes of guest memory.
    pub len: u64,
}

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// Nothing yet, or nothing any more.
    Empty,
    /// Part of the guest's memory; epoch `first` will complete it.
    Syncing {
        /// Term of the session.
        term: Term,
        /// The epoch that completes the synchronisation.
        first: EpochId,
    },
    /// The checkpoint of this epoch, whole.
    Valid {
        /// Term of the epoch.
        term: Term,
        /// The epoch.
        epoch: EpochId,
    },
    /// The guest runs on the memory: it is no checkpoint any more.
    Live {
        /// Term in which the guest went live.
        term: Term,
    },
}

/// The last committed checkpoint, apart from the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Term of the epoch.
    pub term: Term,
    /// The epoch.
    pub epoch: EpochId,
    /// What QEMU wrote for its devices and vCPUs.
    pub device_state: Vec<u8>,
    /// What the output gate handed over at the seal.
    pub gate_state: GateState,
}

/// An epoch that was checked and whose record is written, and does not count yet. Dropped, it never does.
#[derive(Debug)]
#[must_use = "an epoch counts once it is committed"]
pub struct PreparedEpoch {
    term: Term,
    id: EpochId,
    record: Record,
}

impl PreparedEpoch {
    /// What the output gate handed over at the seal.
    #[must_use]
    pub fn gate_state(&self) -> &[u8] {
        &self.record.gate_state
    }
}

/// The backup's image of one guest.
#[derive(Debug)]
pub struct Image {
    config: ImageConfig,
    memory: Memory,
    state: ImageState,
    /// The only epoch that may be applied next.
    next: Option<(Term, EpochId)>,
    /// Pages that the synchronisation has not brought yet.
    missing: PageSet,
    last: Option<Checkpoint>,
}

impl Image {
    /// Makes an empty image, or empties the one that is there; its file keeps its inode.
    ///
    /// # Errors
    /// When the host has no room, the file has another size, or another process uses it.
    pub fn create(config: ImageConfig) -> Result<Self, ImageError> {
        record::remove(&config.record)?;
        let memory = Memory::create(&config.memory, config.len)?;
        let missing = PageSet::for_bytes(config.len);
        Ok(Self { config, memory, state: ImageState::Empty, next: None, missing, last: None })
    }

    /// Opens the image that is there, finishing the copy of its last epoch if a crash cut it off.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] with the reason when it is not a checkpoint, or [`ImageError::KeptLost`] when
    /// it counts on what the gate of another process kept: [`Image::create`] it anew and synchronise. Others
    /// when the files cannot be read, are of another size or VM, or are in use.
    pub fn open(config: ImageConfig) -> Result<Self, ImageError> {
        let memory = Memory::open(&config.memory, config.len)?;
        let record = Record::read(&config.record, config.len)?;
        record.check_owner(&config, memory.identity())?;
        let (term, epoch) = match record.what {
            What::Checkpoint { term, epoch, self_contained: true } => (Term::new(term), EpochId::new(epoch)),
            // SP-2: the bytes that were acknowledged to the guest are not here.
            What::Checkpoint { term, epoch, self_contained: false } => {
                let (term, epoch) = (Term::new(term), EpochId::new(epoch));
                return Err(ImageError::KeptLost { path: config.memory, term, epoch });
            }
            What::Syncing { .. } => return Err(config.unusable("its synchronisation was cut off")),
            What::Live { term } => {
                return Err(config.unusable(format!("the guest has run on it since term {term}")));
            }
        };
        memory.apply(&record.pages);
        let (device_state, gate_state) = (record.device_state, GateState::whole(record.gate_state));
        Ok(Self {
            missing: PageSet::for_bytes(config.len),
            config,
            memory,
            state: ImageState::Valid { term, epoch },
            next: None,
            last: Some(Checkpoint { term, epoch, device_state, gate_state }),
        })
    }

    /// What the image holds.
    #[must_use]
    pub const fn state(&self) -> ImageState {
        self.state
    }

    /// The last committed checkpoint, apart from the memory.
    #[must_use]
    pub const fn last(&self) -> Option<&Checkpoint> {
        self.last.as_ref()
    }

    /// Bytes of guest memory.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.config.len
    }

    /// Whether there is no memory at all, which no image allows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.config.len == 0
    }

    /// The copy of the guest's memory, for the standby QEMU to map.
    #[must_use]
    pub fn memory_path(&self) -> &Path {
        &self.config.memory
    }

    /// Begins a full synchronisation: what the image held is gone. Every page must come, by
    /// [`Image::write_base`] or in the epoch `first`, which completes it.
    ///
    /// # Errors
    /// When the record cannot be written, or the guest runs on the memory.
    pub fn begin_sync(&mut self, term: Term, first: EpochId) -> Result<(), ImageError> {
        self.refuse_live()?;
        let what = What::Syncing { term: term.get() };
        Record::bare(&self.config, self.memory.identity(), what).write(&self.config.record)?;
        self.state = ImageState::Syncing { term, first };
        self.next = Some((term, first));
        self.last = None;
        self.missing.insert_all();
        Ok(())
    }

    /// Writes a page of the full synchronisation; `None` is a page of zeros.
    ///
    /// Costs 220 ns a page, 120 for one of zeros over zeros (`cargo bench -p holdfast-checkpoint -- image`).
    ///
    /// # Errors
    /// When no synchronisation is under way or the page lies beyond the memory.
    pub fn write_base(&mut self, page: PageIndex, bytes: Option<&[u8; PAGE_SIZE]>) -> Result<(), ImageError> {
        if !matches!(self.state, ImageState::Syncing { .. }) {
            return Err(ImageError::NotSyncing { state: self.state });
        }
        self.check_page(page)?;
        self.memory.write(page, bytes);
        self.missing.remove(page);
        Ok(())
    }

    /// Says which epoch comes next in a new session with this checkpoint: the numbers of aborted epochs
    /// are left out, and a new term begins anew.
    ///
    /// # Errors
    /// When the image holds no checkpoint or that epoch is not newer.
    pub fn resume_at(&mut self, term: Term, next: EpochId) -> Result<(), ImageError> {
        let ImageState::Valid { term: held_term, epoch: held } = self.state else {
            return Err(ImageError::NoCheckpoint { state: self.state });
        };
        if (term, next) <= (held_term, held) {
            return Err(ImageError::NotNewer { term, epoch: next, held_term, held });
        }
        self.next = Some((term, next));
        Ok(())
    }

    /// Applies an epoch: all of it, and only the one that comes next (CK-1). For one whose gate's state needs
    /// nothing to be kept beside it.
    ///
    /// # Errors
    /// As [`Image::prepare`] and [`Image::commit`].
    pub fn apply(&mut self, staged: StagedEpoch) -> Result<(), ImageError> {
        let prepared = self.prepare(staged)?;
        self.commit(prepared).map(drop)
    }

    /// Checks an epoch and writes its record, which does not count before [`Image::commit`].
    ///
    /// Costs 0.9 us a page (`cargo bench -p holdfast-checkpoint -- image`).
    ///
    /// # Errors
    /// When it is not the next epoch, leaves pages of the synchronisation missing, reaches beyond the
    /// memory, or its record cannot be written (the host has no room). The image is then what it was.
    pub fn prepare(&self, staged: StagedEpoch) -> Result<PreparedEpoch, ImageError> {
        self.check_next(&staged)?;
        self.check_complete(&staged)?;
        let StagedEpoch { term, id, pages, device_state, gate_state } = staged;
        let GateState { bytes, self_contained } = gate_state;
        let what = What::Checkpoint { term: term.get(), epoch: id.get(), self_contained };
        let mut record = Record::bare(&self.config, self.memory.identity(), what);
        (record.pages, record.device_state, record.gate_state) = (pages, device_state, bytes);
        record.prepare(&self.config.record)?;
        Ok(PreparedEpoch { term, id, record })
    }

    /// Makes a prepared epoch the checkpoint: all of it, and only the one that comes next (CK-1). What the
    /// gate keeps of it is kept by now. Gives back what its pages were in, without them, for those of the next one.
    ///
    /// Costs 0.5 us a page (`cargo bench -p holdfast-checkpoint -- image`).
    ///
    /// # Errors
    /// When it is not the next epoch any more or its record cannot be put in its place. The checkpoint before
    /// it is then still there if it says all by itself; otherwise there is none: the gate is ahead of it.
    pub fn commit(&mut self, prepared: PreparedEpoch) -> Result<StagedPages, ImageError> {
        let PreparedEpoch { term, id, record } = prepared;
        let placed = self.check_order(term, id).and_then(|()| record::place(&self.config.record));
        placed.inspect_err(|_| self.let_go())?;
        self.memory.apply(&record.pages);
        let Record { mut pages, device_state, gate_state, what, .. } = record;
        let self_contained = matches!(what, What::Checkpoint { self_contained: true, .. });
        let gate_state = GateState { bytes: gate_state, self_contained };
        self.state = ImageState::Valid { term, epoch: id };
        self.next = Some((term, id.next()));
        self.missing.clear();
        self.last = Some(Checkpoint { term, epoch: id, device_state, gate_state });
        pages.clear();
        Ok(pages)
    }

    /// Marks the memory as the guest's: from now on it is no checkpoint, in this process or a later
    /// one. To be called before the standby's first instruction.
    ///
    /// # Errors
    /// When the image holds no checkpoint or the record cannot be written; nothing changes then.
    pub fn mark_live(&mut self, term: Term) -> Result<(), ImageError> {
        if !matches!(self.state, ImageState::Valid { .. }) {
            return Err(ImageError::NoCheckpoint { state: self.state });
        }
        let what = What::Live { term: term.get() };
        Record::bare(&self.config, self.memory.identity(), what).write(&self.config.record)?;
        self.state = ImageState::Live { term };
        self.next = None;
        Ok(())
    }

    /// Reads a page into `into`.
    ///
    /// # Errors
    /// When the page lies beyond the memory.
    pub fn read_page(&self, page: PageIndex, into: &mut [u8; PAGE_SIZE]) -> Result<(), ImageError> {
        self.check_page(page)?;
        self.memory.read(page, into);
        Ok(())
    }

    /// Whether the bytes of a page are here: of the checkpoint, or of the synchronisation that is under way.
    #[must_use]
    pub fn has_page(&self, page: PageIndex) -> bool {
        let holds_pages = matches!(self.state, ImageState::Syncing { .. } | ImageState::Valid { .. });
        holds_pages && page.0 < self.missing.capacity() && !self.missing.contains(page)
    }

    /// Digest of the whole memory; reads all of it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let mut page = [0; PAGE_SIZE];
        for index in 0..self.missing.capacity() {
            self.memory.read(PageIndex(index), &mut page);
            hasher.update(&page);
        }
        Digest(*hasher.finalize().as_bytes())
    }

    fn check_next(&self, staged: &StagedEpoch) -> Result<(), ImageError> {
        self.refuse_live()?;
        self.check_order(staged.term, staged.id)
    }

    fn check_order(&self, term: Term, epoch: EpochId) -> Result<(), ImageError> {
        match self.next {
            Some(next) if next == (term, epoch) => Ok(()),
            expected => Err(ImageError::OutOfOrder { expected, term, epoch }),
        }
    }

    /// SP-2: a checkpoint whose gate's part may be another epoch's by now is none.
    fn let_go(&mut self) {
        if self.last.as_ref().is_some_and(|last| !last.gate_state.self_contained) {
            (self.state, self.next, self.last) = (ImageState::Empty, None, None);
        }
    }

    fn check_complete(&self, staged: &StagedEpoch) -> Result<(), ImageError> {
        staged.pages.iter().try_for_each(|(page, _)| self.check_page(page))?;
        for (state, limit) in
            [(&staged.device_state, STATE_LIMIT), (&staged.gate_state.bytes, GATE_STATE_LIMIT)]
        {
            if state.len() > limit {
                return Err(ImageError::StateTooLarge { bytes: state.len() });
            }
        }
        if self.missing.is_empty() {
            return Ok(());
        }
        let mut missing = self.missing.clone();
        staged.pages.iter().for_each(|(page, _)| {
            missing.remove(page);
        });
        if missing.is_empty() { Ok(()) } else { Err(ImageError::SyncIncomplete { pages: missing.len() }) }
    }

    fn refuse_live(&self) -> Result<(), ImageError> {
        match self.state {
            ImageState::Live { term } => Err(ImageError::Live { term }),
            _ => Ok(()),
        }
    }

    fn check_page(&self, page: PageIndex) -> Result<(), ImageError> {
        if page.0 < self.missing.capacity() {
            Ok(())
        } else {
            Err(ImageError::BeyondMemory { page, pages: self.missing.capacity() })
        }
    }
}

impl ImageConfig {
    fn unusable(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Unusable { path: self.memory.clone(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests;
