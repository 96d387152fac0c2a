//! qemu-img and qemu-io.

use block::{DevInfo, Disk};
use testkit::{MemDev, block_on};

use super::server::Serving;
use super::tools::{pattern, run, run_to_failure, tool, write_file};

const DISK_BYTES: u64 = 16 << 20;

fn disk() -> Disk {
    Disk::new(MemDev::new(DISK_BYTES))
}

fn sparse() -> Vec<u8> {
    let mut bytes = pattern(DISK_BYTES as usize, 5);
    bytes[3 << 20..10 << 20].fill(0);
    bytes
}

#[test]
fn qemu_img_converts_to_the_disk_and_back_and_finds_them_equal() {
    let disk = disk();
    let serving = Serving::unix(&disk);
    let (source, copy) = (serving.path("source.raw"), serving.path("copy.qcow2"));
    write_file(&source, &sparse());
    let Some(mut command) = tool("qemu-img") else { return };
    let to = ["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw"];
    run(command.args(to).arg(&source).arg(serving.uri()));
    assert!(block_on(disk.read_vec(0, DISK_BYTES as usize)).unwrap() == sparse());
    let Some(mut command) = tool("qemu-img") else { return };
    run(command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(serving.uri()).arg(&copy));
    let Some(mut command) = tool("qemu-img") else { return };
    run(command.args(["compare", "-f", "raw", "-F", "qcow2"]).arg(serving.uri()).arg(&copy));
}

#[test]
fn qemu_img_sees_the_size_and_the_holes() {
    let disk = disk();
    block_on(disk.write_all(1 << 20, &pattern(65536, 0))).unwrap();
    let serving = Serving::unix(&disk);
    let Some(mut command) = tool("qemu-img") else { return };
    let info = run(command.args(["info", "--output=json", "-f", "raw"]).arg(serving.uri()));
    assert!(info.contains("\"virtual-size\": 16777216"), "{info}");
    let Some(mut command) = tool("qemu-img") else { return };
    let map = run(command.args(["map", "--output=json", "-f", "raw"]).arg(serving.uri()));
    let holes = map.matches("\"data\": false").count();
    assert_eq!((holes, map.matches("\"data\": true").count()), (2, 1), "{map}");
}

#[test]
fn qemu_img_bench_reads_and_writes_with_many_requests() {
    let serving = Serving::unix(&disk());
    for direction in [&[][..], &["-w", "--flush-interval=100"]] {
        let Some(mut command) = tool("qemu-img") else { return };
        let bench = ["bench", "-f", "raw", "-c", "2000", "-d", "64", "-s", "4096", "-S", "12288"];
        run(command.args(bench).args(direction).arg(serving.uri()));
    }
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let disk = Disk::new(MemDev::with_info(DISK_BYTES, DevInfo { block_bytes: 512, ..MemDev::INFO }));
    let serving = Serving::unix(&disk);
    let Some(mut command) = tool("qemu-io") else { return };
    let commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 -f 1M 64k",
        "write -z 128k 64k",
        "write -z -u 256k 64k",
        "discard 512k 64k",
        "flush",
        "read -P 0x11 0 128k",
        "read -P 0 128k 64k",
        "read -P 0x11 192k 64k",
        "read -P 0 256k 64k",
        "read -P 0 512k 64k",
        "read -P 0x22 1M 64k",
        "aio_write -P 0x33 2M 4M",
        "aio_flush",
        "read -P 0x33 2M 4M",
    ];
    command.args(["-f", "raw", "--discard=unmap"]);
    for line in commands {
        command.arg("-c").arg(line);
    }
    let text = run(command.arg(serving.uri()));
    assert!(!text.contains("verification failed"), "{text}");
    assert_eq!(block_on(disk.read_vec(1 << 20, 65536)).unwrap(), [0x22; 65536]);
}

#[test]
fn an_export_that_is_not_there_is_not_opened() {
    let serving = Serving::new(&disk(), &["nbd+unix:///mine?socket=DIR/nbd.sock"], None);
    let other = serving.uri().replace("/mine", "/other");
    let Some(mut command) = tool("qemu-img") else { return };
    let text = run_to_failure(command.args(["info", "-f", "raw"]).arg(other));
    assert!(text.contains("no export has that name"), "{text}");
}
