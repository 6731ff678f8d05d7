//! Disk images, raw and qcow2, as something to read segments from or to write data to.
//!
//! Raw images are files or block devices, read and written with the system's own calls, because those tell where the
//! holes are. qcow2 is the `imago` crate's (docs/decisions/0005-images.md). An image that refers to other files (a backing
//! file, an external data file) is refused: whoever made it would choose which file of this host ends up in the volume.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, Storage,
    StorageOpenOptions,
};

use super::args::ImageFormat;
use crate::failure::{Exit, Failure, Result};

/// The first bytes of every qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// A stretch of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    /// How long it is, above zero.
    pub(super) length: u64,
    /// Whether it is known to be zeros without reading it.
    pub(super) zero: bool,
}

/// An image to read.
pub(super) struct Source {
    path: PathBuf,
    size: u64,
    kind: SourceKind,
}

enum SourceKind {
    Raw(File),
    Qcow2(Box<FormatAccess<ImagoFile>>),
}

impl Source {
    /// Opens an image. Without a format it is told from its first bytes.
    pub(super) async fn open(path: &Path, format: Option<ImageFormat>) -> Result<Self> {
        let fail = |error: io::Error| Failure::file("opening the image", path, &error);
        let mut file = File::open(path).map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = format!("{} is neither a file nor a block device", path.display());
            return Err(Failure::usage(message, "give a raw or qcow2 image, or a block device"));
        }
        // The end tells the size of block devices too.
        let bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let format = match format {
            Some(format) => format,
            None => detect(&file, bytes).map_err(fail)?,
        };
        let (size, kind) = match format {
            ImageFormat::Raw => (bytes, SourceKind::Raw(file)),
            ImageFormat::Qcow2 => {
                drop(file);
                let access = open_qcow2(path).await?;
                (access.size(), SourceKind::Qcow2(Box::new(access)))
            }
        };
        if size == 0 {
            let message = format!("the image {} is empty", path.display());
            return Err(Failure::usage(message, "give an image that holds something"));
        }
        Ok(Self { path: path.to_owned(), size, kind })
    }

    /// The size of the disk that the image holds, above zero.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What begins at `offset`, which is below the size.
    pub(super) async fn segment(&self, offset: u64) -> Result<Segment> {
        let rest = self.size - offset;
        let found = match &self.kind {
            SourceKind::Raw(file) => raw_segment(file, offset, self.size),
            SourceKind::Qcow2(access) => access
                .get_mapping(offset, rest)
                .await
                .map(|(mapping, length)| Segment { length, zero: matches!(mapping, Mapping::Zero { .. }) }),
        };
        let found = found.map_err(|error| self.fail(&error))?;
        if found.length == 0 {
            // The image says that it ends here, and that it is longer.
            return Err(self.fail(&io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Segment { length: found.length.min(rest), ..found })
    }

    /// Reads exactly the buffer.
    pub(super) async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let done = match &self.kind {
            SourceKind::Raw(file) => file.read_exact_at(buffer, offset),
            SourceKind::Qcow2(access) => access.read(buffer, offset).await,
        };
        done.map_err(|error| self.fail(&error))
    }

    fn fail(&self, error: &io::Error) -> Failure {
        Failure::file("reading the image", &self.path, error)
    }
}

fn detect(file: &File, bytes: u64) -> io::Result<ImageFormat> {
    let mut first = [0; QCOW2_MAGIC.len()];
    if bytes >= first.len() as u64 {
        file.read_exact_at(&mut first, 0)?;
    }
    Ok(if first == QCOW2_MAGIC { ImageFormat::Qcow2 } else { ImageFormat::Raw })
}

async fn open_qcow2(path: &Path) -> Result<FormatAccess<ImagoFile>> {
    let fail = |error: io::Error| {
        let message = format!("opening the qcow2 image {}: {error}", path.display());
        let next =
            "check it with `qemu-img check`; encrypted images must be decrypted first (`qemu-img convert`)";
        Failure::new(Exit::Failure, "file", message, next)
    };
    let storage = ImagoFile::open(StorageOpenOptions::new().filename(path)).await.map_err(fail)?;
    let mut image: Qcow2<ImagoFile> = Qcow2::open_image(storage, false).await.map_err(fail)?;
    let other = match (image.implicit_backing_file(), image.requires_external_data_file()) {
        (Some(backing), _) => Some(format!("the backing file {backing:?}")),
        (None, true) => Some("an external data file".to_owned()),
        (None, false) => None,
    };
    if let Some(other) = other {
        let message = format!("the image {} needs {other} and is not imported", path.display());
        let next = "make it stand alone first: `qemu-img convert -O qcow2 IMAGE NEW`";
        return Err(Failure::usage(message, next));
    }
    image.open_implicit_dependencies_gated(DenyImplicitOpenGate::default()).await.map_err(fail)?;
    Ok(FormatAccess::new(image))
}

/// Where the next hole begins or ends; a file system that can't tell has none (`EINVAL`), nor does a block device.
fn raw_segment(file: &File, offset: u64, size: u64) -> io::Result<Segment> {
    use rustix::fs::{SeekFrom as Seek, seek};
    use rustix::io::Errno;
    let rest = size - offset;
    let data = match seek(file, Seek::Data(offset)) {
        Ok(data) => data.min(size),
        // From here on all is hole.
        Err(Errno::NXIO) => size,
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Segment { length: rest, zero: false }),
        Err(error) => return Err(error.into()),
    };
    if data > offset {
        return Ok(Segment { length: data - offset, zero: true });
    }
    let hole = seek(file, Seek::Hole(offset))?.min(size);
    Ok(Segment { length: hole.saturating_sub(offset), zero: false })
}

/// An image that is being written: under another name until it is whole.
pub(super) struct Target {
    path: PathBuf,
    part: PathBuf,
    kind: TargetKind,
    finished: bool,
}

enum TargetKind {
    Raw(File),
    Qcow2(Box<FormatAccess<ImagoFile>>),
}

impl Target {
    /// Makes an image of this size that reads as zeros.
    pub(super) async fn create(path: &Path, format: ImageFormat, size: u64) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            Failure::usage(format!("{} is not the name of a file", path.display()), "give the image to write")
        })?;
        let mut part_name = std::ffi::OsString::from(".");
        part_name.push(name);
        part_name.push(format!(".part-{}", std::process::id()));
        let part = path.with_file_name(part_name);
        let fail = |error: io::Error| Failure::file("writing the image", &part, &error);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&part).map_err(fail)?;
        // From here on the part goes away with the target.
        let mut target =
            Self { path: path.to_owned(), part: part.clone(), kind: TargetKind::Raw(file), finished: false };
        match format {
            ImageFormat::Raw => {
                let TargetKind::Raw(file) = &target.kind else { return Ok(target) };
                file.set_len(size).map_err(fail)?;
            }
            ImageFormat::Qcow2 => {
                target.kind = TargetKind::Qcow2(Box::new(create_qcow2(&part, size).await.map_err(fail)?));
            }
        }
        Ok(target)
    }

    /// Writes data.
    pub(super) async fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        let done = match &self.kind {
            TargetKind::Raw(file) => file.write_all_at(data, offset),
            TargetKind::Qcow2(access) => access.write(data, offset).await,
        };
        done.map_err(|error| Failure::file("writing the image", &self.part, &error))
    }

    /// Makes it durable and gives it its name.
    pub(super) async fn finish(mut self) -> Result<()> {
        let fail = |error: io::Error| Failure::file("writing the image", &self.path, &error);
        match &self.kind {
            TargetKind::Raw(file) => file.sync_all().map_err(fail)?,
            TargetKind::Qcow2(access) => {
                access.flush().await.map_err(fail)?;
                access.sync().await.map_err(fail)?;
            }
        }
        std::fs::rename(&self.part, &self.path).map_err(fail)?;
        self.finished = true;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| Failure::file("writing to", dir, &error))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody is left to hear of it; the name says what it was.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

async fn create_qcow2(path: &Path, size: u64) -> io::Result<FormatAccess<ImagoFile>> {
    let storage = ImagoFile::open(StorageOpenOptions::new().filename(path).write(true)).await?;
    let made: Qcow2<ImagoFile> = Qcow2::<ImagoFile>::create_builder(storage)
        .size(size)
        .create_open(DenyImplicitOpenGate::default(), |image| {
            Ok(Qcow2::<ImagoFile>::builder(image).backing(None).write(true))
        })
        .await?;
    Ok(FormatAccess::new(made))
}
