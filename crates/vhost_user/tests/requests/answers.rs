//! What answers make of the used ring, and when the driver is to be notified.

use vhost_user::{QueueError, Request, Status};

use crate::ring::{
    AVAILABLE, DATA, DESCRIPTORS, EVENT_IDX, HEADER, NEXT, RING_SIZE, Ring, STATUS, USED, WRITE,
};

/// Offers a read of 512 bytes whose chain starts at `head`, and takes it.
fn read(ring: &mut Ring, head: u16) -> Request {
    ring.set_header(HEADER, 0, 0);
    let at = DESCRIPTORS + 16 * u64::from(head);
    ring.set_table(
        at,
        &[(HEADER, 16, NEXT, head + 1), (DATA, 512, WRITE | NEXT, head + 2), (STATUS, 1, WRITE, 0)],
    );
    ring.offer(head);
    ring.queue.take().unwrap().expect("one was offered")
}

#[test]
fn an_answer_is_a_status_and_an_entry_in_the_used_ring() {
    let mut ring = Ring::new();
    ring.write(STATUS, &[0xff]);
    let (first, second) = (read(&mut ring, 0), read(&mut ring, 3));
    assert_eq!(ring.queue.in_flight_count(), 2);
    ring.queue.answer(&second.reply_to, Status::IoError).unwrap();
    assert_eq!(ring.read(STATUS, 1), [1]);
    ring.queue.answer(&first.reply_to, Status::Ok).unwrap();
    assert_eq!(ring.read(STATUS, 1), [0]);
    assert_eq!(ring.queue.in_flight_count(), 0);
    assert_eq!(ring.read(USED + 2, 2), 2_u16.to_le_bytes());
    let entry = |head: u32| [head.to_le_bytes(), 513_u32.to_le_bytes()].concat();
    assert_eq!(ring.read(USED + 4, 16), [entry(3), entry(0)].concat());
}

#[test]
fn the_ring_goes_round() {
    let mut ring = Ring::new();
    for _ in 0..3 * RING_SIZE {
        let request = read(&mut ring, 0);
        ring.queue.answer(&request.reply_to, Status::Ok).unwrap();
    }
    assert!(ring.queue.take().unwrap().is_none());
    assert_eq!(ring.read(USED + 2, 2), (3 * RING_SIZE).to_le_bytes());
}

#[test]
fn a_driver_that_offers_more_than_the_ring_holds_is_stopped() {
    let mut ring = Ring::new();
    for _ in 0..RING_SIZE {
        read(&mut ring, 0);
    }
    ring.offer(0);
    let error = ring.queue.take().unwrap_err();
    assert!(matches!(error, QueueError::TooManyInFlight { in_flight: RING_SIZE, size: RING_SIZE }));
}

#[test]
fn without_event_index_a_flag_says_whether_to_notify() {
    let mut ring = Ring::new();
    assert!(!ring.queue.wants_notification().unwrap(), "there was no answer");
    let request = read(&mut ring, 0);
    ring.queue.answer(&request.reply_to, Status::Ok).unwrap();
    assert!(ring.queue.wants_notification().unwrap());
    assert!(!ring.queue.wants_notification().unwrap(), "there was no answer since");
    ring.write(AVAILABLE, &1_u16.to_le_bytes());
    let request = read(&mut ring, 0);
    ring.queue.answer(&request.reply_to, Status::Ok).unwrap();
    assert!(!ring.queue.wants_notification().unwrap());
}

#[test]
fn with_event_index_the_driver_is_notified_at_the_index_that_it_names() {
    let mut ring = Ring::with_features(EVENT_IDX);
    let used_event = AVAILABLE + 4 + 2 * u64::from(RING_SIZE);
    ring.write(used_event, &2_u16.to_le_bytes());
    let mut wanted = vec![];
    for _ in 0..5 {
        let request = read(&mut ring, 0);
        ring.queue.answer(&request.reply_to, Status::Ok).unwrap();
        wanted.push(ring.queue.wants_notification().unwrap());
    }
    assert_eq!(wanted, [false, false, true, false, false]);
}

#[test]
fn kicks_are_asked_for_by_index_or_by_flag_and_a_request_in_between_is_seen() {
    for features in [0, EVENT_IDX] {
        let mut ring = Ring::with_features(features);
        ring.queue.disable_kicks().unwrap();
        assert_eq!(ring.read(USED, 2)[0], u8::from(features == 0));
        read(&mut ring, 0);
        assert!(!ring.queue.enable_kicks().unwrap(), "nothing is available");
        assert_eq!(ring.read(USED, 2)[0], 0);
        let avail_event = USED + 4 + 8 * u64::from(RING_SIZE);
        assert_eq!(ring.read(avail_event, 2)[0], u8::from(features == EVENT_IDX));
        ring.offer(0);
        assert!(ring.queue.enable_kicks().unwrap(), "a request has become available");
    }
}
