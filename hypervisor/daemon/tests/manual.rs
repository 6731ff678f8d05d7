//! The manual page names what the program takes.

use std::process::Command;

use hypervisord::config::Config;

#[test]
fn the_manual_page_has_every_option_and_every_setting() {
    let said = Command::new(env!("CARGO_BIN_EXE_hypervisord")).arg("--help").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    // Where the package is when it runs, not where it was built.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let page = std::path::Path::new(&root).join("../../deploy/man/hypervisord.8");
    let page = std::fs::read_to_string(page).unwrap().replace("\\-", "-");
    let options: Vec<&str> =
        said.split(|c: char| c.is_whitespace() || c == ',').filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--config"), "{said}");
    assert!(!said.contains("keep"), "what is the daemon's own is not shown: {said}");
    for option in options {
        assert!(page.contains(option), "{option} is not in hypervisord(8)");
    }
    for key in Config::KEYS {
        assert!(page.contains(&format!("\n.B {key}\n")), "{key} is not in hypervisord(8)");
    }
    assert!(page.contains("/etc/hypervisord/hypervisord.toml"));
}

/// What is installed with the program can be used as it is.
#[test]
fn the_configuration_that_is_installed_is_right() {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let file = std::path::Path::new(&root).join("../../deploy/hypervisord.toml");
    assert_eq!(Config::load(&file).unwrap().memory_overcommit_percent, 100);
}
