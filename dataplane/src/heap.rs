//! A wire and a guest made of ordinary memory, for tests, benches and laboratories.
//!
//! [`HeapWire`] is a [`Wire`] whose far end, a [`HeapPeer`], is held by a test: what the core sends
//! comes out there, what the test puts in is received. Its frames come from a pool that is allocated
//! at start, as those of a real wire do. [`HeapGuest`] is a [`GuestPort`] in the same way, with a
//! [`HeapDriver`] at its far end.
//!
//! Threading: the far ends may be used from any thread; a mutex guards each pair.

use crate::frame::{Frame, Wire};
use crate::guest::{GuestFrame, GuestPort, Offloads, SMALL_FRAME_BYTES, Verdict, VirtioNetHdr};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that one frame holds.
const ROOM: usize = 2048;

#[expect(clippy::disallowed_methods, reason = "of tests and benches, which are both ends of it")]
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event() -> io::Result<EventFd> {
    Ok(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}

fn signal(event: &EventFd) {
    match event.write(1) {
        Ok(_) | Err(Errno::EAGAIN) => {}
        Err(errno) => debug_assert!(false, "writing an eventfd of ours: {errno}"),
    }
}

fn clear(event: &EventFd) {
    match event.read() {
        Ok(_) | Err(Errno::EAGAIN) => {}
        Err(errno) => debug_assert!(false, "reading an eventfd of ours: {errno}"),
    }
}

#[derive(Debug)]
#[expect(clippy::vec_box, reason = "a frame is moved by its box, not by its bytes")]
struct Pool(Mutex<Vec<Box<[u8; ROOM]>>>);

/// A frame of a [`HeapWire`]; its memory goes back to the wire's pool.
#[derive(Debug)]
pub struct HeapFrame {
    memory: Option<Box<[u8; ROOM]>>,
    len: usize,
    pool: Arc<Pool>,
}

impl Frame for HeapFrame {
    fn bytes(&self) -> &[u8] {
        self.memory.as_deref().map_or(&[], |memory| &memory[..self.len])
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.memory.as_deref_mut().map_or(&mut [], |memory| &mut memory[..len])
    }
}

impl Drop for HeapFrame {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            lock(&self.pool.0).push(memory);
        }
    }
}

impl Pool {
    fn take(self: &Arc<Self>, len: usize) -> Option<HeapFrame> {
        if len > ROOM {
            return None;
        }
        let memory = lock(&self.0).pop()?;
        Some(HeapFrame { memory: Some(memory), len, pool: Arc::clone(self) })
    }
}

#[derive(Debug)]
struct Between {
    to_core: VecDeque<HeapFrame>,
    from_core: VecDeque<HeapFrame>,
    /// Frames that the wire takes before it is full; none: any number.
    room: Option<usize>,
    takes_large: bool,
    large: Vec<(VirtioNetHdr, Vec<u8>)>,
    flushes: usize,
    largest_burst: usize,
}

/// A wire in memory.
#[derive(Debug)]
pub struct HeapWire {
    pool: Arc<Pool>,
    between: Arc<Mutex<Between>>,
    event: Arc<EventFd>,
    tells: bool,
    mtu: u16,
}

/// The far end of a [`HeapWire`].
#[derive(Clone, Debug)]
pub struct HeapPeer {
    pool: Arc<Pool>,
    between: Arc<Mutex<Between>>,
    event: Arc<EventFd>,
}

impl HeapWire {
    /// A wire of this MTU with memory for `frames` frames. `tells` says whether it has a descriptor
    /// that becomes readable.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(mtu: u16, frames: usize, tells: bool) -> io::Result<(Self, HeapPeer)> {
        let pool = Arc::new(Pool(Mutex::new((0..frames).map(|_| Box::new([0; ROOM])).collect())));
        let between = Arc::new(Mutex::new(Between {
            to_core: VecDeque::with_capacity(frames),
            from_core: VecDeque::with_capacity(frames),
            room: None,
            takes_large: false,
            large: Vec::new(),
            flushes: 0,
            largest_burst: 0,
        }));
        let event = Arc::new(event()?);
        let peer =
            HeapPeer { pool: Arc::clone(&pool), between: Arc::clone(&between), event: Arc::clone(&event) };
        Ok((Self { pool, between, event, tells, mtu }, peer))
    }
}

impl Wire for HeapWire {
    type Frame = HeapFrame;

    fn alloc(&mut self, len: usize) -> Option<HeapFrame> {
        self.pool.take(len)
    }

    fn rx_burst(&mut self, out: &mut Vec<HeapFrame>, max: usize) -> usize {
        let mut between = lock(&self.between);
        let count = between.to_core.len().min(max);
        out.extend(between.to_core.drain(..count));
        if self.tells && between.to_core.is_empty() {
            clear(&self.event);
        }
        count
    }

    fn tx_burst(&mut self, frames: &mut VecDeque<HeapFrame>, max: usize) -> usize {
        let mut between = lock(&self.between);
        let mut count = frames.len().min(max);
        if let Some(room) = &mut between.room {
            count = count.min(*room);
            *room -= count;
        }
        between.from_core.extend(frames.drain(..count));
        between.largest_burst = between.largest_burst.max(count);
        count
    }

    fn takes_large(&self) -> bool {
        lock(&self.between).takes_large
    }

    fn tx_large(&mut self, header: &VirtioNetHdr, frame: &[u8], _segments: usize) -> bool {
        let mut between = lock(&self.between);
        if between.room == Some(0) {
            return false;
        }
        between.large.push((*header, frame.to_vec()));
        true
    }

    fn flush(&mut self) {
        lock(&self.between).flushes += 1;
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, 1]
    }

    fn readable_fd(&self) -> Option<RawFd> {
        self.tells.then(|| self.event.as_fd().as_raw_fd())
    }

    fn free_frames(&self) -> usize {
        lock(&self.pool.0).len()
    }
}

impl HeapPeer {
    /// Puts a frame on the wire for the core to receive; false when there is no memory for it.
    pub fn put(&self, bytes: &[u8]) -> bool {
        let Some(mut frame) = self.pool.take(bytes.len()) else { return false };
        frame.bytes_mut().copy_from_slice(bytes);
        lock(&self.between).to_core.push_back(frame);
        signal(&self.event);
        true
    }

    /// Takes everything that the core has sent.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        lock(&self.between).from_core.drain(..).map(|frame| frame.bytes().to_vec()).collect()
    }

    /// From now on the wire takes large frames of TCP as they are.
    pub fn accept_large(&self) {
        lock(&self.between).takes_large = true;
    }

    /// Takes the large frames that the core has sent.
    #[must_use]
    pub fn take_large(&self) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        std::mem::take(&mut lock(&self.between).large)
    }

    /// Drops everything that the core has sent, without allocating; returns how many frames.
    pub fn drop_sent(&self) -> usize {
        lock(&self.between).from_core.drain(..).count()
    }

    /// From now on the wire takes this many frames and is full then; none: any number.
    pub fn set_room(&self, room: Option<usize>) {
        lock(&self.between).room = room;
    }

    /// How often the core flushed, and its largest burst.
    #[must_use]
    pub fn bursts(&self) -> (usize, usize) {
        let between = lock(&self.between);
        (between.flushes, between.largest_burst)
    }

    /// Frames that could still be allocated.
    #[must_use]
    pub fn free_frames(&self) -> usize {
        lock(&self.pool.0).len()
    }
}

/// A frame as it is in the memory of a guest.
#[derive(Clone, Debug)]
pub struct HeapBytes(pub Vec<u8>);

impl GuestFrame for HeapBytes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let from = self.0.get(offset..).unwrap_or_default();
        let len = from.len().min(out.len());
        out[..len].copy_from_slice(&from[..len]);
        out[len..].fill(0);
    }

    fn copied(&self) -> Option<&[u8]> {
        (self.0.len() <= SMALL_FRAME_BYTES).then_some(&self.0)
    }
}

#[derive(Debug)]
struct Rings {
    transmit: VecDeque<(VirtioNetHdr, HeapBytes)>,
    received: Vec<(VirtioNetHdr, Vec<u8>)>,
    /// Frames that the guest has buffers for; none: any number.
    room: Option<usize>,
    running: bool,
    offloads: Offloads,
}

/// A guest's network card in memory.
#[derive(Debug)]
pub struct HeapGuest {
    rings: Arc<Mutex<Rings>>,
    kick: Arc<EventFd>,
    /// What the rings were when the core last looked; the core takes changes up at its own time.
    running: bool,
}

/// The driver of a [`HeapGuest`].
#[derive(Clone, Debug)]
pub struct HeapDriver {
    rings: Arc<Mutex<Rings>>,
    kick: Arc<EventFd>,
}

impl HeapGuest {
    /// A running guest without offloads on its receiving side.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<(Self, HeapDriver)> {
        let rings = Arc::new(Mutex::new(Rings {
            transmit: VecDeque::new(),
            received: Vec::new(),
            room: None,
            running: true,
            offloads: Offloads::default(),
        }));
        let kick = Arc::new(event()?);
        let driver = HeapDriver { rings: Arc::clone(&rings), kick: Arc::clone(&kick) };
        Ok((Self { rings, kick, running: false }, driver))
    }
}

impl GuestPort for HeapGuest {
    fn poll_control(&mut self) {
        self.running = lock(&self.rings).running;
    }

    fn is_running(&self) -> bool {
        self.running
    }

    fn offloads(&self) -> Offloads {
        lock(&self.rings).offloads
    }

    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize {
        let mut rings = lock(&self.rings);
        let mut taken = 0;
        while let Some((header, frame)) = rings.transmit.front().filter(|_| self.running && taken < max) {
            if sink(header, frame) == Verdict::Refused {
                break;
            }
            rings.transmit.pop_front();
            taken += 1;
        }
        taken
    }

    fn deliver(&mut self, header: &VirtioNetHdr, parts: &[&[u8]]) -> bool {
        let mut rings = lock(&self.rings);
        let room = rings.room != Some(0) && self.running;
        if room {
            rings.received.push((*header, parts.concat()));
            rings.room = rings.room.map(|room| room - 1);
        }
        room
    }

    fn flush(&mut self) {}

    fn arm(&mut self, capturing: bool, _delivering: bool) -> bool {
        capturing && self.running && !lock(&self.rings).transmit.is_empty()
    }

    fn disarm(&mut self) {
        clear(&self.kick);
    }

    fn kick_fds<'a>(&'a self, take: &mut dyn FnMut(BorrowedFd<'a>)) {
        take(self.kick.as_fd());
    }
}

impl HeapDriver {
    /// The guest sends a frame with this offload header.
    pub fn send_offloaded(&self, header: VirtioNetHdr, bytes: Vec<u8>) {
        lock(&self.rings).transmit.push_back((header, HeapBytes(bytes)));
        signal(&self.kick);
    }

    /// The guest sends a frame as it is.
    pub fn send(&self, bytes: Vec<u8>) {
        self.send_offloaded(VirtioNetHdr::default(), bytes);
    }

    /// Frames that the core has not taken from the transmit ring.
    #[must_use]
    pub fn unsent(&self) -> usize {
        lock(&self.rings).transmit.len()
    }

    /// Takes everything that the guest has received.
    #[must_use]
    pub fn take(&self) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        std::mem::take(&mut lock(&self.rings).received)
    }

    /// From now on the guest has buffers for this many frames; none: any number.
    pub fn set_room(&self, room: Option<usize>) {
        lock(&self.rings).room = room;
        signal(&self.kick);
    }

    /// Pauses the guest, or lets it run.
    pub fn set_running(&self, running: bool) {
        lock(&self.rings).running = running;
        signal(&self.kick);
    }

    /// Sets what the driver negotiated.
    pub fn set_offloads(&self, offloads: Offloads) {
        lock(&self.rings).offloads = offloads;
    }
}
