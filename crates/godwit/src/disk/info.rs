//! `godwit disk info`.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use image::vhdx::{self, Access, Opened, ParentLocator};
use serde::Serialize;
use uuid::Uuid;

use super::Format;
use super::open::Source;
use super::size::Size;
use crate::exit::Exit;
use crate::report::Form;

/// What an image is, and whether the images that it depends on are what it was made on.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    source: Source,

    /// Tell of the images that it depends on, too.
    #[arg(long)]
    chain: bool,
}

/// An image file.
#[derive(Debug, Serialize)]
struct Info {
    filename: String,
    format: &'static str,
    /// Size of the virtual disk.
    virtual_size: u64,
    /// Length of the file.
    file_size: u64,
    /// What the host keeps for the file.
    actual_size: u64,
    #[serde(flatten)]
    vhdx: Option<VhdxInfo>,
}

/// What only a VHDX has.
#[derive(Debug, Serialize)]
struct VhdxInfo {
    kind: &'static str,
    block_size: u32,
    logical_sector_size: u32,
    physical_sector_size: u32,
    disk_id: Uuid,
    file_write_guid: Uuid,
    data_write_guid: Uuid,
    creator: String,
    log: LogInfo,
    blocks: BlockInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ParentInfo>,
}

#[derive(Debug, Serialize)]
struct LogInfo {
    /// Whether the log holds updates that the next writable open will carry out.
    dirty: bool,
    size: u64,
}

/// Payload blocks by state.
#[derive(Debug, Serialize)]
struct BlockInfo {
    not_present: u64,
    undefined: u64,
    zero: u64,
    unmapped: u64,
    fully_present: u64,
    partially_present: u64,
}

/// What a differencing disk says of its parent.
#[derive(Debug, Serialize)]
struct ParentInfo {
    /// The DataWriteGuid that the parent had when the child was made.
    linkage: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    linkage2: Option<Uuid>,
    /// The locator's paths, by key.
    paths: Vec<PathInfo>,
}

#[derive(Debug, Serialize)]
struct PathInfo {
    key: String,
    path: String,
}

pub(crate) async fn run(args: InfoArgs, form: Form) -> anyhow::Result<Exit> {
    let info = info_of(&args.source).await?;
    form.print(&info, |out, info| write_text(out, info))?;
    Ok(Exit::Done)
}

/// Tells of an image that was just made.
pub(crate) async fn print_created(path: &Path, format: Format, form: Form) -> anyhow::Result<Exit> {
    let source = Source { path: path.to_owned(), format: Some(format), force_share: false };
    let info = info_of(&source).await?;
    form.print(&info, |out, info| {
        let kind = info.vhdx.as_ref().map_or(String::new(), |vhdx| format!("{} ", vhdx.kind));
        let size = Size::of(info.virtual_size);
        writeln!(
            out,
            "{}: {kind}{}, {size}, {} on the host",
            info.filename,
            info.format,
            Size::of(info.actual_size)
        )
    })?;
    Ok(Exit::Done)
}

async fn info_of(source: &Source) -> anyhow::Result<Info> {
    let doing = || format!("open {}", source.path.display());
    let format = source.format()?;
    let host = std::fs::metadata(&source.path).with_context(doing)?;
    let file = source.open_file()?;
    let (virtual_size, vhdx) = match format {
        Format::Raw => (image::raw::open(file.clone()).with_context(doing)?.size(), None),
        Format::Vhdx => {
            let opened = vhdx::open(file.clone(), Access::ReadOnly).await.with_context(doing)?;
            let counts = vhdx::check(&file, &vhdx::CheckOptions::default()).await.with_context(doing)?.counts;
            (opened.geometry.virtual_size, Some(VhdxInfo::new(&opened, counts.blocks)))
        }
    };
    let file_size = file.size();
    file.close().await?;
    Ok(Info {
        filename: source.path.display().to_string(),
        format: format.name(),
        virtual_size,
        file_size,
        // stat(2): st_blocks counts units of 512 bytes, whatever the file system's block is.
        actual_size: host.blocks() * 512,
        vhdx,
    })
}

impl VhdxInfo {
    fn new(opened: &Opened, blocks: vhdx::check::BlockCounts) -> Self {
        let (header, geometry, parameters) = (opened.header(), &opened.geometry, &opened.parameters);
        Self {
            kind: match (parameters.has_parent, parameters.leave_blocks_allocated) {
                (true, _) => "differencing",
                (false, true) => "fixed",
                (false, false) => "dynamic",
            },
            block_size: geometry.block_bytes,
            logical_sector_size: geometry.logical_sector_bytes,
            physical_sector_size: geometry.physical_sector_bytes,
            disk_id: parameters.disk_id,
            file_write_guid: header.file_write_guid,
            data_write_guid: header.data_write_guid,
            creator: opened.creator.clone(),
            log: LogInfo { dirty: opened.was_dirty, size: header.log_len },
            blocks: BlockInfo {
                not_present: blocks.not_present,
                undefined: blocks.undefined,
                zero: blocks.zero,
                unmapped: blocks.unmapped,
                fully_present: blocks.fully_present,
                partially_present: blocks.partially_present,
            },
            parent: opened.locator.as_ref().map(ParentInfo::new),
        }
    }
}

impl ParentInfo {
    fn new(locator: &ParentLocator) -> Self {
        let paths = locator.pairs().iter().filter(|(key, _)| key.ends_with("_path"));
        Self {
            linkage: locator.linkage(),
            linkage2: locator.linkage2(),
            paths: paths.map(|(key, path)| PathInfo { key: key.clone(), path: path.clone() }).collect(),
        }
    }
}

fn write_text(out: &mut dyn Write, info: &Info) -> io::Result<()> {
    let mut line = |name: &str, value: &dyn std::fmt::Display| writeln!(out, "{name:<20} {value}");
    line("file", &info.filename)?;
    let kind = info.vhdx.as_ref().map_or(String::new(), |vhdx| format!(", {}", vhdx.kind));
    line("format", &format!("{}{kind}", info.format))?;
    line("virtual size", &exact(info.virtual_size))?;
    line("file size", &exact(info.file_size))?;
    line("space on the host", &exact(info.actual_size))?;
    let Some(vhdx) = &info.vhdx else { return Ok(()) };
    line("block size", &Size::of(vhdx.block_size.into()))?;
    line(
        "sectors",
        &format!("{} logical, {} physical", vhdx.logical_sector_size, vhdx.physical_sector_size),
    )?;
    line("blocks", &vhdx.blocks)?;
    line("disk id", &vhdx.disk_id)?;
    line("FileWriteGuid", &vhdx.file_write_guid)?;
    line("DataWriteGuid", &vhdx.data_write_guid)?;
    line("creator", &vhdx.creator)?;
    let state = if vhdx.log.dirty { "holds updates for the next writable open" } else { "empty" };
    line("log", &format!("{state} ({})", Size::of(vhdx.log.size)))?;
    if let Some(parent) = &vhdx.parent {
        line("parent's identifier", &parent.linkage)?;
        for path in &parent.paths {
            line(&path.key, &path.path)?;
        }
    }
    Ok(())
}

fn exact(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", Size::of(bytes))
}

impl std::fmt::Display for BlockInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let states = [
            ("present", self.fully_present),
            ("partially present", self.partially_present),
            ("zero", self.zero),
            ("unmapped", self.unmapped),
            ("undefined", self.undefined),
            ("not present", self.not_present),
        ];
        let there = states.iter().filter(|(_, count)| *count > 0);
        let parts: Vec<String> = there.map(|(name, count)| format!("{count} {name}")).collect();
        f.write_str(&parts.join(", "))
    }
}
