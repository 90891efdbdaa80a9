//! Whether the interface is there: it may be switched off, deleted and made again while it is used.

use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::socket::{OpenError, Place, Step};
use std::time::{Duration, Instant};

/// Between two looks at an interface, at least.
const PAUSE: Duration = Duration::from_secs(1);

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Switched on.
    Up,
    /// Switched off: nothing comes and nothing goes.
    Down,
    /// No interface has the name.
    Gone,
}

/// Watches over an interface for both its halves.
#[derive(Debug)]
pub struct Link {
    place: Place,
    state: State,
    looked: Option<Instant>,
    /// The last look failed, and that was told.
    failed: bool,
}

impl Link {
    pub(crate) const fn new(place: Place) -> Self {
        let state = if place.up { State::Up } else { State::Down };
        Self { place, state, looked: None, failed: false }
    }

    /// What the interface was at the last look.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Its own address at the last look; one that was made again may have another.
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        self.place.mac
    }

    /// Its longest packet at the last look, in bytes without the Ethernet header.
    #[must_use]
    pub const fn mtu(&self) -> u16 {
        self.place.mtu
    }

    /// Looks at the interface if the kernel told one of the halves that it is down or gone, or if it was so
    /// at the last look; at most once a second. Both halves follow an interface that was made again under
    /// its name. Returns what the interface is now, if that changed.
    ///
    /// Cost while nothing is wrong: two comparisons.
    ///
    /// # Errors
    /// [`OpenError`], told once: what has the name now cannot be used. It is looked at again.
    pub fn watch(
        &mut self,
        receiver: &mut Receiver,
        sender: &mut Sender,
    ) -> Result<Option<State>, OpenError> {
        if self.state == State::Up && !receiver.suspects && !sender.suspects {
            return Ok(None);
        }
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return Ok(None);
        }
        self.looked = Some(Instant::now());
        receiver.suspects = false;
        sender.suspects = false;
        let found = match self.place.look() {
            Ok(()) => receiver.follow(&self.place).and_then(|()| sender.follow(&self.place)),
            Err(fault) => Err(fault),
        };
        let found = match found {
            Ok(()) if self.place.up => State::Up,
            Ok(()) => State::Down,
            Err(fault) if fault.step == Step::Find => State::Gone,
            Err(fault) => {
                self.state = State::Gone;
                let told = std::mem::replace(&mut self.failed, true);
                return if told { Ok(None) } else { Err(fault) };
            }
        };
        self.failed = false;
        let changed = std::mem::replace(&mut self.state, found) != found;
        Ok(changed.then_some(found))
    }
}
