//! A daemon's manual page against the daemon: `tests/manual.rs` of each includes this file, since no crate may stand below all three
//! and be used by nothing else.

use std::path::PathBuf;
use std::process::Command;

/// What a file of this checkout says. `path` is from its top.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(of_checkout(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Where a file of this checkout is, seen from a daemon's package: where that is when it runs, not where it was built.
pub(crate) fn of_checkout(path: &str) -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    PathBuf::from(package).join("../..").join(path)
}

/// Whether the page names every option of `program` and where its configuration is; the page, and what `--help` says.
pub(crate) fn check(program: &str, daemon: &str) -> (String, String) {
    let said = Command::new(program).arg("--help").output().expect("the daemon's program starts");
    let said = String::from_utf8(said.stdout).expect("its help is text");
    let page = read(&format!("deploy/man/{daemon}.8")).replace("\\-", "-");
    let options: Vec<&str> =
        said.split(|c: char| c.is_whitespace() || c == ',').filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--config"), "{said}");
    for option in options {
        assert!(page.contains(option), "{option} is not in {daemon}(8)");
    }
    assert!(page.contains(&format!("/etc/{daemon}/{daemon}.toml")));
    (page, said)
}
