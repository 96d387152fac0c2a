//! Rules for the documents: links and paths that lead somewhere, and the tables that other rules read.

use super::Finding;
use super::tree::Tree;

/// Folders whose paths, where a document names them in backticks, must exist.
const TREE_FOLDERS: [&str; 7] = ["crates/", "docs/", "fuzz/", "scripts/", "xtask/", ".ci/", "benches/"];

/// Checks the links, anchors and paths of the document at `path`.
pub(crate) fn check(tree: &Tree, path: &str, content: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in prose(content) {
        for target in link_targets(text) {
            if let Some(advice) = broken_link(tree, path, target) {
                findings.push(Finding::new(path, line, "link", advice));
            }
        }
        for named in
            code_spans(text).filter(|span| TREE_FOLDERS.iter().any(|folder| span.starts_with(folder)))
        {
            let plain = named.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            if plain && !tree.has(named) {
                let advice = format!("there is no {named} in the tree; mend the path");
                findings.push(Finding::new(path, line, "path", advice));
            }
        }
    }
    findings
}

/// Number and text of each line outside fenced code.
fn prose(content: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    content.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

/// What the Markdown links of a line point to.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, open)| {
        let target = &line[at + open.len()..];
        target.find(')').map(|end| &target[..end])
    })
}

fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Why the link `target` in the document at `from` leads nowhere.
fn broken_link(tree: &Tree, from: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let Some(file) = resolve(from, file) else {
        return Some(format!("the link {target} leaves the tree"));
    };
    if !tree.has(&file) {
        return Some(format!("the link leads to {file}, which does not exist"));
    }
    let text = tree.text(&file).filter(|_| !anchor.is_empty())?;
    let known = headings(text).any(|heading| anchor_of(heading) == anchor);
    (!known).then(|| format!("{file} has no heading for #{anchor}"))
}

/// The path that `target` means in the document at `from`; `None` where it leaves the tree.
fn resolve(from: &str, target: &str) -> Option<String> {
    if target.is_empty() {
        return Some(from.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn headings(content: &str) -> impl Iterator<Item = &str> {
    prose(content).filter_map(|(_, line)| {
        let text = line.trim_start_matches('#');
        (text.len() < line.len()).then(|| text.trim())
    })
}

/// The anchor that Markdown viewers make of a heading.
fn anchor_of(heading: &str) -> String {
    let lower = heading.to_lowercase().replace(' ', "-");
    lower.chars().filter(|&c| c.is_alphanumeric() || c == '-' || c == '_').collect()
}

/// Line and cells of each row of the tables below `heading`, without the tables' heads.
pub(crate) fn table_rows<'a>(content: &'a str, heading: &str) -> impl Iterator<Item = (usize, Vec<&'a str>)> {
    let lines: Vec<(usize, &str)> = prose(content).collect();
    let is_heading = |line: &str| line.starts_with('#');
    let start =
        lines.iter().position(|(_, line)| is_heading(line) && line.trim_start_matches('#').trim() == heading);
    let section = start.map_or(&[][..], |start| &lines[start + 1..]);
    let end = section.iter().position(|(_, line)| is_heading(line)).unwrap_or(section.len());
    let rows: Vec<(usize, Vec<&str>)> = section[..end]
        .iter()
        .filter(|(_, line)| line.starts_with('|'))
        .map(|(n, line)| (*n, cells(line)))
        .collect();
    let rule = rows.iter().position(|(_, cells)| cells[0].chars().all(|c| c == '-' || c == ':'));
    rows.into_iter().skip(rule.map_or(0, |rule| rule + 1))
}

fn cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(line: &str) -> usize {
        let tree = Tree::of(&[("docs/a.md", "# One two\n"), ("README.md", "# R\n"), ("scripts/test", "\n")]);
        check(&tree, "docs/a.md", &format!("# One two\n{line}\n")).len()
    }

    #[test]
    fn links_lead_to_files_and_headings_that_exist() {
        for fine in ["[a](../README.md)", "[a](#one-two)", "[a](a.md#one-two)", "[a](https://example.org/x)"]
        {
            assert_eq!(findings(fine), 0, "{fine}");
        }
        for broken in ["[a](README.md)", "[a](#three)", "[a](../README.md#x)", "[a](../../x)"] {
            assert_eq!(findings(broken), 1, "{broken}");
        }
        assert_eq!(findings("```\n[a](nowhere)\n```"), 0, "examples are not links");
    }

    #[test]
    fn paths_in_backticks_exist() {
        assert_eq!(findings("run `scripts/test`"), 0);
        assert_eq!(findings("run `scripts/gone`"), 1);
        assert_eq!(findings("any `crates/<name>/src`, `other/gone`"), 0);
    }

    #[test]
    fn the_rows_of_a_table_are_those_under_its_heading() {
        let text = "## A\n| x |\n| - |\n| 1 | a |\n| 2 | b |\n## B\n| y |\n| - |\n| 3 |\n";
        let rows: Vec<_> = table_rows(text, "A").collect();
        assert_eq!(rows, [(4, vec!["1", "a"]), (5, vec!["2", "b"])]);
        assert_eq!(table_rows(text, "C").count(), 0);
    }
}
