//! Holds the list of what a check finds, in the document on VHDX, to the code that finds it.

use std::collections::BTreeMap;

use super::Finding;
use super::documents::table_rows;
use super::tree::Tree;

const DOCUMENT: &str = "docs/formats/vhdx.md";
const HEADING: &str = "What a check finds";
/// Where rules get their names. The names in the first two places are found by their form, for the way back.
const ERRORS: &str = "crates/image/src/vhdx/error.rs";
const CHECK: &str = "crates/image/src/vhdx/check";
const COMMAND: &str = "crates/godwit/src/disk/check.rs";
/// A rule that is an error of the host, which is no finding.
const NOT_A_FINDING: &str = "host";

/// Compares the names in the document with those in the code.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(document) = tree.text(DOCUMENT) else { return Vec::new() };
    let documented: BTreeMap<&str, usize> = table_rows(document, HEADING)
        .flat_map(|(line, cells)| cells[0].split('`').skip(1).step_by(2).map(move |name| (name, line)))
        .collect();
    let sources: Vec<(&str, &str)> = tree
        .texts()
        .filter(|(path, _)| *path == ERRORS || *path == COMMAND || path.starts_with(CHECK))
        .collect();
    let mut findings = Vec::new();
    for (path, source) in &sources {
        for (line, name) in names(source, *path == ERRORS) {
            if !documented.contains_key(name) && name != NOT_A_FINDING {
                let advice = format!("{DOCUMENT} does not list {name:?} under \"{HEADING}\"; add a row");
                findings.push(Finding::new(path, line, "check-rules", advice));
            }
        }
    }
    for (name, line) in documented {
        let quoted = format!("\"{name}\"");
        if !sources.iter().any(|(_, source)| source.contains(&quoted)) {
            let advice = format!("no check finds {name:?} any more; remove it");
            findings.push(Finding::new(DOCUMENT, line, "check-rules", advice));
        }
    }
    findings
}

/// Lines and names of the rules in `source`: first arguments of a finding and, if asked for, the arms of a `rule`
/// function.
fn names(source: &str, with_arms: bool) -> impl Iterator<Item = (usize, &str)> {
    let mut found = Vec::new();
    let mut awaits_name = false;
    for (index, line) in source.lines().enumerate() {
        let line = line.trim();
        let is_arm = with_arms && (line.starts_with("Self::") || line.starts_with('|'));
        let arm = is_arm.then(|| line.split_once(" => \"")).flatten();
        let call = [".note(", ".leak(", ".corrupt("].iter().find_map(|call| line.split_once(call));
        let rest = match (arm, call) {
            (Some((_, rest)), _) => Some(rest),
            (None, Some((_, rest))) => rest.strip_prefix('"'),
            (None, None) if awaits_name => line.strip_prefix('"'),
            (None, None) => None,
        };
        // rustfmt puts the name on the next line where the call is long.
        awaits_name = call.is_some_and(|(_, rest)| rest.is_empty());
        found.extend(rest.and_then(|rest| rest.split('"').next()).map(|name| (index + 1, name)));
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_arms_and_in_calls_of_one_line_or_more() {
        let source = "Self::A => \"a-a\",\nSelf::B { .. }\n| Self::C => \"b\",\nreport.note(\"c\", x);\nreport.leak(\n\"d\",\n";
        assert_eq!(names(source, true).map(|(_, name)| name).collect::<Vec<_>>(), ["a-a", "b", "c", "d"]);
    }

    #[test]
    fn document_and_code_list_the_same_names() {
        let document = format!("## {HEADING}\n| Rule | x |\n| --- | --- |\n| `a`, `b` | y |\n");
        let check = |source: &str| check(&Tree::of(&[(DOCUMENT, &document), (ERRORS, source)])).len();
        assert_eq!(check("Self::A => \"a\",\nSelf::B => \"b\",\n"), 0);
        assert_eq!(check("Self::A => \"a\",\n"), 1, "b is gone");
        assert_eq!(check("Self::A => \"a\",\nSelf::B => \"b\",\nSelf::C => \"c\",\n"), 1, "c is not listed");
    }
}
