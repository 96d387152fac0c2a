//! What a 4 KiB request on a host file costs: time and CPU, at depth 1 and 32, on the calling thread and queued.
//!
//! ```text
//! cargo run --release -p hostio --example request_cost -- DIRECTORY...
//! GODWIT_IO=threads cargo run --release -p hostio --example request_cost -- DIRECTORY...
//! ```

use std::path::Path;
use std::time::Instant;

use block::{Disk, SgList, WriteFlags};
use hostio::{Cache, HostFile, Inline, OpenOptions, block_on, spawn};

const FILE_BYTES: u64 = 256 << 20;
const REQUEST_BYTES: u64 = 4096;
const REQUESTS: u64 = 200_000;
/// Direct requests wait for the disk.
const DIRECT_REQUESTS: u64 = 20_000;

fn main() {
    println!("{:44} {:>9} {:>9} {:>9}", "", "ns", "own CPU", "all CPU");
    for directory in std::env::args().skip(1) {
        let path = Path::new(&directory).join("request_cost.img");
        for (name, cache, inline) in [
            ("buffered", Cache::Buffered, Inline::Auto),
            ("buffered, queued", Cache::Buffered, Inline::Never),
            ("direct", Cache::Direct, Inline::Auto),
        ] {
            let options = OpenOptions { cache, inline, ..OpenOptions::read_write() };
            let _ = std::fs::remove_file(&path);
            let file = match HostFile::create(&path, FILE_BYTES, &options) {
                Ok(file) => file,
                Err(error) => {
                    println!("{directory} {name}: {}", error.chain());
                    continue;
                }
            };
            let requests = if cache == Cache::Direct { DIRECT_REQUESTS } else { REQUESTS };
            measure(&format!("{directory} {name}"), &Disk::new(file), requests);
        }
        let _ = std::fs::remove_file(&path);
    }
}

fn measure(name: &str, disk: &Disk, requests: u64) {
    let memory = SgList::unspecified(1 << 20);
    memory.fill(0, 1 << 20, 7);
    block_on(async {
        for piece in disk.range().split_by(1 << 20) {
            disk.write(piece.start(), memory.clone(), WriteFlags::default()).await.unwrap();
        }
        disk.flush().await.unwrap();
    });
    for writes in [false, true] {
        for depth in [1, 32] {
            let what = if writes { "write" } else { "read" };
            let (time, own, all) = (Instant::now(), own_cpu_ns(), all_cpu_ns());
            block_on(run(disk, writes, depth, requests / depth));
            let per = |ns: u64| ns / requests;
            println!(
                "{:44} {:>9} {:>9} {:>9}",
                format!("{name}: {what}, depth {depth}"),
                per(time.elapsed().as_nanos() as u64),
                per(own_cpu_ns() - own),
                per(all_cpu_ns().saturating_sub(all))
            );
        }
    }
}

/// `depth` tasks that each make `count` requests, one after the other, at random places.
async fn run(disk: &Disk, writes: bool, depth: u64, count: u64) {
    let tasks: Vec<_> = (0..depth)
        .map(|task| {
            let disk = disk.clone();
            spawn(async move {
                let memory = SgList::unspecified(REQUEST_BYTES as usize);
                let mut random = 0x9E37_79B9_7F4A_7C15u64 ^ (task + 1);
                for _ in 0..count {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let offset = random % (FILE_BYTES / REQUEST_BYTES) * REQUEST_BYTES;
                    let done = if writes {
                        disk.write(offset, memory.clone(), WriteFlags::default()).await
                    } else {
                        disk.read(offset, memory.clone()).await
                    };
                    done.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
}

/// CPU time of this thread.
fn own_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// CPU time of all threads, those included that the kernel runs for a ring; less what those used that have ended.
fn all_cpu_ns() -> u64 {
    let own = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("schedstat")).ok();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten().filter_map(own);
    threads.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}
