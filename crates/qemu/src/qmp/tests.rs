//! The client against a scripted peer, for what a real QEMU does not do on demand.

use std::io::{BufRead, BufReader};
use std::thread::JoinHandle;

use super::*;

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": ["oob"]}}"#;
const SOON: Duration = Duration::from_secs(20);

/// A peer that greets, takes the negotiation, then answers each line with what `answers` has for it.
fn peer(answers: Vec<String>) -> (UnixStream, JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut to = theirs.try_clone().unwrap();
        let mut lines = BufReader::new(theirs).lines();
        let mut seen = Vec::new();
        to.write_all(format!("{GREETING}\r\n").as_bytes()).unwrap();
        for answer in std::iter::once(r#"{"return": {}, "id": 1}"#.to_owned() + "\n").chain(answers) {
            let Some(Ok(line)) = lines.next() else { break };
            seen.push(line);
            to.write_all(answer.as_bytes()).unwrap();
        }
        seen
    });
    (ours, thread)
}

#[test]
fn answers_are_matched_by_id_and_events_between_them_are_kept() {
    let (stream, peer) = peer(vec![
        concat!(
            r#"{"timestamp": {"seconds": 5, "microseconds": 7}, "event": "STOP"}"#,
            "\n",
            r#"{"return": {"status": "paused"}, "id": 2}"#,
            "\n",
            r#"{"event": "SHUTDOWN", "data": {"guest": true}, "timestamp": {"seconds": -1, "microseconds": -1}}"#,
            "\n"
        )
        .into(),
    ]);
    let mut qmp = Qmp::over(stream).unwrap();
    assert_eq!(qmp.greeting()["version"]["qemu"]["major"], 7);
    let status = qmp.execute("query-status", json!({}), SOON).unwrap();
    assert_eq!(status["status"], "paused");
    let event = qmp.wait_event(&["STOP"], SOON).unwrap();
    assert_eq!((event.name.as_str(), event.at_us), ("STOP", 5_000_007));
    let event = qmp.wait_event(&[], SOON).unwrap();
    assert_eq!((event.name.as_str(), event.data, event.at_us), ("SHUTDOWN", json!({ "guest": true }), 0));
    drop(qmp);
    let seen = peer.join().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&seen[1]).unwrap()["execute"], "query-status");
}

#[test]
fn a_refusal_tells_class_and_description_and_the_connection_goes_on() {
    let (stream, _peer) = peer(vec![
        r#"{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}"#
            .to_owned()
            + "\n",
        r#"{"return": null, "id": 3}"#.to_owned() + "\n",
    ]);
    let mut qmp = Qmp::over(stream).unwrap();
    let error = qmp.execute("nope", json!({}), SOON).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"qemu refused "nope": The command nope has not been found (CommandNotFound)"#
    );
    assert_eq!(qmp.execute("stop", json!({}), SOON).unwrap(), Value::Null);
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
    let (stream, _peer) = peer(vec![
        String::new(),
        concat!(r#"{"return": "late", "id": 2}"#, "\n", r#"{"return": "right", "id": 3}"#, "\n").into(),
    ]);
    let mut qmp = Qmp::over(stream).unwrap();
    let error = qmp.execute("slow", json!({}), Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, QmpError::TimedOut { .. }), "{error}");
    assert_eq!(qmp.execute("fast", json!({}), SOON).unwrap(), "right");
}

#[test]
fn the_end_of_qemu_is_told_from_silence() {
    let (stream, peer) = peer(vec![]);
    let mut qmp = Qmp::over(stream).unwrap();
    peer.join().unwrap();
    assert!(matches!(qmp.wait_event(&["RESUME"], SOON), Err(QmpError::Closed)));
    assert!(matches!(qmp.execute("cont", json!({}), SOON), Err(QmpError::Closed)));
}

#[test]
fn nonsense_is_refused_with_what_it_was() {
    for nonsense in ["{\"return\": 1, \"id\": 99}\n", "[]\n", "{}\n", "\u{7f}\n"] {
        let (stream, _peer) = peer(vec![nonsense.to_owned()]);
        let error = Qmp::over(stream).unwrap().execute("cont", json!({}), SOON).unwrap_err();
        assert!(matches!(error, QmpError::Protocol(_)), "{nonsense:?}: {error}");
    }
}

#[test]
fn a_line_without_end_is_bounded() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let junk = [b' '; 1 << 16];
        while theirs.write_all(&junk).is_ok() {}
    });
    let error = Qmp::over(ours).unwrap_err();
    assert!(matches!(error, QmpError::Protocol(_)), "{error}");
    thread.join().unwrap();
}

#[test]
fn events_that_nobody_asks_for_are_bounded() {
    let mut burst = String::new();
    for number in 0..EVENTS_MAX + 10 {
        burst += &format!("{{\"event\": \"E\", \"data\": {number}}}\n");
    }
    burst += "{\"return\": {}, \"id\": 2}\n";
    let (stream, _peer) = peer(vec![burst]);
    let mut qmp = Qmp::over(stream).unwrap();
    qmp.execute("cont", json!({}), SOON).unwrap();
    assert_eq!(qmp.events.len(), EVENTS_MAX);
    assert_eq!(qmp.wait_event(&["E"], SOON).unwrap().data, 10);
}
