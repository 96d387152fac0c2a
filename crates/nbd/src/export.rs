//! What a server offers.

use block::{DevInfo, Discard, Disk};

use crate::limits;
use crate::wire;

/// A disk under a name.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name that clients ask for; at most [`limits::STRING_BYTES_MAX`] bytes, without NUL.
    pub name: String,
    /// A sentence for people; empty for none.
    pub description: String,
    /// What is served.
    pub disk: Disk,
}

/// Whether clients have to use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// There is no TLS (proto.md, "NOTLS mode").
    Plain,
    /// Nothing is told or done without TLS (proto.md, "FORCEDTLS mode").
    TlsRequired,
}

/// Everything a server offers on one listener.
#[derive(Clone, Debug)]
pub struct Exports {
    list: Vec<Export>,
    security: Security,
}

impl Exports {
    /// Offers `list`, of which the first is what a client gets that names none.
    ///
    /// # Errors
    /// Gives back the name that is too long, has a NUL in it, or is there twice.
    pub fn new(list: Vec<Export>, security: Security) -> Result<Self, String> {
        for (index, export) in list.iter().enumerate() {
            let name = &export.name;
            let twice = list[..index].iter().any(|other| other.name == *name);
            if twice || name.len() > limits::STRING_BYTES_MAX || name.contains('\0') {
                return Err(name.clone());
            }
        }
        Ok(Self { list, security })
    }

    /// The exports, the default one first.
    pub fn list(&self) -> &[Export] {
        &self.list
    }

    /// Whether clients have to use TLS.
    pub fn security(&self) -> Security {
        self.security
    }

    /// The index of the export that a client means.
    ///
    /// proto.md, "Option types", EXPORT_NAME: the empty name is reserved for a default export.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        let named = self.list.iter().position(|export| export.name.as_bytes() == name);
        named.or((name.is_empty() && !self.list.is_empty()).then_some(0))
    }
}

impl Export {
    /// The transmission flags; `fragments` says whether replies can have several chunks.
    ///
    /// MULTI_CONN may be offered because a completed write is seen, and a flush covers it, through any clone of a
    /// [`Disk`].
    pub(crate) fn transmission_flags(&self, fragments: bool) -> u16 {
        let info = self.disk.info();
        let mut flags = wire::FLAG_HAS_FLAGS
            | wire::FLAG_SEND_FLUSH
            | wire::FLAG_SEND_FUA
            | wire::FLAG_CAN_MULTI_CONN
            | wire::FLAG_SEND_CACHE;
        if info.read_only {
            flags |= wire::FLAG_READ_ONLY;
        } else {
            // proto.md, WRITE_ZEROES: FAST_ZERO may be offered whether or not it will succeed.
            flags |= wire::FLAG_SEND_WRITE_ZEROES | wire::FLAG_SEND_FAST_ZERO;
            if info.discard != Discard::Ignored {
                flags |= wire::FLAG_SEND_TRIM;
            }
        }
        // proto.md, "Transmission flags": SEND_DF must be clear if structured replies have not been negotiated.
        if fragments {
            flags |= wire::FLAG_SEND_DF;
        }
        flags
    }

    pub(crate) fn facts(&self, fragments: bool) -> wire::ExportFacts {
        wire::ExportFacts { size: self.disk.size().into(), flags: self.transmission_flags(fragments).into() }
    }

    pub(crate) fn block_sizes(&self) -> wire::BlockSizes {
        let sizes = BlockSizes::of(self.disk.info());
        wire::BlockSizes {
            minimum: sizes.minimum.into(),
            preferred: sizes.preferred.into(),
            maximum: limits::PAYLOAD_BYTES_MAX.into(),
        }
    }
}

struct BlockSizes {
    minimum: u32,
    preferred: u32,
}

impl BlockSizes {
    /// proto.md, "Block size constraints": the minimum is a power of two of at most 64 KiB; the preferred size is a
    /// power of two, at least the minimum and 512, and the maximum is not below it.
    fn of(info: &DevInfo) -> Self {
        let minimum = info.block_bytes.clamp(1, 64 << 10);
        let largest = 1 << info.optimal_bytes.max(1).ilog2();
        let preferred = largest.max(minimum).clamp(512, limits::PAYLOAD_BYTES_MAX);
        Self { minimum, preferred }
    }
}
