//! Chains of real files: how a parent is found, recognised, locked and read.

use std::path::{Path, PathBuf};

use block::{Disk, ErrorKind, Extent};
use graph::{
    ChainError, ChainOptions, DEPTH_MAX, Format, ParentMismatch, describe_chain, find_parent, open_chain,
};
use hostio::{HostFile, OpenOptions, block_on};
use image::vhdx::layout::MIB;
use image::vhdx::{Access, CreateOptions, Kind, Opened, ParentLocator, create, open};
use tempfile::TempDir;
use uuid::Uuid;

const SIZE: u64 = 16 * MIB;

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A dynamic disk whose first MiB holds `value`.
    fn base(&self, name: &str, value: u8) -> PathBuf {
        let path = self.path(name);
        create_at(&path, &CreateOptions::new(SIZE, Kind::Dynamic));
        write(&path, 0, &[value; MIB as usize]);
        path
    }

    /// A child of the disk at `parent`.
    fn child(&self, name: &str, parent: &Path) -> PathBuf {
        self.child_with(name, parent, |_| {})
    }

    fn child_with(&self, name: &str, parent: &Path, change: impl FnOnce(&mut CreateOptions)) -> PathBuf {
        let path = self.path(name);
        let opened = open_alone(parent);
        let options = CreateOptions::child_of(&opened, parent, path.parent().unwrap());
        let mut options = block_on(options).unwrap();
        change(&mut options);
        create_at(&path, &options);
        path
    }
}

fn create_at(path: &Path, options: &CreateOptions) {
    let file = Disk::new(HostFile::create(path, 0, &OpenOptions::default()).unwrap());
    block_on(create(&file, options)).unwrap();
    block_on(file.close()).unwrap();
}

fn open_alone(path: &Path) -> Opened {
    let file = Disk::new(HostFile::open(path, &OpenOptions::default()).unwrap());
    block_on(open(file, Access::ReadOnly)).unwrap()
}

fn data_write_guid(path: &Path) -> Uuid {
    open_alone(path).header().data_write_guid
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    block_on(async {
        let chain = open_chain(path, &ChainOptions::read_write()).await.unwrap();
        chain.disk.write_all(offset, bytes).await.unwrap();
        chain.disk.close().await.unwrap();
    });
}

fn read(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    block_on(async {
        let chain = open_chain(path, &ChainOptions::default()).await.unwrap();
        chain.disk.read_vec(offset, len).await.unwrap()
    })
}

fn refusal(path: &Path, options: &ChainOptions) -> ChainError {
    block_on(open_chain(path, options)).expect_err("the chain is refused")
}

/// The whole chain of an error's sentences.
fn chain_of(error: &ChainError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

#[test]
fn each_layer_shows_what_the_layers_above_do_not_hide() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let middle = dir.child("middle.vhdx", &base);
    write(&middle, 4096, &[2; 8192]);
    let top = dir.child("top.vhdx", &middle);
    write(&top, 8192, &[3; 512]);

    let bytes = read(&top, 0, 16384);
    assert!(bytes[..4096].iter().all(|byte| *byte == 1));
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 2));
    assert!(bytes[8192..8704].iter().all(|byte| *byte == 3));
    assert!(bytes[8704..12288].iter().all(|byte| *byte == 2));
    assert!(bytes[12288..].iter().all(|byte| *byte == 1));
    block_on(async {
        let chain = open_chain(&top, &ChainOptions::default()).await.unwrap();
        let paths: Vec<_> = chain.layers.iter().map(|layer| layer.path.file_name().unwrap()).collect();
        assert_eq!(paths, ["top.vhdx", "middle.vhdx", "base.vhdx"]);
        let mut extents: Vec<Extent> = Vec::new();
        chain.disk.block_status(chain.disk.range(), &mut extents).await.unwrap();
        let depths: Vec<_> = extents.iter().take(4).map(|extent| (extent.depth, extent.len)).collect();
        assert_eq!(depths, [(2, 4096), (1, 4096), (0, 512), (1, 3584)]);
        assert!(extents[4].depth == 2 && extents[4].len >= MIB - 12288);
    });
}

#[test]
fn writing_through_a_child_leaves_its_ancestors_as_they_are() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let child = dir.child("child.vhdx", &base);
    let before = std::fs::read(&base).unwrap();
    write(&child, 0, &[9; 4096]);
    assert!(std::fs::read(&base).unwrap() == before);
    assert_eq!(read(&child, 0, 4096), [9; 4096]);
}

#[test]
fn opening_for_writing_without_writing_keeps_the_identifiers() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let child = dir.child("child.vhdx", &base);
    let before = std::fs::read(&child).unwrap();
    let chain = block_on(open_chain(&child, &ChainOptions::read_write())).unwrap();
    block_on(chain.disk.close()).unwrap();
    assert!(std::fs::read(&child).unwrap() == before);
}

#[test]
fn a_parent_that_was_changed_is_refused_with_both_identifiers_and_the_ways_out() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let child = dir.child("child.vhdx", &base);
    let expected = data_write_guid(&base);
    write(&base, 0, &[5; 512]);
    let found = data_write_guid(&base);
    assert_ne!(expected, found);

    let error = refusal(&child, &ChainOptions::default());
    assert!(matches!(error, ChainError::ParentMismatch(_)));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    for fact in [&expected.to_string(), &found.to_string(), base.to_str().unwrap(), child.to_str().unwrap()] {
        assert!(text.contains(fact), "{fact} is not in: {text}");
    }
    for way_out in ["--allow-parent-mismatch", "rebase --accept-parent"] {
        assert!(text.contains(way_out), "{text}");
    }

    let allowed = ChainOptions { parent_mismatch: ParentMismatch::AllowReadOnly, ..ChainOptions::default() };
    let chain = block_on(open_chain(&child, &allowed)).unwrap();
    assert_eq!(block_on(chain.disk.read_vec(0, 512)).unwrap(), [5; 512]);
    assert!(block_on(chain.disk.write_all(0, &[1; 512])).is_err());
    assert_eq!(chain.layers[0].mismatch.as_ref().map(|mismatch| mismatch.found), Some(found));
    drop(chain);
    let before = std::fs::read(&child).unwrap();
    let error = refusal(&child, &ChainOptions { access: Access::ReadWrite, ..allowed });
    assert!(matches!(error, ChainError::MismatchIsReadOnly { .. }));
    assert!(std::fs::read(&child).unwrap() == before);

    let described = block_on(describe_chain(&child, &ChainOptions::default())).unwrap();
    assert!(described.problem.is_none() && described.layers[0].mismatch.is_some());
}

#[test]
fn a_second_linkage_is_honoured() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let opened = open_alone(&base);
    let child = dir.child_with("child.vhdx", &base, |options| {
        let locator = ParentLocator::for_parent(Uuid::from_u128(1), dir.0.path(), &base).unwrap();
        let second = Some(opened.header().data_write_guid);
        options.kind = Kind::Differencing { locator: locator.with_linkage2(second) };
    });
    assert_eq!(read(&child, 0, 512), [1; 512]);
}

#[test]
fn a_missing_parent_is_refused_with_the_places_that_were_tried() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let child = dir.child("child.vhdx", &base);
    std::fs::remove_file(&base).unwrap();
    let error = refusal(&child, &ChainOptions::default());
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&format!("looked for {}", base.display())), "{error}");
    let described = block_on(describe_chain(&child, &ChainOptions::default())).unwrap();
    assert_eq!(described.layers.len(), 1);
    assert!(matches!(described.problem, Some(ChainError::ParentMissing { .. })));
}

#[test]
fn a_parent_is_found_where_it_was_moved_with_its_child_or_without() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("a")).unwrap();
    let base = dir.base("a/base.vhdx", 1);
    let child = dir.child("a/child.vhdx", &base);
    // The absolute path still leads to the parent.
    let alone = dir.path("child.vhdx");
    std::fs::rename(&child, &alone).unwrap();
    assert_eq!(read(&alone, 0, 512), [1; 512]);
    std::fs::rename(&alone, &child).unwrap();
    // Only the relative path does.
    std::fs::rename(dir.path("a"), dir.path("b")).unwrap();
    assert_eq!(read(&dir.path("b/child.vhdx"), 0, 512), [1; 512]);
    // The child's name is a link from elsewhere.
    std::fs::create_dir(dir.path("c")).unwrap();
    std::os::unix::fs::symlink("../b/child.vhdx", dir.path("c/link.vhdx")).unwrap();
    assert_eq!(read(&dir.path("c/link.vhdx"), 0, 512), [1; 512]);
}

#[test]
fn another_disk_under_the_parents_name_does_not_hide_the_parent() {
    let dir = Dir::new();
    for name in ["a", "b"] {
        std::fs::create_dir(dir.path(name)).unwrap();
    }
    let base = dir.base("a/base.vhdx", 1);
    let child = dir.child("a/child.vhdx", &base);
    std::fs::rename(&child, dir.path("b/child.vhdx")).unwrap();
    dir.base("b/base.vhdx", 2);
    assert_eq!(read(&dir.path("b/child.vhdx"), 0, 512), [1; 512]);
}

#[test]
fn a_parent_that_somebody_writes_is_refused_to_a_child_and_the_other_way_round() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let child = dir.child("child.vhdx", &base);
    let writer = block_on(open_chain(&base, &ChainOptions::read_write())).unwrap();
    for options in [ChainOptions::default(), ChainOptions::read_write()] {
        let error = refusal(&child, &options);
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(chain_of(&error).contains(base.to_str().unwrap()), "{}", chain_of(&error));
    }
    drop(writer);
    let reader = block_on(open_chain(&child, &ChainOptions::read_write())).unwrap();
    assert_eq!(refusal(&base, &ChainOptions::read_write()).kind(), ErrorKind::Busy);
    // Another child of the same parent does not disturb.
    let second = dir.child("second.vhdx", &base);
    write(&second, 0, &[7; 512]);
    drop(reader);
}

#[test]
fn a_chain_that_closes_on_itself_is_refused() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let linkage = data_write_guid(&base);
    let naming = |name: &str| {
        let locator = ParentLocator::for_parent(linkage, dir.0.path(), &dir.path(name)).unwrap();
        CreateOptions::new(SIZE, Kind::Differencing { locator })
    };
    create_at(&dir.path("self.vhdx"), &naming("self.vhdx"));
    for options in [ChainOptions::default(), ChainOptions::read_write()] {
        assert!(matches!(refusal(&dir.path("self.vhdx"), &options), ChainError::Loop { .. }));
    }
    create_at(&dir.path("a.vhdx"), &naming("b.vhdx"));
    create_at(&dir.path("b.vhdx"), &naming("a.vhdx"));
    let allowed = ChainOptions { parent_mismatch: ParentMismatch::AllowReadOnly, ..ChainOptions::default() };
    assert!(matches!(refusal(&dir.path("a.vhdx"), &allowed), ChainError::Loop { .. }));
}

#[test]
fn child_and_parent_have_the_same_sectors() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    let child = dir.child_with("child.vhdx", &base, |options| options.logical_sector_bytes = 4096);
    assert!(matches!(refusal(&child, &ChainOptions::default()), ChainError::SectorSizes { .. }));
}

#[test]
fn a_child_larger_than_its_parent_reads_zeroes_beyond_its_end() {
    let dir = Dir::new();
    let base = dir.path("base.vhdx");
    create_at(&base, &CreateOptions::new(MIB + 512, Kind::Dynamic));
    write(&base, MIB, &[1; 512]);
    let child = dir.child_with("child.vhdx", &base, |options| options.virtual_size = SIZE);
    let bytes = read(&child, MIB, 4096);
    assert_eq!((&bytes[..512], &bytes[512..]), (&[1; 512][..], &[0; 3584][..]));
    write(&child, SIZE - 512, &[2; 512]);
    assert_eq!(read(&child, SIZE - 1024, 1024)[512..], [2; 512]);
}

#[test]
fn a_parents_dirty_log_is_replayed_in_memory_only() {
    let dir = Dir::new();
    let base = dir.base("base.vhdx", 1);
    // Flushed and not closed: the new block is known to the log only.
    block_on(async {
        let chain = open_chain(&base, &ChainOptions::read_write()).await.unwrap();
        chain.disk.write_all(0, &[4; 512]).await.unwrap();
        chain.disk.flush().await.unwrap();
        chain.disk.write_all(8 * MIB, &[4; 512]).await.unwrap();
        chain.disk.flush().await.unwrap();
    });
    let before = std::fs::read(&base).unwrap();
    let child = dir.child("child.vhdx", &base);
    assert!(open_alone(&base).was_dirty);
    assert_eq!((read(&child, 0, 512), read(&child, 8 * MIB, 512)), (vec![4; 512], vec![4; 512]));
    write(&child, 4096, &[5; 512]);
    assert!(std::fs::read(&base).unwrap() == before);
    let parent = block_on(find_parent(&child, &open_alone(&child), &ChainOptions::default())).unwrap();
    assert_eq!(parent.unwrap().path, base);
}

#[test]
fn a_chain_has_a_limit_and_is_readable_up_to_it() {
    let dir = Dir::new();
    let mut path = dir.base("0.vhdx", 1);
    for index in 1..DEPTH_MAX {
        path = dir.child(&format!("{index}.vhdx"), &path);
    }
    assert_eq!(read(&path, 0, 4096), [1; 4096]);
    write(&path, 4096, &[2; 4096]);
    let one_more = dir.child("one-more.vhdx", &path);
    assert!(matches!(refusal(&one_more, &ChainOptions::default()), ChainError::TooDeep { .. }));
}

#[test]
fn content_never_decides_the_format() {
    let dir = Dir::new();
    let vhdx = dir.base("disk.vhdx", 1);
    let bytes = std::fs::read(&vhdx).unwrap();
    let (raw, unnamed) = (dir.path("disk.raw"), dir.path("disk"));
    std::fs::write(&raw, &bytes).unwrap();
    std::fs::write(&unnamed, &bytes).unwrap();
    assert_eq!(read(&raw, 0, 8), b"vhdxfile"[..]);
    assert!(matches!(refusal(&unnamed, &ChainOptions::default()), ChainError::UnknownFormat { .. }));
    let given = ChainOptions { format: Some(Format::Vhdx), ..ChainOptions::default() };
    let chain = block_on(open_chain(&unnamed, &given)).unwrap();
    assert_eq!(block_on(chain.disk.read_vec(0, 512)).unwrap(), [1; 512]);
}
