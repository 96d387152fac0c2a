//! Disks that are full, under a steady load: the cost of the protocols and the engines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contender::{Contender, Format, Program, Serving, Transport};
use crate::report::{Cell, Report, Row, Unit};
use crate::server::Server;
use crate::settings::{Place, Settings};
use crate::{fio, images, virtqueue};

/// What the client does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    name: &'static str,
    pub(crate) bytes: usize,
    pub(crate) depth: usize,
    pub(crate) writes: bool,
    pub(crate) random: bool,
}

/// What one measurement has shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) count: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu_used_ns: u64,
}

impl Counted {
    pub(crate) fn per_second(self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn cpu_us(self) -> f64 {
        self.cpu_used_ns as f64 / 1e3 / self.count as f64
    }
}

const fn random(name: &'static str, depth: usize, writes: bool) -> Workload {
    Workload { name, bytes: 4096, depth, writes, random: true }
}

const fn sequential(name: &'static str, writes: bool) -> Workload {
    Workload { name, bytes: 1 << 20, depth: 4, writes, random: false }
}

const WORKLOADS: [Workload; 6] = [
    random("random-read-4k/depth-1", 1, false),
    random("random-read-4k/depth-32", 32, false),
    random("random-write-4k/depth-1", 1, true),
    random("random-write-4k/depth-32", 32, true),
    sequential("sequential-read-1m/depth-4", false),
    sequential("sequential-write-1m/depth-4", true),
];

const CONTENDERS: [Contender; 5] = [
    Contender::new(Program::Godwit, Format::Raw),
    Contender::new(Program::Godwit, Format::Vhdx),
    Contender::new(Program::Nbdkit, Format::Raw),
    Contender::new(Program::Qemu, Format::Raw),
    Contender::new(Program::Qemu, Format::Vhdx),
];

/// Measures every place and transport that has a row to be measured.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    for place in &settings.places {
        let transports = [Transport::Nbd, Transport::VhostUser];
        let wanted = |transport: &Transport| {
            let rows = row_names(place, *transport);
            rows.iter().any(|row| settings.wants(row)) || settings.wants(&memory_row(place, *transport))
        };
        if !transports.iter().any(wanted) {
            continue;
        }
        let folder = tempfile::Builder::new().prefix("disk-bench-").tempdir_in(&place.folder)?;
        let images = make_images(settings, folder.path())
            .with_context(|| format!("make the images in {}", place.folder.display()))?;
        for transport in transports.into_iter().filter(wanted) {
            run_transport(settings, report, place, transport, &images)?;
        }
    }
    Ok(())
}

fn row_names(place: &Place, transport: Transport) -> Vec<String> {
    WORKLOADS.iter().map(|workload| row_name(place, transport, *workload)).collect()
}

fn row_name(place: &Place, transport: Transport, workload: Workload) -> String {
    format!("{}/{}/{}", transport.name(), place.name, workload.name)
}

fn memory_row(place: &Place, transport: Transport) -> String {
    format!("{}/{}/resident-memory", transport.name(), place.name)
}

/// An image for each contender.
fn make_images(settings: &Settings, folder: &Path) -> Result<Vec<PathBuf>> {
    let [raw, vhdx] = images::make_full(settings, folder)?;
    let copy = |contender: &Contender| {
        images::copy_for(*contender, if contender.format == Format::Vhdx { &vhdx } else { &raw })
    };
    let copies = CONTENDERS.iter().map(copy).collect();
    std::fs::remove_file(&raw)?;
    std::fs::remove_file(&vhdx)?;
    copies
}

fn run_transport(
    settings: &Settings,
    report: &mut Report,
    place: &Place,
    transport: Transport,
    images: &[PathBuf],
) -> Result<()> {
    let able = CONTENDERS.iter().zip(images).filter(|(contender, _)| contender.can(transport, place.cache));
    let start = |(contender, image): (&Contender, &PathBuf)| {
        let socket = image.with_extension("sock");
        let serving =
            Serving { contender: *contender, transport, cache: place.cache, image, socket: &socket };
        Server::start(serving, serving.command(&settings.godwit, report.machine().qemu_aio()))
    };
    let servers: Vec<Server> = able.map(start).collect::<Result<_>>()?;
    for workload in WORKLOADS {
        let name = row_name(place, transport, workload);
        if settings.wants(&name) {
            let row = run_row(settings, name, &servers, transport, workload)?;
            report.add(row);
        }
    }
    report.add(resident_memory(memory_row(place, transport), &servers)?);
    servers.into_iter().try_for_each(Server::stop)
}

fn run_row(
    settings: &Settings,
    name: String,
    servers: &[Server],
    transport: Transport,
    workload: Workload,
) -> Result<Row> {
    let unit = if workload.bytes >= 1 << 20 { Unit::MebibytesPerSecond } else { Unit::PerSecond };
    let mut cells: Vec<Cell> = servers.iter().map(|server| Cell::new(server.contender)).collect();
    for repetition in 0..settings.repeat {
        for turn in 0..servers.len() {
            let index = (repetition + turn) % servers.len();
            let counted = match transport {
                Transport::Nbd => fio::run(&servers[index], workload, settings.size, settings.cell_time)?,
                Transport::VhostUser => virtqueue::run(&servers[index], workload, settings.cell_time)?,
            };
            cells[index].push(counted.per_second(), Some(counted.cpu_us()));
        }
    }
    Ok(Row::new(name, unit, cells))
}

/// Memory that each server has after all its rows, and the most that it ever had.
fn resident_memory(name: String, servers: &[Server]) -> Result<Row> {
    let mut cells = Vec::new();
    for server in servers {
        let (now_kib, peak_kib) = server.resident_kib()?;
        let mut cell = Cell::new(server.contender);
        cell.push(now_kib as f64 / 1024.0, None);
        cell.set_peak(peak_kib as f64 / 1024.0);
        cells.push(cell);
    }
    Ok(Row::new(name, Unit::Mebibytes, cells))
}
