//! What a VM needs of the world outside of its process.
//!
//! ```text
//!   Given      opened before anything that a guest wrote is looked at: KVM, memory, kernel, sockets, log
//!   Outside    asked for while it runs: a back end that is to be dialled (again), the next file of the console's log
//! ```
//!
//! Whoever runs a VM has no other way out. [`Direct`] answers by itself; a confined process asks its broker, which has the
//! paths. So what is asked for is a number of the configuration, never a path.

mod given;
mod log;
mod socket;

pub use given::{Given, OpenError, Places};
pub use log::LogPlace;

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::VmConfig;

/// Which of the configuration's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackEndIndex(pub u8);

/// What a running VM may ask for. Nobody who answers waits for anybody else.
pub trait Outside: Send + Sync + Debug {
    /// A connection to this device's back end.
    fn dial(&self, back_end: BackEndIndex) -> std::io::Result<UnixStream>;
    /// The console's log has reached its size: a new file, and the old one is kept under another name.
    fn next_log(&self) -> std::io::Result<File>;
}

/// The back end of a device.
#[derive(Debug, Clone)]
pub struct BackEnd {
    outside: Arc<dyn Outside>,
    index: BackEndIndex,
    /// For people.
    path: PathBuf,
}

impl BackEnd {
    /// The back end of the configuration's device with this index, which is at this socket.
    pub fn new(outside: Arc<dyn Outside>, index: BackEndIndex, path: PathBuf) -> Self {
        Self { outside, index, path }
    }

    /// The back end at this socket, for who may open it.
    pub fn at(path: PathBuf) -> Self {
        let outside = Direct { sockets: vec![path.clone()], log: None };
        Self { outside: Arc::new(outside), index: BackEndIndex(0), path }
    }

    /// Where it listens: to name it, not to open it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection to it.
    pub fn dial(&self) -> std::io::Result<UnixStream> {
        self.outside.dial(self.index)
    }
}

/// A process that may open what it likes, and opens what its configuration names.
#[derive(Debug)]
pub struct Direct {
    sockets: Vec<PathBuf>,
    log: Option<LogPlace>,
}

impl Direct {
    /// For a VM.
    pub fn new(config: &VmConfig) -> Self {
        Self {
            sockets: config.devices.iter().map(|device| device.socket.clone()).collect(),
            log: config.console_log.clone().map(LogPlace::new),
        }
    }
}

impl Outside for Direct {
    fn dial(&self, back_end: BackEndIndex) -> std::io::Result<UnixStream> {
        let nothing = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        socket::connect(self.sockets.get(usize::from(back_end.0)).ok_or_else(nothing)?)
    }

    fn next_log(&self) -> std::io::Result<File> {
        let nothing = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        self.log.as_ref().ok_or_else(nothing)?.turn()
    }
}
