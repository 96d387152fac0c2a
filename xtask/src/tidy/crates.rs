//! Rules for the crates: which may depend on which, and how a manifest names what it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Finding;
use super::documents::table_rows;

/// The heading in `ARCHITECTURE.md` whose table lists the crates and what they may depend on.
const CRATES_HEADING: &str = "Crates";
/// Stands for "every crate" in the table.
const EVERYTHING: &str = "everything";

/// What a crate may depend on, by the table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Allowed {
    line: usize,
    normal: BTreeSet<String>,
    tests: BTreeSet<String>,
}

/// A dependency of one of our crates on another.
#[derive(Debug, PartialEq, Eq)]
struct Arrow {
    from: String,
    to: String,
    tests_only: bool,
}

/// Holds the workspace at `root` to the table in the document `architecture`.
pub(crate) fn check(root: &Path, architecture: &str) -> Result<Vec<Finding>> {
    let (crates, arrows) = parse_metadata(&metadata(root)?)?;
    let mut findings = compare(&parse_table(architecture), &crates, &arrows);
    findings.extend(doubled_rows(architecture));
    Ok(findings)
}

fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("parse the answer of cargo metadata")
}

/// The names of our crates, and the arrows between them.
fn parse_metadata(metadata: &Value) -> Result<(BTreeSet<String>, Vec<Arrow>)> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let name_of =
        |value: &Value| value["name"].as_str().map(str::to_owned).context("a package without a name");
    let crates = packages.iter().map(name_of).collect::<Result<BTreeSet<_>>>()?;
    let mut arrows = Vec::new();
    for package in packages {
        let from = name_of(package)?;
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = name_of(dependency)?;
            if crates.contains(&to) && dependency["path"].is_string() {
                let tests_only = dependency["kind"].as_str() == Some("dev");
                arrows.push(Arrow { from: from.clone(), to, tests_only });
            }
        }
    }
    Ok((crates, arrows))
}

fn parse_table(architecture: &str) -> BTreeMap<String, Allowed> {
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect()
    };
    table_rows(architecture, CRATES_HEADING)
        .map(|(line, cells)| {
            let cell = |index: usize| cells.get(index).copied().unwrap_or("");
            let allowed = Allowed { line, normal: names(cell(2)), tests: names(cell(3)) };
            (cell(0).trim_matches('`').to_owned(), allowed)
        })
        .collect()
}

/// Rows for a crate that has one already: they would hide each other.
fn doubled_rows(architecture: &str) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    table_rows(architecture, CRATES_HEADING)
        .filter(|(_, cells)| !seen.insert(cells[0].to_owned()))
        .map(|(line, cells)| {
            Finding::new(
                "ARCHITECTURE.md",
                line,
                "crates",
                format!("{} is listed twice; keep one row", cells[0]),
            )
        })
        .collect()
}

fn compare(table: &BTreeMap<String, Allowed>, crates: &BTreeSet<String>, arrows: &[Arrow]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in crates.iter().filter(|name| !table.contains_key(*name)) {
        let advice =
            format!("the crate `{name}` has no row in the table under \"{CRATES_HEADING}\"; give it one");
        findings.push(Finding::new("ARCHITECTURE.md", 0, "crates", advice));
    }
    for (name, allowed) in table.iter().filter(|(name, _)| !crates.contains(*name)) {
        let advice = format!("there is no crate `{name}`; a crate is listed when it has code");
        findings.push(Finding::new("ARCHITECTURE.md", allowed.line, "crates", advice));
    }
    for Arrow { from, to, tests_only } in arrows {
        let Some(allowed) = table.get(from) else { continue };
        let holds = |set: &BTreeSet<String>| set.contains(to) || set.contains(EVERYTHING);
        let may = holds(&allowed.normal) || (*tests_only && holds(&allowed.tests));
        if !may {
            let how = if *tests_only { "in its tests" } else { "in its code" };
            let advice = format!(
                "`{from}` may not depend on `{to}` {how} (ARCHITECTURE.md:{}); turn the arrow round or move the code",
                allowed.line
            );
            findings.push(Finding::new(&format!("crates/{from}/Cargo.toml"), 0, "crates", advice));
        }
    }
    findings
}

/// Holds a member's manifest to the workspace's versions and lints.
pub(crate) fn check_manifest(path: &str, content: &str) -> Vec<Finding> {
    // The root defines them, and `fuzz` is a workspace of its own.
    if path == "Cargo.toml" || path.starts_with("fuzz/") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut section = "";
    for (index, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if section.ends_with("dependencies")
            && !line.starts_with('#')
            && !line.contains("workspace = true")
        {
            let advice =
                "name the version once, in the workspace's manifest, and write `x.workspace = true` here";
            findings.push(Finding::new(path, index + 1, "manifest", advice));
        }
    }
    if !content.contains("[lints]\nworkspace = true") {
        let advice =
            "the crate does not take part in the workspace's lints; add `[lints]` with `workspace = true`";
        findings.push(Finding::new(path, 0, "manifest", advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "## Crates\n\n| Crate | Holds | Depends on | In tests also |\n| --- | --- | --- | --- |\n\
                         | `a` | x | | |\n| `b` | x | `a` | `t` |\n| `t` | x | everything | |\n";

    fn check(crates: &[&str], arrows: &[(&str, &str, bool)]) -> usize {
        let arrows: Vec<Arrow> = arrows
            .iter()
            .map(|&(from, to, tests_only)| Arrow { from: from.to_owned(), to: to.to_owned(), tests_only })
            .collect();
        let crates = crates.iter().map(|&name| name.to_owned()).collect();
        compare(&parse_table(TABLE), &crates, &arrows).len()
    }

    #[test]
    fn arrows_that_the_table_does_not_allow_are_found() {
        let all = ["a", "b", "t"];
        assert_eq!(check(&all, &[("b", "a", false), ("b", "t", true), ("t", "b", false)]), 0);
        assert_eq!(check(&all, &[("a", "b", false)]), 1, "the wrong way round");
        assert_eq!(check(&all, &[("b", "t", false)]), 1, "allowed in tests only");
    }

    #[test]
    fn the_table_lists_the_crates_that_exist() {
        assert_eq!(check(&["a", "b", "t", "c"], &[]), 1);
        assert_eq!(check(&["a", "b"], &[]), 1);
    }

    #[test]
    fn a_crate_has_one_row() {
        assert_eq!(doubled_rows(TABLE).len(), 0);
        assert_eq!(doubled_rows(&format!("{TABLE}| `b` | y | | |\n")).len(), 1);
    }

    #[test]
    fn manifests_take_versions_and_lints_from_the_workspace() {
        let good = "[dependencies]\na.workspace = true\n\n[lints]\nworkspace = true\n";
        assert_eq!(check_manifest("crates/a/Cargo.toml", good), []);
        let bad = "[dev-dependencies]\na = \"1\"\n";
        assert_eq!(check_manifest("crates/a/Cargo.toml", bad).len(), 2);
    }
}
