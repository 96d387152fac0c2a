//! Whatever a client sends: no panic, no unbounded memory, and a conversation that ends.

use block::Disk;
use proptest::prelude::*;
use testkit::MemDev;

use super::client::{Client, exports, extended_request, info_data, meta_data, option_bytes, request};
use crate::wire::*;
use crate::{Security, limits};

const DISK_BYTES: u64 = 1 << 20;

/// Sends `messages`, whole and then cut at every border that `cuts` makes, and looks at what must always hold.
fn converse(mut client: Client, messages: &[Vec<u8>], cut: usize) {
    for piece in messages.concat().chunks(cut.max(1)) {
        match client.send(piece) {
            Ok(count) if count == piece.len() => {}
            // The client was shut out, said goodbye, or is at a limit.
            Ok(_) => assert!(!client.connection.wants_input()),
            Err(_) => {
                assert!(!client.connection.wants_input());
                assert!(client.connection.next_event().expect("told once").is_none());
                return;
            }
        }
        assert!(client.connection.requests_in_flight() <= limits::REQUESTS_IN_FLIGHT_MAX);
    }
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("".to_owned()), Just("disk".to_owned()), any::<String>()];
    let query =
        prop_oneof![Just("base:allocation"), Just("base:"), Just("godwit:state"), Just("x"), Just("")];
    prop_oneof![
        (0u32..14, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(option, data)| option_bytes(option, &data)),
        (name.clone(), proptest::collection::vec(0u16..6, 0..6), prop_oneof![Just(OPT_INFO), Just(OPT_GO)])
            .prop_map(|(name, kinds, option)| option_bytes(option, &info_data(&name, &kinds))),
        (name, proptest::collection::vec(query, 0..4), OPT_LIST_META_CONTEXT..=OPT_SET_META_CONTEXT)
            .prop_map(|(name, queries, option)| option_bytes(option, &meta_data(&name, &queries))),
        Just(option_bytes(OPT_STRUCTURED_REPLY, &[])),
        Just(option_bytes(OPT_EXTENDED_HEADERS, &[])),
    ]
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..DISK_BYTES + 4096, Just(u64::MAX), Just(i64::MAX as u64), any::<u64>()];
    let len = prop_oneof![0u32..8192, Just(limits::PAYLOAD_BYTES_MAX), Just(u32::MAX), any::<u32>()];
    let flags = prop_oneof![4 => Just(0u16), 2 => 0u16..64, 1 => any::<u16>()];
    (0u16..10, flags, any::<u64>(), offset, len, any::<bool>()).prop_map(
        |(kind, flags, cookie, offset, len, extended)| {
            let mut bytes = if extended {
                extended_request(kind, flags, cookie, offset, u64::from(len))
            } else {
                request(kind, flags, cookie, offset, len)
            };
            if kind == CMD_WRITE && len <= 8192 {
                bytes.extend(vec![cookie as u8; len as usize]);
            }
            bytes
        },
    )
}

fn disk() -> Disk {
    Disk::new(MemDev::with_info(DISK_BYTES, block::DevInfo { block_bytes: 1, ..MemDev::INFO }))
}

proptest! {
    #[test]
    fn any_options_are_answered_or_end_the_connection(
        messages in proptest::collection::vec(options(), 0..12),
        tls in any::<bool>(),
        cut in 1usize..200,
    ) {
        let security = if tls { Security::TlsRequired } else { Security::Plain };
        converse(Client::greeted(exports(&[("disk", &disk())], security)), &messages, cut);
    }

    #[test]
    fn any_requests_are_answered_or_end_the_connection(
        messages in proptest::collection::vec(requests(), 0..20),
        framing in prop_oneof![Just(None), Just(Some(OPT_STRUCTURED_REPLY)), Just(Some(OPT_EXTENDED_HEADERS))],
        cut in 1usize..9000,
    ) {
        converse(Client::transmitting(&disk(), framing), &messages, cut);
    }

    #[test]
    fn any_bytes_are_answered_or_end_the_connection(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        greeted in any::<bool>(),
        cut in 1usize..50,
    ) {
        let exports = exports(&[("disk", &disk())], Security::Plain);
        let client = if greeted { Client::greeted(exports) } else { Client::new(exports) };
        converse(client, &[bytes], cut);
    }

    /// How the bytes are cut makes no difference to what the server says.
    #[test]
    fn cuts_do_not_matter(messages in proptest::collection::vec(requests(), 0..12), cut in 1usize..5000) {
        let answer = |cut: usize| {
            let mut client = Client::transmitting(&disk(), Some(OPT_STRUCTURED_REPLY));
            for piece in messages.concat().chunks(cut) {
                if client.send(piece) != Ok(piece.len()) {
                    break;
                }
            }
            client.drain();
            client.received
        };
        prop_assert_eq!(answer(cut), answer(usize::MAX));
    }
}
