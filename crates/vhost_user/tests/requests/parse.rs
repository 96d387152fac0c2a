//! Chains of descriptors, good and bad, and what they are taken for.

use block::ByteRange;
use vhost_user::{
    ChainError, DESCRIPTORS_MAX, DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, Operation, QueueError, Request,
    Status, ZeroRange,
};

use crate::ring::{
    DATA, DESCRIPTORS, HEADER, INDIRECT, IS_INDIRECT, MEMORY_BYTES, NEXT, Ring, STATUS, WRITE,
};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

type Descriptor = (u64, u32, u16, u16);

/// A chain in which each descriptor's successor is the next one.
fn linked(parts: &[(u64, u32, u16)]) -> Vec<Descriptor> {
    let last = parts.len() - 1;
    let link = |(at, &(start, len, flags)): (usize, &(u64, u32, u16))| {
        (start, len, if at == last { flags } else { flags | NEXT }, at as u16 + 1)
    };
    parts.iter().enumerate().map(link).collect()
}

fn take(ring: &mut Ring, table: &[Descriptor]) -> Result<Request, QueueError> {
    ring.set_table(DESCRIPTORS, table);
    ring.offer(0);
    ring.queue.take().map(|request| request.expect("one was offered"))
}

/// What a request of `kind` at `sector` is taken for, whose chain is `parts` after a header.
fn operation(kind: u32, sector: u64, parts: &[(u64, u32, u16)]) -> Result<Operation, Status> {
    let mut ring = Ring::new();
    ring.set_header(HEADER, kind, sector);
    let chain = linked(&[&[(HEADER, 16, 0)], parts].concat());
    take(&mut ring, &chain).expect("the chain is sound").operation
}

fn chain_error(table: &[Descriptor]) -> ChainError {
    let mut ring = Ring::new();
    ring.set_header(HEADER, IN, 0);
    match take(&mut ring, table) {
        Err(QueueError::Chain { head: 0, source }) => source,
        Err(error) => panic!("another error: {error:?}"),
        Ok(request) => panic!("taken for {request:?}"),
    }
}

#[test]
fn a_reads_scatter_list_is_the_guests_memory() {
    let mut ring = Ring::new();
    ring.set_header(HEADER, IN, 7);
    let chain =
        linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (DATA + 0x5000, 1024, WRITE), (STATUS, 1, WRITE)]);
    let request = take(&mut ring, &chain).unwrap();
    let Ok(Operation::Read { offset, into }) = request.operation else { panic!("{request:?}") };
    assert_eq!((offset, into.len(), into.segments().len()), (7 * 512, 1536, 2));
    into.copy_from_slice(510, b"abcd");
    assert_eq!(ring.read(DATA + 510, 2), b"ab");
    assert_eq!(ring.read(DATA + 0x5000, 2), b"cd");
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut ring = Ring::new();
    ring.write(DATA, &[0x5a; 600]);
    ring.set_header(HEADER, OUT, 1);
    // Ten bytes of the header, the rest of it together with a copy of the data's start, the data, and a status that
    // is the last of several writable bytes.
    ring.write(HEADER + 0x100, &ring.read(HEADER + 10, 6));
    ring.write(HEADER + 0x106, b"start");
    let chain = linked(&[(HEADER, 10, 0), (HEADER + 0x100, 11, 0), (DATA, 507, 0), (STATUS, 3, WRITE)]);
    let request = take(&mut ring, &chain).unwrap();
    let Ok(Operation::Write { offset: 512, from }) = request.operation else { panic!("{request:?}") };
    assert_eq!((from.len(), &from.to_vec()[..6]), (512, &b"start\x5a"[..]));
    ring.queue.answer(&request.reply_to, Status::Unsupported).unwrap();
    assert_eq!(ring.read(STATUS, 4), [0, 0, 2, 0]);
}

#[test]
fn an_indirect_table_is_followed_also_after_direct_descriptors() {
    for direct in [false, true] {
        let mut ring = Ring::new();
        ring.set_header(HEADER, IN, 0);
        let rest = [(DATA, 4096, WRITE), (STATUS, 1, WRITE)];
        if direct {
            ring.set_table(INDIRECT, &linked(&rest));
            ring.set_table(DESCRIPTORS, &[(HEADER, 16, NEXT, 5)]);
            ring.set_table(DESCRIPTORS + 5 * 16, &[(INDIRECT, 32, IS_INDIRECT, 0)]);
        } else {
            ring.set_table(INDIRECT, &linked(&[&[(HEADER, 16, 0)], &rest[..]].concat()));
            ring.set_table(DESCRIPTORS, &[(INDIRECT, 48, IS_INDIRECT, 0)]);
        }
        ring.offer(0);
        let request = ring.queue.take().unwrap().unwrap();
        assert!(matches!(request.operation, Ok(Operation::Read { offset: 0, into }) if into.len() == 4096));
    }
}

#[test]
fn chains_whose_extent_is_in_doubt_are_errors_of_the_queue() {
    let beyond = MEMORY_BYTES;
    let size = 16;
    for (table, error) in [
        (vec![(HEADER, 16, NEXT, 16)], ChainError::IndexOutOfRange { index: 16, size }),
        (vec![(HEADER, 16, NEXT, 0)], ChainError::TooLong { max: DESCRIPTORS_MAX }),
        (vec![(HEADER, 16, NEXT, 1), (DATA, 0, NEXT, 0)], ChainError::TooLong { max: DESCRIPTORS_MAX }),
        (vec![(HEADER, 16, 0, 0)], ChainError::NoStatus),
        (vec![(HEADER, 16, NEXT, 1), (STATUS, 0, WRITE, 0)], ChainError::NoStatus),
        (linked(&[(HEADER, 16, 0), (STATUS, 1, WRITE), (DATA, 512, 0)]), ChainError::ReadableAfterWritable),
        (linked(&[(HEADER, 16, 0), (beyond, 1, WRITE)]), ChainError::StatusOutsideMemory { address: beyond }),
        (vec![(INDIRECT, 24, IS_INDIRECT, 0)], ChainError::IndirectLength { len: 24 }),
        (vec![(INDIRECT, 0, IS_INDIRECT, 0)], ChainError::IndirectLength { len: 0 }),
        (vec![(INDIRECT, 16, IS_INDIRECT | NEXT, 0)], ChainError::NestedIndirect),
        (vec![(beyond, 16, IS_INDIRECT, 0)], ChainError::TableOutsideMemory { address: beyond }),
    ] {
        assert_eq!(chain_error(&table), error);
    }
}

#[test]
fn an_address_that_wraps_is_not_in_memory() {
    let table = linked(&[(HEADER, 16, 0), (u64::MAX, 2, WRITE)]);
    assert_eq!(chain_error(&table), ChainError::NoStatus);
    let wrapping = [(u64::MAX - 100, 512, WRITE), (STATUS, 1, WRITE)];
    assert_eq!(operation(IN, 0, &wrapping).unwrap_err(), Status::IoError);
}

#[test]
fn nested_indirect_tables_and_long_ones_are_refused() {
    let mut ring = Ring::new();
    ring.set_table(INDIRECT, &[(INDIRECT, 16, IS_INDIRECT, 0)]);
    let nested = take(&mut ring, &[(INDIRECT, 16, IS_INDIRECT, 0)]).unwrap_err();
    assert!(matches!(nested, QueueError::Chain { source: ChainError::NestedIndirect, .. }));
    for (count, is_taken) in [(DESCRIPTORS_MAX, true), (DESCRIPTORS_MAX + 1, false)] {
        let mut ring = Ring::new();
        ring.set_header(HEADER, IN, 0);
        // The direct descriptor counts as well.
        let mut parts = vec![(HEADER, 16, 0)];
        parts.resize(usize::from(count) - 2, (DATA, 512, WRITE));
        parts.push((STATUS, 1, WRITE));
        let table = linked(&parts);
        ring.set_table(INDIRECT, &table);
        let taken = take(&mut ring, &[(INDIRECT, 16 * table.len() as u32, IS_INDIRECT, 0)]);
        assert_eq!(taken.is_ok(), is_taken, "{count} descriptors");
    }
}

#[test]
fn a_head_that_is_not_in_the_ring_is_an_error_of_the_queue() {
    let mut ring = Ring::new();
    ring.offer(16);
    let error = ring.queue.take().unwrap_err();
    let expected = ChainError::IndexOutOfRange { index: 16, size: 16 };
    assert!(matches!(error, QueueError::Chain { head: 16, source } if source == expected), "{error:?}");
}

#[test]
fn requests_that_are_wrong_inside_are_refused() {
    let status = (STATUS, 1, WRITE);
    let data = |len| (DATA, len, WRITE);
    for (kind, sector, parts, refusal) in [
        (99, 0, vec![status], Status::Unsupported),
        (IN, 0, vec![data(511), status], Status::IoError),
        (IN, u64::MAX, vec![data(512), status], Status::IoError),
        (IN, u64::MAX / 512, vec![data(512), status], Status::IoError),
        (IN, i64::MAX as u64 / 512, vec![data(512), status], Status::IoError),
        (IN, 0, vec![(MEMORY_BYTES - 256, 512, WRITE), status], Status::IoError),
        (OUT, 0, vec![(MEMORY_BYTES, 512, 0), status], Status::IoError),
        (IN, 0, [vec![data(8 << 20); 129], vec![status]].concat(), Status::IoError),
        (DISCARD, 0, vec![status], Status::IoError),
        (DISCARD, 0, vec![(DATA, 15, 0), status], Status::IoError),
        (DISCARD, 0, vec![(DATA, 16 * (DISCARD_SEGMENTS_MAX + 1), 0), status], Status::IoError),
        (WRITE_ZEROES, 0, vec![(MEMORY_BYTES - 8, 16, 0), status], Status::IoError),
    ] {
        let name = format!("{kind} at {sector} with {} parts", parts.len());
        let mut ring = Ring::new();
        ring.set_header(HEADER, kind, sector);
        let table = linked(&[vec![(HEADER, 16, 0)], parts].concat());
        ring.set_table(INDIRECT, &table);
        let request = take(&mut ring, &[(INDIRECT, 16 * table.len() as u32, IS_INDIRECT, 0)]).unwrap();
        assert_eq!(request.operation.unwrap_err(), refusal, "{name}");
    }
}

#[test]
fn a_header_that_is_cut_short_is_refused() {
    let mut ring = Ring::new();
    let request = take(&mut ring, &linked(&[(HEADER, 15, 0), (STATUS, 1, WRITE)])).unwrap();
    assert_eq!(request.operation.unwrap_err(), Status::IoError);
}

#[test]
fn requests_without_data_are_what_they_say() {
    let status = (STATUS, 1, WRITE);
    assert!(matches!(operation(FLUSH, 0, &[status]), Ok(Operation::Flush)));
    let id = operation(GET_ID, 0, &[(DATA, 20, WRITE), status]);
    assert!(matches!(id, Ok(Operation::GetId { into }) if into.len() == 20));
    let empty = operation(IN, 3, &[status]);
    assert!(matches!(empty, Ok(Operation::Read { offset: 1536, into }) if into.is_empty()));
}

/// What the segments `(sector, count, flags)` of a discard or write-zeroes request are taken for.
fn ranges(kind: u32, segments: &[(u64, u32, u32)]) -> Result<Vec<(u64, u64, bool)>, Status> {
    let mut ring = Ring::new();
    ring.set_header(HEADER, kind, 0);
    let bytes: Vec<u8> = segments
        .iter()
        .flat_map(|&(sector, count, flags)| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        })
        .collect();
    ring.write(DATA, &bytes);
    let chain = linked(&[(HEADER, 16, 0), (DATA, bytes.len() as u32, 0), (STATUS, 1, WRITE)]);
    match take(&mut ring, &chain).unwrap().operation? {
        Operation::Discard(ranges) | Operation::WriteZeroes(ranges) => {
            let plain = |ZeroRange { range, may_unmap }: &ZeroRange| (range.start(), range.len(), *may_unmap);
            Ok(ranges.iter().map(plain).collect())
        }
        other => panic!("taken for {other:?}"),
    }
}

#[test]
fn discard_and_write_zeroes_have_several_segments_and_their_flags() {
    let several = [(1, 2, 0), (10, 1, 0), (0, 0, 0)];
    let expected = vec![(512, 1024, false), (5120, 512, false), (0, 0, false)];
    assert_eq!(ranges(DISCARD, &several), Ok(expected.clone()));
    assert_eq!(ranges(WRITE_ZEROES, &several), Ok(expected));
    assert_eq!(ranges(WRITE_ZEROES, &[(0, 8, 1)]), Ok(vec![(0, 4096, true)]));
    assert_eq!(ranges(WRITE_ZEROES, &[(0, 8, 2)]), Err(Status::Unsupported));
    assert_eq!(ranges(DISCARD, &[(0, 8, 0), (8, 8, 1)]), Err(Status::Unsupported));
    assert_eq!(ranges(DISCARD, &[(0, DISCARD_SECTORS_MAX + 1, 0)]), Err(Status::IoError));
    assert_eq!(ranges(DISCARD, &[(u64::MAX / 512, 2, 0)]), Err(Status::IoError));
    let most = vec![(0, DISCARD_SECTORS_MAX, 0); DISCARD_SEGMENTS_MAX as usize];
    assert_eq!(ranges(DISCARD, &most).map(|ranges| ranges.len()), Ok(DISCARD_SEGMENTS_MAX as usize));
    assert!(ByteRange::new(0, u64::from(DISCARD_SECTORS_MAX) * 512).is_some());
}
