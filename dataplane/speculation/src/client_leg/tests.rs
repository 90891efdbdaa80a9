//! Tests of the whole sender.
