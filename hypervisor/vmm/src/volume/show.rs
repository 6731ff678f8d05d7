//! `vmm --show-boot`: says what a volume would boot, and with `--extract` writes it to files, for those who start the
//! machine by other means.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::outside::BackEnd;

use super::{BootFiles, Chosen, VolumeBoot, VolumeError, with_chosen};

/// Only the owner reads them: an initrd may have keys in it.
const MODE: u32 = 0o600;
const COPY_BYTES: usize = 256 << 10;

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShowBoot {
    /// Of which volume.
    pub volume: VolumeBoot,
    /// A folder for the files `kernel` and `initrd`.
    pub extract: Option<PathBuf>,
}

/// What is printed: the entry that would boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Extracted {
    /// The entry's name, as `--boot-entry` takes it.
    pub entry: String,
    /// The kernel's file: the one that was written, or else its path on the volume.
    pub kernel: String,
    /// The initrd's, if there is one; several on the volume have spaces between them and are written as one.
    pub initrd: Option<String>,
    /// The whole command line.
    pub cmdline: String,
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file of the volume can't be read.
    #[error("reading the {what} of entry {entry:?}: {source}")]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// The entry.
        entry: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("writing {path}: {source}. Is {folder} a folder with room that this user may write to?", folder = .path.parent().unwrap_or(.path).display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Finds out what a volume boots, and writes its files if they are wanted. What was there by those names is replaced, and
/// only by whole files.
pub fn show(wanted: &ShowBoot) -> Result<Extracted, ShowError> {
    let disk = BackEnd::at(wanted.volume.socket.clone());
    with_chosen(&wanted.volume, disk, |chosen| match &wanted.extract {
        Some(folder) => extract(chosen, folder),
        None => Ok(on_volume(&chosen)),
    })
}

fn on_volume(chosen: &Chosen<'_>) -> Extracted {
    let initrds: Vec<&str> = chosen.entry.initrds.iter().map(|file| file.path.as_str()).collect();
    Extracted {
        entry: chosen.entry.name().to_owned(),
        kernel: chosen.entry.kernel.path.clone(),
        initrd: (!initrds.is_empty()).then(|| initrds.join(" ")),
        cmdline: chosen.command_line.clone(),
    }
}

fn extract(mut chosen: Chosen<'_>, folder: &Path) -> Result<Extracted, ShowError> {
    let entry = chosen.entry.name();
    let kernel = copy(&mut chosen.kernel, "kernel", entry, folder)?;
    let initrd = chosen.initrd.as_mut().map(|initrd| copy(initrd, "initrd", entry, folder)).transpose()?;
    Ok(Extracted { kernel, initrd, ..on_volume(&chosen) })
}

fn copy(
    from: &mut BootFiles<'_>,
    what: &'static str,
    entry: &str,
    folder: &Path,
) -> Result<String, ShowError> {
    let path = folder.join(what);
    let new = folder.join(format!(".{what}.new"));
    let copied = write_new(from, what, entry, &new).and_then(|()| {
        std::fs::rename(&new, &path).map_err(|source| ShowError::Write { path: path.clone(), source })
    });
    if let Err(error) = copied {
        // It may not have come to be; what is told is why.
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    Ok(path.to_string_lossy().into_owned())
}

fn write_new(
    from: &mut BootFiles<'_>,
    what: &'static str,
    entry: &str,
    path: &Path,
) -> Result<(), ShowError> {
    let write = |source| ShowError::Write { path: path.to_owned(), source };
    let read = |source| ShowError::Read { what, entry: entry.to_owned(), source };
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(write(error));
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
    let mut file: File = opened.map_err(write)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer).map_err(read)? {
            0 => return Ok(()),
            bytes => file.write_all(&buffer[..bytes]).map_err(write)?,
        }
    }
}
