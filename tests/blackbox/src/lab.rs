//! The laboratory: hosts as network namespaces on one bridge, which is in a namespace of its own, so that nothing touches
//! this machine's network.
//!
//! ```text
//!   host 1 ── eth0 10.77.0.1 ── p1 ─┐
//!   host 2 ── eth0 10.77.0.2 ── p2 ─┼─ br0
//!   host 3 ── eth0 10.77.0.3 ── p3 ─┘
//! ```
//!
//! All names carry the test's process id: several laboratories live beside each other, and what a killed test has left is
//! known by its process being gone and is removed by the next.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_protocol::api::{HealthLevel, HostState, Redundancy};

use crate::daemon::Daemon;
use crate::disk::{LoopDisk, unmount_all};
use crate::host::Host;
use crate::process::run;
use crate::wait::eventually;

/// Where peers listen.
pub const PEER_PORT: u16 = 7400;
/// What begins the names of our namespaces.
const PREFIX: &str = "fbb-";
/// Lines of each log that a failure shows.
const LOG_LINES: usize = 25;
/// How long a cluster may take to form or to heal.
const SETTLE_MAX: Duration = Duration::from_secs(90);

/// What a laboratory is like.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// How many hosts.
    pub hosts: u8,
    /// More lines for each host's configuration.
    pub config: String,
    /// How large each host's disk is.
    pub disk: &'static str,
    /// Networks beside the first one, for the switches: `uplink1` and so on.
    pub uplinks: u8,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { hosts: 3, config: String::new(), disk: "2G", uplinks: 0 }
    }
}

/// Hosts on one bridge. Dropped, nothing of it is left; if its test failed, the end of each log is printed.
#[derive(Debug)]
pub struct Lab {
    run: String,
    dir: PathBuf,
    options: LabOptions,
    hosts: Vec<Host>,
    disks: Mutex<Vec<std::sync::Arc<LoopDisk>>>,
}

/// Runs a test in a laboratory with a formed cluster. An error is a failure, with the logs.
pub fn with_lab(options: LabOptions, test: impl FnOnce(&Lab) -> Result<()>) {
    with_hosts(options, |lab| {
        lab.form()?;
        test(lab)
    });
}

/// Runs a test in a laboratory whose hosts have nothing running yet.
pub fn with_hosts(options: LabOptions, test: impl FnOnce(&Lab) -> Result<()>) {
    let lab = Lab::new(options).expect("the laboratory can't be made (it needs root, ip, tc)");
    if let Err(error) = test(&lab) {
        // While the laboratory is alive, so that it sees the panic and prints its logs.
        panic!("{error:#}");
    }
}

/// The folder for what is large and must be on a real file system.
fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/var/cache".into()));
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    cache.join("ferrosphere")
}

/// The folder with the guests' images.
pub fn guest_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("FERRO_GUEST_DIR") {
        return Ok(dir.into());
    }
    let folder = cache().join("guest");
    let made = fs::read_dir(&folder).ok().into_iter().flatten().flatten().map(|entry| entry.path());
    made.filter(|path| path.join("complete").exists())
        .max_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok())
        .with_context(|| format!("no guest images in {}: run deploy/guest/build", folder.display()))
}

/// The folder with our programs: beside this test's own, unless told otherwise.
pub(crate) fn bin_dir() -> Result<PathBuf> {
    let dir = if let Some(dir) = std::env::var_os("FERRO_BIN_DIR") {
        dir.into()
    } else {
        let own = std::env::current_exe()?;
        own.ancestors().nth(2).context("a test is in target/PROFILE/deps")?.to_owned()
    };
    for program in ["vsand", "vsanctl", "vswitchd", "vswctl"] {
        ensure!(
            dir.join(program).exists(),
            "{} is not built: cargo build -p vsand -p vswitchd -p ferro-tools",
            dir.join(program).display()
        );
    }
    Ok(dir)
}

/// The folder with `vsand` and `vsanctl` of the release before this one.
pub fn former_dir() -> Result<PathBuf> {
    std::env::var_os("FERRO_FORMER_DIR").map(Into::into).context(
        "FERRO_FORMER_DIR is not set to the folder with the former release's programs: run deploy/test blackbox",
    )
}

/// The folder with this release's.
pub fn present_dir() -> Result<PathBuf> {
    bin_dir()
}

impl Lab {
    /// Makes the hosts. No daemon yet.
    pub fn new(options: LabOptions) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();
        let bin = bin_dir()?;
        let run_name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = cache().join("lab").join(&run_name);
        fs::create_dir_all(dir.join("log"))?;
        // From here on dropping it cleans up.
        let mut lab = Self { run: run_name, dir, options, hosts: Vec::new(), disks: Mutex::new(Vec::new()) };
        let switch = format!("{}-br", lab.run);
        run("ip", &["netns", "add", &switch])?;
        for number in 0..=lab.options.uplinks {
            let bridge = format!("br{number}");
            run("ip", &["-n", &switch, "link", "add", &bridge, "type", "bridge"])?;
            run("ip", &["-n", &switch, "link", "set", &bridge, "up"])?;
        }
        for number in 1..=lab.options.hosts {
            let host = lab.make_host(number, &switch, &bin)?;
            lab.hosts.push(host);
        }
        Ok(lab)
    }

    fn make_host(&self, number: u8, switch: &str, bin: &Path) -> Result<Host> {
        let (dir, namespace) = (self.dir.join(format!("h{number}")), format!("{}-h{number}", self.run));
        let daemon = |name: &str, tool: &str, run: &str, log: String| Daemon {
            name: format!("host{number}'s {name}"),
            namespace: namespace.clone(),
            program: dir.join("bin").join(name),
            tool: dir.join("bin").join(tool),
            config: dir.join(format!("{name}.toml")),
            socket: dir.join(run).join("api.sock"),
            log: self.dir.join("log").join(log),
            process: Mutex::new(None),
        };
        let host = Host {
            number,
            vsand: daemon("vsand", "vsanctl", "run", format!("host{number}")),
            vswitchd: daemon("vswitchd", "vswctl", "switch", format!("switch{number}")),
            namespace: namespace.clone(),
            switch: switch.to_owned(),
            dir,
        };
        let (namespace, port) = (&host.namespace[..], format!("p{number}"));
        run("ip", &["netns", "add", namespace])?;
        let veth = ["type", "veth", "peer", "name", &port, "netns", switch];
        run("ip", &[&["-n", namespace, "link", "add", "eth0"], &veth[..]].concat())?;
        run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        run("ip", &["-n", namespace, "addr", "add", &format!("{}/24", host.address()), "dev", "eth0"])?;
        run("ip", &["-n", namespace, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", switch, "link", "set", &port, "master", "br0", "up"])?;
        for uplink in 1..=self.options.uplinks {
            let (own, port) = (format!("uplink{uplink}"), format!("u{uplink}-{number}"));
            let veth = ["type", "veth", "peer", "name", &port, "netns", switch];
            run("ip", &[&["-n", namespace, "link", "add", &own], &veth[..]].concat())?;
            let address = format!("{}/24", host.uplink_address(uplink));
            run("ip", &["-n", namespace, "addr", "add", &address, "dev", &own])?;
            run("ip", &["-n", namespace, "link", "set", &own, "up"])?;
            run("ip", &["-n", switch, "link", "set", &port, "master", &format!("br{uplink}"), "up"])?;
        }
        for sub in ["bin", "state", "run", "disks", "switch", "switch-state"] {
            fs::create_dir_all(host.dir.join(sub))?;
        }
        host.install(bin, &["vsand", "vsanctl", "vswitchd", "vswctl"])?;
        for log in [&host.vsand.log, &host.vswitchd.log] {
            fs::write(log, "")?;
        }
        // Disks are small: what a test writes would make them uneven, and move what it looks at.
        let told = self.options.config.contains("[rebalance]");
        let still = if told { "" } else { "[rebalance]\nspread_percent = 0\n" };
        let config = format!(
            "listen = \"{}:{PEER_PORT}\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\nname = \"{}\"\n{}{still}",
            host.address(),
            host.state_dir().display(),
            host.dir.join("run").display(),
            host.name(),
            self.options.config,
        );
        fs::write(host.config(), config)?;
        Ok(host)
    }

    /// A host, by its number from 1.
    pub fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    /// How many uplinks each host has.
    pub fn uplinks(&self) -> u8 {
        self.options.uplinks
    }

    /// The namespace with the bridges between the hosts.
    pub(crate) fn between(&self) -> String {
        format!("{}-br", self.run)
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The laboratory's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts every daemon, makes the cluster on host 1, lets the others join, gives each a disk, and waits until all is well.
    pub fn form(&self) -> Result<()> {
        self.form_without_disks()?;
        for host in &self.hosts {
            host.add_disk(&host.disks_dir().join("a"), self.options.disk)?;
        }
        self.wait_healthy(SETTLE_MAX)
    }

    /// The same, without disks.
    pub fn form_without_disks(&self) -> Result<()> {
        for host in &self.hosts {
            host.start()?;
        }
        let first = self.host(1);
        first.ctl_ok(&["cluster", "bootstrap"])?;
        for host in &self.hosts[1..] {
            host.ctl_ok(&["cluster", "join", &first.token()?])?;
        }
        let voters = match self.hosts.len() {
            1 | 2 => 1,
            3 | 4 => 3,
            _ => 5,
        };
        eventually("every host is online and votes", SETTLE_MAX, || {
            for host in &self.hosts {
                let status = host.status()?;
                let cluster = status.cluster.context("no cluster")?;
                ensure!(cluster.quorum && cluster.voters == voters, "{}: {cluster:?}", host.name());
                let online = status.hosts.iter().filter(|h| h.state == HostState::Online).count();
                ensure!(online == self.hosts.len(), "{} sees {online} hosts online", host.name());
            }
            Ok(())
        })
    }

    /// Waits until every host says that nothing is wrong and every volume has all its copies.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        eventually("every host says that all is well", limit, || {
            for host in &self.hosts {
                let status = host.status()?;
                ensure!(status.health.level == HealthLevel::Ok, "{}: {:?}", host.name(), status.health);
                let sick = status.volumes.iter().find(|v| v.redundancy != Redundancy::Healthy);
                ensure!(sick.is_none(), "{}: {sick:?}", host.name());
                let disks = status.capacity.disks_online;
                ensure!(
                    disks == status.capacity.disks && disks > 0,
                    "{}: {:?}",
                    host.name(),
                    status.capacity
                );
            }
            Ok(())
        })
    }

    /// Makes a disk for a host that can be frozen and can fail; it is taken away with the laboratory.
    pub fn loop_disk(&self, host: &Host, name: &str, bytes: u64) -> Result<std::sync::Arc<LoopDisk>> {
        let disk = std::sync::Arc::new(LoopDisk::make(&host.disks_dir(), name, bytes)?);
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(std::sync::Arc::clone(&disk));
        Ok(disk)
    }

    /// The folder for other programs' logs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(name)
    }

    fn print_logs(&self) {
        for entry in fs::read_dir(self.dir.join("log")).into_iter().flatten().flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("──── the end of {}", entry.file_name().display());
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                eprintln!("{line}");
            }
        }
    }

    /// The logs of the last failure stay, for a person.
    fn keep_logs(&self) {
        let kept = cache().join("blackbox-failed");
        let _none = fs::remove_dir_all(&kept);
        match fs::rename(self.dir.join("log"), &kept) {
            Ok(()) => eprintln!("──── all of the logs: {}", kept.display()),
            Err(error) => eprintln!("──── the logs could not be kept: {error}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let disks = std::mem::take(&mut *self.disks.lock().unwrap_or_else(PoisonError::into_inner));
        for disk in &disks {
            // A process that waits for a frozen disk can't be killed.
            let _not_frozen = disk.thaw();
        }
        for host in &self.hosts {
            host.vswitchd.kill9_if_running();
            host.kill9_if_running();
        }
        drop(disks);
        if std::thread::panicking() {
            self.print_logs();
            self.keep_logs();
        }
        remove(&self.run);
        unmount_all(&self.dir);
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} is left: {error}", self.dir.display());
        }
    }
}

/// Removes the namespaces of a run, with whatever still runs in them.
fn remove(run_name: &str) {
    let begin = format!("{run_name}-");
    for name in namespaces().into_iter().filter(|name| name.starts_with(&begin)) {
        for pid in run("ip", &["netns", "pids", &name]).unwrap_or_default().split_whitespace() {
            let _gone = run("kill", &["-KILL", pid]);
        }
        let _gone = run("ip", &["netns", "del", &name]);
    }
}

fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Removes what tests have left that were killed.
fn sweep() {
    let gone = |name: &str| {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let (pid, number) = (parts.next()?.parse::<u32>().ok()?, parts.next()?);
        (!Path::new(&format!("/proc/{pid}")).exists()).then(|| format!("{PREFIX}{pid}-{number}"))
    };
    for run_name in namespaces().iter().filter_map(|name| gone(name)) {
        remove(&run_name);
    }
    let folders = fs::read_dir(cache().join("lab")).into_iter().flatten().flatten();
    for folder in folders.filter(|f| gone(&f.file_name().to_string_lossy()).is_some()) {
        unmount_all(&folder.path());
        let _gone = fs::remove_dir_all(folder.path());
    }
}
