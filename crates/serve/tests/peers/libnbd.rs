//! nbdinfo, nbdcopy and nbdsh.

use block::{DevInfo, Disk};
use testkit::{MemDev, block_on};

use super::server::Serving;
use super::tools::{nbdsh, pattern, run, tool, write_file};

const DISK_BYTES: u64 = 16 << 20;

fn disk() -> Disk {
    Disk::new(MemDev::with_info(DISK_BYTES, DevInfo { block_bytes: 1, ..MemDev::INFO }))
}

/// 4 KiB of data at 1 MiB, and a hole around it.
fn island() -> Disk {
    let disk = disk();
    block_on(disk.write_all(1 << 20, &pattern(4096, 0))).expect("a RAM disk can be written");
    disk
}

#[test]
fn nbdinfo_finds_every_feature() {
    let serving = Serving::unix(&disk());
    let Some(mut command) = tool("nbdinfo") else { return };
    let json = run(command.arg("--json").arg(serving.uri()));
    for fact in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-size\": 16777216",
        "\"description\": \"a disk of the tests\"",
        "\"base:allocation\"",
        "\"godwit:state\"",
        "\"is_read_only\": false",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 1,",
        "\"block_size_preferred\": 65536",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(json.contains(fact), "{fact} is not in {json}");
    }
}

#[test]
fn nbdinfo_lists_exports_over_tcp_and_unix_sockets() {
    let uris =
        ["nbd://127.0.0.1:0/an%20export", "nbd+unix:///an%20export?socket=DIR/nbd.sock", "nbd://[::1]:0/six"];
    let serving = Serving::new(&disk(), &uris, None);
    for uri in serving.uris() {
        let Some(mut command) = tool("nbdinfo") else { return };
        let list = run(command.arg("--list").arg(&uri));
        let name = if uri.ends_with("/six") { "export=\"six\"" } else { "export=\"an export\"" };
        assert!(list.contains(name), "{uri}: {list}");
        let Some(mut command) = tool("nbdinfo") else { return };
        run(command.arg("--can").arg("multi-conn").arg(&uri));
    }
}

#[test]
fn nbdinfo_maps_allocation_and_states() {
    let serving = Serving::unix(&island());
    let map = |context: &str| -> Option<Vec<String>> {
        let mut command = tool("nbdinfo")?;
        let text = run(command.arg(format!("--map={context}")).arg(serving.uri()));
        Some(text.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect())
    };
    let Some(allocation) = map("base:allocation") else { return };
    assert_eq!(allocation, ["0 1048576 3", "1048576 4096 0", "1052672 15724544 3"]);
    let states = map("godwit:state").expect("nbdinfo was there");
    assert_eq!(states, ["0 1048576 0", "1048576 4096 6", "1052672 15724544 0"]);
}

#[test]
fn nbdcopy_carries_a_disk_both_ways_over_several_connections() {
    let disk = disk();
    let serving = Serving::unix(&disk);
    let (source, copy) = (serving.path("source"), serving.path("copy"));
    let mut bytes = pattern(DISK_BYTES as usize, 3);
    bytes[5 << 20..9 << 20].fill(0);
    write_file(&source, &bytes);
    let Some(mut command) = tool("nbdcopy") else { return };
    run(command.args(["--connections=4", "--flush"]).arg(&source).arg(serving.uri()));
    assert!(block_on(disk.read_vec(0, DISK_BYTES as usize)).unwrap() == bytes, "the disk is what was sent");
    let Some(mut command) = tool("nbdcopy") else { return };
    run(command
        .args(["--connections=4", "--requests=64", "--request-size=1048576"])
        .arg(serving.uri())
        .arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == bytes, "the copy is what the disk holds");
}

#[test]
fn reads_are_fragmented_unless_that_is_forbidden() {
    let serving = Serving::unix(&island());
    nbdsh(
        &serving.uri(),
        r#"
h.connect_uri(uri)
chunks = []
def seen(buf, offset, status, error): chunks.append((offset, len(buf), status))
whole = h.pread_structured(2 << 20, 0, seen)
assert chunks == [(0, 1 << 20, nbd.READ_HOLE), (1 << 20, 65536, nbd.READ_DATA), ((1 << 20) + 65536, (1 << 20) - 65536, nbd.READ_HOLE)], chunks
chunks = []
unfragmented = h.pread_structured(2 << 20, 0, seen, nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0][2] == nbd.READ_DATA, chunks
assert whole == unfragmented
"#,
    );
}

#[test]
fn errors_have_the_number_and_the_reason() {
    let info = DevInfo { block_bytes: 512, ..MemDev::INFO };
    let serving = Serving::unix(&Disk::new(MemDev::with_info(DISK_BYTES, info)));
    nbdsh(
        &serving.uri(),
        r#"
import errno
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
def fails(number, call, *args):
    try: call(*args)
    except nbd.Error as error: assert error.errnum == number, (error.errnum, number, args)
    else: raise AssertionError(args)
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 1024, size - 512)
fails(errno.EINVAL, h.pread, 512, 1)
fails(errno.ENOSPC, h.pwrite, b'x' * 512, size)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.block_status, 512, size, lambda *args: None)
fails(errno.EINVAL, h.pread, (32 << 20) + 512, 0)
fails(errno.EINVAL, h.pwrite, bytearray((32 << 20) + 512), 0)
# The connection has survived all that.
h.pwrite(b'y' * 512, 512, nbd.CMD_FLAG_FUA)
assert h.pread(512, 512) == b'y' * 512
"#,
    );
}

#[test]
fn every_change_of_a_read_only_disk_is_refused() {
    let info = DevInfo { read_only: true, ..MemDev::INFO };
    let serving = Serving::unix(&Disk::new(MemDev::with_info(DISK_BYTES, info)));
    nbdsh(
        &serving.uri(),
        r#"
import errno
h.connect_uri(uri)
assert h.is_read_only()
h.set_strict_mode(0)
for call in [lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)]:
    try: call()
    except nbd.Error as error: assert error.errnum == errno.EPERM, error
    else: raise AssertionError()
assert h.pread(512, 0) == bytearray(512)
h.flush()
"#,
    );
}

#[test]
fn zeroes_and_trims_are_done_as_their_flags_ask() {
    let disk = disk();
    let serving = Serving::unix(&disk);
    block_on(disk.write_all(0, &pattern(1 << 20, 0))).unwrap();
    nbdsh(
        &serving.uri(),
        r#"
h.add_meta_context("base:allocation")
h.connect_uri(uri)
def status(offset, length):
    found = []
    h.block_status(length, offset, lambda context, at, entries, error: found.append(entries) and 0)
    return found[0]
h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert status(0, 65536) == [65536, 3], status(0, 65536)
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(131072, 0) == bytearray(131072)
h.trim(65536, 131072, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 131072) == bytearray(65536)
assert h.pread(1, 196608) != bytearray(1)
h.cache(1 << 20, 0)
found = []
h.block_status(1 << 20, 0, lambda context, at, entries, error: found.append(entries) and 0, nbd.CMD_FLAG_REQ_ONE)
assert len(found[0]) == 2, found
"#,
    );
}

#[test]
fn what_one_connection_wrote_is_seen_by_another() {
    let serving = Serving::unix(&disk());
    nbdsh(
        &serving.uri(),
        r#"
others = [nbd.NBD() for _ in range(4)]
for other in others: other.connect_uri(uri)
h.connect_uri(uri)
assert h.can_multi_conn()
for round in range(50):
    for number, other in enumerate(others):
        other.pwrite(bytes([round + 1, number]) * 256, number * 512)
    h.flush()
    for number in range(4):
        assert h.pread(512, number * 512) == bytes([round + 1, number]) * 256
"#,
    );
}

#[test]
fn many_requests_are_in_flight_on_one_connection() {
    let serving = Serving::unix(&disk());
    nbdsh(
        &serving.uri(),
        r#"
h.connect_uri(uri)
buffers = {}
pending = set()
for index in range(1000):
    data = nbd.Buffer.from_bytearray(bytearray([index % 255 + 1]) * 4096)
    pending.add(h.aio_pwrite(data, index * 4096))
while pending:
    h.poll(-1)
    pending = {cookie for cookie in pending if not h.aio_command_completed(cookie)}
for index in range(1000):
    assert h.pread(4096, index * 4096) == bytes([index % 255 + 1]) * 4096
"#,
    );
}

#[test]
fn clients_without_structured_replies_and_without_go_are_served() {
    let serving = Serving::unix(&island());
    nbdsh(
        &serving.uri(),
        r#"
h.set_request_structured_replies(False)
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated()
assert h.pread(1 << 20, 0) == bytearray(1 << 20)
assert h.pread(4096, 1 << 20) != bytearray(4096)
try: h.pread(512, h.get_size() - 256)
except nbd.Error: pass
else: raise AssertionError()
assert h.pread(512, 0) == bytearray(512)
"#,
    );
}
