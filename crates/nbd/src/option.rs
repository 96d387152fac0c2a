//! The data of options, taken apart.

use crate::limits;

/// Bytes that are read from the front; `None` where they end too early.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(now)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// A string behind its 32-bit length.
    fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        string(self.bytes(len)?)
    }

    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// `bytes` as a string of the protocol.
///
/// proto.md, "Conventions": UTF-8, no NUL, no longer than 4096 bytes.
pub(crate) fn string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > limits::STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) kinds: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// proto.md, "Option types", INFO: the name behind its length, the number of information requests, and these.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u16()?;
        let kinds = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
        fields.end()?;
        Some(Self { name, kinds })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) queries: Vec<&'a str>,
}

/// Why the data of a context option is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaError {
    /// The data does not have the form of the option.
    Syntax,
    /// There are more queries than one option may hold.
    TooMany,
}

impl<'a> MetaRequest<'a> {
    /// proto.md, "Option types", LIST_META_CONTEXT: the name behind its length, the number of queries, and each
    /// behind its length.
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, MetaError> {
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MetaError::Syntax)?;
        let count = fields.u32().ok_or(MetaError::Syntax)?;
        if count > limits::QUERIES_MAX {
            return Err(MetaError::TooMany);
        }
        let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<_>>>();
        let queries = queries.ok_or(MetaError::Syntax)?;
        fields.end().ok_or(MetaError::Syntax)?;
        Ok(Self { name, queries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn info_requests_are_taken_only_when_every_byte_is_accounted_for() {
        let data = [framed("disk"), vec![0, 2, 0, 1, 0, 3]].concat();
        assert_eq!(InfoRequest::parse(&data), Some(InfoRequest { name: "disk", kinds: vec![1, 3] }));
        assert_eq!(InfoRequest::parse(&data[..data.len() - 1]), None);
        assert_eq!(InfoRequest::parse(&[data, vec![0]].concat()), None);
        assert_eq!(InfoRequest::parse(&[0xff, 0xff, 0xff, 0xff, b'a']), None);
        assert_eq!(InfoRequest::parse(&[framed("a\0b"), vec![0, 0]].concat()), None);
    }

    #[test]
    fn context_requests_have_a_bounded_number_of_queries() {
        let data = [framed(""), vec![0, 0, 0, 1], framed("base:")].concat();
        assert_eq!(MetaRequest::parse(&data), Ok(MetaRequest { name: "", queries: vec!["base:"] }));
        let many = [framed(""), u32::MAX.to_be_bytes().to_vec()].concat();
        assert_eq!(MetaRequest::parse(&many), Err(MetaError::TooMany));
        assert_eq!(MetaRequest::parse(&data[..data.len() - 1]), Err(MetaError::Syntax));
    }

    #[test]
    fn strings_are_utf8_of_at_most_4096_bytes() {
        assert_eq!(string(b"x"), Some("x"));
        assert_eq!(string(&[0xff]), None);
        assert!(string(&[b'x'; limits::STRING_BYTES_MAX]).is_some());
        assert!(string(&[b'x'; limits::STRING_BYTES_MAX + 1]).is_none());
    }
}
