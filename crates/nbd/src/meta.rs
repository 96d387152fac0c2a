//! Metadata contexts: what they are called, which a query means, and what they say of an extent.

use block::{Extent, ExtentState};

use crate::wire;

/// A kind of knowledge about extents that a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaContext {
    /// `base:allocation`, which every server and client knows.
    Allocation,
    /// `godwit:state`: the extent's state and the layer that answers.
    State,
}

impl MetaContext {
    pub(crate) const ALL: [Self; 2] = [Self::Allocation, Self::State];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::State => "godwit:state",
        }
    }

    /// The identifier in SET_META_CONTEXT replies and block status chunks.
    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::State => 2,
        }
    }

    /// The status word for an extent.
    pub(crate) fn status(self, extent: &Extent) -> u32 {
        match self {
            Self::Allocation => allocation(extent),
            Self::State => state_word(extent),
        }
    }

    /// Whether `query` of LIST_META_CONTEXT means this context.
    ///
    /// proto.md, "The `base:` metadata namespace": a namespace with an empty leaf-name is a wildcard when listing,
    /// and is ignored when selecting.
    pub(crate) fn is_listed_by(self, query: &str) -> bool {
        query == self.name() || self.name().split_inclusive(':').next() == Some(query)
    }
}

/// The contexts that a client selected, and for which export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    chosen: [bool; MetaContext::ALL.len()],
}

impl Selection {
    /// What the queries of SET_META_CONTEXT select: full names only.
    pub(crate) fn of(queries: &[&str]) -> Self {
        Self { chosen: MetaContext::ALL.map(|context| queries.contains(&context.name())) }
    }

    pub(crate) fn contexts(self) -> impl Iterator<Item = MetaContext> + Clone {
        MetaContext::ALL
            .into_iter()
            .zip(self.chosen)
            .filter_map(|(context, chosen)| chosen.then_some(context))
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// `base:allocation`: what is known to read as zeroes is stored nowhere, be it that the image has no data for it or that
/// its data lies in a hole of the host file.
fn allocation(extent: &Extent) -> u32 {
    if extent.zeroes { wire::STATE_ZERO | wire::STATE_HOLE } else { 0 }
}

/// A `godwit:state` word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateWord {
    /// The extent's state; `None` for a number that a newer server may have sent.
    pub state: Option<ExtentState>,
    /// Which layer answers: 0 is the top.
    pub depth: u32,
}

/// Bits of a `godwit:state` word that hold the state; the rest holds the depth.
const STATE_BITS: u32 = 8;

/// The `godwit:state` word of an extent: bits 0 to 7 are the state's number, bits 8 to 31 the depth, at most 2^24 − 1.
///
/// The numbers are those of the payload block states of VHDX (MS-VHDX 2.5.1.1), from which the states have their
/// names: 0 not present, 1 undefined, 2 zero, 3 unmapped, 6 present, 7 partially present.
pub fn state_word(extent: &Extent) -> u32 {
    let number = match extent.state {
        ExtentState::NotPresent => 0,
        ExtentState::Undefined => 1,
        ExtentState::Zero => 2,
        ExtentState::Unmapped => 3,
        ExtentState::Present => 6,
        ExtentState::PartiallyPresent => 7,
    };
    extent.depth.min(u32::MAX >> STATE_BITS) << STATE_BITS | number
}

impl StateWord {
    /// Takes a word apart, as a client does.
    pub const fn parse(word: u32) -> Self {
        let state = match word & ((1 << STATE_BITS) - 1) {
            0 => Some(ExtentState::NotPresent),
            1 => Some(ExtentState::Undefined),
            2 => Some(ExtentState::Zero),
            3 => Some(ExtentState::Unmapped),
            6 => Some(ExtentState::Present),
            7 => Some(ExtentState::PartiallyPresent),
            _ => None,
        };
        Self { state, depth: word >> STATE_BITS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_words_survive_the_way_to_the_client() {
        use ExtentState::*;
        for state in [NotPresent, Undefined, Zero, Unmapped, Present, PartiallyPresent] {
            for depth in [0, 1, 300, (1 << 24) - 1] {
                let word = state_word(&Extent { depth, ..Extent::hole(1, state) });
                assert_eq!(StateWord::parse(word), StateWord { state: Some(state), depth });
            }
        }
        let deepest = state_word(&Extent { depth: u32::MAX, ..Extent::hole(1, Zero) });
        assert_eq!(StateWord::parse(deepest).depth, (1 << 24) - 1);
    }

    #[test]
    fn only_what_is_known_to_be_zero_is_a_hole_in_base_allocation() {
        let hole = wire::STATE_ZERO | wire::STATE_HOLE;
        assert_eq!(allocation(&Extent::present(1, Some(0))), 0);
        assert_eq!(allocation(&Extent { zeroes: true, ..Extent::present(1, Some(0)) }), hole);
        assert_eq!(allocation(&Extent::hole(1, ExtentState::Unmapped)), hole);
    }

    #[test]
    fn wildcards_list_but_do_not_select() {
        assert!(MetaContext::Allocation.is_listed_by("base:"));
        assert!(MetaContext::State.is_listed_by("godwit:"));
        assert!(!MetaContext::State.is_listed_by("base:"));
        assert!(!MetaContext::State.is_listed_by(""));
        assert!(Selection::of(&["base:", "godwit:"]).is_empty());
        let both: Vec<_> =
            Selection::of(&["godwit:state", "x-other:y", "base:allocation"]).contexts().collect();
        assert_eq!(both, MetaContext::ALL);
    }
}
