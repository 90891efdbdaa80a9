//! The guest's memory as a vhost-user device has it, for the checkpoint side.

use holdfast_checkpoint::gate::{GuestMemorySource, MemoryError, MemoryFacts};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex, PageSet};
use holdfast_checkpoint::tracker::FileIdentity;
use holdfast_vhost_user::{Device, MemoryFile};
use std::ops::Range;
use std::sync::Arc;

/// The one memory file of a VM. All of its NICs share it; the first one that is connected names it.
pub(crate) struct DeviceMemory {
    devices: Vec<Arc<Device>>,
    file: Option<Arc<MemoryFile>>,
}

impl DeviceMemory {
    /// The memory behind the VM's NICs.
    pub(crate) const fn new(devices: Vec<Arc<Device>>) -> Self {
        Self { devices, file: None }
    }
}

impl GuestMemorySource for DeviceMemory {
    fn facts(&mut self) -> Result<MemoryFacts, MemoryError> {
        let connected = |device: &&Arc<Device>| device.snapshot().connected;
        let memory = self
            .devices
            .iter()
            .filter(connected)
            .find_map(|device| device.memory())
            .ok_or(MemoryError::NotYet)?;
        let [file] = memory.files() else {
            return Err(MemoryError::Unfit(format!(
                "it lies in {} files; mend: give the machine one memory-backend-file",
                memory.files().len()
            )));
        };
        let found = file.identity();
        let identity = FileIdentity { dev: found.dev, ino: found.ino };
        self.file = Some(Arc::clone(file));
        Ok(MemoryFacts { identity, len: file.len(), page_size: file.page_size() })
    }

    fn read(&mut self, first: PageIndex, out: &mut [u8]) -> Result<(), MemoryError> {
        let file = self.file.as_ref().ok_or(MemoryError::NotYet)?;
        file.read(first.offset(), out).map_err(|_| MemoryError::Beyond { page: first, len: file.len() })
    }

    fn content_from(&mut self, from: PageIndex) -> Range<u64> {
        let Some(file) = &self.file else { return from.0..u64::MAX };
        let bytes = file.data_from(from.offset());
        PageIndex::of_offset(bytes.start).0..bytes.end.div_ceil(PAGE_SIZE as u64)
    }

    fn drain_dirty(&mut self, into: &mut PageSet) {
        if let Some(file) = &self.file {
            file.drain_dirty(&mut |page| {
                into.insert(PageIndex(page));
            });
        }
    }
}
