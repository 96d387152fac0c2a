//! The program that works inside the test guest: writes data whose content is known beforehand, says on the console
//! what is durable, and verifies it later, in the guest or on the host.
//!
//! It uses the standard library only and is linked statically, because the guest has nothing else. See README.md.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const BLOCK_BYTES: usize = 4096;
/// O_DIRECT on x86-64: reads that verify must come from the disk, not from the page cache.
const O_DIRECT: i32 = 0o40000;
/// The first bytes of every block, so that a stray block is told from zeroes and from other files.
const MAGIC: u64 = 0x676f_6477_6974_0001;

/// Writers that append, delete what is old, and so make the file system allocate and free.
const APPENDERS: u64 = 2;
/// Writers that overwrite in place with O_DIRECT.
const RINGS: u64 = 2;
const RING_BLOCKS: u64 = 4096;
/// A ring writer promises its last blocks only, far fewer than its ring holds: an acknowledgement may sit in the
/// console's buffers (some hundred lines) while the writer goes on, and must still be true when it is read.
const RING_BLOCKS_PROMISED: u64 = 1024;
const SEGMENT_BLOCKS: u64 = 1024;
/// An appender keeps this many segment files; older ones are deleted, for fstrim to find.
const SEGMENTS_KEPT: u64 = 4;
/// Of these it promises the newest, again because acknowledgements may be read late.
const SEGMENTS_PROMISED: u64 = 2;
const BATCH_BLOCKS_MAX: u64 = 16;

#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

impl Block {
    fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_BYTES]))
    }

    /// The block that `writer` writes as its number `seq`: the same on every machine at every time.
    fn set(&mut self, writer: u64, seq: u64) {
        let mut random = Random(writer.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seq.wrapping_add(1));
        for word in self.0.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        for (at, value) in [MAGIC, writer, seq].into_iter().enumerate() {
            self.0[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Whether the block is whole, and whose it is: `(writer, seq)`.
    fn identify(&self, scratch: &mut Self) -> Option<(u64, u64)> {
        let word = |at: usize| u64::from_le_bytes(self.0[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
        let (writer, seq) = (word(1), word(2));
        scratch.set(writer, seq);
        (word(0) == MAGIC && self.0 == scratch.0).then_some((writer, seq))
    }
}

/// xorshift64*: fast under emulation, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = if self.0 == 0 { MAGIC } else { self.0 };
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}

type Result<T> = std::result::Result<T, String>;

trait Context<T> {
    fn context(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

const USAGE: &str = "usage: worker fill|check DIR FILES BLOCKS | load DIR | verify DIR WRITER:FLOOR:SEQ...";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match *args {
        ["fill", dir, files, blocks] => known_files(dir, files, blocks, fill),
        ["check", dir, files, blocks] => known_files(dir, files, blocks, check),
        ["load", dir] => load(Path::new(dir)),
        ["verify", dir, ref acknowledged @ ..] => verify(Path::new(dir), acknowledged),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("worker: FAILED: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One line, one system call, so that lines of different threads do not mix on the console.
fn say(line: &str) {
    let _ = io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

// --- known files -------------------------------------------------------------------------------------------------

/// Does `each(path, index, blocks)` for the files 0 to `files`; it says whether there was anything to do.
fn known_files(dir: &str, files: &str, blocks: &str, each: KnownFile) -> Result<()> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let (files, blocks) = (number(files)?, number(blocks)?);
    let mut done = 0;
    for index in 0..files {
        let path = Path::new(dir).join(format!("file-{index}"));
        done += u64::from(each(&path, index, blocks)?);
    }
    say(&format!("worker: {done} files of {blocks} blocks done"));
    Ok(())
}

type KnownFile = fn(&Path, u64, u64) -> Result<bool>;

fn fill(path: &Path, index: u64, blocks: u64) -> Result<bool> {
    let mut file = File::create(path).context(path.display())?;
    let mut block = Block::zeroed();
    for seq in 0..blocks {
        block.set(1000 + index, seq);
        file.write_all(&block.0).context(path.display())?;
    }
    file.sync_all().context(path.display())?;
    Ok(true)
}

fn check(path: &Path, index: u64, blocks: u64) -> Result<bool> {
    if !path.exists() {
        // It was deleted on purpose; the caller sees it in the count.
        return Ok(false);
    }
    let file = File::open(path).context(path.display())?;
    let (mut block, mut scratch) = (Block::zeroed(), Block::zeroed());
    for seq in 0..blocks {
        file.read_exact_at(&mut block.0, seq * BLOCK_BYTES as u64).context(path.display())?;
        if block.identify(&mut scratch) != Some((1000 + index, seq)) {
            return Err(format!("{}: block {seq} is not what was written", path.display()));
        }
    }
    Ok(true)
}

// --- load --------------------------------------------------------------------------------------------------------

/// What the writers share: what each has made durable, and whether to go on.
struct Load {
    dir: PathBuf,
    stop: AtomicBool,
    /// One past the last durable block of each writer.
    durable: Vec<AtomicU64>,
    failed: Mutex<Option<String>>,
}

/// Writes until a line comes on standard input (or its end), saying `ack WRITER FLOOR SEQ.` after each fsync: all of
/// the writer's blocks from FLOOR up to, not including, SEQ are durable. Reads back at the same time.
fn load(dir: &Path) -> Result<()> {
    let writers = APPENDERS + RINGS;
    let load = Load {
        dir: dir.to_owned(),
        stop: AtomicBool::new(false),
        durable: (0..writers).map(|_| AtomicU64::new(0)).collect(),
        failed: Mutex::new(None),
    };
    let load = &load;
    std::thread::scope(|scope| {
        for writer in 0..APPENDERS {
            scope.spawn(move || load.run(|| append(load, writer)));
        }
        for writer in APPENDERS..writers {
            scope.spawn(move || load.run(|| overwrite(load, writer)));
        }
        scope.spawn(move || load.run(|| read_back(load)));
        scope.spawn(move || {
            // A stop order or the end of the input; either way the writers end in order.
            let _ = io::stdin().lock().read(&mut [0; 1]);
            load.stop.store(true, SeqCst);
        });
        say("load: running");
    });
    match load.failed.lock().expect("no thread panics with it").take() {
        Some(error) => Err(error),
        None => {
            say("load: stopped, no error seen");
            Ok(())
        }
    }
}

impl Load {
    fn run(&self, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = work() {
            say(&format!("load: ERROR: {error}"));
            self.failed.lock().expect("no thread panics with it").get_or_insert(error);
            self.stop.store(true, SeqCst);
        }
    }

    fn running(&self) -> bool {
        !self.stop.load(SeqCst)
    }

    fn acknowledge(&self, writer: u64, floor: u64, end: u64) {
        self.durable[writer as usize].store(end, SeqCst);
        say(&format!("ack {writer} {floor} {end}."));
    }
}

fn segment_path(dir: &Path, writer: u64, segment: u64) -> PathBuf {
    dir.join(format!("append-{writer}-{segment}"))
}

fn ring_path(dir: &Path, writer: u64) -> PathBuf {
    dir.join(format!("ring-{writer}"))
}

fn append(load: &Load, writer: u64) -> Result<()> {
    let mut random = Random(writer + 1);
    let mut block = Block::zeroed();
    let mut seq = 0;
    for segment in 0.. {
        let path = segment_path(&load.dir, writer, segment);
        let mut file = File::create(&path).context(path.display())?;
        File::open(&load.dir).and_then(|dir| dir.sync_all()).context("sync the directory")?;
        let floor = (segment + 1).saturating_sub(SEGMENTS_PROMISED) * SEGMENT_BLOCKS;
        load.acknowledge(writer, floor, seq);
        if let Some(old) = segment.checked_sub(SEGMENTS_KEPT) {
            let old = segment_path(&load.dir, writer, old);
            std::fs::remove_file(&old).context(old.display())?;
        }
        let end = (segment + 1) * SEGMENT_BLOCKS;
        while seq < end {
            if !load.running() {
                return Ok(());
            }
            let batch = (1 + random.below(BATCH_BLOCKS_MAX)).min(end - seq);
            for at in seq..seq + batch {
                block.set(writer, at);
                file.write_all(&block.0).context(path.display())?;
            }
            file.sync_data().context(path.display())?;
            seq += batch;
            load.acknowledge(writer, floor, seq);
        }
    }
    Ok(())
}

/// Block `seq` lives in slot `seq % RING_BLOCKS`; a slot is written again only after a whole turn.
fn overwrite(load: &Load, writer: u64) -> Result<()> {
    let path = ring_path(&load.dir, writer);
    let mut random = Random(writer + 1);
    let mut block = Block::zeroed();
    let file = OpenOptions::new().create(true).truncate(true).write(true).custom_flags(O_DIRECT).open(&path);
    let file = file.context(path.display())?;
    let mut seq = 0;
    while load.running() {
        let batch = 1 + random.below(BATCH_BLOCKS_MAX);
        for at in seq..seq + batch {
            block.set(writer, at);
            file.write_all_at(&block.0, at % RING_BLOCKS * BLOCK_BYTES as u64).context(path.display())?;
        }
        file.sync_data().context(path.display())?;
        seq += batch;
        load.acknowledge(writer, seq.saturating_sub(RING_BLOCKS_PROMISED), seq);
    }
    Ok(())
}

/// Reads durable ring blocks from the disk while they are far from being overwritten, and checks them.
fn read_back(load: &Load) -> Result<()> {
    let mut random = Random(99);
    let (mut block, mut scratch) = (Block::zeroed(), Block::zeroed());
    while load.running() {
        let writer = APPENDERS + random.below(RINGS);
        let durable = load.durable[writer as usize].load(SeqCst);
        if durable == 0 {
            std::thread::yield_now();
            continue;
        }
        let seq = durable - 1 - random.below(durable.min(RING_BLOCKS_PROMISED));
        let path = ring_path(&load.dir, writer);
        let file =
            OpenOptions::new().read(true).custom_flags(O_DIRECT).open(&path).context(path.display())?;
        file.read_exact_at(&mut block.0, seq % RING_BLOCKS * BLOCK_BYTES as u64).context(path.display())?;
        // The writer may have come round meanwhile; then the block read says nothing.
        let now = load.durable[writer as usize].load(SeqCst);
        let stale = now + BATCH_BLOCKS_MAX >= seq + RING_BLOCKS;
        if !stale && block.identify(&mut scratch) != Some((writer, seq)) {
            return Err(format!("read back: block {seq} of writer {writer} is not what was written"));
        }
    }
    Ok(())
}

// --- verification ------------------------------------------------------------------------------------------------

/// Checks that everything acknowledged (`WRITER:FLOOR:SEQ`) is there: as said, or overwritten by a later block.
fn verify(dir: &Path, acknowledged: &[&str]) -> Result<()> {
    let mut checked = 0;
    for text in acknowledged {
        let fields: Vec<u64> = text.split(':').filter_map(|field| field.parse().ok()).collect();
        let [writer, floor, end] = fields[..] else {
            return Err(format!("{text:?} is not WRITER:FLOOR:SEQ"));
        };
        let missing = (floor..end).find(|&seq| !is_there(dir, writer, seq).unwrap_or(false));
        if let Some(seq) = missing {
            return Err(format!("LOST: block {seq} of writer {writer}, acknowledged {floor}..{end}"));
        }
        checked += end.saturating_sub(floor);
    }
    say(&format!("verify: all {checked} acknowledged blocks are there"));
    Ok(())
}

fn is_there(dir: &Path, writer: u64, seq: u64) -> Result<bool> {
    let ring = writer >= APPENDERS;
    let (path, slot) = match ring {
        true => (ring_path(dir, writer), seq % RING_BLOCKS),
        false => (segment_path(dir, writer, seq / SEGMENT_BLOCKS), seq % SEGMENT_BLOCKS),
    };
    let file = File::open(&path).context(path.display())?;
    let (mut block, mut scratch) = (Block::zeroed(), Block::zeroed());
    file.read_exact_at(&mut block.0, slot * BLOCK_BYTES as u64).context(path.display())?;
    let found = block.identify(&mut scratch);
    // A ring's slot may hold the same slot's block of a later turn: then this one was overwritten as it should be.
    Ok(found
        .is_some_and(|(by, at)| by == writer && (at == seq || ring && at > seq && at % RING_BLOCKS == slot)))
}
