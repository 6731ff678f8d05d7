//! Making a disk, and opening its files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ferro_protocol::ids::{ClusterId, DiskId, HostId};
use ferro_protocol::units::EXTENT_BYTES;

use crate::journal::{DATA_BYTES_MAX, HEADER_BYTES_MAX};
use crate::meta::{self, Meta, MetaError};
use crate::ring::AlignedBuf;
use crate::superblock::{self, Superblock, SuperblockError};

/// The smallest disk.
pub const CAPACITY_BYTES_MIN: u64 = 1 << 30;
/// The smallest journal: two of the largest batches fit.
const JOURNAL_BYTES_MIN: u64 = 2 * (DATA_BYTES_MAX + HEADER_BYTES_MAX) as u64;

/// What a new disk shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatOptions {
    /// Its id.
    pub disk: DiskId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The host that has it.
    pub host: HostId,
    /// Bytes that it may take up in all: data, journal and metadata.
    pub capacity_bytes: u64,
    /// Bytes of the journal; `None` for what fits the capacity.
    pub journal_bytes: Option<u64>,
    /// Allow less than [`CAPACITY_BYTES_MIN`]: for tests.
    pub tiny: bool,
}

/// Why a disk could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It would be too small.
    #[error("a disk needs at least {min} bytes, this one would have {bytes}", min = CAPACITY_BYTES_MIN)]
    TooSmall {
        /// What was asked for.
        bytes: u64,
    },
    /// The journal does not fit.
    #[error("a journal of {bytes} bytes does not fit a disk of {capacity} bytes (it needs at least {min})", min = JOURNAL_BYTES_MIN)]
    Journal {
        /// The journal's size.
        bytes: u64,
        /// The disk's.
        capacity: u64,
    },
    /// Something is in the directory already.
    #[error("{} is not empty: choose an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// No disk was made here, or not to the end.
    #[error("{} holds no disk of vsand: add it with `vsanctl disk add`", .0.display())]
    NotFormatted(PathBuf),
    /// Another process has it open.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The superblock is unusable.
    #[error("{}: {error}", path.display())]
    Superblock {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        error: SuperblockError,
    },
    /// The disk contradicts itself; what it holds must not be trusted.
    #[error("{}: the disk is damaged: {reason}", path.display())]
    Damaged {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Metadata could not be read or written.
    #[error("{}: {error}", path.display())]
    Meta {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        error: MetaError,
    },
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
}

/// Adds the path to an error.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io { path, error }
}

fn sizes(options: &FormatOptions) -> Result<(u64, u64), OpenError> {
    let capacity = options.capacity_bytes;
    if capacity < CAPACITY_BYTES_MIN && !options.tiny {
        return Err(OpenError::TooSmall { bytes: capacity });
    }
    let default = if capacity >= 8 << 30 { 256 << 20 } else { capacity / 32 };
    let journal =
        options.journal_bytes.unwrap_or(default).max(JOURNAL_BYTES_MIN).next_multiple_of(EXTENT_BYTES);
    // RocksDB keeps about 1 KiB an extent, rewrites it now and then and has a log of its own.
    let meta = if options.tiny { 0 } else { (capacity / 64).max(128 << 20) };
    let data = capacity.saturating_sub(journal + meta) / EXTENT_BYTES * EXTENT_BYTES;
    if data < EXTENT_BYTES || options.journal_bytes.is_some_and(|bytes| bytes < JOURNAL_BYTES_MIN) {
        return Err(OpenError::Journal { bytes: options.journal_bytes.unwrap_or(journal), capacity });
    }
    Ok((data, journal))
}

/// Makes a disk in this directory, which is made too if it isn't there. The superblock comes last: without it, nothing
/// was made.
pub(crate) fn format(dir: &Path, options: &FormatOptions) -> Result<(), OpenError> {
    let (data_bytes, journal_bytes) = sizes(options)?;
    fs::create_dir_all(dir).map_err(at(dir))?;
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        if entry.map_err(at(dir))?.file_name() != "lost+found" {
            return Err(OpenError::NotEmpty(dir.to_owned()));
        }
    }
    let made = fill(dir, options, data_bytes, journal_bytes);
    if made.is_err() {
        // Nothing half-made stays behind; the first error is the one to report.
        for name in ["superblock", "data", "journal"] {
            let _ = fs::remove_file(dir.join(name));
        }
        let _ = fs::remove_dir_all(dir.join("meta"));
    }
    made
}

fn fill(dir: &Path, options: &FormatOptions, data_bytes: u64, journal_bytes: u64) -> Result<(), OpenError> {
    let create = |path: &Path| {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(at(path))
    };
    let path = dir.join("data");
    let data = create(&path)?;
    rustix::fs::fallocate(&data, rustix::fs::FallocateFlags::empty(), 0, data_bytes)
        .map_err(|e| at(&path)(e.into()))?;
    data.sync_all().map_err(at(&path))?;

    // Written, not only allocated: so a flush of the journal never has to change the file system's metadata.
    let path = dir.join("journal");
    let journal = create(&path)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..journal_bytes).step_by(zeros.len()) {
        journal.write_all_at(&zeros, offset).map_err(at(&path))?;
    }
    journal.sync_all().map_err(at(&path))?;

    let path = dir.join("meta");
    let in_meta = |error| OpenError::Meta { path: dir.join("meta"), error };
    fs::create_dir(&path).map_err(at(&path))?;
    let meta = Meta::open(&path, true, false).map_err(in_meta)?;
    meta.commit(&[meta::put_incarnation(0), meta::put_checkpoint(meta::Checkpoint::default())])
        .map_err(in_meta)?;
    drop(meta);
    sync_dir(&path)?;
    sync_dir(dir)?;

    let superblock = Superblock {
        generation: 1,
        disk: options.disk,
        cluster: options.cluster,
        host: options.host,
        capacity_bytes: options.capacity_bytes,
        data_bytes,
        journal_bytes,
        key: random()?,
    };
    let path = dir.join("superblock");
    let file = create(&path)?;
    write_superblock(&file, &superblock).map_err(at(&path))?;
    sync_dir(dir)
}

fn random() -> Result<u64, OpenError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 8];
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(at(path))?;
    Ok(u64::from_le_bytes(bytes))
}

fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}

/// Writes both copies, one after the other.
pub(crate) fn write_superblock(file: &File, superblock: &Superblock) -> io::Result<()> {
    let copy = superblock.encode();
    for offset in [0, superblock::COPY_BYTES as u64] {
        file.write_all_at(&copy, offset)?;
        file.sync_all()?;
    }
    Ok(())
}

/// The open files of a disk. Its superblock is locked for as long as they live.
pub(crate) struct OpenFiles {
    pub(crate) superblock: File,
    pub(crate) data: File,
    pub(crate) journal: File,
    pub(crate) content: Superblock,
    /// A copy of the superblock was bad.
    pub(crate) superblock_damaged: bool,
}

/// Locks the disk, reads its superblock and opens its files for direct I/O.
pub(crate) fn open_files(dir: &Path) -> Result<OpenFiles, OpenError> {
    let path = dir.join("superblock");
    let superblock = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(OpenError::NotFormatted(dir.to_owned())),
        Err(e) => return Err(at(&path)(e)),
    };
    if let Err(e) = rustix::fs::flock(&superblock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        return Err(if e == rustix::io::Errno::WOULDBLOCK {
            OpenError::Locked(dir.to_owned())
        } else {
            at(&path)(e.into())
        });
    }
    let mut bytes = [0; superblock::FILE_BYTES];
    let len = superblock.read_at(&mut bytes, 0).map_err(at(&path))?;
    let content = superblock::parse(&bytes[..len])
        .map_err(|error| OpenError::Superblock { path: dir.to_owned(), error })?;
    let copy = content.encode();
    let superblock_damaged =
        bytes[..superblock::COPY_BYTES] != copy || bytes[superblock::COPY_BYTES..] != copy;
    let direct = |name: &str, bytes: u64| {
        let path = dir.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .map_err(at(&path))?;
        let len = file.metadata().map_err(at(&path))?.len();
        if len != bytes {
            let reason = format!("{name} has {len} bytes, not {bytes}");
            return Err(OpenError::Damaged { path: dir.to_owned(), reason });
        }
        Ok(file)
    };
    let data = direct("data", content.data_bytes)?;
    let journal = direct("journal", content.journal_bytes)?;
    Ok(OpenFiles { superblock, data, journal, content, superblock_damaged })
}

/// Reads exactly this much at `offset`.
pub(crate) fn read_aligned(file: &File, offset: u64, len: usize) -> io::Result<AlignedBuf> {
    let mut buf = AlignedBuf::new(len);
    file.read_exact_at(&mut buf, offset)?;
    Ok(buf)
}
