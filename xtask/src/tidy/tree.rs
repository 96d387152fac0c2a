//! The files that the rules are about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

/// Folders that hold what tools made, not what people wrote.
const SKIPPED_FOLDERS: [&str; 5] = [".git", "target", "fuzz/target", "fuzz/artifacts", "fuzz/corpus"];
/// Extensions of files whose text is checked; files without one are scripts.
const TEXT_EXTENSIONS: [&str; 7] = ["", "rs", "md", "toml", "sh", "txt", "py"];
/// Files that a tool writes, or whose words are not ours.
const SKIPPED_FILES: [&str; 3] = ["Cargo.lock", "fuzz/Cargo.lock", "LICENSE-APACHE"];
/// A text longer than this was not written by hand.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A snapshot of the tree: every path, and the content of every text.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    texts: BTreeMap<String, String>,
    paths: BTreeSet<String>,
}

impl Tree {
    /// Reads everything below `root`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.read_folder(root, "")?;
        Ok(tree)
    }

    /// A tree for a rule's own test.
    #[cfg(test)]
    pub(crate) fn of(texts: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, content) in texts {
            tree.paths.insert((*path).to_owned());
            tree.texts.insert((*path).to_owned(), (*content).to_owned());
        }
        tree
    }

    /// The texts, by path.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(path, content)| (path.as_str(), content.as_str()))
    }

    /// The content of the text at `path`.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Whether there is a file or a folder at `path`.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.contains(path)
    }

    fn read_folder(&mut self, root: &Path, folder: &str) -> Result<()> {
        let listed = std::fs::read_dir(root.join(folder)).with_context(|| format!("list {folder:?}"))?;
        for entry in listed {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("{name:?} in {folder:?} is not UTF-8"))?;
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            self.paths.insert(path.clone());
            if SKIPPED_FOLDERS.contains(&path.as_str()) || SKIPPED_FILES.contains(&path.as_str()) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.read_folder(root, &path)?;
            } else if kind.is_file() && is_text(&path) && entry.metadata()?.len() <= TEXT_BYTES_MAX {
                // Another program may be changing the tree meanwhile; what has gone has nothing to check.
                if let Ok(content) = std::fs::read_to_string(entry.path()) {
                    self.texts.insert(path, content);
                }
            }
        }
        Ok(())
    }
}

fn is_text(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or("");
    TEXT_EXTENSIONS.contains(&extension)
}
