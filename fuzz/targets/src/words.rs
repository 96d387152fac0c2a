//! What people write on a command line: sizes and NBD URIs.
//!
//! What must hold: a size that is understood means the same when it is written out in bytes; a URI that is understood is
//! the same when what it prints is read again.
//!
//! The two parsers are compiled from their own files, because the crates that they belong to bring sockets and TLS.

use crate::Seed;

#[path = "../../../crates/godwit/src/disk/size.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "only parsing is a matter of outside input"))]
mod size;
#[path = "../../../crates/serve/src/nbd/uri.rs"]
#[expect(unreachable_pub, reason = "the file is public where it belongs")]
mod uri;

use size::Size;
use uri::NbdUri;

pub(crate) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(size) = text.parse::<Size>() {
        assert!(size.bytes <= i64::MAX as u64, "a size is one that a file can have");
        assert_eq!(size.bytes.to_string().parse(), Ok(size), "{text:?}");
    }
    if let Ok(uri) = text.parse::<NbdUri>() {
        let printed = uri.to_string();
        assert_eq!(printed.parse().as_ref(), Ok(&uri), "{text:?} prints {printed:?}");
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let seed = |name, text: &str| (name, text.as_bytes().to_vec());
    vec![
        seed("size", "1.5G"),
        seed("size-words", "0.0009765625KiB"),
        seed("tcp", "nbd://[::1]:10809/web%20disk"),
        seed("unix", "nbds+unix:///export?socket=/run/a%2Fb.sock"),
    ]
}
