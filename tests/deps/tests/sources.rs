//! What every crate and every file has to keep to: inherited settings, a size that one can read, no trace of the machine
//! that it was written on.

use ferro_deps::{Workspace, committed_files, has_entry, rust_files};

/// Longer files are named in the output.
const LINES_TO_WARN: usize = 700;
/// Longer files fail.
const LINES_MAX: usize = 800;

/// Whose pages may be linked to; with their sub-domains.
const PUBLIC_HOSTS: &[&str] = &[
    "apache.org",
    "ceph.com",
    "ceph.io",
    "crates.io",
    "datatracker.ietf.org",
    "debian.org",
    "docs.rs",
    "freedesktop.org",
    "github.com",
    "githubusercontent.com",
    "github.io",
    "ietf.org",
    "kernel.org",
    "oasis-open.org",
    "prometheus.io",
    "qemu.org",
    "rfc-editor.org",
    "rust-lang.org",
    "rustsec.org",
    "rustup.rs",
    "spdx.org",
    // The name space of SVG, in pictures.
    "w3.org",
    "wikipedia.org",
    "man7.org",
    "openapis.org",
];

#[test]
fn every_crate_inherits_what_the_workspace_decides() {
    for it in Workspace::read().crates.values() {
        let manifest = it.manifest();
        assert!(has_entry(&manifest, "lints", "workspace = true"), "{}: [lints] workspace = true", it.name);
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let inherited = has_entry(&manifest, "package", &format!("{key}.workspace = true"));
            assert!(inherited, "{}: {key}.workspace = true", it.name);
        }
        assert_eq!(it.license.as_deref(), Some("Apache-2.0"), "{}", it.name);
        assert_eq!(it.publish.as_deref(), Some(&[][..]), "{} could be published", it.name);
    }
}

#[test]
fn no_source_file_is_too_long_to_read() {
    let workspace = Workspace::read();
    let files = rust_files(&workspace.root, &workspace.root);
    assert!(files.len() > 50, "the sources are not found");
    let lengths = files.iter().map(|file| (file.text.lines().count(), &file.path));
    let long: Vec<_> = lengths.filter(|(lines, _)| *lines > LINES_TO_WARN).collect();
    for (lines, path) in &long {
        println!("{path} has {lines} lines: split it by idea before it has {LINES_MAX}");
    }
    let too_long: Vec<_> = long.iter().filter(|(lines, _)| *lines > LINES_MAX).collect();
    assert!(too_long.is_empty(), "over {LINES_MAX} lines: {too_long:?}");
}

/// Paths that exist on one machine only. Written in pieces, or this file would be its own first finding.
fn machine_paths() -> [String; 4] {
    ["/wo|rk/", "/ro|ot/.", "/ho|me/", "/tmp/bash_|jobs"].map(|path| path.replace('|', ""))
}

#[test]
fn no_committed_file_names_the_machine_it_was_written_on() {
    let workspace = Workspace::read();
    let mut found = Vec::new();
    for file in committed_files(&workspace.root) {
        for (number, line) in file.text.lines().enumerate() {
            for path in machine_paths() {
                // `$work/out` or `"$root/work/x"` are somebody's variables; an absolute path stands at a word's start.
                let absolute = line.match_indices(&path).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| {
                        c.is_alphanumeric() || matches!(c, '}' | ')' | '_' | '.' | '"' | '-')
                    })
                });
                if absolute {
                    found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "paths of one machine: {found:#?}");
}

/// A registry or mirror that only one workplace can reach would break everybody else's build.
#[test]
fn only_public_hosts_are_named() {
    let workspace = Workspace::read();
    let files = committed_files(&workspace.root);
    assert!(files.iter().any(|file| file.path == "Cargo.lock"), "the files are not found");
    for file in &files {
        for (number, line) in file.text.lines().enumerate() {
            for host in hosts(line) {
                assert!(is_public(host), "{}:{}: {host} is no public host", file.path, number + 1);
            }
        }
    }
    let lock = files.iter().find(|file| file.path == "Cargo.lock").expect("looked at above");
    for line in lock.text.lines().filter(|line| line.starts_with("source = ")) {
        let source = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert_eq!(line, source, "a dependency does not come from crates.io");
    }
}

fn hosts(line: &str) -> impl Iterator<Item = &str> {
    ["http://", "https://"].into_iter().flat_map(move |scheme| {
        line.split(scheme).skip(1).map(|rest| {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-')));
            rest[..end.unwrap_or(rest.len())].trim_end_matches('.')
        })
    })
}

/// One of the list, a name for examples (RFC 2606), this machine, or a placeholder.
fn is_public(host: &str) -> bool {
    let within = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|h| h.ends_with('.'));
    let reserved = ["example", "example.com", "example.org", "invalid", "localhost", "test", "127.0.0.1"];
    host.is_empty() || PUBLIC_HOSTS.iter().chain(&reserved).any(|domain| within(domain))
}

#[test]
fn hosts_are_told_apart() {
    // In pieces, or this line would be a finding of the test above.
    let line =
        "see https:|//docs.rs/x, http:|//mirror.internal:8080/y and https:|//github.com.".replace('|', "");
    let mut found: Vec<_> = hosts(&line).collect();
    found.sort_unstable();
    assert_eq!(found, ["docs.rs", "github.com", "mirror.internal"]);
    assert!(is_public("docs.rs") && is_public("lists.oasis-open.org") && !is_public("mirror.internal"));
    assert!(!is_public("evilgithub.com"));
}
