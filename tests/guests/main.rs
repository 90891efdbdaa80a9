//! Whole guests on a pair of hosts.
