//! The coverage-guided driver: libFuzzer's main over one target. `./run` builds and starts it.
//!
//! libFuzzer takes the command line for itself, so the target's name comes in `FERRO_FUZZ_TARGET`.
#![no_main]
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use ferro_fuzz::{Target, by_name};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn target() -> &'static Target {
    let name = std::env::var("FERRO_FUZZ_TARGET").unwrap_or_default();
    by_name(&name).unwrap_or_else(|| panic!("FERRO_FUZZ_TARGET={name:?} is no target"))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (TARGET.get_or_init(target).run)(data);
});
