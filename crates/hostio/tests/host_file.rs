//! What a `HostFile` promises beyond the conformance suite: open rules, size, holes, failures.

use block::{
    BlockDev, Buffer, ByteRange, Discard, Disk, ErrorKind, ExtentState, SgList, WriteFlags, ZeroFlags,
};
use hostio::{Cache, HostFile, Inline, OpenOptions, block_on};

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

/// A directory on a disk and one in memory, which take different paths through the crate.
fn directories() -> [tempfile::TempDir; 2] {
    [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()]
}

#[test]
fn what_is_written_is_there_after_reopening() {
    for directory in directories() {
        let path = directory.path().join("disk");
        block_on(async {
            let disk = Disk::new(HostFile::create(&path, 10_000, &OpenOptions::default()).unwrap());
            assert_eq!(disk.size(), 10_000);
            disk.write_all(4090, b"across a page").await.unwrap();
            disk.write(9_999, SgList::copy_of(b"!"), WriteFlags { fua: true }).await.unwrap();
            disk.flush().await.unwrap();
            disk.close().await.unwrap();
            assert_eq!(disk.read_vec(0, 1).await.unwrap_err().kind(), ErrorKind::Io);

            let disk = Disk::new(HostFile::open(&path, &OpenOptions::default()).unwrap());
            assert_eq!(disk.read_vec(4090, 13).await.unwrap(), b"across a page");
            assert_eq!(disk.read_vec(9_998, 2).await.unwrap(), b"\0!");
            assert_eq!(disk.write_all(0, b"x").await.unwrap_err().kind(), ErrorKind::ReadOnly);
        });
    }
}

#[test]
fn a_file_that_exists_is_never_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, b"precious").unwrap();
    let error = HostFile::create(&path, 5, &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_is_no_disk_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    for path in [pipe.as_path(), directory.path(), "/dev/null".as_ref()] {
        let error = HostFile::open(path, &OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    }
    let missing = HostFile::open(directory.path().join("none"), &OpenOptions::default()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_file_that_was_cut_under_us_is_reported_as_such() {
    for directory in directories() {
        let path = directory.path().join("disk");
        for inline in [Inline::Auto, Inline::Never] {
            std::fs::write(&path, [1; 8192]).unwrap();
            let options = OpenOptions { inline, ..OpenOptions::default() };
            let file = HostFile::open(&path, &options).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
            let error = block_on(file.read(4096, SgList::unspecified(4096))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.chain().contains("the file ends at 0x1388"), "{error:?}");
        }
    }
}

#[test]
fn resize_moves_the_end_and_new_bytes_are_zeroes() {
    for directory in directories() {
        let path = directory.path().join("disk");
        block_on(async {
            let disk = Disk::new(HostFile::create(&path, 4096, &OpenOptions::default()).unwrap());
            disk.write_all(0, &[9; 4096]).await.unwrap();
            disk.resize(100).await.unwrap();
            assert_eq!(disk.read_vec(0, 101).await.unwrap_err().kind(), ErrorKind::OutOfRange);
            disk.resize(4096).await.unwrap();
            let mut expected = vec![9; 100];
            expected.resize(4096, 0);
            assert_eq!(disk.read_vec(0, 4096).await.unwrap(), expected);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        });
    }
}

#[test]
fn holes_come_from_discards_and_go_with_writes_and_preallocation() {
    const MIB: u64 = 1 << 20;
    for directory in directories() {
        let path = directory.path().join("disk");
        block_on(async {
            let file = HostFile::create(&path, 4 * MIB, &OpenOptions::default()).unwrap();
            assert_eq!(file.info().discard, Discard::Zeroes);
            file.write(0, SgList::copy_of(&vec![1; 4 << 20]), WriteFlags::default()).await.unwrap();
            file.discard(range(MIB + 1, MIB)).await.unwrap();
            let mut extents = Vec::new();
            file.block_status(range(0, 4 * MIB), &mut extents).await.unwrap();
            let states: Vec<_> = extents.iter().map(|extent| extent.state).collect();
            assert_eq!(states, [ExtentState::Present, ExtentState::Zero, ExtentState::Present]);
            assert_eq!(extents[0].len, MIB + 4096, "the partial page at the edge stays allocated");
            assert_eq!(extents[2].host_offset, Some(2 * MIB));

            let edge = SgList::unspecified(3);
            file.read(MIB, edge.clone()).await.unwrap();
            assert_eq!(edge.to_vec(), [1, 0, 0], "and its part of the range is zeroes");

            let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
            let before = blocks();
            file.preallocate(range(MIB, MIB)).await.unwrap();
            assert!(blocks() > before);
            let error = file.preallocate(range(3 * MIB, 2 * MIB)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange);
        });
    }
}

#[test]
fn zeroes_that_may_not_unmap_keep_their_space() {
    for directory in directories() {
        let path = directory.path().join("disk");
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
        block_on(async {
            let disk = Disk::new(HostFile::create(&path, 1 << 20, &OpenOptions::default()).unwrap());
            disk.write_all(0, &vec![1; 1 << 20]).await.unwrap();
            disk.flush().await.unwrap();
            let full = blocks();
            let keep = ZeroFlags { fast_only: true, ..ZeroFlags::default() };
            disk.write_zeroes(range(5, 600_000), keep).await.unwrap();
            assert!(blocks() >= full, "space was given back");
            let unmap = ZeroFlags { may_unmap: true, fast_only: true, fua: true };
            disk.write_zeroes(range(0, 1 << 19), unmap).await.unwrap();
            assert!(blocks() < full, "space was not given back");
            let content = disk.read_vec(0, 1 << 20).await.unwrap();
            assert!(content[..600_005].iter().all(|byte| *byte == 0));
            assert!(content[600_005..].iter().all(|byte| *byte == 1));
        });
    }
}

#[test]
fn without_discard_nothing_is_unmapped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let options = OpenOptions { discard: false, ..OpenOptions::default() };
    block_on(async {
        let disk = Disk::new(HostFile::create(&path, 1 << 20, &options).unwrap());
        assert_eq!(disk.info().discard, Discard::Ignored);
        disk.write_all(0, &vec![1; 1 << 20]).await.unwrap();
        disk.discard(disk.range()).await.unwrap();
        assert_eq!(disk.read_vec(0, 1 << 20).await.unwrap(), vec![1; 1 << 20]);
        disk.write_zeroes(disk.range(), ZeroFlags { may_unmap: true, ..ZeroFlags::default() }).await.unwrap();
        assert_eq!(disk.read_vec(0, 1 << 20).await.unwrap(), vec![0; 1 << 20]);
        assert!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) >= 2048);
    });
}

#[test]
fn direct_access_takes_any_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let options = OpenOptions { cache: Cache::Direct, ..OpenOptions::default() };
    block_on(async {
        let disk = Disk::new(HostFile::create(&path, 4 << 20, &options).unwrap());
        assert!(disk.info().block_bytes >= 512);
        let content: Vec<u8> = (0..3 << 20u32).map(|index| (index % 251) as u8).collect();
        let mut odd = Buffer::zeroed(content.len() + 1);
        odd[1..].copy_from_slice(&content);
        let odd = odd.into_sg().slice(1, content.len() as u64);
        disk.write(4096, odd.clone(), WriteFlags::default()).await.unwrap();
        odd.fill(0, odd.len(), 0);
        disk.read(4096, odd.clone()).await.unwrap();
        assert!(odd.to_vec() == content);
        assert_eq!(disk.read_vec(0, 4096).await.unwrap(), [0; 4096]);
    });
}

#[test]
fn direct_access_to_an_odd_end_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [1; 1000]).unwrap();
    let options = OpenOptions { cache: Cache::Direct, ..OpenOptions::default() };
    let error = HostFile::open(&path, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misaligned);
    assert!(error.chain().contains("open it buffered"), "{error:?}");
}

#[test]
fn ranges_beyond_the_end_and_beyond_all_offsets_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let file = HostFile::create(&path, 4096, &OpenOptions::default()).unwrap();
    block_on(async {
        for offset in [1, 4096, u64::MAX - 4095, u64::MAX] {
            let memory = SgList::unspecified(4096);
            let error = file.read(offset, memory.clone()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange);
            let error = file.write(offset, memory, WriteFlags::default()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange);
        }
        file.read(4096, SgList::new()).await.unwrap();
        assert_eq!(file.read(4097, SgList::new()).await.unwrap_err().kind(), ErrorKind::OutOfRange);
    });
}
