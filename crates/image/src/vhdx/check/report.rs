//! What a check has found.

use std::borrow::Cow;
use std::collections::HashMap;

/// Findings of one rule that are kept; more are counted only, so that a file cannot make a report of any size.
const FINDINGS_PER_RULE_MAX: u32 = 100;

/// How bad a finding is; a later one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong with the content.
    Note,
    /// Space is lost, content is not.
    Leak,
    /// A rule of the format is broken.
    Corrupt,
}

impl Severity {
    /// The severity's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Leak => "leak",
            Self::Corrupt => "corrupt",
        }
    }
}

/// One thing that a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which rule it is about, in a few words that never change.
    pub rule: &'static str,
    /// What was found, with the places.
    pub message: Cow<'static, str>,
}

/// Payload blocks by state, as the table has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Not described by this file.
    pub not_present: u64,
    /// Undefined content.
    pub undefined: u64,
    /// Zeroes.
    pub zero: u64,
    /// Trimmed.
    pub unmapped: u64,
    /// Wholly in this file.
    pub fully_present: u64,
    /// Partly in this file.
    pub partially_present: u64,
}

/// What the file is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Length of the host file.
    pub file_bytes: u64,
    /// Size of the virtual disk, where the metadata could be read.
    pub virtual_size: Option<u64>,
    /// Payload blocks.
    pub blocks: BlockCounts,
    /// Sector bitmaps in the file.
    pub bitmaps: u64,
    /// Bytes of the file that belong to something.
    pub used_bytes: u64,
    /// Bytes that the host stores for space that belongs to nothing.
    pub leaked_bytes: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What was found, in the order of the file's structures.
    pub findings: Vec<Finding>,
    /// How many findings were counted and not kept, because there were too many of their rule.
    pub left_out: u64,
    /// What the file is made of, as far as it could be read.
    pub counts: Counts,
    per_rule: HashMap<&'static str, u32>,
}

impl CheckReport {
    /// The severity of the worst finding; `None` where there is none.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether there is a finding of `rule`.
    pub fn has(&self, rule: &str) -> bool {
        self.findings.iter().any(|finding| finding.rule == rule)
    }

    pub(super) fn note(&mut self, rule: &'static str, message: impl Into<Cow<'static, str>>) {
        self.add(Severity::Note, rule, message.into());
    }

    pub(super) fn leak(&mut self, rule: &'static str, message: impl Into<Cow<'static, str>>) {
        self.add(Severity::Leak, rule, message.into());
    }

    pub(super) fn corrupt(&mut self, rule: &'static str, message: impl Into<Cow<'static, str>>) {
        self.add(Severity::Corrupt, rule, message.into());
    }

    fn add(&mut self, severity: Severity, rule: &'static str, message: Cow<'static, str>) {
        let count = self.per_rule.entry(rule).or_default();
        if *count == FINDINGS_PER_RULE_MAX {
            self.left_out += 1;
            return;
        }
        *count += 1;
        self.findings.push(Finding { severity, rule, message });
    }
}
