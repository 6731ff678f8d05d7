//! `/etc/vsand/vsand.toml`. Unknown keys are refused: a misspelt setting must not go unnoticed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What an administrator sets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where this host listens for other hosts, and where they reach it unless `advertise` is given.
    pub listen: SocketAddr,
    /// Where other hosts reach this one, if that is not `listen`.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
    /// Identity, directory and the list of disks.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Sockets: the API's, and one a volume.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// What people call this host; its host name, unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// What fails together with this host, such as a rack; the host alone, unless given.
    #[serde(default)]
    pub fault_domain: Option<String>,
    /// The group that may use the sockets.
    #[serde(default = "default_group")]
    pub group: String,
    /// A component that is absent for so long is rebuilt elsewhere.
    #[serde(default = "default_repair_delay_s")]
    pub repair_delay_s: u64,
    /// Resync at most so fast while guests do I/O, in MiB per second and volume.
    #[serde(default = "default_resync_mib_per_s")]
    pub resync_mib_per_s: u64,
    /// Whether disk faults may be played on request. For tests only.
    #[serde(default)]
    pub debug_faults: bool,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error(
        "can't read the configuration {path}: {source}; write it (see /usr/share/doc/vsand/vsand.toml) or name another with --config"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or not ours.
    #[error("the configuration {path} is not right: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A setting makes no sense.
    #[error("the configuration {path}: {key} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

fn default_state_dir() -> PathBuf {
    "/var/lib/vsand".into()
}

fn default_run_dir() -> PathBuf {
    "/run/vsand".into()
}

fn default_group() -> String {
    ferro_transport::local::SERVICE_GROUP.to_owned()
}

fn default_repair_delay_s() -> u64 {
    3_600
}

fn default_resync_mib_per_s() -> u64 {
    64
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |key, problem: String| Err(ConfigError::Value { path: path.to_owned(), key, problem });
        if self.advertised().port() == 0 {
            return bad("listen", "has port 0; name a port, such as 7400".to_owned());
        }
        if is_wildcard(self.advertised().ip()) {
            let problem =
                "is an address that other hosts can't connect to; set `advertise` to one that they can";
            return bad("listen", problem.to_owned());
        }
        if self.resync_mib_per_s == 0 {
            return bad(
                "resync_mib_per_s",
                "is 0: nothing would ever be repaired; use at least 1".to_owned(),
            );
        }
        if self.repair_delay_s < 10 {
            return bad(
                "repair_delay_s",
                "is below 10: every restart would rebuild the host's data".to_owned(),
            );
        }
        for (key, dir) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if !dir.is_absolute() {
                return bad(key, format!("is {}, which is not an absolute path", dir.display()));
            }
        }
        Ok(())
    }

    /// Where other hosts reach this one.
    pub fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }

    /// The API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    /// Where the volumes' sockets are.
    pub fn volumes_dir(&self) -> PathBuf {
        self.run_dir.join("volumes")
    }
}

fn is_wildcard(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsand.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn the_least_that_is_needed() {
        let config = load("listen = \"127.0.0.1:7400\"").unwrap();
        assert_eq!(config.api_socket(), Path::new("/run/vsand/api.sock"));
        assert_eq!(config.repair_delay_s, 3_600);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = load("listen = \"127.0.0.1:7400\"\nlissen = 1").unwrap_err().to_string();
        assert!(error.contains("lissen") && error.contains("vsand.toml"), "{error}");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for (text, key) in [
            ("listen = \"0.0.0.0:7400\"", "listen"),
            ("listen = \"127.0.0.1:0\"", "listen"),
            ("listen = \"127.0.0.1:7400\"\nresync_mib_per_s = 0", "resync_mib_per_s"),
            ("listen = \"127.0.0.1:7400\"\nrepair_delay_s = 0", "repair_delay_s"),
            ("listen = \"127.0.0.1:7400\"\nstate_dir = \"x\"", "state_dir"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
