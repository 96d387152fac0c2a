//! What QEMU sends (docs/interop/qmp-spec.rst): one JSON object per line.

use serde::Deserialize;
use serde_json::Value;

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// What belongs to it; null for events that carry nothing.
    pub data: Value,
    /// When it happened, by the host's clock, in microseconds since the epoch; 0 if QEMU could not tell.
    pub at_us: u64,
}

#[derive(Debug)]
pub(super) enum Message {
    Greeting(Value),
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, class: String, desc: String },
    Event(Event),
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    // A missing member and one that is null are different here, and `Option<Value>` takes both for `None`.
    #[serde(rename = "return", default, deserialize_with = "present")]
    returned: Option<Value>,
    error: Option<ErrorMember>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorMember {
    class: String,
    desc: String,
}

#[derive(Deserialize)]
struct Timestamp {
    // -1 where the host's clock could not be read (qmp-spec.rst, "Asynchronous events").
    seconds: i64,
    microseconds: i64,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl Message {
    /// Parses one line without its end. The error is a sentence.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        let quoted = || String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        let line: Line =
            serde_json::from_slice(line).map_err(|error| format!("{error} in {:?}", quoted()))?;
        match line {
            Line { greeting: Some(greeting), .. } => Ok(Self::Greeting(greeting)),
            Line { event: Some(name), data, timestamp, .. } => {
                Ok(Self::Event(Event { name, data, at_us: timestamp.map_or(0, |at| at.micros()) }))
            }
            Line { error: Some(error), id, .. } => {
                Ok(Self::Error { id, class: error.class, desc: error.desc })
            }
            Line { returned: Some(value), id, .. } => Ok(Self::Return { id, value }),
            _ => Err(format!("{:?} is no message", quoted())),
        }
    }
}

impl Timestamp {
    fn micros(&self) -> u64 {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(self.microseconds).unwrap_or(0))
    }
}
