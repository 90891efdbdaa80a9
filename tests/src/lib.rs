//! Real guests and faults.
