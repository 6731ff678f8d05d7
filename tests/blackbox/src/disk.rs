//! A disk that can freeze and fail: XFS on a loop device over a file, as a disk of a real host is XFS on a whole device.
//!
//! * [`LoopDisk::freeze`] is `fsfreeze`: writes wait in the kernel, as on a drive that hangs; [`LoopDisk::thaw`] lets them go.
//! * [`LoopDisk::fail`] is the file system's emergency shutdown: from then on every read, write and flush is `EIO`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::run;

/// A mounted disk. Dropped, it is unmounted; nobody may have files open on it then.
#[derive(Debug)]
pub struct LoopDisk {
    device: String,
    mount: PathBuf,
}

impl LoopDisk {
    /// Makes one of `bytes` with its file and its mount point in `folder`.
    pub fn make(folder: &Path, name: &str, bytes: u64) -> Result<Self> {
        let image = folder.join(format!("{name}.img"));
        let mount = folder.join(name);
        fs::create_dir_all(&mount)?;
        fs::File::create(&image)?.set_len(bytes)?;
        let (image, at) = (image.display().to_string(), mount.display().to_string());
        run("mkfs.xfs", &["-q", &image])?;
        // `mount` makes the loop device so that it goes away with the mount.
        run("mount", &["-o", "loop", &image, &at])?;
        let device = run("findmnt", &["-no", "SOURCE", &at])?.trim().to_owned();
        Ok(Self { device, mount })
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The block device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Mounts it anew: what [`Self::fail`] did is over. Nobody may have files open on it.
    pub fn remount(&self) -> Result<()> {
        let (image, at) = (self.mount.with_extension("img"), self.path());
        run("umount", &[&at])?;
        run("mount", &["-o", "loop", &image.display().to_string(), &at]).map(drop)
    }

    fn path(&self) -> String {
        self.mount.display().to_string()
    }

    /// Nothing is answered any more.
    pub fn freeze(&self) -> Result<()> {
        run("fsfreeze", &["--freeze", &self.path()]).map(drop)
    }

    /// What waited is done.
    pub fn thaw(&self) -> Result<()> {
        run("fsfreeze", &["--unfreeze", &self.path()]).map(drop)
    }

    /// Everything fails with `EIO`, for good.
    pub fn fail(&self) -> Result<()> {
        run("xfs_io", &["-x", "-c", "shutdown", &self.path()]).map(drop)
    }

    /// Takes it out, so that nothing is at its mount point any more.
    pub fn unmount(&self) -> Result<()> {
        run("umount", &[&self.path()]).map(drop)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // It may be frozen or not, mounted or not; each step only helps the next.
        let _thawed = self.thaw();
        let _unmounted = run("umount", &["--lazy", &self.path()]);
    }
}

/// A whole block device over a file. Dropped, it goes as soon as nobody has it mounted.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Makes one of `bytes`, empty.
    pub fn make(image: &Path, bytes: u64) -> Result<Self> {
        fs::File::create(image)?.set_len(bytes)?;
        Ok(Self(run("losetup", &["--find", "--show", &image.display().to_string()])?.trim().to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.0.trim_start_matches("/dev/")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _detached = run("losetup", &["--detach", &self.0]);
    }
}

/// Unmounts whatever is mounted under a folder.
pub fn unmount_all(folder: &Path) {
    for mount in run("findmnt", &["-rno", "TARGET"]).unwrap_or_default().lines().rev() {
        if Path::new(mount).starts_with(folder) {
            // What can't be unmounted now is as soon as nobody uses it.
            let _unmounted = run("umount", &["--lazy", mount]);
        }
    }
}
