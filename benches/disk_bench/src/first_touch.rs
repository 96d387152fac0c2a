//! First-touch writes: 4 KiB, each into another block of 2 MiB that has no space yet, with a flush after every 32.
//!
//! All go over vhost-user-blk, with the same client. A VHDX has blocks of 2 MiB and is made by the program that serves
//! it; qcow2 has QEMU's default clusters of 64 KiB, so that a write takes one of them and not 2 MiB.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use vhost_user_client::{Client, Command, Shape};

use crate::contender::{Contender, Format, Program, Serving, Transport};
use crate::report::{Cell, Report, Row, Unit};
use crate::server::Server;
use crate::settings::{Place, Settings};
use crate::steady::Counted;
use crate::{images, virtqueue};

const BLOCK_BYTES: u64 = 2 << 20;
const WRITE_BYTES: usize = 4096;
const WRITES_PER_FLUSH: u64 = 32;
/// Writes that are in flight at a time.
const DEPTHS: [usize; 2] = [1, 32];

const CONTENDERS: [Contender; 3] = [
    Contender::new(Program::Godwit, Format::Vhdx),
    Contender::new(Program::Qemu, Format::Vhdx),
    Contender::new(Program::Qemu, Format::Qcow2),
];

/// Measures every row that is wanted.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    for place in &settings.places {
        for depth in DEPTHS {
            let name = format!("first-touch/{}/depth-{depth}", place.name);
            if settings.wants(&name) {
                let row = run_row(settings, report.machine().qemu_aio(), name, place, depth)?;
                report.add(row);
            }
        }
    }
    Ok(())
}

fn run_row(settings: &Settings, qemu_aio: &str, name: String, place: &Place, depth: usize) -> Result<Row> {
    let mut cells = CONTENDERS.map(Cell::new);
    for repetition in 0..settings.repeat {
        for turn in 0..CONTENDERS.len() {
            let index = (repetition + turn) % CONTENDERS.len();
            let counted = run_once(settings, qemu_aio, CONTENDERS[index], place, depth)?;
            cells[index].push(counted.per_second(), Some(counted.cpu_us()));
        }
    }
    Ok(Row::new(name, Unit::PerSecond, cells.into()))
}

/// Touches every block of a new image once.
fn run_once(
    settings: &Settings,
    qemu_aio: &str,
    contender: Contender,
    place: &Place,
    depth: usize,
) -> Result<Counted> {
    let folder = tempfile::Builder::new().prefix("disk-bench-").tempdir_in(&place.folder)?;
    let image = folder.path().join(format!("new.{}", contender.format.name()));
    create(settings, contender, &image)?;
    let socket = image.with_extension("sock");
    let (transport, cache) = (Transport::VhostUser, place.cache);
    let serving = Serving { contender, transport, cache, image: &image, socket: &socket };
    let server = Server::start(serving, serving.command(&settings.godwit, qemu_aio))?;
    let shape = Shape { buffer_count: depth, buffer_bytes: WRITE_BYTES, ..Shape::default() };
    let mut client = server.connect(shape)?;
    (0..depth).for_each(|buffer| client.fill(buffer, &[0x5a; WRITE_BYTES]));

    let (cpu_before_ns, begun) = (server.cpu_ns()?, Instant::now());
    let mut blocks = 0..settings.touches;
    while !blocks.is_empty() {
        let batch = blocks.start..blocks.end.min(blocks.start + WRITES_PER_FLUSH);
        blocks.start = batch.end;
        write_batch(&server, &mut client, batch, depth)?;
        client.submit(0, Command::Flush, 0)?;
        client.kick(0)?;
        virtqueue::settle(&server, &mut client, 1)?;
    }
    let (elapsed, cpu_used_ns) = (begun.elapsed(), server.cpu_ns()? - cpu_before_ns);
    drop(client);
    server.stop()?;
    Ok(Counted { count: settings.touches, elapsed, cpu_used_ns })
}

/// Writes to one block after the other, `depth` at a time, and waits for all of them.
fn write_batch(
    server: &Server,
    client: &mut Client,
    mut blocks: std::ops::Range<u64>,
    depth: usize,
) -> Result<()> {
    let mut next =
        || blocks.next().map(|block| Command::Write { offset: block * BLOCK_BYTES, len: WRITE_BYTES });
    let mut in_flight = 0;
    for buffer in 0..depth {
        if let Some(write) = next() {
            client.submit(0, write, buffer)?;
            in_flight += 1;
        }
    }
    client.kick(0)?;
    let mut done = Vec::new();
    while in_flight > 0 {
        virtqueue::wait(server, client, &mut done)?;
        for end in &done {
            match next() {
                Some(write) => client.submit(0, write, end.buffer)?,
                None => in_flight -= 1,
            }
        }
        client.kick(0)?;
    }
    Ok(())
}

fn create(settings: &Settings, contender: Contender, image: &Path) -> Result<()> {
    let size = settings.touches * BLOCK_BYTES;
    match (contender.program, contender.format) {
        (Program::Godwit, _) => images::create_vhdx(settings, image, size, Some("2M")),
        (_, Format::Vhdx) => images::create_with_qemu(image, Format::Vhdx, size, Some("block_size=2M")),
        (_, format) => images::create_with_qemu(image, format, size, None),
    }
}
