//! NBD URIs.
//!
//! Source: `doc/uri.md` of the Network Block Device project, cited as "uri.md".

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// A TCP port of a host name or address, without the brackets of an IPv6 address.
    Tcp {
        /// The host; empty for all addresses.
        host: String,
        /// The port.
        port: u16,
    },
}

/// An NBD URI: `nbd://HOST:PORT/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`, with `nbds` in the place of `nbd` for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where.
    pub address: Address,
    /// The name of the export; empty for the default one.
    pub export: String,
    /// Whether TLS is required.
    pub tls: bool,
}

/// Why a text is not an NBD URI that can be listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// The scheme is none of nbd, nbds, nbd+unix and nbds+unix.
    #[error(
        "an NBD URI starts with nbd://, nbds://, nbd+unix:// or nbds+unix://; for a Unix socket, for example, nbd+unix:///?socket=/run/disk.sock"
    )]
    Scheme,
    /// A Unix URI without socket.
    #[error("the URI of a Unix socket needs ?socket=PATH")]
    Socket,
    /// A parameter that a server can do nothing with.
    #[error("the URI parameter {0:?} is not known")]
    Parameter(String),
    /// The port is not a number from 0 to 65535.
    #[error("{0:?} is not a port number")]
    Port(String),
    /// A `%` that two hexadecimal digits do not follow, or bytes that are not UTF-8.
    #[error("{0:?} is not properly percent-encoded")]
    Encoding(String),
}

/// uri.md, "NBD URI authority": the port that IANA assigned to NBD is the default.
const PORT_DEFAULT: u16 = 10809;

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let (unix, tls) = match scheme {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme),
        };
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = before.split_once('/').unwrap_or((before, ""));
        let socket = socket_parameter(query)?;
        let address = match (unix, socket) {
            (true, Some(path)) => Address::Unix(path.into()),
            (true, None) => return Err(UriError::Socket),
            (false, None) => tcp(authority)?,
            (false, Some(_)) => return Err(UriError::Parameter("socket".to_owned())),
        };
        Ok(Self { address, export: decode(path)?, tls })
    }
}

fn socket_parameter(query: &str) -> Result<Option<String>, UriError> {
    let mut socket = None;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("socket", path)) if !path.is_empty() => socket = Some(decode(path)?),
            _ => return Err(UriError::Parameter(parameter.to_owned())),
        }
    }
    Ok(socket)
}

fn tcp(authority: &str) -> Result<Address, UriError> {
    // RFC 3986 §3.2.2: an IPv6 address stands in brackets.
    let (host, rest) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => PORT_DEFAULT,
        None => return Err(UriError::Port(rest.to_owned())),
        Some(port) => port.parse().map_err(|_| UriError::Port(port.to_owned()))?,
    };
    Ok(Address::Tcp { host: decode(host)?, port })
}

fn decode(text: &str) -> Result<String, UriError> {
    let bad = || UriError::Encoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.split_off(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = std::str::from_utf8(digits.ok_or_else(bad)?).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// RFC 3986 §2.3 and §3.3: what may stand in a path or a query as it is, apart from what separates parameters.
const PATH_MARKS: &[u8] = b"-._~/:@";
/// RFC 3986 §3.2.2: what may stand in a host as it is; colons stand in brackets.
const HOST_MARKS: &[u8] = b"-._~:";

/// Writes `text` with everything percent-encoded but letters, digits and `marks`.
fn encode(text: &str, marks: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || marks.contains(&byte) {
            out.write_char(char::from(byte))?;
        } else {
            write!(out, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        match &self.address {
            Address::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "://{open}")?;
                encode(host, HOST_MARKS, f)?;
                write!(f, "{close}:{port}/")?;
                encode(&self.export, PATH_MARKS, f)
            }
            Address::Unix(path) => {
                f.write_str("+unix:///")?;
                encode(&self.export, PATH_MARKS, f)?;
                f.write_str("?socket=")?;
                encode(&path.to_string_lossy(), PATH_MARKS, f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NbdUri, UriError> {
        text.parse()
    }

    #[test]
    fn uris_of_every_scheme_survive_a_round_trip() {
        for text in [
            "nbd://127.0.0.1:10810/",
            "nbds://example.com:10809/disk",
            "nbd://[::1]:7/hello%20world",
            "nbd://:0/",
            "nbd+unix:///?socket=/run/a.sock",
            "nbds+unix:///a/b%3F%C3%A9?socket=/run/x%26y.sock",
        ] {
            assert_eq!(parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let uri = parse("nbd://example.com").unwrap();
        assert_eq!(uri.address, Address::Tcp { host: "example.com".into(), port: 10809 });
        assert_eq!(uri.export, "");
        // uri.md, "NBD URI export name": only the first slash is not part of the name.
        assert_eq!(parse("nbd://example.com//disk").unwrap().export, "/disk");
    }

    #[test]
    fn what_cannot_be_listened_on_is_refused_with_the_reason() {
        assert_eq!(parse("/run/a.sock"), Err(UriError::Scheme));
        assert_eq!(parse("http://x/"), Err(UriError::Scheme));
        assert_eq!(parse("nbd+unix:///x"), Err(UriError::Socket));
        assert_eq!(parse("nbd+unix:///x?socket="), Err(UriError::Parameter("socket=".into())));
        assert_eq!(parse("nbd://x/?socket=/a"), Err(UriError::Parameter("socket".into())));
        assert_eq!(parse("nbd://x:99999/"), Err(UriError::Port("99999".into())));
        assert_eq!(parse("nbd://x/%4"), Err(UriError::Encoding("%4".into())));
        assert_eq!(parse("nbd://x/%+1"), Err(UriError::Encoding("%+1".into())));
        assert_eq!(parse("nbd://x/%ff"), Err(UriError::Encoding("%ff".into())));
    }
}
