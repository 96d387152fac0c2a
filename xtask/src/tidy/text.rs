//! Rules for every text of the tree.

use super::Finding;

/// Words that say that something is not finished. (In pieces, so that this file does not break its own rule.)
const UNFINISHED: [&str; 3] = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")];
/// Beginnings of paths that exist on one developer's machine only.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk"), concat!("/ro", "ot"), concat!("/ho", "me")];
/// Package registries and mirrors: which one serves a machine is that machine's configuration.
const REGISTRY_HOSTS: [&str; 4] = [
    concat!("crates", ".io"),
    concat!("py", "pi.org"),
    concat!("deb.deb", "ian.org"),
    concat!("proxy.gol", "ang.org"),
];

/// Checks the text at `path`.
pub(crate) fn check(path: &str, content: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let mut find = |rule, advice: String| findings.push(Finding::new(path, index + 1, rule, advice));
        if line.ends_with([' ', '\t', '\r']) {
            find("whitespace", "the line ends in white space; remove it".to_owned());
        }
        if line.contains('\t') {
            find("whitespace", "a tab; indent with spaces".to_owned());
        }
        if let Some(word) = UNFINISHED.iter().find(|word| has_word(line, word)) {
            find(
                "unfinished",
                format!("{word} in the tree; do it now, or write down what is missing where users look"),
            );
        }
        if let Some(start) = MACHINE_PATHS.iter().find(|start| has_path(line, start)) {
            find("machine-path", format!("{start} exists on one machine only; take the path as a parameter"));
        }
        if let Some(host) = REGISTRY_HOSTS.iter().find(|host| line.contains(*host)) {
            find("registry-host", format!("{host} is named; leave the choice of registry to the machine"));
        }
    }
    if !content.is_empty() && (!content.ends_with('\n') || content.ends_with("\n\n")) {
        let last = content.lines().count();
        findings.push(Finding::new(path, last, "whitespace", "a text ends with exactly one line break"));
    }
    findings
}

/// Whether `word` stands in `line` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    occurrences(line, word).any(|(before, after)| !is_word(before) && !is_word(after))
}

/// Whether a path that begins with `start` stands in `line`: not the tail of another path, and not a longer name.
fn has_path(line: &str, start: &str) -> bool {
    occurrences(line, start).any(|(before, after)| {
        let inside = is_word(before) || before.is_some_and(|c| ".-}>~*/)".contains(c));
        !inside && !is_word(after) && after != Some('-')
    })
}

/// The characters before and after each occurrence of `what`.
fn occurrences<'a>(line: &'a str, what: &'a str) -> impl Iterator<Item = (Option<char>, Option<char>)> + 'a {
    line.match_indices(what)
        .map(move |(at, _)| (line[..at].chars().next_back(), line[at + what.len()..].chars().next()))
}

fn is_word(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(content: &str) -> Vec<(usize, &'static str)> {
        check("a.rs", content).into_iter().map(|finding| (finding.line, finding.rule)).collect()
    }

    #[test]
    fn white_space_is_held() {
        assert_eq!(rules("a \n\tb\nc"), [(1, "whitespace"), (2, "whitespace"), (3, "whitespace")]);
        assert_eq!(rules("a\n\n"), [(2, "whitespace")]);
        assert_eq!(rules("a\n"), []);
    }

    #[test]
    fn unfinished_work_is_found_by_whole_words() {
        let [fix, mark, _] = UNFINISHED;
        assert_eq!(rules(&format!("// {fix}: later\n")), [(1, "unfinished")]);
        assert_eq!(rules(&format!("mkstemp(\"a{mark}{mark}\")\n")), []);
    }

    #[test]
    fn paths_of_one_machine_are_found_and_likenesses_are_not() {
        let [work, ..] = MACHINE_PATHS;
        assert_eq!(rules(&format!("cd {work}/main\n")), [(1, "machine-path")]);
        assert_eq!(rules(&format!("\"{work}\"\n")), [(1, "machine-path")]);
        for fine in
            [format!("frame{work}"), format!("{work}bench"), format!("$dir{work}"), format!("../a{work}")]
        {
            assert_eq!(rules(&format!("{fine}\n")), [], "{fine}");
        }
        let [host, ..] = REGISTRY_HOSTS;
        assert_eq!(rules(&format!("see {host}\n")), [(1, "registry-host")]);
    }
}
