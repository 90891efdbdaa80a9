//! Tests of the whole sender: rule by rule on a bench, and against a client in virtual time.

mod bench;
mod client;

mod delivery;

mod world;
