//! The manual page names what the program takes.

#[path = "../../../tests/support/manual.rs"]
mod manual;

#[test]
fn the_manual_page_has_every_option() {
    manual::check(env!("CARGO_BIN_EXE_vsand"), "vsand");
}
