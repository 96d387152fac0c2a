//! `godwit disk info`.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use block::ErrorKind;
use clap::Args;
use graph::{ChainDescription, ChainError, LayerInfo};
use image::vhdx::check::{BlockCounts, CheckOptions, check};
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

    /// Tell of every image that it depends on, too; ends with 1 if one is missing or does not fit.
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
    /// Whether the log holds updates that the next writable open will carry out.
    log_dirty: bool,
    blocks: BlockInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ParentInfo>,
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

/// The parent of a differencing disk.
#[derive(Debug, Serialize)]
struct ParentInfo {
    verdict: Linkage,
    /// The parent's file, where one was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    /// The DataWriteGuid that the parent must have.
    linkage: Uuid,
    /// Another one that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    linkage2: Option<Uuid>,
    /// What is wrong, and the ways out.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Whether a disk's parent is what the disk was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Linkage {
    /// It is.
    Fits,
    /// It is another disk, or was changed since.
    Mismatch,
    /// It is nowhere that the child names.
    Missing,
    /// It is there and cannot be used.
    Unusable,
}

pub(crate) async fn run(args: InfoArgs, form: Form) -> anyhow::Result<Exit> {
    let description = args.source.describe_chain().await?;
    let infos = infos_of(&args.source, &description).await?;
    if !args.chain {
        form.print(&infos[0], |out, info| write_text(out, info))?;
        return Ok(Exit::Done);
    }
    form.print(&infos, |out, infos| write_chain(out, infos))?;
    let whole = infos.iter().all(Info::has_its_parent);
    Ok(if whole { Exit::Done } else { Exit::Failed })
}

/// Tells of an image that was just made.
pub(crate) async fn print_created(path: &Path, format: Format, form: Form) -> anyhow::Result<Exit> {
    let source = Source::made(path, format);
    let description = source.describe_chain().await?;
    let infos = infos_of(&source, &description).await?;
    form.print(&infos[0], |out, info| {
        let kind = info.vhdx.as_ref().map_or(String::new(), |vhdx| format!("{} ", vhdx.kind));
        let (size, actual) = (Size::of(info.virtual_size), Size::of(info.actual_size));
        writeln!(out, "{}: {kind}{}, {size}, {actual} on the host", info.filename, info.format)
    })?;
    Ok(Exit::Done)
}

async fn infos_of(source: &Source, description: &ChainDescription) -> anyhow::Result<Vec<Info>> {
    let mut infos = Vec::new();
    for (index, layer) in description.layers.iter().enumerate() {
        let doing = || format!("look at {}", layer.path.display());
        let parent = parent_of(layer, description.layers.get(index + 1), description.problem.as_ref());
        infos.push(info_of(source, layer, parent).await.with_context(doing)?);
    }
    Ok(infos)
}

async fn info_of(source: &Source, layer: &LayerInfo, parent: Option<ParentInfo>) -> anyhow::Result<Info> {
    let vhdx = match &layer.vhdx {
        None => None,
        Some(vhdx) => {
            let file = source.open_file(&layer.path)?;
            let blocks = check(&file, &CheckOptions::default()).await?.counts.blocks;
            file.close().await?;
            Some(VhdxInfo::new(vhdx, blocks, parent))
        }
    };
    Ok(Info {
        filename: layer.path.display().to_string(),
        format: layer.format.name(),
        virtual_size: layer.virtual_size,
        file_size: layer.file_bytes,
        // stat(2): st_blocks counts units of 512 bytes, whatever the file system's block is.
        actual_size: std::fs::metadata(&layer.path)?.blocks() * 512,
        vhdx,
    })
}

/// What there is to say of the parent of `layer`, of which the layer `below` and the `problem` of the chain tell.
fn parent_of(
    layer: &LayerInfo,
    below: Option<&LayerInfo>,
    problem: Option<&ChainError>,
) -> Option<ParentInfo> {
    let vhdx = layer.vhdx.as_ref()?;
    let linkage = vhdx.linkage?;
    let (verdict, problem) = match (below, &layer.mismatch, problem) {
        (Some(_), None, _) => (Linkage::Fits, None),
        (_, Some(mismatch), _) => (Linkage::Mismatch, Some(mismatch.to_string())),
        (None, None, Some(problem)) if problem.kind() == ErrorKind::NotFound => {
            (Linkage::Missing, Some(problem.to_string()))
        }
        (None, None, problem) => (Linkage::Unusable, problem.map(chain_of_errors)),
    };
    let filename = below.map(|below| below.path.display().to_string());
    Some(ParentInfo { verdict, filename, linkage, linkage2: vhdx.linkage2, problem })
}

fn chain_of_errors(error: &ChainError) -> String {
    let mut line = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        line = format!("{line}: {error}");
        next = error.source();
    }
    line
}

impl Info {
    fn has_its_parent(&self) -> bool {
        let parent = self.vhdx.as_ref().and_then(|vhdx| vhdx.parent.as_ref());
        parent.is_none_or(|parent| parent.verdict == Linkage::Fits)
    }
}

impl VhdxInfo {
    fn new(vhdx: &graph::VhdxInfo, blocks: BlockCounts, parent: Option<ParentInfo>) -> Self {
        Self {
            kind: match (vhdx.linkage.is_some(), vhdx.is_fixed) {
                (true, _) => "differencing",
                (false, true) => "fixed",
                (false, false) => "dynamic",
            },
            block_size: vhdx.block_bytes,
            logical_sector_size: vhdx.logical_sector_bytes,
            physical_sector_size: vhdx.physical_sector_bytes,
            disk_id: vhdx.disk_id,
            file_write_guid: vhdx.file_write_guid,
            data_write_guid: vhdx.data_write_guid,
            creator: vhdx.creator.clone(),
            log_dirty: vhdx.was_dirty,
            blocks: BlockInfo {
                not_present: blocks.not_present,
                undefined: blocks.undefined,
                zero: blocks.zero,
                unmapped: blocks.unmapped,
                fully_present: blocks.fully_present,
                partially_present: blocks.partially_present,
            },
            parent,
        }
    }
}

fn write_chain(out: &mut dyn Write, infos: &[Info]) -> io::Result<()> {
    for (index, info) in infos.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        write_text(out, info)?;
    }
    Ok(())
}

fn write_text(out: &mut dyn Write, info: &Info) -> io::Result<()> {
    let mut line = |name: &str, value: &dyn std::fmt::Display| writeln!(out, "{name:<18} {value}");
    line("file", &info.filename)?;
    let kind = info.vhdx.as_ref().map_or(String::new(), |vhdx| format!(", {}", vhdx.kind));
    line("format", &format!("{}{kind}", info.format))?;
    line("virtual size", &exact(info.virtual_size))?;
    line("file size", &exact(info.file_size))?;
    line("space on the host", &exact(info.actual_size))?;
    let Some(vhdx) = &info.vhdx else { return Ok(()) };
    line("blocks", &format!("of {}: {}", Size::of(vhdx.block_size.into()), vhdx.blocks))?;
    line(
        "sectors",
        &format!("{} logical, {} physical", vhdx.logical_sector_size, vhdx.physical_sector_size),
    )?;
    line("disk id", &vhdx.disk_id)?;
    line("FileWriteGuid", &vhdx.file_write_guid)?;
    line("DataWriteGuid", &vhdx.data_write_guid)?;
    line("creator", &vhdx.creator)?;
    line("log", &if vhdx.log_dirty { "holds updates for the next writable open" } else { "empty" })?;
    let Some(parent) = &vhdx.parent else { return Ok(()) };
    line("parent", &parent.filename.as_deref().unwrap_or("not found"))?;
    line("parent linkage", &format!("{} {}", parent.linkage, parent.verdict.words()))?;
    match &parent.problem {
        Some(problem) => line("problem", problem),
        None => Ok(()),
    }
}

fn exact(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", Size::of(bytes))
}

impl Linkage {
    const fn words(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::Mismatch => "DOES NOT FIT",
            Self::Missing => "(the parent is missing)",
            Self::Unusable => "(the parent cannot be used)",
        }
    }
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
