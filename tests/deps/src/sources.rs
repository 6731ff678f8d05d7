//! The files of the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file and its text.
#[derive(Debug)]
pub struct SourceFile {
    /// Its path within the workspace, with `/`.
    pub path: String,
    /// What stands in it.
    pub text: String,
}

/// The files under version control that are text. In a tree that came without its history, all files but build output.
pub fn committed_files(root: &Path) -> Vec<SourceFile> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
    let mut paths: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| root.join(String::from_utf8_lossy(name).as_ref()))
            .collect(),
        _ => walk(root),
    };
    paths.sort();
    read(root, &paths)
}

/// Every Rust file below a folder, committed or not.
pub fn rust_files(root: &Path, folder: &Path) -> Vec<SourceFile> {
    let mut paths = walk(folder);
    paths.retain(|path| path.extension().is_some_and(|e| e == "rs"));
    paths.sort();
    read(root, &paths)
}

fn read(root: &Path, paths: &[PathBuf]) -> Vec<SourceFile> {
    // What is no UTF-8 is no text; what is listed and was just deleted is nobody's fault.
    let file = |path: &PathBuf| {
        let text = String::from_utf8(std::fs::read(path).ok()?).ok()?;
        let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        Some(SourceFile { path, text })
    };
    paths.iter().filter_map(file).collect()
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let skipped = name == "target" || name == ".git";
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !skipped => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}
