//! What an image format does for guest data: it says where the bytes are. It never moves them.
//!
//! A change goes through three steps: *prepare* gives places in the host file that the bytes may be written to,
//! [`crate::ImageDev`] writes them, and *commit* makes them what reads see. Between the two, readers see the old
//! content. A prepared change that is dropped gives its space back.

use block::{ByteRange, DevInfo, Disk, ExtentState, Result, ZeroFlags};
use smallvec::SmallVec;

/// Where the bytes of a stretch of the guest's disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the host file, as they are, from this offset.
    Host(u64),
    /// Nowhere; they read as zeroes.
    Zeroes,
    /// Where the parent says; zeroes if there is none.
    Backing,
}

/// A stretch of the guest's disk and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The guest's bytes, never empty.
    pub(crate) guest: ByteRange,
    /// Where they are.
    pub(crate) place: Place,
    /// What the image says of them.
    pub(crate) state: ExtentState,
}

/// The mappings of a range, in guest order and without gaps. Most requests lie in one block.
pub(crate) type Mappings = SmallVec<[Mapping; 2]>;

/// Appends `mapping`, joined with the last one where they continue each other on both sides.
pub(crate) fn push_mapping(list: &mut Mappings, mapping: Mapping) {
    if let Some(last) = list.last_mut()
        && last.state == mapping.state
        && last.guest.end() == mapping.guest.start()
        && continues(*last, mapping.place)
        && let Some(joined) = ByteRange::between(last.guest.start(), mapping.guest.end())
    {
        last.guest = joined;
        return;
    }
    list.push(mapping);
}

fn continues(before: Mapping, place: Place) -> bool {
    match (before.place, place) {
        (Place::Host(first), Place::Host(second)) => first + before.guest.len() == second,
        (Place::Zeroes, Place::Zeroes) | (Place::Backing, Place::Backing) => true,
        _ => false,
    }
}

/// A virtual-disk format: a map from the guest's bytes to places in a host file.
///
/// Ranges are multiples of `info().block_bytes` and inside `virtual_size()`; [`crate::ImageDev`] has checked both.
pub(crate) trait ImageFormat: Send + Sync + 'static {
    /// Keeps the places of a `map` from being given to other blocks; held until the I/O on them is done.
    type Hold;
    /// A change that was prepared and is not visible yet.
    type Prepared;

    /// The host file that [`Place::Host`] offsets refer to.
    fn file(&self) -> &Disk;

    /// The fixed facts of the disk that the guest sees.
    fn info(&self) -> DevInfo;

    /// The guest's disk size in bytes.
    fn virtual_size(&self) -> u64;

    /// Appends where the bytes of `range` are.
    async fn map(&self, range: ByteRange, out: &mut Mappings) -> Result<Self::Hold>;

    /// Prepares a write of `range`: appends [`Place::Host`] mappings for all of it.
    ///
    /// What must be durable before guest-visible data changes is durable when this returns.
    async fn prepare_write(&self, range: ByteRange, out: &mut Mappings) -> Result<Self::Prepared>;

    /// Makes as much of `range` zero as the image's states can say, and appends [`Place::Host`] mappings for the
    /// rest, which the caller writes zeroes to before it commits.
    async fn prepare_zeroes(
        &self,
        range: ByteRange,
        flags: ZeroFlags,
        out: &mut Mappings,
    ) -> Result<Self::Prepared>;

    /// Trims what the image's states can say of `range`, and appends [`Place::Host`] mappings for the rest, which
    /// the caller may discard in the host file.
    async fn prepare_discard(&self, range: ByteRange, out: &mut Mappings) -> Result<Self::Prepared>;

    /// Notes that the caller's I/O on the places of `prepared` has ended, well or not. One that is dropped without may
    /// still be under way in the host, because its future was dropped, and keeps its places for good.
    fn note_landed(&self, prepared: &mut Self::Prepared);

    /// Makes a prepared change what reads see, after its bytes were written. Durable after the next flush.
    async fn commit(&self, prepared: Self::Prepared) -> Result<()>;

    /// Makes everything that was committed before the call durable.
    async fn flush(&self) -> Result<()>;

    /// Flushes, leaves the file as a closed one is left, and closes it. Later changes fail.
    async fn close(&self) -> Result<()>;
}
