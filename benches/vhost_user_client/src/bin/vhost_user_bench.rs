//! Measures vhost-user-blk servers side by side.

fn main() {}
