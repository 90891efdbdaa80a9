//! Device side of vhost-user: control messages, guest memory, polled rings, own dirty bitmap.
