//! The manual page names what the program and its configuration take.

#[path = "../../../tests/support/manual.rs"]
mod manual;

use hypervisord::config::Config;

#[test]
fn the_manual_page_has_every_option_and_every_setting() {
    let (page, said) = manual::check(env!("CARGO_BIN_EXE_hypervisord"), "hypervisord");
    assert!(!said.contains("keep"), "what is the daemon's own is not shown: {said}");
    for key in Config::KEYS {
        assert!(page.contains(&format!("\n.B {key}\n")), "{key} is not in hypervisord(8)");
    }
}

/// What is installed with the program can be used as it is.
#[test]
fn the_configuration_that_is_installed_is_right() {
    let file = manual::of_checkout("deploy/hypervisord.toml");
    assert_eq!(Config::load(&file).unwrap().memory_overcommit_percent, 100);
}
