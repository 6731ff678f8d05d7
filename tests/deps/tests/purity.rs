//! The pure crates are pure: what they know of the world comes in as arguments.
//!
//! Three nets, one behind the other. Their dependencies are an allow-list, so nothing can do I/O for them. `clippy.toml` of
//! the core forbids the standard library's clocks, threads, files, sockets and randomness by type, which no renaming
//! hides from; CI runs clippy with warnings denied. And the source is searched for the paths here, which also covers
//! `protocol`: a `clippy.toml` in its folder would bind the transport and vhost crates below it too.
//!
//! That the lints bite was tried by hand: with `std::time::Instant::now()`, `std::thread::spawn`, `std::fs::read` and a
//! `HashMap` in the core, `cargo clippy -p vsand-core -- -D warnings` fails with one `disallowed_types` or
//! `disallowed_methods` error each. To run clippy from a test would cost a minute each time, and a build for a target
//! without an operating system needs a standard library that a plain toolchain does not have.

use ferro_deps::{Kind, SourceFile, Workspace, code_only, rust_files};

/// The pure crates and the third-party crates that each may use: data structures and encodings, nothing that acts.
const PURE: &[(&str, &[&str])] = &[
    ("ferro-protocol", &["bytes", "postcard", "serde", "thiserror", "utoipa", "uuid"]),
    ("vsand-core", &["bytes", "postcard", "serde", "thiserror", "uuid"]),
    ("vswitch-core", &["serde", "thiserror"]),
    ("vsand-code", &["thiserror"]),
    ("boot-image", &["crc32c", "crc32fast", "thiserror"]),
    ("hypervisor-core", &["serde", "thiserror"]),
];

/// What the core's `clippy.toml` must forbid at the least, by kind.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("clock", &["std::time::Instant", "std::time::SystemTime"]),
    ("threads", &["std::thread::spawn", "std::thread::sleep"]),
    ("files", &["std::fs::File", "std::fs::OpenOptions", "std::fs::read", "std::fs::write"]),
    ("sockets", &["std::net::TcpStream", "std::net::TcpListener", "std::net::UdpSocket"]),
    ("local sockets", &["std::os::unix::net::UnixStream"]),
    ("randomness", &["std::hash::RandomState", "std::collections::HashMap", "std::collections::HashSet"]),
    ("locks", &["std::sync::Mutex", "std::sync::RwLock"]),
    ("environment", &["std::env::var", "std::process::exit"]),
];

/// What no pure source has, whatever it is called there.
const FOREIGN: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "std::io",
    "std::time::Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "HashMap",
    "HashSet",
    "RandomState",
    "static mut",
    "thread_local",
];

fn sources(workspace: &Workspace, name: &str) -> Vec<SourceFile> {
    rust_files(&workspace.root, &workspace.crates[name].folder().join("src"))
}

#[test]
fn pure_crates_use_only_what_is_pure() {
    let workspace = Workspace::read();
    for (name, third_party) in PURE {
        for dependency in &workspace.crates[*name].dependencies {
            let ours = dependency.path.is_some();
            let listed = third_party.contains(&dependency.name.as_str());
            // A test may use more: it is not part of the crate.
            assert!(ours || listed || dependency.kind == Kind::Dev, "{name} uses {}", dependency.name);
        }
    }
}

#[test]
fn the_cores_are_linted_for_clocks_threads_files_sockets_and_randomness() {
    for core in ["vsand-code", "vsand-core", "vswitch-core", "boot-image", "hypervisor-core"] {
        linted(core);
    }
}

fn linted(core: &str) {
    let workspace = Workspace::read();
    let path = workspace.crates[core].folder().join("clippy.toml");
    let text = std::fs::read_to_string(&path).expect("each core has a clippy.toml");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.starts_with('#')).collect();
    for (kind, paths) in FORBIDDEN {
        for path in *paths {
            let entry = format!("path = \"{path}\"");
            assert!(
                lines.iter().any(|l| l.contains(&entry)),
                "{core}, {kind}: clippy.toml does not forbid {path}"
            );
        }
    }
    for file in sources(&workspace, core) {
        let code = code_only(&file.text);
        let excepted =
            ["allow", "expect"].iter().any(|how| code.contains(&format!("{how}(clippy::disallowed")));
        assert!(!excepted, "{} takes itself out of the lints", file.path);
    }
}

#[test]
fn pure_sources_do_not_name_the_outside_world() {
    let workspace = Workspace::read();
    for (name, _) in PURE {
        let files = sources(&workspace, name);
        assert!(files.len() >= 4, "{name}: the sources are not found");
        for file in files {
            let code = code_only(&file.text);
            // Unit tests stand at the end and may use what they like.
            let code = code.split("#[cfg(test)]").next().unwrap_or_default();
            for word in FOREIGN {
                assert!(!code.contains(word), "{}: {word} has no place in a pure crate", file.path);
            }
        }
    }
}
