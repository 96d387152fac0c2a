//! What every answer of `block_status` must keep.

use block::{ByteRange, Extent};

/// Checks the form of an answer: at least one extent, none of them empty, zeroes wherever there is no data, no end
/// beyond what an offset can express. That extents carry lengths and no offsets makes them ascending and gapless.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn check_extents(range: ByteRange, extents: &[Extent]) -> Result<(), String> {
    if extents.is_empty() && !range.is_empty() {
        return Err(format!("block_status of {range} gives no extent"));
    }
    let mut at = range.start();
    for (index, extent) in extents.iter().enumerate() {
        if extent.len == 0 {
            return Err(format!("block_status of {range} gives extent {index} at {at:#x} no length"));
        }
        if at >= range.end() {
            return Err(format!(
                "block_status of {range} gives extent {index} at {at:#x}, which was not asked for"
            ));
        }
        if !extent.state.is_data() && !extent.zeroes {
            return Err(format!(
                "block_status of {range} says that extent {index} at {at:#x} is {}, but not that it reads as zeroes",
                extent.state
            ));
        }
        let Some(next) = ByteRange::new(at, extent.len) else {
            return Err(format!(
                "block_status of {range} gives extent {index} at {at:#x} the length {:#x}",
                extent.len
            ));
        };
        at = next.end();
    }
    Ok(())
}

/// The parts of `range` that `extents` says read as zeroes.
pub(crate) fn holes(range: ByteRange, extents: &[Extent]) -> Vec<ByteRange> {
    let (mut holes, mut at) = (Vec::new(), range.start());
    for extent in extents {
        let Some(here) = ByteRange::new(at, extent.len) else { break };
        at = here.end();
        if extent.zeroes {
            holes.extend(here.intersection(range));
        }
    }
    holes
}
