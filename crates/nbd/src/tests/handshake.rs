//! The handshake, option by option.

use block::{DevInfo, Disk};
use testkit::MemDev;

use super::client::{Client, exports, info_data, meta_data, option_bytes};
use crate::wire::*;
use crate::{Export, Exports, Security, Violation, limits};

fn disk() -> Disk {
    Disk::new(MemDev::new(1 << 20))
}

fn plain() -> Client {
    Client::greeted(exports(&[("first", &disk()), ("second", &disk())], Security::Plain))
}

fn kinds(client: &mut Client, option: u32, data: &[u8]) -> Vec<u32> {
    client.option(option, data).iter().map(|reply| reply.kind).collect()
}

#[test]
fn the_server_greets_with_fixed_newstyle() {
    let mut client = Client::new(exports(&[("", &disk())], Security::Plain));
    assert_eq!(client.take_u64(), INIT_MAGIC);
    assert_eq!(client.take_u64(), OPTION_MAGIC);
    assert_eq!(client.take(2), [0, 3]);
    assert!(client.received.is_empty());
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let mut client = Client::new(exports(&[("", &disk())], Security::Plain));
    assert_eq!(client.send(&8u32.to_be_bytes()), Err(Violation::ClientFlags(8)));
    assert!(!client.connection.wants_input());
}

#[test]
fn the_list_names_every_export_and_describes_it() {
    let replies = plain().option(OPT_LIST, &[]);
    assert_eq!(replies.iter().map(|reply| reply.kind).collect::<Vec<_>>(), [REP_SERVER, REP_SERVER, REP_ACK]);
    assert_eq!(replies[0].data, b"\0\0\0\x05firstthe disk \"first\"");
    assert_eq!(kinds(&mut plain(), OPT_LIST, &[1]), [REP_ERR_INVALID]);
}

#[test]
fn info_tells_what_was_asked_for_and_stays_in_the_handshake() {
    let mut client = plain();
    let all = [INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, 99];
    let replies = client.option(OPT_INFO, &info_data("", &all));
    let infos: Vec<_> =
        replies.iter().map(|reply| (reply.kind, reply.data.get(..2).unwrap_or(&[]))).collect();
    let info = |kind: u8| {
        (REP_INFO, if kind == 0 { &[0, 0][..] } else { &[[0, 1], [0, 2], [0, 3]][kind as usize - 1][..] })
    };
    assert_eq!(infos, [info(0), info(1), info(2), info(3), (REP_ACK, &[][..])]);
    assert_eq!(replies[0].data[2..10], (1u64 << 20).to_be_bytes());
    assert_eq!(replies[1].data[2..], b"first"[..]);
    // 512, 65536, 32 MiB.
    assert_eq!(replies[3].data[2..], [0, 0, 2, 0, 0, 1, 0, 0, 2, 0, 0, 0]);
    assert!(client.connection.export().is_none());
}

#[test]
fn block_sizes_that_are_not_the_default_are_always_told() {
    assert_eq!(kinds(&mut plain(), OPT_INFO, &info_data("", &[])), [REP_INFO, REP_INFO, REP_ACK]);
    let bytes = Disk::new(MemDev::with_info(4096, DevInfo { block_bytes: 1, ..MemDev::INFO }));
    let mut client = Client::greeted(exports(&[("", &bytes)], Security::Plain));
    assert_eq!(kinds(&mut client, OPT_INFO, &info_data("", &[])), [REP_INFO, REP_ACK]);
}

#[test]
fn go_enters_the_transmission_phase_on_the_named_export() {
    let mut client = plain();
    assert_eq!(kinds(&mut client, OPT_GO, &info_data("third", &[])), [REP_ERR_UNKNOWN]);
    assert!(client.connection.export().is_none());
    assert_eq!(kinds(&mut client, OPT_GO, &info_data("second", &[])), [REP_INFO, REP_INFO, REP_ACK]);
    assert_eq!(client.connection.export().map(|export| &export.name[..]), Some("second"));
}

#[test]
fn export_name_answers_without_a_header_and_with_zeroes_unless_declined() {
    let data = b"second";
    let mut client = plain();
    client.send(&option_bytes(OPT_EXPORT_NAME, data)).unwrap();
    assert_eq!(client.received.len(), 10);

    let mut client = Client::new(exports(&[("second", &disk())], Security::Plain));
    client.take(18);
    client.send(&CLIENT_FIXED_NEWSTYLE.to_be_bytes()).unwrap();
    client.send(&option_bytes(OPT_EXPORT_NAME, data)).unwrap();
    assert_eq!(client.received.len(), 10 + 124);
    assert_eq!(client.take_u64(), 1 << 20);
}

#[test]
fn export_name_of_an_unknown_export_ends_the_connection() {
    let result = plain().try_option(OPT_EXPORT_NAME, b"third");
    assert!(matches!(result, Err(Violation::ExportName(_))), "{result:?}");
}

#[test]
fn unknown_options_are_refused_and_skipped() {
    let mut client = plain();
    assert_eq!(kinds(&mut client, 77, &[1; 5000]), [REP_ERR_UNSUP]);
    assert_eq!(kinds(&mut client, OPT_LIST, &[]).len(), 3);
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let mut client = plain();
    assert_eq!(kinds(&mut client, OPT_ABORT, &[]), [REP_ACK]);
    assert!(client.disconnected && !client.connection.wants_input());
}

#[test]
fn malformed_data_is_invalid_and_the_handshake_goes_on() {
    let mut client = plain();
    for option in [OPT_INFO, OPT_GO] {
        assert_eq!(kinds(&mut client, option, &[0, 0, 0]), [REP_ERR_INVALID]);
        assert_eq!(kinds(&mut client, option, &[0xff; 16]), [REP_ERR_INVALID]);
    }
    client.option(OPT_STRUCTURED_REPLY, &[]);
    for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        assert_eq!(kinds(&mut client, option, &[0, 0, 0]), [REP_ERR_INVALID]);
        assert_eq!(kinds(&mut client, option, &meta_data("", &["nocolon"])), [REP_ERR_INVALID]);
        assert_eq!(kinds(&mut client, option, &meta_data("third", &[])), [REP_ERR_UNKNOWN]);
        let many = vec!["x:y"; limits::QUERIES_MAX as usize + 1];
        assert_eq!(kinds(&mut client, option, &meta_data("", &many)), [REP_ERR_TOO_BIG]);
    }
}

#[test]
fn options_that_are_too_long_are_skipped_or_end_the_connection() {
    let mut client = plain();
    let long = vec![0; limits::OPTION_BYTES_MAX as usize + 1];
    assert_eq!(kinds(&mut client, OPT_INFO, &long), [REP_ERR_TOO_BIG]);
    assert_eq!(kinds(&mut client, OPT_LIST, &[]).len(), 3);
    let mut endless = option_bytes(OPT_INFO, &[]);
    endless[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let refused = Violation::OptionLength { option: OPT_INFO, len: u32::MAX };
    assert_eq!(client.send(&endless), Err(refused));
}

#[test]
fn a_handshake_has_an_end() {
    let mut client = plain();
    for _ in 0..limits::OPTIONS_MAX {
        client.option(77, &[]);
    }
    assert_eq!(client.try_option(77, &[]), Err(Violation::OptionCount));
}

#[test]
fn an_option_without_its_magic_number_ends_the_connection() {
    assert_eq!(
        plain().send(b"GET / HTTP/1.1\r\n"),
        Err(Violation::OptionMagic(u64::from_be_bytes(*b"GET / HT")))
    );
}

#[test]
fn options_that_come_before_a_reply_was_taken_wait() {
    let mut client = plain();
    client.held = Some(Vec::new());
    let option = option_bytes(OPT_LIST, &[]);
    client.send(&option).unwrap();
    assert!(client.connection.has_output() && !client.connection.wants_input());
    assert_eq!(client.send(&option), Ok(0));
    client.drain();
    let one_list = client.received.len();
    assert_eq!(client.send(&option), Ok(option.len()));
    client.drain();
    assert_eq!(client.received.len(), 2 * one_list);
}

#[test]
fn contexts_are_listed_by_wildcard_and_selected_by_name() {
    let mut client = plain();
    let list = OPT_LIST_META_CONTEXT;
    assert_eq!(kinds(&mut client, list, &meta_data("", &[])), [REP_ERR_INVALID], "before structured replies");
    assert_eq!(kinds(&mut client, OPT_STRUCTURED_REPLY, &[]), [REP_ACK]);
    assert_eq!(kinds(&mut client, OPT_STRUCTURED_REPLY, &[]), [REP_ERR_INVALID]);
    let names = |replies: Vec<super::client::OptionReply>| -> Vec<(u32, String)> {
        let contexts = replies.iter().filter(|reply| reply.kind == REP_META_CONTEXT);
        let id = |data: &[u8]| u32::from_be_bytes(data[..4].try_into().unwrap());
        contexts
            .map(|reply| (id(&reply.data), String::from_utf8(reply.data[4..].to_vec()).unwrap()))
            .collect()
    };
    let base = || "base:allocation".to_owned();
    let state = || "godwit:state".to_owned();
    assert_eq!(names(client.option(list, &meta_data("", &[]))), [(0, base()), (0, state())]);
    assert_eq!(names(client.option(list, &meta_data("", &["godwit:"]))), [(0, state())]);
    assert_eq!(names(client.option(list, &meta_data("", &["x-other:"]))), []);
    let set = OPT_SET_META_CONTEXT;
    assert_eq!(names(client.option(set, &meta_data("", &["base:", "x-y:z"]))), []);
    assert_eq!(names(client.option(set, &meta_data("", &["godwit:state"]))), [(2, state())]);
    assert_eq!(
        names(client.option(set, &meta_data("", &["base:allocation", "godwit:state"]))),
        [(1, base()), (2, state())]
    );
}

#[test]
fn tls_is_required_before_anything_is_told() {
    let mut client = Client::greeted(exports(&[("", &disk())], Security::TlsRequired));
    for option in [OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, 77] {
        assert_eq!(kinds(&mut client, option, &[]), [REP_ERR_TLS_REQD]);
    }
    assert_eq!(kinds(&mut client, OPT_STARTTLS, &[1]), [REP_ERR_INVALID]);
    assert_eq!(kinds(&mut client, OPT_STARTTLS, &[]), [REP_ACK]);
    // Now inside TLS.
    assert_eq!(kinds(&mut client, OPT_STARTTLS, &[]), [REP_ERR_INVALID]);
    assert_eq!(kinds(&mut client, OPT_LIST, &[]), [REP_SERVER, REP_ACK]);
    assert_eq!(kinds(&mut client, OPT_GO, &info_data("", &[])).last(), Some(&REP_ACK));

    let mut client = Client::greeted(exports(&[("", &disk())], Security::TlsRequired));
    let result = client.try_option(OPT_EXPORT_NAME, &[]);
    assert!(matches!(result, Err(Violation::ExportName(_))), "{result:?}");
    assert_eq!(kinds(&mut plain(), OPT_STARTTLS, &[]), [REP_ERR_UNSUP], "a server without TLS");
}

#[test]
fn bytes_that_follow_starttls_in_plain_text_are_not_believed() {
    let mut client = Client::greeted(exports(&[("", &disk())], Security::TlsRequired));
    let mut bytes = option_bytes(OPT_STARTTLS, &[]);
    bytes.extend(option_bytes(OPT_GO, &info_data("", &[])));
    let all = bytes.len();
    assert_eq!(client.send(&bytes), Err(Violation::BytesAfterStartTls(all - 16)));
}

#[test]
fn fragments_are_offered_only_with_structured_replies() {
    let flags = |client: &mut Client| {
        let replies = client.option(OPT_INFO, &info_data("", &[]));
        u16::from_be_bytes(replies[0].data[10..12].try_into().unwrap())
    };
    let mut client = plain();
    let before = flags(&mut client);
    client.option(OPT_STRUCTURED_REPLY, &[]);
    assert_eq!(flags(&mut client), before | FLAG_SEND_DF);
    assert_eq!(before & FLAG_SEND_DF, 0);
}

#[test]
fn a_read_only_disk_offers_nothing_that_changes_it() {
    let info = DevInfo { read_only: true, ..MemDev::INFO };
    let disk = Disk::new(MemDev::with_info(4096, info));
    let mut client = Client::greeted(exports(&[("", &disk)], Security::Plain));
    let replies = client.option(OPT_INFO, &info_data("", &[]));
    let flags = u16::from_be_bytes(replies[0].data[10..12].try_into().unwrap());
    assert_ne!(flags & FLAG_READ_ONLY, 0);
    assert_eq!(flags & (FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO), 0);
}

#[test]
fn names_of_exports_are_checked_when_they_are_offered() {
    let export = |name: &str| Export { name: name.to_owned(), description: String::new(), disk: disk() };
    let offer =
        |names: &[&str]| Exports::new(names.iter().map(|name| export(name)).collect(), Security::Plain);
    assert!(offer(&["a", "b"]).is_ok());
    assert_eq!(offer(&["a", "b", "a"]).err(), Some("a".to_owned()));
    assert_eq!(offer(&["a\0"]).err(), Some("a\0".to_owned()));
    let long = "x".repeat(limits::STRING_BYTES_MAX + 1);
    assert_eq!(offer(&[&long]).err(), Some(long.clone()));
}
