//! Rules for Rust sources: how a file begins, names, lengths, and where `unsafe` stands.

use std::collections::BTreeMap;

use super::Finding;
use super::documents::table_rows;
use super::lexer::code_of;
use super::tree::Tree;

/// A function longer than this is two functions.
const FUNCTION_LINES_MAX: usize = 70;
/// A file with more lines of code than this tells two stories.
const FILE_CODE_LINES_MAX: usize = 900;
/// Words that say nothing about what a thing is.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "manager", "misc"];
/// Where functions that were too long when the rule came are listed, one `path name lines` a line.
const LONG_FUNCTIONS: &str = "xtask/src/tidy/long_functions.txt";
/// The heading in `ARCHITECTURE.md` whose table lists the modules with `unsafe`.
const UNSAFE_HEADING: &str = "Unsafe code";

/// Checks what can be told from the file at `path` alone.
pub(crate) fn check_file(path: &str, source: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if path.ends_with("/mod.rs") {
        let advice = "name the file after its folder and put it beside it (`foo.rs` and `foo/`)";
        findings.push(Finding::new(path, 0, "mod-rs", advice));
    }
    if !source.starts_with("//!") {
        let advice = "begin the file with a `//!` line that says what it holds";
        findings.push(Finding::new(path, 1, "module-doc", advice));
    }
    let code = code_of(source);
    let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > FILE_CODE_LINES_MAX {
        let advice = format!(
            "{lines} lines of code, limit {FILE_CODE_LINES_MAX}; move the second story to a file of its own"
        );
        findings.push(Finding::new(path, 0, "file-length", advice));
    }
    findings.extend(check_names(path, &code));
    findings
}

fn check_names(path: &str, code: &str) -> Vec<Finding> {
    let mut named = vec![(0, file_stem(path).to_owned())];
    named.extend(declared_names(code));
    let empty = |name: &str| words_of(name).find(|word| EMPTY_NAMES.contains(&word.as_str()));
    named
        .into_iter()
        .filter_map(|(line, name)| empty(&name).map(|word| (line, name, word)))
        .map(|(line, name, word)| {
            let advice = format!("`{name}`: \"{word}\" says nothing; name it after what it is or does");
            Finding::new(path, line, "empty-name", advice)
        })
        .collect()
}

fn file_stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".rs").unwrap_or(name)
}

/// Line and name of each module and type that `code` declares.
fn declared_names(code: &str) -> Vec<(usize, String)> {
    let keywords = ["struct", "enum", "trait", "union", "type", "mod"];
    let mut names = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut words =
            line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            if keywords.contains(&word) {
                names.extend(words.next().map(|name| (index + 1, name.to_owned())));
            }
        }
    }
    names
}

/// The words of a name in either case, in lower case.
fn words_of(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().expect("there is always a word").extend(c.to_lowercase());
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}

/// A function with its place.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// The functions with a body in `code`, nested ones too.
fn functions(code: &str) -> Vec<Function> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = code[at + 3..].trim_start();
        let name: String = rest.chars().take_while(|&c| is_word(c)).collect();
        let Some(body) = (!name.is_empty()).then(|| body_of(&code[at..])).flatten() else { continue };
        let line = code[..at].matches('\n').count() + 1;
        found.push(Function { name, line, lines: body.matches('\n').count() + 1 });
    }
    found
}

/// The text from the start of a function to the end of its body; `None` where it has none.
fn body_of(code: &str) -> Option<&str> {
    let (mut nested, mut braces) = (0_i32, 0_i32);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => nested += 1,
            ')' | ']' => nested -= 1,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(&code[..=at]);
                }
            }
            ';' if nested == 0 && braces == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Holds every function to the limit, but for the listed ones, which may only become shorter.
pub(crate) fn check_long_functions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut listed = listed_functions(tree.text(LONG_FUNCTIONS).unwrap_or(""), &mut findings);
    for (path, source) in tree.texts().filter(|(path, _)| path.ends_with(".rs")) {
        for function in functions(&code_of(source)) {
            let allowed = listed.remove(&(path.to_owned(), function.name.clone()));
            findings.extend(check_function(path, &function, allowed));
        }
    }
    for ((path, name), (line, _)) in listed {
        let advice = format!("{path} has no function `{name}` any more; remove the line");
        findings.push(Finding::new(LONG_FUNCTIONS, line, "function-length", advice));
    }
    findings
}

fn check_function(path: &str, function: &Function, allowed: Option<(usize, usize)>) -> Option<Finding> {
    let Function { name, line, lines } = function;
    match allowed {
        None if *lines > FUNCTION_LINES_MAX => {
            let advice = format!(
                "`{name}` has {lines} lines, limit {FUNCTION_LINES_MAX}; take a step out into its own function"
            );
            Some(Finding::new(path, *line, "function-length", advice))
        }
        Some((_, allowed)) if *lines > allowed => {
            let advice = format!("`{name}` grew from {allowed} to {lines} lines; it may only become shorter");
            Some(Finding::new(path, *line, "function-length", advice))
        }
        Some((at, allowed)) if *lines < allowed => {
            let stays = *lines > FUNCTION_LINES_MAX;
            let what = if stays { format!("write {lines}") } else { "remove the line".to_owned() };
            let advice = format!("`{name}` in {path} has {lines} lines by now, not {allowed}; {what}");
            Some(Finding::new(LONG_FUNCTIONS, at, "function-length", advice))
        }
        _ => None,
    }
}

type Listed = BTreeMap<(String, String), (usize, usize)>;

fn listed_functions(list: &str, findings: &mut Vec<Finding>) -> Listed {
    let mut listed = Listed::new();
    for (index, line) in list.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [path, name, lines] if lines.parse::<usize>().is_ok() => {
                let lines = lines.parse().unwrap_or(0);
                listed.insert(((*path).to_owned(), (*name).to_owned()), (index + 1, lines));
            }
            _ => findings.push(Finding::new(
                LONG_FUNCTIONS,
                index + 1,
                "function-length",
                "write `path name lines`",
            )),
        }
    }
    listed
}

/// Holds `unsafe` to the modules that `ARCHITECTURE.md` lists, and the list to what has `unsafe`.
pub(crate) fn check_unsafe(tree: &Tree, architecture: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let listed: BTreeMap<String, usize> = table_rows(architecture, UNSAFE_HEADING)
        .map(|(line, cells)| (cells[0].trim_matches('`').to_owned(), line))
        .collect();
    for (path, source) in tree.texts().filter(|(path, _)| path.ends_with(".rs")) {
        let code = code_of(source);
        let place = code.lines().position(has_unsafe).map(|index| index + 1);
        match (place, listed.get(path)) {
            (Some(line), None) => {
                let advice = format!(
                    "`unsafe` outside the modules that ARCHITECTURE.md lists under \"{UNSAFE_HEADING}\"; do without it, or list the module with the reason"
                );
                findings.push(Finding::new(path, line, "unsafe", advice));
            }
            (Some(line), Some(_)) if !opts_in(&code) => {
                let advice =
                    "opt in with `expect(unsafe_code, reason = \"...\")`, for the file or for the item";
                findings.push(Finding::new(path, line, "unsafe", advice));
            }
            (None, Some(line)) => {
                let advice = format!("{path} has no `unsafe` any more; remove the row");
                findings.push(Finding::new("ARCHITECTURE.md", *line, "unsafe", advice));
            }
            _ => {}
        }
    }
    for (path, line) in listed.iter().filter(|(path, _)| tree.text(path).is_none()) {
        let advice = format!("there is no {path}; remove or mend the row");
        findings.push(Finding::new("ARCHITECTURE.md", *line, "unsafe", advice));
    }
    findings
}

fn opts_in(code: &str) -> bool {
    code.split("expect(").skip(1).any(|rest| rest.trim_start().starts_with("unsafe_code"))
}

fn has_unsafe(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(findings: &[Finding]) -> Vec<(usize, &'static str)> {
        findings.iter().map(|finding| (finding.line, finding.rule)).collect()
    }

    #[test]
    fn a_file_says_what_it_holds_and_stands_beside_its_folder() {
        assert_eq!(rules(&check_file("crates/a/src/b.rs", "//! B.\n")), []);
        assert_eq!(rules(&check_file("crates/a/src/b.rs", "fn b() {}\n")), [(1, "module-doc")]);
        assert_eq!(rules(&check_file("crates/a/src/b/mod.rs", "//! B.\n")), [(0, "mod-rs")]);
    }

    #[test]
    fn empty_names_are_found_in_files_modules_and_types_only() {
        let check = |path: &str, code: &str| rules(&check_file(path, &format!("//! A.\n{code}\n")));
        assert_eq!(check("src/io_utils.rs", ""), [(0, "empty-name")]);
        assert_eq!(check("src/a.rs", "pub struct DiskManager;"), [(2, "empty-name")]);
        assert_eq!(check("src/a.rs", "mod common;"), [(2, "empty-name")]);
        assert_eq!(check("src/a.rs", "struct Commons; // a helper\nfn manager() {}"), []);
    }

    #[test]
    fn function_lengths_count_from_signature_to_closing_brace() {
        let code = "trait T { fn none(&self) -> [u8; 4]; }\nfn one() {}\nasync fn two(a: fn (u8))\nwhere\n{ if a {\n } }";
        let lengths: Vec<_> = functions(code).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(lengths, [("one".to_owned(), 2, 1), ("two".to_owned(), 3, 4)]);
    }

    #[test]
    fn the_list_of_long_functions_only_shrinks() {
        let long = |lines: usize| format!("//! A.\nfn f() {{{}}}\n", "\n".repeat(lines - 1));
        let check = |lines: usize, list: &str| {
            let source = long(lines);
            check_long_functions(&Tree::of(&[("a.rs", source.as_str()), (LONG_FUNCTIONS, list)])).len()
        };
        assert_eq!(check(FUNCTION_LINES_MAX, ""), 0);
        assert_eq!(check(FUNCTION_LINES_MAX + 1, ""), 1);
        assert_eq!(check(90, "a.rs f 90"), 0);
        assert_eq!(check(91, "a.rs f 90"), 1, "longer than listed");
        assert_eq!(check(89, "a.rs f 90"), 1, "shorter: the list must follow");
        assert_eq!(check(5, "a.rs f 90"), 1, "no longer too long");
        assert_eq!(check(5, "a.rs g 90"), 1, "gone");
        assert_eq!(check(5, "a.rs f"), 1, "not a line of the list");
    }

    #[test]
    fn unsafe_stands_only_where_the_document_lists_it_and_the_list_is_true() {
        let with = "//! A.\n#![expect(unsafe_code, reason = \"r\")]\nfn f() { unsafe {} }\n";
        let table =
            |path: &str| format!("## Unsafe code\n\n| Module | Why |\n| --- | --- |\n| `{path}` | x |\n");
        let check =
            |source: &str, listed: &str| check_unsafe(&Tree::of(&[("a.rs", source)]), &table(listed)).len();
        assert_eq!(check(with, "a.rs"), 0);
        assert_eq!(check("//! A, not unsafe.\n", "a.rs"), 1, "listed without need");
        assert_eq!(check("//! A.\nunsafe fn f() {}\n", "a.rs"), 1, "no opt-in");
        assert_eq!(check_unsafe(&Tree::of(&[("a.rs", with)]), "").len(), 1, "not listed");
        assert_eq!(check(with, "b.rs"), 2, "not listed, and a row without a file");
    }
}
