//! Tests of the whole sender: rule by rule on a bench, and against a client in virtual time.

mod arbitrary;
mod bench;
mod client;
mod congestion;
mod delivery;
mod end;
mod loss;
mod resumption;
mod throughput;
mod timeout;
mod windows;
mod world;
