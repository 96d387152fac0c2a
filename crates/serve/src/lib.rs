//! Serves disks: shards, listeners and sessions.

pub mod nbd;
pub mod shard;
pub mod vhost_user;
