//! Serves disks: shards, listeners and sessions.

pub mod vhost_user;
