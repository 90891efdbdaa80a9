//! The protocol of the bypass link: ordered records between two hosts, in frames of a port of their own.
//!
//! ```text
//!   records                                                             records
//!   urgent, bulk --> Path --.                                   .--> Path --> urgent, bulk
//!                           |-- Port -- frames ~~ wire ~~ Port -|
//!   other machines' paths --'     '--- ARP, ND ---'             '-- other machines' paths
//! ```
//!
//! A [`Port`] is one host's end. Each session of a machine has a *path* in it: a QUIC connection
//! (RFC 9000) over UDP, in Ethernet frames that are made here. QUIC brings what the link needs: several
//! ordered streams, windows in bytes, acknowledged ranges with selective repeat, loss found by packet
//! threshold and probe timeout, pacing, an AEAD with the packet's number in its nonce, replay dropped,
//! and keys changed before the AEAD's limit (decision 0013 has the why and the figures).
//!
//! Both hosts prove the pair's certificates in the QUIC handshake. Which session a path belongs to is
//! said by a [`Token`], which both ends draw from the TLS exporter of the session's control connection.
//!
//! A path carries *urgent* records past *bulk* ones. Records of a class come in order, and a bulk record
//! never comes before an urgent one that was sent ahead of it. Bytes are never wrong: a path that cannot
//! deliver is lost, and says so.
//!
//! Pure, sans-IO: frames, records and `now` go in, frames, records and deadlines come out. The order of
//! calls: what came by [`Port::handle_frame`], then [`Port::handle_timeout`], then [`Port::poll_event`]
//! and [`Port::receive`] until they give nothing, then [`Port::next_frame`] until there is none, then
//! wait for a frame or [`Port::next_deadline`].
//!
//! RB-1: what is no datagram of the peer is dropped and counted; what waits is bounded everywhere.
#![deny(clippy::disallowed_methods)]

mod congestion;
mod counters;
mod frame;
mod neighbour;
mod path;
mod port;
mod quic;
mod record;

pub use counters::{Counter, Counters};
pub use frame::{FRAME_EXTRA, MTU_MAX, MTU_MIN};
pub use path::{Class, Lost, Token};
pub use port::{Event, PathId, Port, Settings, SettingsError};
pub use record::{RECORD_HEAD, Record};
