//! What the suites of whole guests, faults and refusals share.
//!
//! ```text
//!   program   the Holdfast that is tried: target/release/holdfast
//!   scene     a pair of hosts with guests, a capture on each wire, and the streams of the client
//!   oracles   what must hold after every run
//! ```
//!
//! The oracles, by the names that the tests cite: O1 seeded streams are byte-exact both ways; O2 the
//! client saw no reset and no timeout; O3 nothing left before its commit (OC-1); O5 at most one host
//! transmitted in a term (FO-1); O6 the image is what was committed (CK-1, CK-2); O7 no panic, and the
//! client's gap within the budget. (O4 is of a later mode.)
//!
//! A fault is struck when a state is reached or bytes have flowed, never after a time. Each test has a
//! seed, which it prints; `HOLDFAST_SEED` gives it another. Files of a failed run are kept, and where.

pub mod oracles;
pub mod program;
pub mod scene;
