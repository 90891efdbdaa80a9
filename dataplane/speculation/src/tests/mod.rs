//! The engine as a whole, in virtual time: a guest and a client by hand, an escrow, and a backup.

mod client_side;
mod codec;
mod draining;
mod failover;
mod fairness;
mod flows;
mod guest_side;
mod histories;
mod icmp;
mod lent;
mod life;
mod refuted;
mod robustness;
mod simulated;
mod world;
