//! The program: command line and composition.

fn main() {}
