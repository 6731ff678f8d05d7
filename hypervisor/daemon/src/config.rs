//! `/etc/hypervisord/hypervisord.toml`. Unknown keys are refused: a misspelt setting must not go unnoticed. Everything has a
//! default, so the file may be empty; it must be there all the same.

use std::path::{Path, PathBuf};

use ferro_transport::startup::{ConfigError, read_config};
use serde::Deserialize;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest `run_dir`, so that VMs with names of at least 16 characters fit: `<run_dir>/vms/<name>/console.sock`.
const RUN_DIR_BYTES_MAX: usize = 107 - "/vms/".len() - 16 - "/console.sock".len();
/// The least that a host keeps for itself unless it is told otherwise.
const KEPT_MIB_MIN: u64 = 512;

/// What an administrator sets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is kept of VMs: their state, their logs.
    pub state_dir: PathBuf,
    /// Sockets: the API's, and those of VMs.
    pub run_dir: PathBuf,
    /// The group that may use the sockets.
    pub group: String,
    /// Where `vsand` answers.
    pub vsand_socket: PathBuf,
    /// Where `vswitchd` answers.
    pub vswitchd_socket: PathBuf,
    /// Our vmm.
    pub vmm: PathBuf,
    /// QEMU.
    pub qemu: PathBuf,
    /// The user that vmms become.
    pub vmm_user: String,
    /// MiB of memory that the host keeps for itself; an eighth of it, at least 512, unless given.
    pub host_memory_mib: Option<u64>,
    /// How much memory VMs may be promised, in percent of what there is for them.
    pub memory_overcommit_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/hypervisord".into(),
            run_dir: "/run/hypervisord".into(),
            group: ferro_transport::local::SERVICE_GROUP.to_owned(),
            vsand_socket: ferro_protocol::api::SOCKET_DEFAULT.into(),
            vswitchd_socket: ferro_protocol::api::switch::SOCKET_DEFAULT.into(),
            vmm: "/usr/bin/vmm".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            vmm_user: "ferro-vmm".to_owned(),
            host_memory_mib: None,
            memory_overcommit_percent: 100,
        }
    }
}

impl Config {
    /// Every setting, as the manual page names them.
    pub const KEYS: &[&str] = &[
        "state_dir",
        "run_dir",
        "group",
        "vsand_socket",
        "vswitchd_socket",
        "vmm",
        "qemu",
        "vmm_user",
        "host_memory_mib",
        "memory_overcommit_percent",
    ];

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read_config("hypervisord", path, FILE_BYTES_MAX)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |key, problem: String| Err(ConfigError::Value { path: path.to_owned(), key, problem });
        for (key, value) in [
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("vsand_socket", &self.vsand_socket),
            ("vswitchd_socket", &self.vswitchd_socket),
            ("vmm", &self.vmm),
            ("qemu", &self.qemu),
        ] {
            if !value.is_absolute() {
                return bad(key, format!("is {}, which is not an absolute path", value.display()));
            }
            match value.to_str() {
                Some(text) if !text.contains(',') => {}
                _ => {
                    let problem = "has a comma or is not UTF-8, and the vmm's arguments can't have that";
                    return bad(key, format!("is {} and {problem}", value.display()));
                }
            }
        }
        let length = self.run_dir.as_os_str().len();
        if length > RUN_DIR_BYTES_MAX {
            let problem = format!("has {length} bytes: sockets of VMs fit below one of {RUN_DIR_BYTES_MAX}");
            return bad("run_dir", problem);
        }
        if self.vmm_user.is_empty() {
            return bad("vmm_user", "is empty: name a user that only vmms are".to_owned());
        }
        if !(100..=1000).contains(&self.memory_overcommit_percent) {
            let problem = format!("is {}: set from 100 (none) to 1000", self.memory_overcommit_percent);
            return bad("memory_overcommit_percent", problem);
        }
        Ok(())
    }

    /// Bytes that the host keeps for itself.
    pub fn kept_bytes(&self, total_bytes: u64) -> u64 {
        match self.host_memory_mib {
            Some(mib) => mib.saturating_mul(1 << 20),
            None => (total_bytes / 8).max(KEPT_MIB_MIN << 20),
        }
    }

    /// The API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/hypervisord/hypervisord.toml"), text)
    }

    #[test]
    fn everything_has_a_default_and_every_key_is_known_by_name() {
        let config = parse("").unwrap();
        assert_eq!(config.api_socket(), Path::new("/run/hypervisord/api.sock"));
        assert_eq!(config.kept_bytes(64 << 30), 8 << 30);
        let listed = parse("no_such_key = 1").unwrap_err().to_string();
        for key in Config::KEYS {
            assert!(listed.contains(&format!("`{key}`")), "{key}: {listed}");
        }
        assert_eq!(listed.matches('`').count(), 2 * (Config::KEYS.len() + 1), "{listed}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_one_line_that_names_it() {
        let long = format!("run_dir = \"/{}\"", "x".repeat(80));
        for (text, key) in [
            ("state_dir = \"x\"", "state_dir"),
            ("vmm = \"vmm\"", "vmm"),
            ("run_dir = \"/a,b\"", "run_dir"),
            (long.as_str(), "run_dir"),
            ("vmm_user = \"\"", "vmm_user"),
            ("memory_overcommit_percent = 99", "memory_overcommit_percent"),
            ("host_memory_mib = -1", "host_memory_mib"),
            ("[host]\nname = 1", "host"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("hypervisord.toml"), "{text}: {error}");
        }
    }
}
