//! Holds the documents to the command line: every `godwit` command that they show is one.

use std::path::Path;

use clap::Parser;

use crate::cli::Cli;

/// Documents whose fenced blocks show commands.
const DOCUMENTS: [&str; 2] = ["README.md", "guest/README.md"];

/// The `godwit` commands in the fenced blocks of `text`, without prompt, comment and redirection.
fn commands(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let command = line.trim_start().trim_start_matches("$ ").trim_start_matches("sudo ");
        if fenced && command.starts_with("godwit ") {
            let end = command.find([';', '|', '>', '&']).unwrap_or(command.len());
            let command = &command[..end];
            let end = command.find(" #").unwrap_or(command.len());
            commands.push(command[..end].trim_end().to_owned());
        }
    }
    commands
}

#[test]
fn every_command_that_a_document_shows_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut shown = 0;
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).expect("the document is there");
        for command in commands(&text) {
            let parsed = Cli::try_parse_from(command.replace('\'', "").split_whitespace());
            assert!(parsed.is_ok(), "{document}: {command}: {}", parsed.expect_err("it was not parsed"));
            shown += 1;
        }
    }
    assert!(shown > 0, "the documents show commands");
}

#[test]
fn commands_are_found_in_fenced_blocks_only() {
    let text =
        "godwit no\n```\n$ godwit disk info a.vhdx --chain   # why\ngodwit disk map a > b; ls\nls\n```\n";
    assert_eq!(commands(text), ["godwit disk info a.vhdx --chain", "godwit disk map a"]);
}
