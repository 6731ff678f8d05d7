//! The local peer: `qemu-storage-daemon` exporting a raw file over vhost-user-blk, driven by the same client as ours. It
//! does no more than pass a guest's requests to the kernel, so it shows what this machine's disk and wake-ups allow.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tempfile::TempDir;

use crate::cluster::{ensure_space, temp_dir};
use crate::process::{self, Daemon, Stop};
use crate::usage::Watched;
use crate::workload::VOLUME_BYTES;

const PROGRAM: &str = "qemu-storage-daemon";
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How it reaches the file; both bypass the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Aio {
    /// `io_uring`, as ours does.
    IoUring,
    /// Linux AIO.
    Native,
}

/// A running export.
pub struct Qsd {
    // Ended before its directory is removed.
    daemon: Daemon,
    socket: PathBuf,
    _run: TempDir,
    _data: TempDir,
}

impl Qsd {
    /// Starts it on a preallocated file below `directory`.
    pub fn start(aio: Aio, directory: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let version = process::output(Command::new(PROGRAM).arg("--version"), Duration::from_secs(10), stop)
            .with_context(|| format!("{PROGRAM} is needed: apt install qemu-system-common"))?;
        eprintln!("peer: {}", version.lines().next().unwrap_or(PROGRAM));
        ensure_space(directory, VOLUME_BYTES)?;
        let data = temp_dir(directory)?;
        let run = tempfile::Builder::new().prefix("fb-").tempdir().context("making a run directory")?;
        let image = data.path().join("disk.raw");
        preallocate(&image)?;
        let socket = run.path().join("disk.sock");
        let aio = match aio {
            Aio::IoUring => "io_uring",
            Aio::Native => "native",
        };
        // A comma in a path would end the option; none can be in the names we make, but --dir is the person's.
        let shown = |path: &Path| {
            Ok::<_, anyhow::Error>(path.to_str().context("a path that is not UTF-8")?.replace(',', ",,"))
        };
        let blockdev =
            format!("driver=file,node-name=disk,filename={},cache.direct=on,aio={aio}", shown(&image)?);
        let export = format!(
            "type=vhost-user-blk,id=bench,node-name=disk,addr.type=unix,addr.path={},writable=on",
            shown(&socket)?
        );
        let mut daemon = Daemon::start(
            PROGRAM,
            Path::new(PROGRAM),
            &["--blockdev", &blockdev, "--export", &export],
            data.path().join("qsd.log"),
        )?;
        // Not by connecting: it serves one client, and would take the probe for it. Nor by the file, which is there
        // before anyone listens.
        daemon.wait_until("socket", START_TIMEOUT, stop, || is_listening(&socket))?;
        Ok(Self { daemon, socket, _run: run, _data: data })
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// For `/proc`.
    pub fn watched(&self) -> Vec<Watched> {
        vec![self.daemon.watched()]
    }
}

/// Whether someone listens on a Unix socket: `__SO_ACCEPTCON` in the flags of its line in `/proc/net/unix`.
fn is_listening(socket: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(3) == Some("00010000") && fields.nth(3).is_some_and(|path| Path::new(path) == socket)
    })
}

fn preallocate(image: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create_new(image).with_context(|| format!("creating {}", image.display()))?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, VOLUME_BYTES)
        .with_context(|| format!("preallocating {}", image.display()))
}
