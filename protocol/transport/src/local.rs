//! The daemons' Unix sockets: the local API's and each volume's.
//!
//! A socket is bound for its owner alone and opened to the service group (mode 0660) only when it belongs to that
//! group: there is no moment at which others can connect. A socket file that a crash left behind is removed; one that
//! somebody answers on is not. Two daemons that start at the same instant on one path are not kept apart here: each
//! daemon holds a lock on its own state before it opens sockets.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The group whose members may use the local API.
pub const SERVICE_GROUP: &str = "ferrosphere";
/// The longest path of a socket: `sun_path` of `sockaddr_un` holds 108 bytes, the last of them zero.
pub const PATH_BYTES_MAX: usize = 107;

const MODE: u32 = 0o660;
const BACKLOG: i32 = 128;
const GROUP_FILE: &str = "/etc/group";
const GROUP_FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a local socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The path does not fit.
    #[error(
        "the socket path {path} has {len} bytes, the system allows {PATH_BYTES_MAX}; configure a shorter directory"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// Somebody answers there.
    #[error("{0} is in use by a running process; stop the other daemon, or configure another path")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} exists and is not a socket; move it away, or configure another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {action} {path}: {source}; check that the directory exists and belongs to the daemon")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens a listening socket at `path` with mode 0660. When this process is root and `group` exists, the socket belongs
/// to that group; otherwise to the process's own. The socket blocks; whoever polls it sets that.
pub fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener, LocalError> {
    let len = path.as_os_str().as_bytes().len();
    if len > PATH_BYTES_MAX {
        return Err(LocalError::PathTooLong { path: path.to_owned(), len });
    }
    remove_stale(path)?;
    let failed = |action| move |source: rustix::io::Errno| error(action, path)(source.into());
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed("make a socket for"))?;
    // On Linux the file takes the mode of the unbound socket: nobody but us can connect from the first moment.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600)).map_err(failed("set the mode of"))?;
    let address = SocketAddrUnix::new(path).map_err(failed("bind"))?;
    rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
    if let Some(gid) = group.filter(|_| rustix::process::geteuid().is_root()).and_then(group_id) {
        rustix::fs::chown(path, None, Some(gid)).map_err(failed("set the group of"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(error("set the mode of", path))?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
    Ok(UnixListener::from(socket))
}

/// As [`bind`], for tokio.
pub fn bind_async(path: &Path, group: Option<&str>) -> Result<tokio::net::UnixListener, LocalError> {
    let listener = bind(path, group)?;
    listener.set_nonblocking(true).map_err(error("set up", path))?;
    tokio::net::UnixListener::from_std(listener).map_err(error("set up", path))
}

/// Opens a socket that was made for its owner alone to the service group: mode 0660 and, when this process is root and
/// the group exists, that group.
pub fn give_to_group(path: &Path, group: &str) -> Result<(), LocalError> {
    if rustix::process::geteuid().is_root()
        && let Some(gid) = group_id(group)
    {
        rustix::fs::chown(path, None, Some(gid))
            .map_err(|errno| error("set the group of", path)(errno.into()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(error("set the mode of", path))
}

/// Makes a folder for sockets, with those above it, and lets the service group through: a member may use a socket in it and can't
/// change what is there. One that everybody may pass, or nobody, is left as it is.
pub fn folder(path: &Path, group: &str) -> Result<(), LocalError> {
    fs::create_dir_all(path).map_err(error("make the folder", path))?;
    let meta = fs::metadata(path).map_err(error("look at", path))?;
    let (mode, passes) = (meta.mode() & 0o7777, |bit| meta.mode() & bit != 0);
    if rustix::process::geteuid().is_root()
        && meta.uid() == 0
        && passes(0o010)
        && !passes(0o001)
        && let Some(gid) = group_id(group)
    {
        let failed = |action| move |source: rustix::io::Errno| error(action, path)(source.into());
        rustix::fs::chown(path, None, Some(gid)).map_err(failed("set the group of"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o022))
            .map_err(error("set the mode of", path))?;
    }
    Ok(())
}

/// Removes a socket that its daemon no longer serves. A path where there is nothing is fine.
pub fn remove(path: &Path) -> Result<(), LocalError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(LocalError::NotASocket(path.to_owned())),
        Ok(_) => match fs::remove_file(path) {
            Err(failure) if failure.kind() != io::ErrorKind::NotFound => Err(error("remove", path)(failure)),
            Ok(()) | Err(_) => Ok(()),
        },
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(failure) => Err(error("look at", path)(failure)),
    }
}

fn remove_stale(path: &Path) -> Result<(), LocalError> {
    let before = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(failure) => return Err(error("look at", path)(failure)),
    };
    if !before.file_type().is_socket() {
        return Err(LocalError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => return Err(LocalError::InUse(path.to_owned())),
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(failure) if failure.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(failure) => return Err(error("see whether anybody uses", path)(failure)),
    }
    // Only what was looked at is removed, not what somebody may have put there meanwhile.
    match fs::symlink_metadata(path) {
        Ok(now) if (now.dev(), now.ino()) != (before.dev(), before.ino()) => {
            Err(LocalError::InUse(path.to_owned()))
        }
        _ => remove(path),
    }
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LocalError {
    let path = path.to_owned();
    move |source| LocalError::Io { action, path, source }
}

/// The number of a local group. Only `/etc/group` is asked: the service group is made by the package, not by a
/// directory service, and the answer must not depend on a network.
fn group_id(name: &str) -> Option<Gid> {
    let meta = fs::metadata(GROUP_FILE).ok()?;
    if meta.len() > GROUP_FILE_BYTES_MAX {
        return None;
    }
    find_group(&fs::read_to_string(GROUP_FILE).ok()?, name).map(Gid::from_raw)
}

fn find_group(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let file = "root:x:0:\nferro:x:900:a\nferrosphere:x:998:a,b\nbroken\n";
        assert_eq!(find_group(file, "ferrosphere"), Some(998));
        assert_eq!(find_group(file, "ferrospher"), None);
        assert_eq!(find_group(file, "broken"), None);
    }

    #[test]
    fn a_socket_is_ours_and_the_groups_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = bind(&path, Some("no-such-group-here")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        let client = UnixStream::connect(&path);
        assert!(client.is_ok() && listener.accept().is_ok());
        assert!(matches!(bind(&path, None), Err(LocalError::InUse(_))));
        drop(listener);
        assert!(path.exists());
        drop(bind(&path, None).unwrap());
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    /// The unit's folder is root's with mode 0750, and its mask takes everything from others: without this no member of the
    /// group came as far as the socket.
    #[test]
    fn the_group_comes_to_the_socket_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let nogroup = fs::read_to_string(GROUP_FILE).unwrap();
        let (group, gid) = ["nogroup", "nobody"]
            .into_iter()
            .find_map(|name| Some((name, find_group(&nogroup, name)?)))
            .expect("a group without rights");
        for (made, mode, mine) in
            [(0o750, 0o750, true), (0o770, 0o750, true), (0o755, 0o755, false), (0o700, 0o700, false)]
        {
            let path = dir.path().join(format!("{made:o}"));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(made)).unwrap();
            folder(&path, group).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid() == gid), (mode, mine), "{made:o}");
            folder(&path, "no such group").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().gid() == gid, mine);
        }
        let below = dir.path().join("a/b");
        folder(&below, group).unwrap();
        assert!(below.is_dir());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, None), Err(LocalError::NotASocket(_))));
        assert!(matches!(remove(&path), Err(LocalError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().as_os_str().len() + 1;
        let longest = dir.path().join("x".repeat(PATH_BYTES_MAX - base));
        drop(bind(&longest, None).unwrap());
        let error = bind(&dir.path().join("x".repeat(PATH_BYTES_MAX - base + 1)), None).unwrap_err();
        assert!(error.to_string().contains("108 bytes") && error.to_string().contains("107"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = bind(Path::new("/nonexistent-ferro/api.sock"), None).unwrap_err();
        assert!(matches!(&error, LocalError::Io { action: "bind", .. }), "{error}");
    }
}
