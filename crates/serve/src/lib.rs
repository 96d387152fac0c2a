//! Serves disks: shards, listeners and sessions.

pub mod shard;
pub mod vhost_user;
