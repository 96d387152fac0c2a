//! The NBD front end against the clients that people use: libnbd's tools, QEMU's tools and fio.
//!
//! Each test serves a RAM disk from this process on a Unix socket and lets a client loose on it. A test whose client
//! is not installed says so and passes.

#[path = "peers/server.rs"]
mod server;
#[path = "peers/tools.rs"]
mod tools;

#[path = "peers/fio.rs"]
mod fio;
#[path = "peers/libnbd.rs"]
mod libnbd;
#[path = "peers/qemu.rs"]
mod qemu;
#[path = "peers/rude.rs"]
mod rude;
#[path = "peers/tls.rs"]
mod tls;
