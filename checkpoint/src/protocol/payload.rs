//! What is behind the first fields of a message's body.

use std::fmt;
use std::ops::Deref;

/// Bytes of a body, from a place on; they stay where they were received.
#[derive(Clone, Default)]
pub struct Payload {
    body: Vec<u8>,
    from: usize,
}

impl Payload {
    /// The bytes of `body` from `from` on.
    pub(crate) fn behind(body: Vec<u8>, from: usize) -> Self {
        Self { from: from.min(body.len()), body }
    }

    /// The buffer, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.body
    }
}

impl From<Vec<u8>> for Payload {
    fn from(body: Vec<u8>) -> Self {
        Self { body, from: 0 }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.body[self.from..]
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}
