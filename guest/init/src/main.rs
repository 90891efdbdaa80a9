//! Init and stream server of the demonstration guest.

fn main() {}
