//! One-machine laboratory: namespaces, guests, client, capture.
