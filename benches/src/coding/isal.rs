//! ISA-L, by way of a C program beside this file, compiled where it is needed.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use super::Case;
use super::stripes::Measured;
use crate::process::{Stop, output};

const SOURCE: &str = include_str!("isal.c");

/// The program, for as long as it is needed.
#[derive(Debug)]
pub(super) struct Isal {
    directory: tempfile::TempDir,
    name: String,
}

impl Isal {
    pub(super) fn build(stop: &Stop) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the peer's program")?;
        let source = directory.path().join("isal.c");
        std::fs::write(&source, SOURCE).with_context(|| format!("writing {}", source.display()))?;
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-o"]).arg(directory.path().join("isal")).arg(&source).arg("-lisal");
        output(&mut compile, Duration::from_secs(60), stop)
            .context("compiling for ISA-L: are a C compiler and libisal-dev installed?")?;
        let mut version = Command::new("cc");
        version.args(["-E", "-P", "-include", "isa-l.h", "-x", "c", "-"]).args(["-dM"]);
        let name = match output(&mut version, Duration::from_secs(60), stop) {
            Ok(macros) => name_from(&macros),
            Err(_) => "isa-l".to_owned(),
        };
        Ok(Self { directory, name })
    }

    /// With its version.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A figure for each way that it has.
    pub(super) fn measure(
        &self,
        case: &Case,
        seconds: f64,
        stop: &Stop,
    ) -> anyhow::Result<Vec<(String, Measured)>> {
        let mut run = Command::new(self.directory.path().join("isal"));
        run.args([case.data, case.parity, case.lost(), case.block, case.stripes()].map(|it| it.to_string()));
        run.arg(seconds.to_string());
        let text = output(&mut run, Duration::from_secs(180), stop)?;
        let ways: Option<Vec<_>> = text.lines().map(way).collect();
        ways.filter(|ways| !ways.is_empty()).with_context(|| format!("ISA-L's program said {text:?}"))
    }
}

fn way(line: &str) -> Option<(String, Measured)> {
    let mut words = line.split(' ');
    let name = words.next()?.to_owned();
    let speed = words.next()?.parse::<f64>().ok()? / 1e9;
    let result = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((name, Measured { speed, result }))
}

fn name_from(macros: &str) -> String {
    let number = |which: &str| {
        let start = format!("#define ISAL_{which}_VERSION ");
        macros.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("?").to_owned()
    };
    format!("isa-l {}.{}.{}", number("MAJOR"), number("MINOR"), number("PATCH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_is_read() {
        let (name, measured) = way("pq_gen 57152561276 303e059af629b695").expect("a line of it");
        assert_eq!((name.as_str(), measured.result), ("pq_gen", 0x303e_059a_f629_b695));
        assert!((measured.speed - 57.152_561_276).abs() < 1e-9);
        for bad in ["", "pq_gen", "pq_gen x 1", "pq_gen 1", "pq_gen 1 g"] {
            assert!(way(bad).is_none(), "{bad}");
        }
        let macros =
            "#define ISAL_MAJOR_VERSION 2\n#define ISAL_MINOR_VERSION 30\n#define ISAL_PATCH_VERSION 0\n";
        assert_eq!(name_from(macros), "isa-l 2.30.0");
    }
}
