//! Whole connections, driven by scripted clients.

mod any_bytes;
mod client;
mod handshake;
mod transmission;
