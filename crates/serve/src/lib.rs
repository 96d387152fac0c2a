//! Serves disks: shards, listeners and sessions.
