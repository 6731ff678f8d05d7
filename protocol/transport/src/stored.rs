//! Files of the daemon's state: a line that says what it is, of which version and with which checksum, then JSON.
//!
//! ```text
//!   vswitchd copy 1 9f3ac210\n{"cluster": …}
//! ```
//!
//! A file is replaced as a whole, so a power cut leaves the old or the new one. One that is damaged is reported, set aside
//! (`.damaged`) and not used.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

/// The largest file: all documents of a cluster, and as much again.
const FILE_BYTES_MAX: u64 = 160 << 20;

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// The daemon whose it is.
    pub program: &'static str,
    /// What it is, in its first line.
    pub name: &'static str,
    /// Of what is written; others are not read.
    pub version: u32,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The system refused.
    #[error("{path}: {source}; check the state directory and its permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged ({why}) and is not used; it was set aside as {aside}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// Where it is now.
        aside: PathBuf,
    },
    /// Another version wrote it.
    #[error(
        "{path} is of version {found}, this daemon reads {reads}: use the version that wrote it, or remove the file"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What can be read.
        reads: u32,
    },
    /// It can't be put into JSON.
    #[error("{path} can't be written: {why}")]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Reads a file; `None` if there is none.
pub fn load<T: DeserializeOwned>(path: &Path, kind: Kind) -> Result<Option<T>, StoredError> {
    let io_error = |source| StoredError::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            return Err(set_aside(path, format!("it has {} bytes", meta.len())));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(io_error)?;
    match decode(&bytes, kind) {
        Ok(value) => Ok(Some(value)),
        Err(Bad::Version(found)) => {
            Err(StoredError::Version { path: path.to_owned(), found, reads: kind.version })
        }
        Err(Bad::Damaged(why)) => Err(set_aside(path, why)),
    }
}

/// Reads a file whose content is checked further: what `check` says is wrong counts as damage.
pub fn load_checked<T: DeserializeOwned, U>(
    path: &Path,
    kind: Kind,
    check: impl FnOnce(T) -> Result<U, String>,
) -> Result<Option<U>, StoredError> {
    match load(path, kind)? {
        Some(value) => check(value).map(Some).map_err(|why| set_aside(path, why)),
        None => Ok(None),
    }
}

enum Bad {
    Version(u32),
    Damaged(String),
}

fn decode<T: DeserializeOwned>(bytes: &[u8], kind: Kind) -> Result<T, Bad> {
    let damaged = |why: &str| Bad::Damaged(why.to_owned());
    let end =
        bytes.iter().take(128).position(|b| *b == b'\n').ok_or_else(|| damaged("it has no first line"))?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| damaged("its first line is no text"))?;
    let rest = head.strip_prefix(&format!("{} {} ", kind.program, kind.name));
    let (version, crc) = rest
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(version, crc)| Some((version.parse::<u32>().ok()?, u32::from_str_radix(crc, 16).ok()?)))
        .ok_or_else(|| damaged("its first line is not ours"))?;
    let body = &bytes[end + 1..];
    if crc32fast::hash(body) != crc {
        return Err(damaged("its checksum does not match"));
    }
    if version != kind.version {
        return Err(Bad::Version(version));
    }
    serde_json::from_slice(body).map_err(|error| Bad::Damaged(error.to_string()))
}

fn set_aside(path: &Path, why: String) -> StoredError {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    // If it can't be moved it is overwritten by the next save; it is not used either way.
    let why = match std::fs::rename(path, &aside) {
        Ok(()) => why,
        Err(error) => format!("{why}; and it can't be moved: {error}"),
    };
    StoredError::Damaged { path: path.to_owned(), why, aside }
}

/// Writes a file, durably.
pub fn save<T: Serialize>(path: &Path, kind: Kind, value: &T) -> Result<(), StoredError> {
    let body = serde_json::to_vec(value)
        .map_err(|error| StoredError::Encode { path: path.to_owned(), why: error.to_string() })?;
    let mut bytes =
        format!("{} {} {} {:08x}\n", kind.program, kind.name, kind.version, crc32fast::hash(&body))
            .into_bytes();
    bytes.extend(body);
    files::replace(path, &bytes).map_err(|source| StoredError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { program: "testd", name: "test", version: 3 };

    #[test]
    fn what_was_written_is_read_and_what_was_touched_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(load::<Vec<u32>>(&path, KIND).unwrap(), None);
        save(&path, KIND, &vec![1, 2]).unwrap();
        assert_eq!(load::<Vec<u32>>(&path, KIND).unwrap(), Some(vec![1, 2]));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            assert!(load::<Vec<u32>>(&path, KIND).is_err(), "byte {at}");
        }
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            let error = load::<Vec<u32>>(&path, KIND).unwrap_err();
            assert!(matches!(error, StoredError::Damaged { .. }), "cut at {len}: {error}");
        }
        assert!(!path.exists() && dir.path().join("f.damaged").exists());
        std::fs::write(&path, &good).unwrap();
        let error = load::<Vec<u32>>(&path, Kind { version: 4, ..KIND }).unwrap_err();
        assert!(matches!(error, StoredError::Version { found: 3, reads: 4, .. }) && path.exists(), "{error}");
    }
}
