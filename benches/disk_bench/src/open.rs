//! Opening a dynamic VHDX of 64 TiB: how long it takes, from the start of the process, and how much memory it needs.
//!
//! `info` is a program that tells of the disk and ends (`godwit disk info`, `qemu-img info`), `serve` a server until its
//! NBD socket takes a connection. A disk of 1 GiB beside it shows what the start of each program costs.

use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vhost_user_client::{Command, Shape};

use crate::contender::{Cache, Contender, Format, Program, Serving, Transport};
use crate::report::{Cell, Report, Row, Unit};
use crate::server::Server;
use crate::settings::Settings;
use crate::{images, process, virtqueue};

/// A disk that is opened.
struct Sample {
    name: &'static str,
    size: u64,
    /// As `godwit disk create --block-size` takes it.
    block_size: &'static str,
    /// Writes that were made before, spread evenly.
    writes: u64,
}

const SAMPLES: [Sample; 4] = [
    Sample { name: "1-gib", size: 1 << 30, block_size: "32M", writes: 0 },
    Sample { name: "64-tib", size: 64 << 40, block_size: "32M", writes: 0 },
    // An entry of the block allocation table takes 8 bytes, so that 4096 writes touch each 4 KiB of its 16 MiB.
    Sample { name: "64-tib-used", size: 64 << 40, block_size: "32M", writes: 4096 },
    // The table alone has half a GiB, nearly all of it a hole in the file.
    Sample { name: "64-tib-blocks-of-1-mib", size: 64 << 40, block_size: "1M", writes: 0 },
];

#[derive(Clone, Copy)]
enum Way {
    Info,
    Serve,
}

const CONTENDERS: [Contender; 2] =
    [Contender::new(Program::Godwit, Format::Vhdx), Contender::new(Program::Qemu, Format::Vhdx)];

/// Measures every row that is wanted. The images are in memory.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    for sample in &SAMPLES {
        let ways = [(Way::Info, "info"), (Way::Serve, "serve")];
        let wanted = ways.map(|(way, name)| {
            let row = |what| format!("open/{}/{name}-{what}", sample.name);
            (way, [row("time"), row("memory")])
        });
        if !wanted.iter().any(|(_, rows)| rows.iter().any(|row| settings.wants(row))) {
            continue;
        }
        let folder = tempfile::Builder::new().prefix("disk-bench-").tempdir_in(&settings.places[0].folder)?;
        let image = folder.path().join("sample.vhdx");
        make(settings, sample, &image).with_context(|| format!("make the disk of open/{}", sample.name))?;
        for (way, rows) in wanted.iter().filter(|(_, rows)| rows.iter().any(|row| settings.wants(row))) {
            let [times, memories] = measure(settings, report.machine().qemu_aio(), *way, &image)?;
            report.add(Row::new(rows[0].clone(), Unit::Milliseconds, times));
            report.add(Row::new(rows[1].clone(), Unit::Mebibytes, memories));
        }
    }
    Ok(())
}

fn make(settings: &Settings, sample: &Sample, image: &Path) -> Result<()> {
    images::create_vhdx(settings, image, sample.size, Some(sample.block_size))?;
    if sample.writes == 0 {
        return Ok(());
    }
    let server = serve(settings, "", CONTENDERS[0], image, Transport::VhostUser)?;
    let mut client = server.connect(Shape { buffer_count: 1, ..Shape::default() })?;
    for write in 0..sample.writes {
        let offset = write * (sample.size / sample.writes);
        client.submit(0, Command::Write { offset, len: 4096 }, 0)?;
        client.kick(0)?;
        virtqueue::settle(&server, &mut client, 1)?;
    }
    drop(client);
    server.stop()
}

fn serve(
    settings: &Settings,
    qemu_aio: &str,
    contender: Contender,
    image: &Path,
    transport: Transport,
) -> Result<Server> {
    let socket = image.with_extension("sock");
    let serving = Serving { contender, transport, cache: Cache::Buffered, image, socket: &socket };
    Server::start(serving, serving.command(&settings.godwit, qemu_aio))
}

/// Milliseconds until the disk is open, and the most MiB that were resident by then.
fn measure(settings: &Settings, qemu_aio: &str, way: Way, image: &Path) -> Result<[Vec<Cell>; 2]> {
    let mut cells = [0; 2].map(|_| CONTENDERS.map(Cell::new).to_vec());
    for repetition in 0..settings.repeat {
        for turn in 0..CONTENDERS.len() {
            let index = (repetition + turn) % CONTENDERS.len();
            let (time_ms, peak_kib) = match way {
                Way::Info => run_info(settings, CONTENDERS[index].program, image)?,
                Way::Serve => run_server(settings, qemu_aio, CONTENDERS[index], image)?,
            };
            cells[0][index].push(time_ms, None);
            cells[1][index].push(peak_kib as f64 / 1024.0, None);
        }
    }
    Ok(cells)
}

fn run_info(settings: &Settings, program: Program, image: &Path) -> Result<(f64, u64)> {
    let mut command = if program == Program::Godwit {
        let mut command = Process::new(&settings.godwit);
        command.args(["disk", "info"]);
        command
    } else {
        let mut command = Process::new("qemu-img");
        command.args(["info", "-f", "vhdx"]);
        command
    };
    command.arg(image).stdin(Stdio::null()).stdout(Stdio::null());
    let begun = Instant::now();
    let child = command.spawn().with_context(|| format!("run {command:?}"))?;
    let (success, peak_kib) = process::wait_for_peak_kib(&child)?;
    let time_ms = begun.elapsed().as_secs_f64() * 1e3;
    ensure!(success, "{command:?} failed");
    Ok((time_ms, peak_kib))
}

fn run_server(settings: &Settings, qemu_aio: &str, contender: Contender, image: &Path) -> Result<(f64, u64)> {
    let server = serve(settings, qemu_aio, contender, image, Transport::Nbd)?;
    let (time_ms, (_, peak_kib)) = (server.ready_after.as_secs_f64() * 1e3, server.resident_kib()?);
    server.stop()?;
    Ok((time_ms, peak_kib))
}
