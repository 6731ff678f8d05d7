//! Huge pages for DPDK: mounted in a directory of our own, and given back at the end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::process::{self, Stop};

const COUNT_FILE: &str = "/proc/sys/vm/nr_hugepages";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Reserved pages of 2 MiB and a hugetlbfs.
pub(super) struct HugePages {
    before: u64,
    directory: TempDir,
}

impl HugePages {
    /// Reserves `count` more pages than there are.
    pub(super) fn reserve(count: u64, stop: &Stop) -> anyhow::Result<Self> {
        let before = read()?;
        let directory =
            tempfile::Builder::new().prefix("fb-huge-").tempdir().context("making a directory")?;
        write(before + count)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "hugetlbfs", "none"]).arg(directory.path());
        let mounted = process::output(&mut mount, TIMEOUT, stop).map(drop);
        let pages = Self { before, directory };
        mounted?;
        let there = read()?;
        ensure!(
            there >= before + count,
            "only {there} of {} huge pages could be reserved: memory is too full or too scattered",
            before + count
        );
        Ok(pages)
    }

    /// Where they are mounted.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.directory.path()).status();
        if !unmounted.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("ferro-bench: unmounting {}: {unmounted:?}", self.directory.path().display());
        }
        if let Err(error) = write(self.before) {
            eprintln!("ferro-bench: giving huge pages back: {error:#}");
        }
    }
}

fn read() -> anyhow::Result<u64> {
    let text = fs::read_to_string(COUNT_FILE).with_context(|| format!("reading {COUNT_FILE}"))?;
    text.trim().parse().with_context(|| format!("{COUNT_FILE} reads {text:?}"))
}

fn write(count: u64) -> anyhow::Result<()> {
    fs::write(COUNT_FILE, count.to_string())
        .with_context(|| format!("writing {COUNT_FILE}: huge pages need root"))
}
