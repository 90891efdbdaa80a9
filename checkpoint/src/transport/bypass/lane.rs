//! A link's lane in the bypass: the two ends of its queues.
//!
//! Everything that goes through carries the number of the path that it is meant for, or came from: what
//! belongs to a path that was left is dropped on both sides.

use super::driver::LaneEnd;
use super::stall::Stall;
use crate::protocol::{FRAME_HEAD, FrameHead, MESSAGE_LIMIT, decode};
use crate::transport::frames::Arrival;
use crate::transport::waker::Waker;
use crate::transport::{LEAST_CHARGE, charge};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use holdfast_bypass::{Class, Record, Token};
use std::sync::Arc;

/// Bulk frames between the threads.
const BULK_QUEUE: usize = 4;
/// Records between the threads; each is a megabyte at the most.
const RECORD_QUEUE: usize = 16;
/// Buffers of records that go back to be filled again.
const SPARE_QUEUE: usize = 16;

/// What became of a path.
#[derive(Debug)]
pub(crate) enum News {
    /// It is there, on both sides.
    Up(u64),
    /// It is lost, or did not come about.
    Lost(u64, String),
}

/// What the owner wants of the bypass's thread.
#[derive(Debug)]
pub(super) enum Order {
    Dial(u64),
    Leave(u64),
}

/// A frame on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) path: u64,
    pub(super) frame: Bytes,
}

/// A record that came.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) path: u64,
    pub(crate) class: Class,
    pub(crate) record: Record,
}

impl Arrived {
    /// The message in it.
    ///
    /// Nothing is copied. Its cost is in that of a turn of the thread that it came from (`driver`).
    ///
    /// # Errors
    /// What the peer did wrong.
    pub(crate) fn open(self) -> Result<Arrival, String> {
        let Record { tag, body } = self.record;
        let mut head = [0; FRAME_HEAD];
        let len = u32::try_from(body.len()).map_err(|_| "a record is too long".to_owned())?;
        head[..4].copy_from_slice(&len.to_le_bytes());
        head[4..].copy_from_slice(&tag.to_le_bytes());
        let head = FrameHead::parse(head, MESSAGE_LIMIT).map_err(|fault| fault.to_string())?;
        if head.is_bulk() != (self.class == Class::Bulk) {
            return Err("a message came in the wrong stream".to_owned());
        }
        let cost = if head.is_bulk() { charge(body.len()).max(LEAST_CHARGE) } else { 0 };
        let message = decode(head, body).map_err(|fault| fault.to_string())?;
        Ok(Arrival { message, charge: cost })
    }
}

/// The owner's end. Dropping it ends the session's paths.
#[derive(Debug)]
pub(crate) struct Lane {
    orders: Sender<Order>,
    urgent: Sender<Outgoing>,
    bulk: Sender<Outgoing>,
    pub(crate) news: Receiver<News>,
    records: Receiver<Arrived>,
    spare: Sender<Vec<u8>>,
    stall: Arc<Stall>,
    driver: Arc<Waker>,
}

pub(in crate::transport) fn pair(token: Token, owner: Arc<Waker>, driver: Arc<Waker>) -> (Lane, LaneEnd) {
    // A dial or a leaving at a time, and news of them. Of urgent frames the owner keeps count and bound.
    let ((orders, ordered), (urgent, urged), (tell, news)) = (unbounded(), unbounded(), unbounded());
    let ((bulk, bulky), (deliver, records)) = (bounded(BULK_QUEUE), bounded(RECORD_QUEUE));
    let (spare, given_back) = bounded(SPARE_QUEUE);
    let stall = Arc::new(Stall::new());
    let theirs = Arc::clone(&stall);
    let lane = Lane { orders, urgent, bulk, news, records, spare, stall, driver };
    let end = LaneEnd {
        token,
        orders: ordered,
        urgent: urged,
        bulk: bulky,
        news: tell,
        records: deliver,
        spare: given_back,
        stall: theirs,
        owner,
        path: None,
        dialled: None,
    };
    (lane, end)
}

impl Lane {
    fn order(&self, order: Order) {
        // Where the thread is gone nobody hears it, and the peer's Back brings the link home.
        drop(self.orders.send(order));
        self.driver.ring();
    }

    /// Opens the path of this number.
    pub(crate) fn dial(&self, path: u64) {
        self.order(Order::Dial(path));
    }

    /// Closes the path of this number.
    pub(crate) fn leave(&self, path: u64) {
        self.order(Order::Leave(path));
    }

    /// Sends past all bulk.
    pub(crate) fn send_urgent(&self, path: u64, frame: Bytes) {
        drop(self.urgent.send(Outgoing { path, frame }));
        self.driver.ring();
    }

    /// Whether [`Lane::send_bulk`] has room.
    pub(crate) fn has_room(&self) -> bool {
        !self.bulk.is_full()
    }

    /// Sends behind all that is urgent, where [`Lane::has_room`] said so.
    pub(crate) fn send_bulk(&self, path: u64, frame: Bytes) {
        // Only the owner puts something in.
        drop(self.bulk.try_send(Outgoing { path, frame }));
        self.driver.ring();
    }

    /// The next record that came.
    pub(crate) fn next(&self) -> Option<Arrived> {
        let arrived = self.records.try_recv().ok()?;
        if self.stall.ends() {
            self.driver.ring();
        }
        Some(arrived)
    }

    /// Gives back a buffer that a record came in: fresh memory costs a fault a page.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        // One that finds no room is dropped.
        drop(self.spare.try_send(buffer));
    }

    /// Whether records wait.
    pub(crate) fn has_records(&self) -> bool {
        !self.records.is_empty()
    }
}
