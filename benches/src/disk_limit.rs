//! A disk's own speed for each daemon, where all of them have their disks on one: a control group that may read and write so many
//! bytes a second of the device that a folder lies on.
//!
//! Linux, Documentation/admin-guide/cgroup-v2.rst, "IO Interface Files", and cgroup-v1/blkio-controller.rst, "Throttling/Upper limit
//! policy files", whichever of them this machine has. Needs root. What goes past the page cache is held back, as all of a daemon's data
//! does; with v1 what the kernel writes later of a few small files is not.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::process::Daemon;

const ROOT: &str = "/sys/fs/cgroup";
/// A group whose last process was just ended may be removed only when the kernel is done with that.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// A group that is gone when this is dropped. Its daemons must have ended before.
#[derive(Debug)]
pub struct DiskLimit {
    group: PathBuf,
}

impl DiskLimit {
    /// Makes one for the device that `directory` lies on: so many bytes a second each way.
    pub fn make(name: &str, directory: &Path, bytes_per_s: u64) -> anyhow::Result<Self> {
        let device = whole_disk(directory)?;
        let (parent, limits) = interface(Path::new(ROOT), &device, bytes_per_s)?;
        let group = parent.join(format!("ferro-bench-{}-{name}", std::process::id()));
        fs::create_dir(&group).with_context(|| format!("making {} (it needs root)", group.display()))?;
        let made = Self { group };
        for (file, line) in limits {
            write(&made.group.join(file), &line)?;
        }
        Ok(made)
    }

    /// From now on the daemon is in it.
    pub fn hold(&self, daemon: &Daemon) -> anyhow::Result<()> {
        write(&self.group.join("cgroup.procs"), &daemon.watched().pid.to_string())
    }
}

impl Drop for DiskLimit {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            match fs::remove_dir(&self.group) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(REMOVAL_PAUSE)
                }
                Err(error) => {
                    eprintln!("ferro-bench: removing {}: {error}", self.group.display());
                    return;
                }
            }
        }
        eprintln!("ferro-bench: {} still has processes and stays", self.group.display());
    }
}

/// Where groups are made below `root`, and what goes into which of a group's files.
fn interface(
    root: &Path,
    device: &str,
    bytes_per_s: u64,
) -> anyhow::Result<(PathBuf, Vec<(&'static str, String)>)> {
    let v1 = root.join("blkio");
    if v1.join("blkio.throttle.write_bps_device").exists() {
        let line = format!("{device} {bytes_per_s}");
        let files = ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"];
        return Ok((v1, files.map(|file| (file, line.clone())).to_vec()));
    }
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))
        .with_context(|| format!("{} is no control group file system", root.display()))?;
    ensure!(
        controllers.split_whitespace().any(|name| name == "io"),
        "this kernel limits no disks: its control groups have only {}",
        controllers.trim()
    );
    write(&root.join("cgroup.subtree_control"), "+io")?;
    let line = format!("{device} rbps={bytes_per_s} wbps={bytes_per_s}");
    Ok((root.to_owned(), vec![("io.max", line)]))
}

/// `MAJOR:MINOR` of the disk under a folder's file system: limits are of disks, not of their partitions.
fn whole_disk(directory: &Path) -> anyhow::Result<String> {
    let device = fs::metadata(directory).with_context(|| format!("reading {}", directory.display()))?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let known = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if !known.exists() {
        bail!(
            "{} is on no block device, which could be limited: choose another with --dir",
            directory.display()
        );
    }
    if !known.join("partition").exists() {
        return Ok(format!("{major}:{minor}"));
    }
    let known = fs::canonicalize(&known).with_context(|| format!("reading {}", known.display()))?;
    let disk = known.parent().context("a partition of no disk")?.join("dev");
    Ok(fs::read_to_string(&disk).with_context(|| format!("reading {}", disk.display()))?.trim().to_owned())
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text:?} to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_kind_of_control_group_gets_its_own_lines() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu io memory\n").unwrap();
        let (parent, files) = interface(root.path(), "8:16", 1_000).unwrap();
        assert_eq!(parent, root.path());
        assert_eq!(files, [("io.max", "8:16 rbps=1000 wbps=1000".to_owned())]);
        assert_eq!(fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "+io");

        fs::create_dir(root.path().join("blkio")).unwrap();
        fs::write(root.path().join("blkio/blkio.throttle.write_bps_device"), "").unwrap();
        let (parent, files) = interface(root.path(), "8:16", 1_000).unwrap();
        assert_eq!(parent, root.path().join("blkio"));
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"]);
        assert!(files.iter().all(|(_, line)| line == "8:16 1000"));
    }

    #[test]
    fn a_kernel_that_limits_no_disks_is_told_of() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        let error = interface(root.path(), "8:16", 1_000).unwrap_err();
        assert!(error.to_string().contains("cpu memory"), "{error}");
    }

    #[test]
    fn a_folder_in_memory_is_on_no_disk() {
        let error = whole_disk(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().contains("--dir"), "{error}");
    }
}
