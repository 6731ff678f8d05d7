//! `/etc/vsand/vsand.toml`. Unknown keys are refused: a misspelt setting must not go unnoticed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferro_transport::startup::{ConfigError, read_config};
use serde::Deserialize;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    /// Looking for blocks that have gone bad.
    #[serde(default)]
    pub scrub: Scrub,
    /// Moving data from fuller disks to emptier ones, and from busier ones to idler ones.
    #[serde(default)]
    pub rebalance: Rebalance,
    /// Whether disk faults may be played on request. For tests only.
    #[serde(default)]
    pub debug_faults: bool,
}

/// How this host scrubs the volumes that it owns, and what it does with disks that err.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scrub {
    /// Each volume is scrubbed again after so many days; 0: only when somebody asks for it.
    pub every_days: u64,
    /// How fast, in MiB per second of this host, whatever it is copies of.
    pub rate_mib_s: u64,
    /// A disk of which so many blocks were bad since it was opened is taken for one that is about to die: what it holds is
    /// moved elsewhere, and it leaves the cluster. 0: never.
    pub bad_blocks_max: u64,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { every_days: 14, rate_mib_s: 32, bad_blocks_max: 50 }
    }
}

/// When this host moves components of the volumes that it owns.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rebalance {
    /// From disks that are fuller than the emptiest one by so many percent of their size. 0: never.
    pub spread_percent: u64,
    /// From disks that have so many percent more to serve than the others on average. 0: never.
    pub load_percent: u64,
    /// Averages of what disks have to serve forget half of what was in so many seconds.
    pub load_window_s: u64,
}

impl Default for Rebalance {
    fn default() -> Self {
        Self { spread_percent: 30, load_percent: 50, load_window_s: 300 }
    }
}

impl Rebalance {
    /// In which averages of load forget half of what was.
    pub fn load_half_life(self) -> Duration {
        Duration::from_secs(self.load_window_s)
    }

    /// How often the cluster is told of a load at most: every 30 s, or as often as the averages change by half.
    pub fn load_report_every(self) -> Duration {
        self.load_half_life().clamp(Duration::from_secs(2), Duration::from_secs(30))
    }
}

/// Below it what guests write and delete would be followed by moves; above it none would ever come.
const SPREAD_PERCENT: std::ops::RangeInclusive<u64> = 2..=90;

/// Below it every guest that begins would be followed by a move; above it none would ever come.
const LOAD_PERCENT: std::ops::RangeInclusive<u64> = 20..=1_000;
/// Load that was an hour ago says little of what comes.
const LOAD_WINDOW_S: std::ops::RangeInclusive<u64> = 1..=3_600;

/// The longest time between scrubs that makes sense, in days.
const SCRUB_DAYS_MAX: u64 = 3_650;
/// Faster than any host's disks, in MiB per second.
const SCRUB_MIB_S_MAX: u64 = 100_000;

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
        let text = read_config("vsand", path, FILE_BYTES_MAX)?;
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
        let scrub = self.scrub;
        if scrub.every_days > SCRUB_DAYS_MAX {
            let problem = format!("is {}: use 1 to {SCRUB_DAYS_MAX}, or 0 for never", scrub.every_days);
            return bad("scrub.every_days", problem);
        }
        if scrub.rate_mib_s == 0 || scrub.rate_mib_s > SCRUB_MIB_S_MAX {
            let problem = format!(
                "is {}: use 1 to {SCRUB_MIB_S_MAX}; for no scrubs by themselves, set every_days = 0",
                scrub.rate_mib_s
            );
            return bad("scrub.rate_mib_s", problem);
        }
        let spread = self.rebalance.spread_percent;
        if spread != 0 && !SPREAD_PERCENT.contains(&spread) {
            let (least, most) = (SPREAD_PERCENT.start(), SPREAD_PERCENT.end());
            let problem = format!("is {spread}: use {least} to {most}, or 0 for never");
            return bad("rebalance.spread_percent", problem);
        }
        let load = self.rebalance.load_percent;
        if load != 0 && !LOAD_PERCENT.contains(&load) {
            let (least, most) = (LOAD_PERCENT.start(), LOAD_PERCENT.end());
            let problem = format!("is {load}: use {least} to {most}, or 0 for never");
            return bad("rebalance.load_percent", problem);
        }
        let window = self.rebalance.load_window_s;
        if !LOAD_WINDOW_S.contains(&window) {
            let (least, most) = (LOAD_WINDOW_S.start(), LOAD_WINDOW_S.end());
            return bad("rebalance.load_window_s", format!("is {window}: use {least} to {most}"));
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
        assert_eq!((config.scrub.every_days, config.scrub.rate_mib_s), (14, 32));
        let config = load("listen = \"127.0.0.1:7400\"\n[scrub]\nevery_days = 0").unwrap();
        assert_eq!((config.scrub.every_days, config.scrub.rate_mib_s), (0, 32));
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
            ("listen = \"127.0.0.1:7400\"\n[scrub]\nrate_mib_s = 0", "scrub.rate_mib_s"),
            ("listen = \"127.0.0.1:7400\"\n[scrub]\nevery_days = 4000", "scrub.every_days"),
            ("listen = \"127.0.0.1:7400\"\n[scrub]\nevery_day = 1", "every_day"),
            ("listen = \"127.0.0.1:7400\"\n[rebalance]\nspread_percent = 1", "rebalance.spread_percent"),
            ("listen = \"127.0.0.1:7400\"\n[rebalance]\nspread_percent = 91", "rebalance.spread_percent"),
            ("listen = \"127.0.0.1:7400\"\n[rebalance]\nload_percent = 19", "rebalance.load_percent"),
            ("listen = \"127.0.0.1:7400\"\n[rebalance]\nload_percent = 1001", "rebalance.load_percent"),
            ("listen = \"127.0.0.1:7400\"\n[rebalance]\nload_window_s = 0", "rebalance.load_window_s"),
            ("listen = \"127.0.0.1:7400\"\n[rebalance]\nload_window_s = 3601", "rebalance.load_window_s"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
