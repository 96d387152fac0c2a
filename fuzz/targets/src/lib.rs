//! What the fuzzer runs: one plain function for each decoder of bytes that others wrote.
//!
//! The same functions run under libFuzzer (`cargo xtask fuzz`), which looks for inputs, and in an ordinary test, which
//! replays the inputs that were found and the seeds. A target panics if a promise is broken. It does not only ask for
//! the absence of crashes: each one says at its top what must hold of the answers.
//!
//! Memory is bounded by [`BoundedAllocator`], which both runners install: a decoder that allocates what an input tells
//! it to does not get the memory.

mod bounded;
mod locator;
mod nbd;
mod vhdx;
mod virtio;
mod words;

pub use bounded::BoundedAllocator;

/// What all allocations of a target together may take at any time. The largest legitimate user is an NBD connection
/// whose requests in flight are at their limit, which takes about a quarter of it.
pub const MEMORY_BYTES_MAX: usize = 256 << 20;

/// A decoder under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder of inputs.
    pub name: &'static str,
    /// Runs it on an input.
    ///
    /// # Panics
    /// If the decoder breaks a promise.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by our own tools, with names.
    pub seeds: fn() -> Vec<Seed>,
}

/// An input to begin with.
pub type Seed = (&'static str, Vec<u8>);

/// The targets.
pub const TARGETS: &[Target] = &[
    Target { name: "locator", run: locator::run, seeds: locator::seeds },
    Target { name: "nbd", run: nbd::run, seeds: nbd::seeds },
    Target { name: "vhdx_open", run: vhdx::run_as_is, seeds: vhdx::seeds },
    Target { name: "vhdx_log", run: vhdx::run_sealed, seeds: vhdx::seeds },
    Target { name: "virtio", run: virtio::run, seeds: virtio::seeds },
    Target { name: "words", run: words::run, seeds: words::seeds },
];

/// The target called `name`.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
