//! `/etc/vswitchd/vswitchd.toml`: the settings of this host and, for a host that is alone, the whole network. Unknown keys
//! are refused: a misspelt setting must not go unnoticed.
//!
//! ```toml
//! [host]                     # this host
//! tunnel_addresses = ["10.77.0.1"]
//!
//! [[switch]]                 # the network; only with alone = true
//! name = "s0"
//! ```
//!
//! A host that is not alone takes its network from the cluster directory, and a file that says something else beside it
//! is refused: nobody must wonder which of the two holds.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferro_protocol::api::switch::Spec;
use ferro_protocol::ids::HostId;
use ferro_transport::{files, startup};
use serde::Deserialize;
use vswitch_core::config::validate;

use crate::data::Spin;
use crate::tunnel::data::Congestion as Managed;
use crate::tunnel::{ADDRESSES_MAX, CONTROL_PORT, DATA_PORT};

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The most peers of a host that is alone.
pub const PEERS_MAX: usize = 256;

/// What an administrator sets.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it stands.
    pub path: PathBuf,
    /// This host.
    pub host: HostSettings,
    /// The network, if this host is alone.
    pub spec: Spec,
    /// The other hosts, if this host is alone.
    pub peers: Vec<PeerSettings>,
}

/// The settings of this host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostSettings {
    /// There is no cluster: the network is what this file says.
    pub alone: bool,
    /// What people call this host; what the cluster calls it, or its host name, unless given.
    pub name: Option<String>,
    /// Copies of the configuration, attachments.
    pub state_dir: PathBuf,
    /// Sockets: the API's, and those of ports.
    pub run_dir: PathBuf,
    /// The group that may use the sockets.
    pub group: String,
    /// The certificates that `vsand` keeps.
    pub identity_dir: PathBuf,
    /// Where `vsand` answers.
    pub vsand_socket: PathBuf,
    /// Addresses of this host that other hosts reach it by: one for each network that leads to them.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Where control connections arrive.
    pub control_port: u16,
    /// Where data connections arrive.
    pub data_port: u16,
    /// How tunnels share the network with others.
    pub congestion: Congestion,
    /// KiB in flight on each path, at most, with either: its connections share them.
    pub window_kib: u32,
    /// Data connections to each address of each host.
    pub connections: u8,
    /// Microseconds that the worker looks for a frame that is likely to come before it sleeps, at most; 0: it always sleeps.
    pub spin_us: u32,
}

/// How tunnels share the network with others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Congestion {
    /// The network is the tunnels' own: a fixed window.
    Managed,
    /// Others use it too, the cluster's storage for one: CUBIC, with the window as its bound.
    Cubic,
}

/// Another host, for a host that is alone.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Its id, as its certificate has it.
    pub host: HostId,
    /// What people call it; its id, unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its control port.
    #[serde(default = "control_port")]
    pub control_port: u16,
    /// Its data port.
    #[serde(default = "data_port")]
    pub data_port: u16,
}

fn control_port() -> u16 {
    CONTROL_PORT
}

fn data_port() -> u16 {
    DATA_PORT
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            alone: false,
            name: None,
            state_dir: "/var/lib/vswitchd".into(),
            run_dir: "/run/vswitchd".into(),
            group: ferro_transport::local::SERVICE_GROUP.to_owned(),
            identity_dir: "/var/lib/vsand/identity".into(),
            vsand_socket: ferro_protocol::api::SOCKET_DEFAULT.into(),
            tunnel_addresses: Vec::new(),
            control_port: CONTROL_PORT,
            data_port: DATA_PORT,
            congestion: Congestion::Cubic,
            window_kib: Managed::WINDOW_DEFAULT >> 10,
            connections: 1,
            spin_us: Spin::LONGEST_DEFAULT.as_micros() as u32,
        }
    }
}

/// Why a configuration can't be used, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read, or a setting of this host makes no sense.
    #[error(transparent)]
    File(#[from] startup::ConfigError),
    /// It can't be written.
    #[error("can't write the configuration {path}: {source}; nothing was changed")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody has edited it.
    #[error(
        "the configuration {path} was edited since vswitchd read it; restart vswitchd to take that over, or undo it; nothing was changed"
    )]
    Edited {
        /// The file.
        path: PathBuf,
    },
    /// The network makes no sense: a line for each fault.
    #[error("the configuration {path} describes a network that can't be:{faults}")]
    Network {
        /// The file.
        path: PathBuf,
        /// The faults, each on a line of its own.
        faults: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &startup::read_config("vswitchd", path, FILE_BYTES_MAX)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |message: String| startup::ConfigError::Parse { path: path.to_owned(), message };
        let mut table: toml::Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let host = match table.remove("host") {
            Some(host) => host.try_into().map_err(|error| wrong(format!("[host]: {error}")))?,
            None => HostSettings::default(),
        };
        let peers = match table.remove("peer") {
            Some(peers) => peers.try_into().map_err(|error| wrong(format!("[[peer]]: {error}")))?,
            None => Vec::new(),
        };
        let network = !table.is_empty();
        let spec = table.try_into().map_err(|error| wrong(error.to_string()))?;
        let config = Self { path: path.to_owned(), host, spec, peers };
        config.check(network)?;
        Ok(config)
    }

    fn check(&self, network: bool) -> Result<(), ConfigError> {
        let bad = |key, problem: String| Err(self.bad_value(key, problem));
        let host = &self.host;
        if !host.alone && (network || !self.peers.is_empty()) {
            let problem = "is false, and the file describes a network: a host of a cluster takes that from the \
                           directory. Take it out (`vswctl apply` puts it there), or set alone = true";
            return bad("alone", problem.to_owned());
        }
        for (key, dir) in [
            ("state_dir", &host.state_dir),
            ("run_dir", &host.run_dir),
            ("identity_dir", &host.identity_dir),
            ("vsand_socket", &host.vsand_socket),
        ] {
            if !dir.is_absolute() {
                return bad(key, format!("is {}, which is not an absolute path", dir.display()));
            }
        }
        if host.tunnel_addresses.is_empty() && (!host.alone || !self.peers.is_empty()) {
            let problem =
                "is empty: name an address of this host for each network that leads to the other hosts";
            return bad("tunnel_addresses", problem.to_owned());
        }
        check_addresses(&host.tunnel_addresses).or_else(|problem| bad("tunnel_addresses", problem))?;
        if host.control_port == 0 || host.data_port == 0 || host.control_port == host.data_port {
            let ports = format!("{} and {}", host.control_port, host.data_port);
            return bad("control_port", format!("and data_port are {ports}: choose two different ports"));
        }
        let window = host.window_kib.checked_mul(1 << 10);
        if window.is_none_or(|bytes| !(Managed::WINDOW_MIN..=Managed::WINDOW_MAX).contains(&bytes)) {
            return bad("window_kib", format!("is {}: set from 64 to 262144", host.window_kib));
        }
        if !(1..=crate::tunnel::data::Settings::CONNECTIONS_MAX).contains(&host.connections) {
            return bad("connections", format!("is {}: set from 1 to 8", host.connections));
        }
        if self.spin().longest > Spin::LONGEST_MAX {
            return bad(
                "spin_us",
                format!("is {}: set from 0 to {}", host.spin_us, Spin::LONGEST_MAX.as_micros()),
            );
        }
        if host.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 63) {
            return bad("name", "has not from 1 to 63 bytes".to_owned());
        }
        self.check_peers()?;
        validate(&self.spec).map(drop).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            ConfigError::Network { path: self.path.clone(), faults: format!("\n  {}", lines.join("\n  ")) }
        })
    }

    fn bad_value(&self, key: &'static str, problem: String) -> ConfigError {
        startup::ConfigError::Value { path: self.path.clone(), key, problem }.into()
    }

    fn check_peers(&self) -> Result<(), ConfigError> {
        let bad = |problem| Err(self.bad_value("peer", problem));
        if self.peers.len() > PEERS_MAX {
            return bad(format!("is there {} times, at most {PEERS_MAX} are possible", self.peers.len()));
        }
        let mut seen = BTreeSet::new();
        for peer in &self.peers {
            if !seen.insert(peer.host) {
                return bad(format!("{} is there twice", peer.host));
            }
            if peer.addresses.is_empty() || peer.control_port == 0 || peer.data_port == 0 {
                return bad(format!("{} has no address, or port 0", peer.host));
            }
            if let Err(problem) = check_addresses(&peer.addresses) {
                return bad(format!("{}: its list of addresses {problem}", peer.host));
            }
        }
        Ok(())
    }

    /// Puts another network in place of `old`, which the file of a host that is alone must still have. Comments in it are lost, so the file as it was
    /// stays beside it, with `.old` at its end.
    pub fn rewrite(&self, old: &Spec, spec: &Spec) -> Result<(), ConfigError> {
        let write = |source| ConfigError::Write { path: self.path.clone(), source };
        let wrong = |message: String| startup::ConfigError::Parse { path: self.path.clone(), message };
        let text = startup::read_config("vswitchd", &self.path, FILE_BYTES_MAX)?;
        if Self::parse(&self.path, &text)?.spec != *old {
            return Err(ConfigError::Edited { path: self.path.clone() });
        }
        let mut table: toml::Table = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        table.retain(|key, _| key == "host" || key == "peer");
        table.extend(toml::Table::try_from(spec).map_err(|error| wrong(error.to_string()))?);
        let new = toml::to_string(&table).map_err(|error| wrong(error.to_string()))?;
        // What is written can be read: it is read again before it takes the place of what works.
        Self::parse(&self.path, &new)?;
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        files::replace(Path::new(&old), text.as_bytes()).map_err(write)?;
        files::replace(&self.path, new.as_bytes()).map_err(write)
    }

    /// How the worker waits for frames.
    pub fn spin(&self) -> Spin {
        Spin { longest: Duration::from_micros(self.host.spin_us.into()) }
    }

    /// The API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.host.run_dir.join("api.sock")
    }

    /// Where the ports' sockets are.
    pub fn ports_dir(&self) -> PathBuf {
        self.host.run_dir.join("ports")
    }

    /// Where other hosts reach this one's control connections.
    pub fn control_addresses(&self) -> Vec<SocketAddr> {
        self.host.tunnel_addresses.iter().map(|ip| (*ip, self.host.control_port).into()).collect()
    }

    /// Where other hosts reach this one's data connections.
    pub fn data_addresses(&self) -> Vec<SocketAddr> {
        self.host.tunnel_addresses.iter().map(|ip| (*ip, self.host.data_port).into()).collect()
    }
}

fn check_addresses(addresses: &[IpAddr]) -> Result<(), String> {
    if addresses.len() > ADDRESSES_MAX {
        return Err(format!("has {} addresses, at most {ADDRESSES_MAX} are possible", addresses.len()));
    }
    for (at, address) in addresses.iter().enumerate() {
        if address.is_unspecified() || address.is_multicast() {
            return Err(format!("has {address}, which is no host's address"));
        }
        if addresses[..at].contains(address) {
            return Err(format!("has {address} twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/vswitchd/vswitchd.toml"), text)
    }

    const ALONE: &str = "[host]\nalone = true # a comment\n\n[[switch]]\nname = \"s0\"\n\n[[portgroup]]\nname = \"g\"\nswitch = \"s0\"\n";

    #[test]
    fn the_least_that_is_needed() {
        let config = parse("[host]\ntunnel_addresses = [\"10.77.0.1\"]").unwrap();
        assert_eq!(config.api_socket(), Path::new("/run/vswitchd/api.sock"));
        assert_eq!(config.data_addresses(), ["10.77.0.1:7402".parse().unwrap()]);
        assert!(parse("[host]\nalone = true").unwrap().spec.switches.is_empty());
        assert_eq!(parse(ALONE).unwrap().spec.groups.len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_one_line_that_names_it() {
        let here = "[host]\ntunnel_addresses = [\"10.77.0.1\"]\n";
        for (text, key) in [
            (String::new(), "tunnel_addresses"),
            ("[host]\nalone = true\nalonne = 1".to_owned(), "alonne"),
            (format!("{here}alone = 3"), "alone"),
            (format!("{here}[[switch]]\nname = \"s0\""), "alone = true"),
            (format!("{here}[swich]\nname = \"s0\""), "swich"),
            (format!("{here}state_dir = \"x\""), "state_dir"),
            (format!("{here}data_port = 7401"), "control_port"),
            (format!("{here}window_kib = 1"), "window_kib"),
            (format!("{here}connections = 0"), "connections"),
            (format!("{here}spin_us = 1001"), "spin_us"),
            (format!("{here}congestion = \"bbr\""), "bbr"),
            ("[host]\ntunnel_addresses = [\"0.0.0.0\"]".to_owned(), "0.0.0.0"),
            ("[host]\ntunnel_addresses = [\"10.0.0.1\", \"10.0.0.1\"]".to_owned(), "twice"),
            (format!("{ALONE}vlan = {{ access = 4095 }}"), "4095"),
            (format!("{ALONE}[[peer]]\nhost = \"x\"\naddresses = []"), "peer"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("vswitchd.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn a_network_is_rewritten_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vswitchd.toml");
        std::fs::write(&path, ALONE).unwrap();
        let mut config = Config::load(&path).unwrap();
        let old = config.spec.clone();
        config.spec.groups[0].vlan = ferro_protocol::api::switch::spec::VlanSpec::Access(10);
        config.rewrite(&old, &config.spec).unwrap();
        let again = Config::load(&path).unwrap();
        assert!(again.host.alone);
        assert_eq!(again.spec, config.spec);
        assert_eq!(std::fs::read_to_string(dir.path().join("vswitchd.toml.old")).unwrap(), ALONE);
        // What can't be is not written.
        let mut bad = config.spec.clone();
        bad.groups[0].switch = "nowhere".to_owned();
        assert!(config.rewrite(&config.spec, &bad).is_err());
        assert_eq!(Config::load(&path).unwrap().spec, config.spec);
        // What somebody else wrote is not overwritten.
        assert!(matches!(config.rewrite(&old, &old), Err(ConfigError::Edited { .. })));
        assert_eq!(Config::load(&path).unwrap().spec, config.spec);
    }
}
