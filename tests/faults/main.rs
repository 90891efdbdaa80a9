//! Faults of the matrix, struck on a pair of hosts with a real guest.
