//! The vhost-user-blk server, driven through its socket: by a client on the `virtio-driver` crate, and by a front end
//! that sets up rings by hand where a test needs what that crate does not do.

#[path = "vhost_user/front_end.rs"]
mod front_end;
#[path = "vhost_user/server.rs"]
mod server;

#[path = "vhost_user/data.rs"]
mod data;
#[path = "vhost_user/hostile.rs"]
mod hostile;
#[path = "vhost_user/restart.rs"]
mod restart;
