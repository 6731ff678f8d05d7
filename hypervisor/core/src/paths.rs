//! Where the files and sockets of a VM are.
//!
//! ```text
//!   <run_dir>/vms/<name>/       api.sock  console.sock  serial.sock  exit  pid  boot/   gone after a reboot
//!   <state_dir>/vms/<name>/     console.log[.1]  console.previous[.1]  vmm.log  vmm.previous
//!   <state_dir>/<name>.vm       what this host has of it
//! ```

use ferro_protocol::api::vm::VmName;

/// The longest path of a Unix socket: `sun_path` of `sockaddr_un` has 108 bytes, the last of them zero (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A socket's path that does not fit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the socket path {path} has {} bytes, the system allows {SOCKET_PATH_BYTES_MAX}",
    path.len()
)]
pub struct PathTooLong {
    /// The path.
    pub path: String,
}

/// The paths of one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// Its folder for what is gone after a reboot.
    pub run: String,
    /// Its folder for what is not.
    pub kept: String,
}

impl Paths {
    /// Those of the VM of this name. The folders are absolute.
    pub fn new(run_dir: &str, state_dir: &str, name: &VmName) -> Result<Self, PathTooLong> {
        let paths = Self { run: format!("{run_dir}/vms/{name}"), kept: format!("{state_dir}/vms/{name}") };
        let longest = paths.console();
        if longest.len() > SOCKET_PATH_BYTES_MAX {
            return Err(PathTooLong { path: longest });
        }
        Ok(paths)
    }

    /// The vmm's control socket.
    pub fn api(&self) -> String {
        format!("{}/api.sock", self.run)
    }

    /// The console's socket: the longest path of all sockets.
    pub fn console(&self) -> String {
        format!("{}/console.sock", self.run)
    }

    /// QEMU's end of the console, for the daemon alone.
    pub fn serial(&self) -> String {
        format!("{}/serial.sock", self.run)
    }

    /// The console's log.
    pub fn console_log(&self) -> String {
        format!("{}/console.log", self.kept)
    }

    /// The console's log of the time before the last failure.
    pub fn previous_log(&self) -> String {
        format!("{}/console.previous", self.kept)
    }

    /// What the vmm itself says.
    pub fn vmm_log(&self) -> String {
        format!("{}/vmm.log", self.kept)
    }

    /// The same of the time before the last failure.
    pub fn previous_vmm_log(&self) -> String {
        format!("{}/vmm.previous", self.kept)
    }

    /// Where the vmm's process id is written.
    pub fn pid(&self) -> String {
        format!("{}/pid", self.run)
    }

    /// Where it is written how the vmm ended.
    pub fn exit(&self) -> String {
        format!("{}/exit", self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits_where_the_daemon_is_by_default_and_not_everywhere() {
        let name: VmName = "x".repeat(VmName::LEN_MAX).parse().unwrap();
        assert!(Paths::new("/run/hypervisord", "/var/lib/hypervisord", &name).is_ok());
        let error = Paths::new(&format!("/run/{}", "y".repeat(60)), "/s", &name).unwrap_err();
        assert!(error.to_string().contains("107") && error.path.ends_with("console.sock"));
    }
}
