//! What is opened before the VM is made: each once, with the name of what can't be.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::{LogPlace, socket};
use crate::config::{BootSource, ConsoleTarget, CpuList, VmConfig};
use crate::kvm::{Host, KvmError};
use crate::memory::{self, MemoryError};

/// Why something can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or a socket of the configuration.
    #[error("{what} {path}: {source}")]
    Path {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Processors of the host that are not there, or not for us.
    #[error("--cpu-affinity: this process may not use processor {cpu} of this host, only {allowed}")]
    Affinity {
        /// The first that can't be had.
        cpu: usize,
        /// Those that can.
        allowed: CpuList,
    },
    /// The operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What a VM is given.
#[derive(Debug)]
pub struct Given {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The guest's memory: a sealed memfd.
    pub memory: File,
    /// A bzImage or an ELF image with a PVH entry, unless the volume brings one.
    pub kernel: Option<File>,
    /// Its initial RAM disk.
    pub initrd: Option<File>,
    /// The console's socket, if it is at one.
    pub console: Option<UnixListener>,
    /// The console's log, open at its end.
    pub console_log: Option<File>,
    /// The control API's socket.
    pub api: Option<UnixListener>,
}

/// Sockets in the file system, which go with the VM.
#[derive(Debug, Default)]
pub struct Places(Vec<PathBuf>);

impl Places {
    fn listen(&mut self, what: &'static str, path: &Path) -> Result<UnixListener, OpenError> {
        let listener = socket::listen(path).map_err(at(what, path))?;
        self.0.push(path.to_owned());
        Ok(listener)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for path in &self.0 {
            // Nobody is left to be told, and the next VM at this path removes what is left over.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl OpenError {
    /// What should have been given was not.
    pub(crate) fn missing(what: &'static str, path: &Path) -> Self {
        at(what, path)(std::io::ErrorKind::NotFound.into())
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Path { what, path, source }
}

impl Given {
    /// Opens all of it, or nothing: what was made is undone with the result.
    pub fn open(config: &VmConfig) -> Result<(Self, Places), OpenError> {
        check_affinity(&config.affinity)?;
        let open = |what, path: &PathBuf| File::open(path).map_err(at(what, path));
        let (kernel, initrd) = match &config.boot {
            BootSource::Files { kernel, initrd, .. } => {
                let initrd = initrd.as_ref().map(|path| open("initrd", path)).transpose()?;
                (Some(open("kernel", kernel)?), initrd)
            }
            // It is read through the disk's device.
            BootSource::Volume(_) => (None, None),
        };
        let kvm = Host::open_device()?;
        let mut places = Places::default();
        let console = match &config.console {
            ConsoleTarget::Socket(path) => Some(places.listen("console socket", path)?),
            ConsoleTarget::Standard | ConsoleTarget::Nowhere => None,
        };
        let api = config.api.as_ref().map(|path| places.listen("API socket", path)).transpose()?;
        let console_log = match &config.console_log {
            Some(log) => Some(LogPlace::new(log.clone()).open().map_err(at("console log", &log.path))?),
            None => None,
        };
        let memory = memory::make(config.memory, config.huge_pages)?;
        Ok((Self { kvm, memory, kernel, initrd, console, console_log, api }, places))
    }
}

fn check_affinity(lists: &[CpuList]) -> Result<(), OpenError> {
    if lists.is_empty() {
        return Ok(());
    }
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|source| OpenError::System {
        what: "asking for the host's processors",
        source: source.into(),
    })?;
    let missing = lists.iter().flat_map(CpuList::iter).find(|cpu| !allowed.is_set(*cpu));
    match missing {
        Some(cpu) => Err(OpenError::Affinity { cpu, allowed: CpuList::from_set(&allowed) }),
        None => Ok(()),
    }
}
