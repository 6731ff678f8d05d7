//! As much of a `Cargo.toml` as `cargo metadata` does not tell: what is inherited from the workspace.

/// The lines of one `[section]`, without comments and blanks.
pub fn section<'a>(manifest: &'a str, name: &str) -> Vec<&'a str> {
    let heading = format!("[{name}]");
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != heading);
    lines.next();
    lines.take_while(|line| !line.starts_with('[')).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

/// Whether a section has this line, however it is spaced.
pub fn has_entry(manifest: &str, name: &str, entry: &str) -> bool {
    let dense = |text: &str| text.split_whitespace().collect::<String>();
    section(manifest, name).iter().any(|line| dense(line) == dense(entry))
}
