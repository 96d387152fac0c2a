//! fio's nbd engine.

use block::{DevInfo, Disk};
use testkit::MemDev;

use super::server::Serving;
use super::tools::{run, tool};

#[test]
fn fio_verifies_what_it_wrote_over_several_connections() {
    let disk = Disk::new(MemDev::with_info(64 << 20, DevInfo { block_bytes: 1, ..MemDev::INFO }));
    let serving = Serving::unix(&disk);
    let Some(mut command) = tool("fio") else { return };
    command.current_dir(serving.dir.path()).args([
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bsrange=512-256k",
        "--iodepth=32",
        "--numjobs=3",
        "--size=16m",
        "--offset_increment=16m",
        "--io_size=24m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--fsync=100",
        "--group_reporting",
    ]);
    let text = run(command.arg(format!("--uri={}", serving.uri())));
    assert!(text.contains("err= 0"), "{text}");
}
