//! Core loop, escrow, forwarding, segmentation.
