//! `cargo xtask tidy`: the rules of the tree that neither the compiler nor clippy can hold.
//!
//! Each rule is a function from text to [`Finding`]s, so that its own test can show it something that breaks it. The
//! facts that a rule needs are read from the document that explains them to people: which crate may depend on which,
//! and where `unsafe` may stand, come from the tables in `ARCHITECTURE.md`. A document and its check cannot differ.

mod check_rules;
mod crates;
mod documents;
mod lexer;
mod rust;
mod text;
mod tree;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use tree::Tree;

/// One broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Path from the workspace's folder.
    pub(crate) file: String,
    /// Line, counted from 1; 0 where the file as a whole is meant.
    pub(crate) line: usize,
    /// The rule's short name.
    pub(crate) rule: &'static str,
    /// What is wrong and what to do about it.
    pub(crate) advice: String,
}

impl Finding {
    pub(crate) fn new(file: &str, line: usize, rule: &'static str, advice: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule, advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}: {}", self.file, self.rule, self.advice),
            line => write!(f, "{}:{line}: {}: {}", self.file, self.rule, self.advice),
        }
    }
}

/// Checks the tree at `root` and prints what it finds; whether that is nothing.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let findings = check(root)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        eprintln!("tidy: {} broken rules", findings.len());
    }
    Ok(findings.is_empty())
}

/// Every broken rule of the tree at `root`, sorted by file and line.
fn check(root: &Path) -> Result<Vec<Finding>> {
    let tree = Tree::read(root).context("read the tree")?;
    let architecture =
        tree.text("ARCHITECTURE.md").context("ARCHITECTURE.md holds tables that tidy checks")?;
    let mut findings = Vec::new();
    findings.extend(crates::check(root, architecture)?);
    findings.extend(rust::check_unsafe(&tree, architecture));
    findings.extend(rust::check_long_functions(&tree));
    findings.extend(check_rules::check(&tree));
    for (path, content) in tree.texts() {
        findings.extend(text::check(path, content));
        if path.ends_with(".rs") {
            findings.extend(rust::check_file(path, content));
        }
        if path.ends_with(".md") {
            findings.extend(documents::check(&tree, path, content));
        }
        if path.ends_with("Cargo.toml") {
            findings.extend(crates::check_manifest(path, content));
        }
    }
    findings.sort();
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let findings = check(&crate::root()).expect("the tree can be read");
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{} broken rules:\n{}", lines.len(), lines.join("\n"));
    }
}
