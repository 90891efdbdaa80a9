//! A virtual machine whose vCPUs write where they are told, and nowhere else.
//!
//! A vCPU gets a list of addresses and a number of four bytes, which it writes to each of them. Its program, its list
//! and its page tables lie in memory of its own, its *script*, beside the tracked memory. So what there is to find is
//! what the list says, without exception: the page tables are elsewhere and their bits for "accessed" and "written"
//! are set already, and of what KVM would write by itself (clocks, stolen time) the guest asks for nothing.
//!
//! It runs in 64-bit mode, unprivileged, and says that it is done by writing where no memory is. Some kinds of KVM emulate
//! whatever else there is instruction by instruction: the guest's writes do not go through memory that KVM has mapped
//! then, and come so many at a time that they overrun the ring.

use super::dirty_log::KvmLog;
use super::dirty_ring::KvmRing;
use super::{KvmTracker, Means, PAGE, PAGES, SLOTS};
use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use nix::libc;
use std::fs::File;
use std::sync::{Arc, Mutex};

/// vCPUs of the machine.
pub(super) const VCPUS: usize = 2;

/// Where the guest has no memory.
const BELL_ADDRESS: u64 = 512 << 20;

const SCRIPT_BYTES: usize = 2 << 20;
/// The guest's address of the first vCPU's script; the others follow.
const SCRIPTS_ADDRESS: u64 = 2 << 30;
/// In a script, after the page tables.
const WRITER_AT: usize = 0x5000;
const READER_AT: usize = WRITER_AT + 64;
const LIST_AT: usize = 0x6000;
/// Bytes of an item of the list: an address, and what to write there.
const ITEM: usize = 16;

/// RSI is the list, RCX how many items it has, RBX the bell:
/// ```text
/// next: jrcxz end; mov rdi, [rsi]; mov eax, [rsi + 8]; mov [rdi], eax; add rsi, 16; dec ecx; jmp next
/// end:  mov [rbx], eax
/// ```
const WRITER: [u8; 20] = [
    0xe3, 0x10, 0x48, 0x8b, 0x3e, 0x8b, 0x46, 0x08, 0x89, 0x07, 0x48, 0x83, 0xc6, 0x10, 0xff, 0xc9, 0xeb,
    0xee, 0x89, 0x03,
];

/// The same list, to be read:
/// ```text
/// next: jrcxz end; mov rdi, [rsi]; mov eax, [rdi]; add rsi, 16; dec ecx; jmp next
/// end:  mov [rbx], eax
/// ```
const READER: [u8; 17] =
    [0xe3, 0x0d, 0x48, 0x8b, 0x3e, 0x8b, 0x07, 0x48, 0x83, 0xc6, 0x10, 0xff, 0xc9, 0xeb, 0xf1, 0x89, 0x03];

/// What a vCPU does at each place of a list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Write(u32),
    Read,
}

/// The machine, of which one process may do as it likes.
pub(super) struct Machine {
    memory: MmapRaw,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) tracker: Arc<Mutex<KvmTracker>>,
}

impl Machine {
    /// A machine whose memory is the file.
    pub(super) fn new(file: &File, means: Means) -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        if means == Means::Ring {
            KvmRing::prepare(&vm).unwrap();
        }
        let memory = MmapOptions::new().len((PAGES * PAGE) as usize).map_raw(file).unwrap();
        for slot in &SLOTS {
            let region = kvm_userspace_memory_region {
                slot: slot.number,
                flags: KVM_MEM_LOG_DIRTY_PAGES,
                guest_phys_addr: slot.guest_address,
                memory_size: slot.bytes(),
                userspace_addr: memory.as_ptr() as u64 + slot.first * PAGE,
            };
            // SAFETY: the mapping is the machine's, and no vCPU runs once the machine is gone.
            unsafe { vm.set_user_memory_region(region) }.unwrap();
        }
        let vcpus: Vec<Vcpu> = (0..VCPUS).map(|number| Vcpu::new(&kvm, &vm, number)).collect();
        let tracker = match means {
            Means::Log => KvmTracker::Log(KvmLog::new(vm, false).unwrap()),
            Means::ManualLog => KvmTracker::Log(KvmLog::new(vm, true).unwrap()),
            Means::Ring => {
                KvmTracker::Ring(KvmRing::new(vm, vcpus.iter().map(|vcpu| &vcpu.fd), PAGES).unwrap())
            }
        };
        Self { memory, vcpus, tracker: Arc::new(Mutex::new(tracker)) }
    }

    /// Writes to the memory as the process that runs the machine, not as the guest.
    pub(super) fn poke(&self, value: u32, offset: u64) {
        assert!(offset + 4 <= PAGES * PAGE);
        for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
            // SAFETY: the place was just checked to lie within the mapping.
            unsafe { self.memory.as_mut_ptr().add(offset as usize + n).write_volatile(byte) };
        }
    }
}

/// A vCPU and its script.
pub(super) struct Vcpu {
    fd: VcpuFd,
    script: MmapMut,
    script_address: u64,
}

impl Vcpu {
    fn new(kvm: &Kvm, vm: &VmFd, number: usize) -> Self {
        let script_address = SCRIPTS_ADDRESS + (number * SCRIPT_BYTES) as u64;
        let mut script = MmapMut::map_anon(SCRIPT_BYTES).unwrap();
        put_page_tables(&mut script, script_address);
        script[WRITER_AT..][..WRITER.len()].copy_from_slice(&WRITER);
        script[READER_AT..][..READER.len()].copy_from_slice(&READER);
        let region = kvm_userspace_memory_region {
            slot: (SLOTS.len() + number) as u32,
            flags: 0,
            guest_phys_addr: script_address,
            memory_size: SCRIPT_BYTES as u64,
            userspace_addr: script.as_ptr() as u64,
        };
        // SAFETY: the script is the vCPU's, which does not run once it is gone; nobody else's program is in it.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let fd = vm.create_vcpu(number as u64).unwrap();
        fd.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        enter_64_bit_mode(&fd, script_address);
        Self { fd, script, script_address }
    }

    /// Does the same at each offset of the file, one after the other. Where the ring is full, room is made in it; gives
    /// how often it was.
    pub(super) fn go(&mut self, act: Act, offsets: &[u64], tracker: &Mutex<KvmTracker>) -> u64 {
        let (entry, value) = match act {
            Act::Write(value) => (WRITER_AT, value),
            Act::Read => (READER_AT, 0),
        };
        let list = &mut self.script[LIST_AT..];
        assert!(offsets.len() * ITEM <= list.len(), "the script is too short for {} items", offsets.len());
        for (item, &offset) in list.chunks_exact_mut(ITEM).zip(offsets) {
            let address = SLOTS.iter().find_map(|slot| slot.address_of(offset)).unwrap();
            item[..8].copy_from_slice(&address.to_le_bytes());
            item[8..12].copy_from_slice(&value.to_le_bytes());
        }
        let regs = kvm_regs {
            rip: self.script_address + entry as u64,
            rsi: self.script_address + LIST_AT as u64,
            rcx: offsets.len() as u64,
            rbx: BELL_ADDRESS,
            rflags: 2,
            ..kvm_regs::default()
        };
        self.fd.set_regs(&regs).unwrap();
        self.run(tracker)
    }

    fn run(&mut self, tracker: &Mutex<KvmTracker>) -> u64 {
        let (mut full, mut in_vain) = (0, 0);
        loop {
            match self.fd.run() {
                Ok(VcpuExit::MmioWrite(BELL_ADDRESS, _)) => return full,
                // The tracer's stop.
                Ok(VcpuExit::Intr) => {}
                Err(error) if error.errno() == libc::EINTR => {}
                Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                    full += 1;
                    let taken = tracker.lock().unwrap().make_room().unwrap();
                    // Somebody else may have emptied it just now, but not time and again.
                    in_vain = if taken == 0 { in_vain + 1 } else { 0 };
                    assert!(in_vain < 100, "the ring stays full, and nothing is in it");
                }
                other => panic!("the guest ended without the bell: {other:?}"),
            }
        }
    }
}

/// Page tables at the start of a script: what the guest may address, each address as it is, by pages of 2 MiB.
fn put_page_tables(script: &mut [u8], script_address: u64) {
    /// Present, writable, for all, accessed.
    const TABLE: u64 = 0x27;
    /// The same, written, and 2 MiB long.
    const LEAF: u64 = 0xe7;
    let table = |number: u64| (script_address + number * PAGE) | TABLE;
    let mut put = |number: u64, index: u64, entry: u64| {
        let at = (number * PAGE + index * 8) as usize;
        script[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(0, 0, table(1));
    for (gib, number) in [0, SCRIPTS_ADDRESS >> 30, SLOTS[1].guest_address >> 30].into_iter().zip(2..) {
        put(1, gib, table(number));
        for index in 0..512 {
            put(number, index, (gib << 30) | (index << 21) | LEAF);
        }
    }
}

/// Puts a vCPU that was just made into 64-bit mode, without privileges.
fn enter_64_bit_mode(fd: &VcpuFd, page_tables: u64) {
    let mut sregs = fd.get_sregs().unwrap();
    // Protection, its older companions, write protection for the kernel too, paging.
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = page_tables;
    // Long page tables.
    sregs.cr4 = 1 << 5;
    // System calls, 64-bit mode enabled and active, pages that are not for execution.
    sregs.efer = 0xd01;
    let whole = kvm_segment { limit: u32::MAX, present: 1, dpl: 3, s: 1, g: 1, ..kvm_segment::default() };
    sregs.cs = kvm_segment { selector: 0x13, type_: 0xb, l: 1, ..whole };
    let data = kvm_segment { selector: 0x1b, type_: 3, db: 1, ..whole };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // As a processor wants it in this mode: no local descriptors, and a task state of 64 bits.
    sregs.ldt = kvm_segment { unusable: 1, ..kvm_segment::default() };
    (sregs.tr.type_, sregs.tr.present) = (0xb, 1);
    fd.set_sregs(&sregs).unwrap();
}
