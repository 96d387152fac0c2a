//! vhost-user-blk: the device side of virtio block over a Unix socket.
