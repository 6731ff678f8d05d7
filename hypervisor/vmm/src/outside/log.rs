//! Where the console's log is: one file that grows to its size, and the one before it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::config::ConsoleLog;

/// The service's group may read it.
const MODE: u32 = 0o640;

/// The place of a log.
#[derive(Debug)]
pub struct LogPlace {
    path: PathBuf,
    old: PathBuf,
}

impl LogPlace {
    /// Where this log is, and where the file before it.
    pub fn new(log: ConsoleLog) -> Self {
        let mut old = log.path.clone().into_os_string();
        old.push(".1");
        Self { path: log.path, old: old.into() }
    }

    /// Goes on at the end of what is there. Not through a link: the folder may belong to others.
    pub fn open(&self) -> std::io::Result<File> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
        let file =
            OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(&self.path)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(std::io::Error::other("it is no regular file"))
        }
    }

    /// The file so far becomes the old one; a new one is begun.
    pub fn turn(&self) -> std::io::Result<File> {
        std::fs::rename(&self.path, &self.old)?;
        self.open()
    }
}
