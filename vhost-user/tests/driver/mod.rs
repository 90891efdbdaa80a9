//! The guest's side of a ring, for tests: guest memory in a file, and a driver that may lie.
//!
//! It touches the file by `pread` and `pwrite` only, so that the device's mapping is the only one.

use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Regions of guest memory: (guest physical address, bytes, offset in the file). One lies above
/// 4 GiB, two adjoin in the guest but not in the file.
pub(crate) const REGIONS: [(u64, u64, u64); 3] =
    [(0, 0x8_0000, 0x1_0000), (0x8_0000, 0x8_0000, 0x10_0000), (0x1_0000_0000, 0x10_0000, 0x20_0000)];

/// Bytes of the memory file.
pub(crate) const FILE_BYTES: u64 = 0x30_0000;

/// First address above all regions.
pub(crate) const END: u64 = 0x1_0010_0000;

/// Where the frontend's address space has guest address 0.
pub(crate) const FRONTEND: u64 = 0x7f00_0000_0000;

/// The memory of a guest.
#[derive(Debug)]
pub(crate) struct GuestRam {
    file: File,
}

impl GuestRam {
    pub(crate) fn new() -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(FILE_BYTES).expect("room for guest memory");
        Self { file }
    }

    /// Another descriptor of the file, as a frontend sends one with each table.
    pub(crate) fn descriptor(&self) -> File {
        self.file.try_clone().expect("a descriptor")
    }

    /// The whole file, to compare before and after.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; FILE_BYTES as usize];
        self.file.read_exact_at(&mut image, 0).expect("reads");
        image
    }

    pub(crate) fn offset(gpa: u64) -> u64 {
        let (start, _, offset) = REGIONS
            .into_iter()
            .find(|(start, bytes, _)| (*start..start + bytes).contains(&gpa))
            .expect("an address in guest memory");
        offset + gpa - start
    }

    /// Writes bytes that may cross from the first into the second region.
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes.chunks(1)) {
            self.file.write_all_at(byte, Self::offset(at)).expect("writes");
        }
    }

    pub(crate) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        for (at, byte) in (gpa..).zip(out.chunks_mut(1)) {
            self.file.read_exact_at(byte, Self::offset(at)).expect("reads");
        }
        out
    }

    pub(crate) fn write_u16(&self, gpa: u64, value: u16) {
        self.file.write_all_at(&value.to_le_bytes(), Self::offset(gpa)).expect("writes");
    }

    pub(crate) fn read_u16(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, Self::offset(gpa)).expect("reads");
        u16::from_le_bytes(bytes)
    }
}

/// The bytes of a descriptor.
pub(crate) fn descriptor(gpa: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&gpa.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// A ring as the driver sees it.
#[derive(Debug)]
pub(crate) struct DriverQueue<'r> {
    pub(crate) ram: &'r GuestRam,
    /// Guest physical address of the descriptor table; available and used ring follow.
    pub(crate) at: u64,
    pub(crate) size: u16,
    /// Next available index to write.
    pub(crate) available: u16,
    /// Next used index to look at.
    pub(crate) seen: u16,
}

impl<'r> DriverQueue<'r> {
    /// A ring whose indices begin at `base`.
    pub(crate) fn new(ram: &'r GuestRam, at: u64, size: u16, base: u16) -> Self {
        let queue = Self { ram, at, size, available: base, seen: base };
        ram.write_u16(queue.available_gpa(), 0);
        ram.write_u16(queue.available_gpa() + 2, base);
        ram.write_u16(queue.used_gpa(), 0);
        ram.write_u16(queue.used_gpa() + 2, base);
        queue
    }

    pub(crate) fn available_gpa(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    pub(crate) fn used_gpa(&self) -> u64 {
        (self.available_gpa() + 6 + 2 * u64::from(self.size)).next_multiple_of(4096)
    }

    pub(crate) fn set_descriptor(&self, index: u16, bytes: [u8; 16]) {
        self.ram.write(self.at + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available and shows it.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.ram.write_u16(self.available_gpa() + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.ram.write_u16(self.available_gpa() + 2, self.available);
    }

    /// Asks for a notification when the used index passes this (EVENT_IDX).
    pub(crate) fn set_used_event(&self, index: u16) {
        self.ram.write_u16(self.available_gpa() + 4 + 2 * u64::from(self.size), index);
    }

    /// Where the device wants to be notified (EVENT_IDX).
    pub(crate) fn available_event(&self) -> u16 {
        self.ram.read_u16(self.used_gpa() + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.ram.read_u16(self.used_gpa() + 2)
    }

    /// Takes what the device has returned: (head, bytes written).
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        while self.seen != self.used_index() {
            let at = self.used_gpa() + 4 + 8 * u64::from(self.seen % self.size);
            let word = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            taken.push((word(self.ram.read(at, 4)), word(self.ram.read(at + 4, 4))));
            self.seen = self.seen.wrapping_add(1);
        }
        taken
    }
}
