//! `godwit disk check`.

use std::io::{self, Write};

use anyhow::Context;
use block::ErrorKind;
use clap::Args;
use graph::ChainError;
use image::vhdx::check::{CheckOptions, CheckReport, Finding, Severity, check};
use serde::Serialize;
use uuid::Uuid;

use super::open::Source;
use super::size::Size;
use crate::exit::Exit;
use crate::report::Form;

/// Looks for everything that is wrong with an image; changes nothing.
///
/// Ends with 0 where the image is sound, 1 where it could not be checked, 2 where something endangers data, 3 where only
/// space is lost.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Serialize)]
struct Answer {
    filename: String,
    format: &'static str,
    verdict: Verdict,
    findings: Vec<FindingInfo>,
    /// Findings that are not listed because there are too many of their rule.
    findings_left_out: u64,
    file_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    used_bytes: u64,
    leaked_bytes: u64,
}

/// What all findings together amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Sound,
    Leaks,
    Corrupt,
}

impl Verdict {
    fn exit(self) -> Exit {
        match self {
            Self::Sound => Exit::Done,
            Self::Leaks => Exit::Leaks,
            Self::Corrupt => Exit::Corrupt,
        }
    }
}

#[derive(Debug, Serialize)]
struct FindingInfo {
    severity: &'static str,
    rule: &'static str,
    message: String,
}

pub(crate) async fn run(args: CheckArgs, form: Form) -> anyhow::Result<Exit> {
    let path = &args.source.path;
    let doing = || format!("check {}", path.display());
    let format = args.source.format()?;
    let answer = match format {
        graph::Format::Vhdx => check_vhdx(&args.source).await.with_context(doing)?,
        graph::Format::Raw => {
            let file = args.source.open_file(path).with_context(doing)?;
            check_raw(&args.source, file.size())
        }
    };
    form.print(&answer, write_text)?;
    Ok(answer.verdict.exit())
}

async fn check_vhdx(source: &Source) -> anyhow::Result<Answer> {
    let parent = Parent::find(source).await?;
    let file = source.open_file(&source.path)?;
    let report = check(&file, &CheckOptions { parent_data_write_guid: parent.data_write_guid }).await?;
    file.close().await?;
    let mut answer = Answer::of(source, &report);
    if let Some(finding) = parent.finding {
        answer.findings.push(finding);
        answer.verdict = Verdict::Corrupt;
    }
    Ok(answer)
}

/// What is known of the parent of a disk.
#[derive(Default)]
struct Parent {
    data_write_guid: Option<Uuid>,
    /// What is wrong beside the identifier.
    finding: Option<FindingInfo>,
}

impl Parent {
    async fn find(source: &Source) -> anyhow::Result<Self> {
        let description = match source.describe_chain().await {
            Ok(description) => description,
            // What is wrong with the disk itself is for the check to say.
            Err(ChainError::Image { .. }) => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let [top, below @ ..] = description.layers.as_slice() else { return Ok(Self::default()) };
        let is_child = top.vhdx.as_ref().is_some_and(|vhdx| vhdx.linkage.is_some());
        let data_write_guid =
            below.first().and_then(|parent| parent.vhdx.as_ref()).map(|vhdx| vhdx.data_write_guid);
        let rule = match description.problem.as_ref().map(ChainError::kind) {
            None => return Ok(Self { data_write_guid, finding: None }),
            // The host's trouble, or somebody else's use of the parent, says nothing of the disk.
            Some(ErrorKind::Busy | ErrorKind::Io | ErrorKind::ReadOnly) => None,
            Some(ErrorKind::NotFound) => Some("parent-missing"),
            Some(_) => Some("parent-unusable"),
        };
        let problem = description.problem.map(anyhow::Error::new).expect("it has a kind");
        match rule {
            Some(rule) if is_child => {
                let message = format!("{problem:#}");
                let finding = FindingInfo { severity: Severity::Corrupt.name(), rule, message };
                Ok(Self { data_write_guid, finding: Some(finding) })
            }
            _ => Err(problem),
        }
    }
}

impl Answer {
    fn of(source: &Source, report: &CheckReport) -> Self {
        let verdict = match report.worst() {
            None | Some(Severity::Note) => Verdict::Sound,
            Some(Severity::Leak) => Verdict::Leaks,
            Some(Severity::Corrupt) => Verdict::Corrupt,
        };
        let finding = |finding: &Finding| FindingInfo {
            severity: finding.severity.name(),
            rule: finding.rule,
            message: finding.message.clone().into_owned(),
        };
        Self {
            filename: source.path.display().to_string(),
            format: graph::Format::Vhdx.name(),
            verdict,
            findings: report.findings.iter().map(finding).collect(),
            findings_left_out: report.left_out,
            file_size: report.counts.file_bytes,
            virtual_size: report.counts.virtual_size,
            used_bytes: report.counts.used_bytes,
            leaked_bytes: report.counts.leaked_bytes,
        }
    }
}

/// All that can be wrong with a raw image is its length.
fn check_raw(source: &Source, size: u64) -> Answer {
    let whole = size.is_multiple_of(image::raw::SECTOR_BYTES);
    let finding = FindingInfo {
        severity: Severity::Corrupt.name(),
        rule: "raw-size",
        message: format!("{size} bytes are not a multiple of the {}-byte sector", image::raw::SECTOR_BYTES),
    };
    Answer {
        filename: source.path.display().to_string(),
        format: graph::Format::Raw.name(),
        verdict: if whole { Verdict::Sound } else { Verdict::Corrupt },
        findings: if whole { Vec::new() } else { vec![finding] },
        findings_left_out: 0,
        file_size: size,
        virtual_size: whole.then_some(size),
        used_bytes: size,
        leaked_bytes: 0,
    }
}

fn write_text(out: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    for finding in &answer.findings {
        writeln!(out, "{}: {}: {}", finding.severity, finding.rule, finding.message)?;
    }
    if answer.findings_left_out > 0 {
        writeln!(out, "{} more findings of the same rules are not listed", answer.findings_left_out)?;
    }
    let (used, whole) = (Size::of(answer.used_bytes), Size::of(answer.file_size));
    write!(out, "{}: ", answer.filename)?;
    match answer.verdict {
        Verdict::Sound => writeln!(out, "sound; {used} of {whole} in use"),
        Verdict::Leaks => writeln!(out, "sound, but {} are lost to nothing", Size::of(answer.leaked_bytes)),
        Verdict::Corrupt => writeln!(out, "corrupt; do not write to it before it is repaired or copied"),
    }
}
