//! `godwit disk create`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use block::{ByteRange, Disk};
use clap::{Args, ValueEnum};
use hostio::{HostFile, OpenOptions};
use image::vhdx::{self, CreateOptions, Kind};

use super::Format;
use super::info;
use super::open::ParentOfNewChild;
use super::size::Size;
use crate::exit::Exit;
use crate::report::Form;

/// The new image is empty: it reads as zeroes, or as its parent.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The file to make; it must not exist.
    path: PathBuf,

    /// Size of the virtual disk: bytes, or a number with K, M, G, T (powers of 1024). A child has its parent's.
    size: Option<Size>,

    /// The format; otherwise the name decides: .raw and .img are raw, everything else is VHDX.
    #[arg(short, long)]
    format: Option<Format>,

    /// The kind of VHDX [default: differencing with --parent, else dynamic].
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kind: Option<KindName>,

    /// The image that the new one depends on.
    #[arg(short, long)]
    parent: Option<PathBuf>,

    /// Size of a VHDX block, 1M to 256M [default: 32M, for fixed and differencing 2M].
    #[arg(long, value_name = "SIZE")]
    block_size: Option<Size>,

    /// Sector that the guest addresses, 512 or 4096 [default: 512, or the parent's].
    #[arg(long, value_name = "SIZE")]
    sector_size: Option<Size>,

    /// Sector that the guest is told to write whole, 512 or 4096 [default: 4096, or the parent's].
    #[arg(long, value_name = "SIZE")]
    physical_sector_size: Option<Size>,

    /// Make the host give the space of a fixed VHDX or a raw image now.
    #[arg(long)]
    preallocate: bool,
}

/// What kind of VHDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindName {
    /// Space comes when it is written.
    Dynamic,
    /// All space is there from the start.
    Fixed,
    /// Depends on a parent.
    Differencing,
}

/// What to make, with everything that the command line may leave out.
#[derive(Debug)]
enum Plan {
    Raw { size: u64, preallocate: bool },
    Vhdx(Box<CreateOptions>),
}

pub(crate) async fn run(args: CreateArgs, form: Form) -> anyhow::Result<Exit> {
    let doing = || format!("create {}", args.path.display());
    let plan = plan(&args).await.with_context(doing)?;
    make(&args.path, &plan).await?;
    let format = match plan {
        Plan::Raw { .. } => Format::Raw,
        Plan::Vhdx(_) => Format::Vhdx,
    };
    info::print_created(&args.path, format, form).await
}

async fn plan(args: &CreateArgs) -> anyhow::Result<Plan> {
    match format_of_new_file(args) {
        Format::Raw => plan_raw(args),
        Format::Vhdx => plan_vhdx(args).await.map(Box::new).map(Plan::Vhdx),
    }
}

/// What was asked for, or what the name says, or our own format.
fn format_of_new_file(args: &CreateArgs) -> Format {
    args.format.unwrap_or(match graph::Format::of_name(&args.path) {
        Some(graph::Format::Raw) => Format::Raw,
        Some(graph::Format::Vhdx) | None => Format::Vhdx,
    })
}

fn plan_raw(args: &CreateArgs) -> anyhow::Result<Plan> {
    let options = [
        ("--type", args.kind.is_some()),
        ("--parent", args.parent.is_some()),
        ("--block-size", args.block_size.is_some()),
        ("--sector-size", args.sector_size.is_some()),
        ("--physical-sector-size", args.physical_sector_size.is_some()),
    ];
    if let Some((option, _)) = options.iter().find(|(_, given)| *given) {
        bail!("{option} is for VHDX; a raw image has nowhere to keep it");
    }
    let size = args.size.context("a raw image needs a size, for example 10G")?.bytes;
    let sector = image::raw::SECTOR_BYTES;
    ensure!(
        size > 0 && size.is_multiple_of(sector),
        "the size of a raw image is a multiple of the {sector}-byte sector, and not {size}"
    );
    Ok(Plan::Raw { size, preallocate: args.preallocate })
}

async fn plan_vhdx(args: &CreateArgs) -> anyhow::Result<CreateOptions> {
    let kind = match (args.kind, &args.parent) {
        (None, None) => KindName::Dynamic,
        (None | Some(KindName::Differencing), Some(_)) => KindName::Differencing,
        (Some(KindName::Differencing), None) => bail!("a differencing disk needs --parent"),
        (Some(_), Some(_)) => bail!("--parent is for differencing disks; leave --type away"),
        (Some(kind), None) => kind,
    };
    ensure!(
        kind == KindName::Fixed || !args.preallocate,
        "--preallocate is for fixed disks: add --type fixed"
    );
    let mut options = match &args.parent {
        Some(parent) => child_of(parent, &args.path, args.size).await?,
        None => {
            let size = args.size.context("a disk without a parent needs a size, for example 10G")?.bytes;
            let fixed = Kind::Fixed { preallocate: args.preallocate };
            CreateOptions::new(size, if kind == KindName::Fixed { fixed } else { Kind::Dynamic })
        }
    };
    let parent_sector = args.parent.as_ref().map(|_| options.logical_sector_bytes);
    set(&mut options.block_bytes, args.block_size, "--block-size")?;
    set(&mut options.logical_sector_bytes, args.sector_size, "--sector-size")?;
    set(&mut options.physical_sector_bytes, args.physical_sector_size, "--physical-sector-size")?;
    if let Some(sector) = parent_sector.filter(|sector| *sector != options.logical_sector_bytes) {
        bail!(
            "the parent's sectors have {sector} bytes, and a child's are its parent's; leave --sector-size away"
        );
    }
    options.validate()?;
    Ok(options)
}

fn set(value: &mut u32, given: Option<Size>, option: &str) -> anyhow::Result<()> {
    if let Some(given) = given {
        *value = u32::try_from(given.bytes).ok().with_context(|| format!("{option} {given} is too large"))?;
    }
    Ok(())
}

/// A child of the disk in `parent`.
async fn child_of(parent: &Path, child: &Path, size: Option<Size>) -> anyhow::Result<CreateOptions> {
    let doing = || format!("open the parent {}", parent.display());
    let base = ParentOfNewChild::open(parent).await.with_context(doing)?;
    let child_dir = child.parent().unwrap_or(Path::new(""));
    let options = CreateOptions::child_of(&base.opened, parent, child_dir).await.with_context(doing)?;
    if let Some(size) = size.filter(|size| size.bytes != options.virtual_size) {
        bail!(
            "{} bytes were asked for, but the parent has {}; a child has its parent's size, leave the size away",
            size.bytes,
            options.virtual_size
        );
    }
    Ok(options)
}

/// Makes the file, or leaves none behind.
async fn make(path: &Path, plan: &Plan) -> anyhow::Result<()> {
    let size = match plan {
        Plan::Raw { size, .. } => *size,
        Plan::Vhdx(_) => 0,
    };
    let file = HostFile::create(path, size, &OpenOptions::read_write())?;
    let filled = fill(file, plan).await.with_context(|| format!("create {}", path.display()));
    if filled.is_err() {
        // The file is new, so nothing of anybody's is lost; what failed first is what is told.
        let _ = std::fs::remove_file(path);
    }
    filled
}

async fn fill(file: HostFile, plan: &Plan) -> anyhow::Result<()> {
    match plan {
        Plan::Raw { size, preallocate } => {
            if *preallocate {
                let whole = ByteRange::new(0, *size).context("the size is too large")?;
                file.preallocate(whole).await?;
            }
            let disk = Disk::new(file);
            disk.flush().await?;
            disk.close().await?;
        }
        Plan::Vhdx(options) => {
            let disk = Disk::new(file);
            vhdx::create(&disk, options).await?;
            disk.close().await?;
        }
    }
    Ok(())
}
