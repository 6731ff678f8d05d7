//! Boots from the volume itself: kernel, initrd and command line come out of the first disk's own `/boot`.
//!
//! ```text
//!   vhost-user-blk socket ──► BlockReader ──► Disk ──► boot-image ──► the chosen entry
//!                                              pieces that were read lately       │
//!                              guest memory, or files of --extract ◄── BootFiles ─┘
//! ```
//!
//! All of it is over before the disk's device connects, because a back end serves one front end at a time. A guest wrote
//! what is read here: `boot-image` believes nothing of it, and what is loaded is checked as a kernel out of a file is.
//!
//! What it must not know: what a volume is, who serves it; how a kernel is loaded.

mod disk;
mod files;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use boot_image::{BootEntry, BootVolume};

use crate::outside::BackEnd;
use crate::virtio::vhost_user::reader::ReadError;
use disk::Disk;

pub use files::BootFiles;
pub use show::{Extracted, ShowBoot, ShowError, show};

/// So long a back end may take to come, or to come back.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// What a guest of this machine prints to, if nobody says otherwise: there is no screen.
pub const CONSOLE: &str = "console=ttyS0";

/// A volume, and what is wanted of its menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeBoot {
    /// Its vhost-user-blk socket.
    pub socket: PathBuf,
    /// An entry's identifier, title or position; the menu's default if nothing is wanted.
    pub entry: Option<String>,
    /// Put behind the entry's command line.
    pub append: Option<String>,
}

/// Why a volume can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It can't be read.
    #[error("booting from the volume: {0}")]
    Read(#[from] ReadError),
    /// Nothing on it can be booted.
    #[error("booting from the volume at {path}: {source}")]
    Boot {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: boot_image::BootError,
    },
    /// The entry's initrds together.
    #[error(
        "booting from the volume at {path}: the initrds of entry {entry:?} have more than {} MiB together: choose another entry",
        boot_image::BOOT_FILE_BYTES_MAX >> 20
    )]
    TooLarge {
        /// The socket.
        path: PathBuf,
        /// The entry's name.
        entry: String,
    },
}

/// What was chosen of a volume's menu, to be read.
pub struct Chosen<'a> {
    /// The entry.
    pub entry: &'a BootEntry,
    /// Its kernel, which was looked at.
    pub kernel: BootFiles<'a>,
    /// Its initrds, one behind the other.
    pub initrd: Option<BootFiles<'a>>,
    /// Its command line with what was to be appended.
    pub command_line: String,
}

/// Opens the volume at this back end, chooses an entry and hands it over. The volume's socket is closed again when this returns.
pub fn with_chosen<T, E: From<VolumeError>>(
    boot: &VolumeBoot,
    back_end: BackEnd,
    then: impl FnOnce(Chosen<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let disk = Disk::open(back_end, PATIENCE).map_err(VolumeError::Read)?;
    let result = choose(boot, &disk).map_err(E::from).and_then(|(volume, entry)| {
        let kernel = BootFiles::open(&volume, std::slice::from_ref(&entry.kernel));
        let kernel = kernel.map_err(|source| at(&boot.socket, source))?;
        let initrd = BootFiles::open(&volume, &entry.initrds);
        let initrd = initrd.map_err(|source| at(&boot.socket, source))?;
        if initrd.bytes() > boot_image::BOOT_FILE_BYTES_MAX {
            let (path, entry) = (boot.socket.clone(), entry.name().to_owned());
            return Err(VolumeError::TooLarge { path, entry }.into());
        }
        let command_line = command_line(&entry.command_line, boot.append.as_deref());
        let initrd = (!entry.initrds.is_empty()).then_some(initrd);
        then(Chosen { entry: &entry, kernel, initrd, command_line })
    });
    // On the way out errors of the disk become ones of files: the first cause is the one to be told.
    match (result, disk.failure()) {
        (Err(_), Some(error)) => Err(VolumeError::Read(error).into()),
        (result, _) => result,
    }
}

fn at(path: &Path, source: boot_image::BootError) -> VolumeError {
    VolumeError::Boot { path: path.to_owned(), source }
}

fn choose<'a>(boot: &VolumeBoot, disk: &'a Disk) -> Result<(BootVolume<'a>, BootEntry), VolumeError> {
    let failed = |source| at(&boot.socket, source);
    let volume = BootVolume::open(disk).map_err(failed)?;
    volume.notes().iter().for_each(|note| tracing::debug!("the volume's menu: {note}"));
    let entry = match &boot.entry {
        Some(name) => volume.entry(name),
        None => volume.default_entry(),
    };
    let entry = entry.map_err(failed)?.clone();
    let kernel = volume.inspect(&entry).map_err(failed)?;
    tracing::info!(entry = entry.name(), %kernel, "booting from the volume");
    Ok((volume, entry))
}

/// Without any console nobody would ever see what the guest says, as the serial port is the only one that there is.
fn command_line(entry: &str, append: Option<&str>) -> String {
    let mut words = vec![entry.trim()];
    words.extend(append.map(str::trim));
    if !words.iter().flat_map(|text| text.split_whitespace()).any(|word| word.starts_with("console=")) {
        words.push(CONSOLE);
    }
    words.retain(|text| !text.is_empty());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_has_a_console_and_what_was_appended_comes_last() {
        assert_eq!(command_line("root=/dev/vda1 ro", None), "root=/dev/vda1 ro console=ttyS0");
        assert_eq!(command_line("ro console=tty0", Some("debug")), "ro console=tty0 debug");
        assert_eq!(command_line("ro", Some(" console=hvc0 ")), "ro console=hvc0");
        assert_eq!(command_line("", None), CONSOLE);
        assert_eq!(command_line("noconsole=1", Some("")), "noconsole=1 console=ttyS0");
    }
}
