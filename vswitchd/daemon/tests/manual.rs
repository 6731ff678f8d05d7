//! The manual page names what the program takes.

use std::process::Command;

#[test]
fn the_manual_page_has_every_option() {
    let said = Command::new(env!("CARGO_BIN_EXE_vswitchd")).arg("--help").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    // Where the package is when it runs, not where it was built.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let page = std::path::Path::new(&root).join("../../deploy/man/vswitchd.8");
    let page = std::fs::read_to_string(page).unwrap().replace("\\-", "-");
    let options: Vec<&str> =
        said.split(|c: char| c.is_whitespace() || c == ',').filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--config"), "{said}");
    for option in options {
        assert!(page.contains(option), "{option} is not in vswitchd(8)");
    }
    assert!(page.contains("/etc/vswitchd/vswitchd.toml"));
}
