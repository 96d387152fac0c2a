//! `godwit disk map`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use block::{ByteRange, Disk, Extent, push_extent};
use clap::Args;
use graph::ParentMismatch;
use serde::Serialize;

use super::open::Source;
use super::progress::Progress;
use super::size::Size;
use super::svg::{self, Picture, Stretch};
use crate::exit::Exit;
use crate::report::Form;

/// Bytes of the disk that one question covers. It bounds what an answer takes, and how many pages of a block allocation
/// table an answer waits for: of blocks of 1 MiB, a page describes 512 MiB.
const QUESTION_BYTES: u64 = 2 << 30;

/// Every stretch of the disk: its state, the layer that decides on it, and where its bytes lie.
#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    #[command(flatten)]
    source: Source,

    /// Look although a parent is not what its child was made on; what is seen may be neither the old disk nor the new.
    #[arg(long)]
    allow_parent_mismatch: bool,

    /// Draw the map into this file, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// An extent as reported. The first seven fields are those of `qemu-img map --output=json`.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    /// First byte on the virtual disk.
    start: u64,
    length: u64,
    /// Layer that decides, 0 for the image itself.
    depth: u32,
    /// Whether any layer describes the extent.
    present: bool,
    /// Whether it is known to read as zeroes, which stored bytes do that lie in a hole of the layer's file.
    zero: bool,
    /// Whether bytes of it are stored.
    data: bool,
    /// Where in the layer's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    state: &'static str,
    /// The layer's file.
    filename: &'a str,
}

pub(crate) async fn run(args: MapArgs, form: Form) -> anyhow::Result<Exit> {
    let mismatch =
        if args.allow_parent_mismatch { ParentMismatch::AllowReadOnly } else { ParentMismatch::Refuse };
    let chain = args.source.open_chain(mismatch).await?;
    let layers: Vec<String> = chain.layers.iter().map(|layer| layer.path.display().to_string()).collect();
    let extents = extents_of(&chain.disk).await?;
    chain.disk.close().await?;
    let entries = entries(&extents, &layers);
    if let Some(path) = &args.svg {
        let drawn = draw(&args.source.path.display().to_string(), &layers, &extents);
        std::fs::write(path, drawn).with_context(|| format!("write {}", path.display()))?;
    }
    form.print(&entries, |out, entries| write_table(out, entries))?;
    Ok(Exit::Done)
}

/// All extents of `disk`.
async fn extents_of(disk: &Disk) -> anyhow::Result<Vec<Extent>> {
    let whole = disk.range();
    let progress = Progress::of_bytes("map", whole.len());
    let mut extents = Vec::new();
    let mut at = 0;
    while at < whole.end() {
        let question = ByteRange::new(at, QUESTION_BYTES.min(whole.end() - at)).expect("it lies on the disk");
        let mut answer = Vec::new();
        disk.block_status(question, &mut answer).await?;
        for extent in answer {
            // The last extent of an answer may reach beyond the question, and beyond the disk.
            let len = extent.len.min(whole.end() - at);
            push_extent(&mut extents, Extent { len, ..extent });
            at += len;
        }
        progress.at(at);
    }
    Ok(extents)
}

fn entries<'a>(extents: &[Extent], layers: &'a [String]) -> Vec<Entry<'a>> {
    let mut start = 0;
    let entry = |extent: &Extent| {
        let entry = Entry {
            start,
            length: extent.len,
            depth: extent.depth,
            present: extent.state != block::ExtentState::NotPresent,
            zero: extent.zeroes,
            data: extent.state.is_data(),
            offset: extent.host_offset,
            state: extent.state.name(),
            filename: layers.get(extent.depth as usize).map_or("", String::as_str),
        };
        start += extent.len;
        entry
    };
    extents.iter().map(entry).collect()
}

fn write_table(out: &mut dyn Write, entries: &[Entry<'_>]) -> io::Result<()> {
    writeln!(
        out,
        "{:>16} {:>12} {:<24} {:>5} {:>16}  FILE",
        "START", "LENGTH", "STATE", "LAYER", "HOST OFFSET"
    )?;
    for entry in entries {
        let offset = entry.offset.map_or("-".to_owned(), |offset| format!("{offset:#x}"));
        let length = Size::of(entry.length).to_string();
        let state =
            if entry.data && entry.zero { format!("{}, empty", entry.state) } else { entry.state.to_owned() };
        writeln!(
            out,
            "{:>#16x} {length:>12} {state:<24} {:>5} {offset:>16}  {}",
            entry.start, entry.depth, entry.filename
        )?;
    }
    Ok(())
}

fn draw(title: &str, layers: &[String], extents: &[Extent]) -> String {
    let mut at = 0;
    let stretches: Vec<Stretch> = extents
        .iter()
        .map(|extent| {
            let start = at;
            at += extent.len;
            Stretch {
                start,
                len: extent.len,
                state: extent.state,
                depth: extent.depth,
                zeroes: extent.zeroes,
            }
        })
        .collect();
    svg::draw(&Picture { title, size: at, layers, stretches: &stretches })
}
