//! Bad input: refused with a clear error that says whose fault it is and how to mend it, and nothing is lost.
//!
//! ```text
//!   start        what `holdfast run` refuses before it starts anything: exit code 2
//!   command      what a user without privileges is told, exit code 3, and one with wrong names
//!   guests       guests that cannot be protected: they run on unprotected, and the others protected
//!   backup       what is wrong on the other host: the same, until it is mended there
//!   full         a backup that runs full
//!   release      a peer of another release
//! ```
//!
//! Everything is real: the program, stock QEMU, kernels that boot. `settings` are the files, `daemon` runs
//! the program, `place` has the hosts.

mod backup;
mod command;
mod daemon;
mod full;
mod guests;
mod place;
mod release;
mod settings;
mod start;
