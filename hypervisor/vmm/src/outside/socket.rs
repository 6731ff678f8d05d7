//! Unix sockets: listening without taking one away from somebody, connecting without waiting.

use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// A socket is for the service's group: that of its folder, if that has the set-group-id bit.
const MODE: u32 = 0o660;
const BACKLOG: i32 = 16;
/// `sun_path` of `sockaddr_un` holds 108 bytes, the last of them zero.
const PATH_BYTES_MAX: usize = 107;

fn check_length(path: &Path) -> std::io::Result<()> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > PATH_BYTES_MAX {
        let words = format!(
            "the path has {bytes} bytes and a socket's may have {PATH_BYTES_MAX}: use a shorter folder"
        );
        return Err(Error::new(ErrorKind::InvalidInput, words));
    }
    Ok(())
}

/// A socket that another VM listens on is not taken away from it; one that is left over is.
pub(super) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    check_length(path)?;
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Error::new(ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(Error::new(ErrorKind::AddrInUse, "somebody listens there already"));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file takes the mode of the unbound socket, so nobody else can connect from the first moment.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // The process's mask may have taken the group's right away.
    rustix::fs::chmod(path, Mode::from_raw_mode(MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Who does not accept is not waited for.
pub(super) fn connect(path: &Path) -> std::io::Result<UnixStream> {
    check_length(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
