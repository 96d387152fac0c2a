//! Just enough of Rust's lexical rules to tell code from comments and literals.

/// `source` with every comment, string and character literal blanked out.
///
/// Line breaks stay where they are, so that line numbers hold. A literal's quotes are blanked as well.
pub(crate) fn code_of(source: &str) -> String {
    let mut blank = Blanker { rest: source, code: String::with_capacity(source.len()), after_word: false };
    while let Some(next) = blank.rest.chars().next() {
        blank.step(next);
    }
    blank.code
}

struct Blanker<'a> {
    rest: &'a str,
    code: String,
    /// Whether the last character kept belongs to a word, so that the `r` of `for"` starts no raw string.
    after_word: bool,
}

impl Blanker<'_> {
    fn step(&mut self, next: char) {
        let len = self.literal_len();
        if len > 0 {
            let (literal, rest) = self.rest.split_at(len);
            self.code.extend(literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            self.rest = rest;
            self.after_word = false;
        } else {
            self.code.push(next);
            self.rest = &self.rest[next.len_utf8()..];
            self.after_word = is_word(next);
        }
    }

    /// Length of the comment or literal that starts here; 0 where none does.
    fn literal_len(&self) -> usize {
        let rest = self.rest;
        if rest.starts_with("//") {
            return rest.find('\n').unwrap_or(rest.len());
        }
        if rest.starts_with("/*") {
            return block_comment_len(rest);
        }
        if let Some(character) = rest.strip_prefix('\'') {
            return character_len(character).map_or(0, |len| len + 1);
        }
        if self.after_word {
            return if rest.starts_with('"') { string_len(rest) } else { 0 };
        }
        let prefix = rest.len() - rest.trim_start_matches(['b', 'c']).len();
        let prefix = prefix.min(1);
        match &rest[prefix..] {
            raw if raw.starts_with("r\"") || raw.starts_with("r#") => {
                raw_string_len(raw).map_or(0, |n| prefix + n)
            }
            plain if plain.starts_with('"') => prefix + string_len(plain),
            _ => 0,
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Length of a string literal from its opening quote to its closing one.
fn string_len(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a raw string from its `r`; `None` where it is a raw identifier.
fn raw_string_len(rest: &str) -> Option<usize> {
    let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
    let body = rest[1 + hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close)?;
    Some(1 + hashes + 1 + end + close.len())
}

/// Length of a character literal after its opening quote; `None` where the quote begins a lifetime.
fn character_len(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        let escaped = rest[1..].chars().next()?.len_utf8();
        return rest[1 + escaped..].find('\'').map(|end| 1 + escaped + end + 1);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, code: &str) {
        let words: Vec<String> = code_of(source).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words.join(" "), code, "code of {source:?}");
    }

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        check("a // unsafe\nb /* { /* } */ { */ c", "a b c");
        check(r#"f("fn } \" {", 'x', '\'', b"{", '{') }"#, "f( , , , , ) }");
        check("r#\"{ \" {\"# + br\"{\" + r#type", "+ + r#type");
        check("fn f<'a>(x: &'a str) -> char { '\\u{7b}' }", "fn f<'a>(x: &'a str) -> char { }");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let source = "a\n/* b\nc */\n\"d\ne\"\nf";
        assert_eq!(code_of(source).lines().count(), source.lines().count());
        assert_eq!(code_of(source).lines().nth(5), Some("f"));
    }
}
