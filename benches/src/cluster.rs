//! Our side: as many `vsand` daemons on loopback as the policy needs, formed into a cluster the way an operator does it,
//! with `vsanctl`.
//!
//! ```text
//!   DIR/ferro-bench-XXXX/h1/{vsand.toml,vsand.log,state/,disk/}   on the disk under test
//!   /tmp/fb-XXXX/h1/api.sock …                                    run directories: short, for a socket's path
//! ```
//!
//! Daemons, disks and directories are gone when the [`Cluster`] is dropped. Every command line is in [`Vsanctl`] and
//! [`config_text`].

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::disk_limit::DiskLimit;
use crate::process::{self, Daemon, Stop};
use crate::usage::Watched;

/// GiB given to each disk of a measured cluster: the volume, with room for a journal and metadata.
pub const DISK_GIB: u32 = 8;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);

/// How the data is kept, in the words of `vsanctl volume create --policy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    text: String,
    hosts: usize,
}

impl Policy {
    /// How many daemons it needs: one for one copy; three otherwise, since two cannot outvote each other.
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// Whether it is RAID-5 or RAID-6.
    pub fn has_parity(&self) -> bool {
        self.text.starts_with("raid")
    }

    /// The words.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl FromStr for Policy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let hosts = match text {
            "mirror:1" => 1,
            "mirror:2" | "mirror:3" | "raid5" | "raid5:2+1" => 3,
            "raid6:2+2" => 4,
            "raid5:4+1" => 5,
            "raid6" | "raid6:4+2" => 6,
            _ => bail!(
                "no such policy: {text:?} (mirror:1 to mirror:3, raid5:2+1, raid5:4+1, raid6:2+2, raid6:4+2)"
            ),
        };
        Ok(Self { text: text.to_owned(), hosts })
    }
}

/// What each measurement of a cluster of ours takes.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// Where disks are made [default: the cargo target directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Write the figures as JSON to this file (- for standard output).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Exit with 1 if a target is missed.
    #[arg(long)]
    pub check: bool,
    /// Take vsand and vsanctl as they are, without building them first.
    #[arg(long)]
    pub no_build: bool,
}

impl CommonArgs {
    /// Where disks are made.
    pub fn directory(&self) -> anyhow::Result<PathBuf> {
        self.dir.clone().map_or_else(default_directory, Ok)
    }

    /// The programs, built first unless that was not wanted.
    pub fn programs(&self, stop: &Stop) -> anyhow::Result<Programs> {
        Programs::find(!self.no_build, stop)
    }
}

/// The two programs, as they were built beside this one.
#[derive(Clone, Debug)]
pub struct Programs {
    vsand: PathBuf,
    vsanctl: PathBuf,
}

impl Programs {
    /// Finds them next to the running program. Under `cargo run` they are built first, or a stale `vsand` would be
    /// measured: cargo only built this program.
    pub fn find(build: bool, stop: &Stop) -> anyhow::Result<Self> {
        let directory = process::own_directory()?;
        if let (true, Some(cargo)) = (build, std::env::var_os("CARGO")) {
            build_programs(Path::new(&cargo), &directory, stop)?;
        }
        Self::in_directory(&directory)
    }

    /// Takes them from a directory as they are.
    pub fn in_directory(directory: &Path) -> anyhow::Result<Self> {
        let find = |name| process::program_in(directory, name);
        Ok(Self { vsand: find("vsand")?, vsanctl: find("vsanctl")? })
    }
}

fn build_programs(cargo: &Path, directory: &Path, stop: &Stop) -> anyhow::Result<()> {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} is not a cargo target directory", directory.display()),
    };
    let target = directory.parent().context("no target directory")?;
    let manifest = process::package().join("../Cargo.toml");
    eprintln!("building vsand and vsanctl ({profile})");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", profile, "--bin", "vsand", "--bin", "vsanctl"]);
    command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target);
    process::output(&mut command, BUILD_TIMEOUT, stop).map(drop)
}

/// `vsanctl` for one daemon.
struct Vsanctl<'a> {
    program: &'a Path,
    run_dir: &'a Path,
    stop: &'a Stop,
}

impl Vsanctl<'_> {
    fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.program);
        command.arg("--socket").arg(self.run_dir.join("api.sock")).args(args);
        process::output(&mut command, COMMAND_TIMEOUT, self.stop)
    }

    fn bootstrap(&self) -> anyhow::Result<()> {
        self.run(&["cluster", "bootstrap"]).map(drop)
    }

    fn token(&self) -> anyhow::Result<String> {
        let text = self.run(&["cluster", "token", "-o", "json"])?;
        string_field(&text, "token")
    }

    fn join(&self, token: &str) -> anyhow::Result<()> {
        // The token is a secret, but it is of use once, for an hour, to a cluster on this machine's loopback.
        self.run(&["cluster", "join", token]).map(drop)
    }

    fn add_disk(&self, path: &Path, disk_gib: u32) -> anyhow::Result<()> {
        let path = path.to_str().context("the disk's path is not UTF-8")?;
        self.run(&["disk", "add", path, "--size", &format!("{disk_gib}G")]).map(drop)
    }

    fn create_volume(&self, name: &str, size: &str, policy: &Policy) -> anyhow::Result<()> {
        self.run(&["volume", "create", name, "--size", size, "--policy", policy.text()]).map(drop)
    }

    fn open_volume(&self, name: &str) -> anyhow::Result<PathBuf> {
        let text = self.run(&["volume", "open", name, "-o", "json"])?;
        string_field(&text, "socket").map(PathBuf::from)
    }
}

fn string_field(json: &str, field: &str) -> anyhow::Result<String> {
    let value: serde_json::Value =
        serde_json::from_str(json).with_context(|| format!("vsanctl answered {json:?}, not JSON"))?;
    value
        .get(field)
        .and_then(|value| value.as_str())
        .map(str::to_owned)
        .with_context(|| format!("vsanctl's answer has no {field:?}: {json}"))
}

/// How a cluster is made, where it is not as its policy asks.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many daemons.
    pub hosts: usize,
    /// GiB given to each one's disk.
    pub disk_gib: u32,
    /// Further lines of each one's configuration.
    pub config: String,
    /// What each one may read and write of its disk a second, each way.
    pub disk_bytes_per_s: Option<u64>,
}

fn config_text(host: &Host, further: &str) -> anyhow::Result<String> {
    let quoted = |path: &Path| -> anyhow::Result<String> {
        // A JSON string is a TOML basic string.
        Ok(serde_json::to_string(path.to_str().context("a path that is not UTF-8")?)?)
    };
    Ok(format!(
        "listen = \"{}\"\nname = \"{}\"\nstate_dir = {}\nrun_dir = {}\nfault_domain = \"{}\"\n{further}",
        host.listen,
        host.name,
        quoted(&host.directory.join("state"))?,
        quoted(&host.run_dir)?,
        host.name,
    ))
}

struct Host {
    name: String,
    listen: SocketAddr,
    directory: PathBuf,
    run_dir: PathBuf,
}

impl Host {
    fn config(&self) -> PathBuf {
        self.directory.join("vsand.toml")
    }
}

/// A running cluster. Dropped in this order: daemons, their disks' limits, then directories.
pub struct Cluster {
    daemons: Vec<Daemon>,
    /// One for each host, or none.
    limits: Vec<DiskLimit>,
    hosts: Vec<Host>,
    programs: Programs,
    policy: Policy,
    config: String,
    stop: Stop,
    run: TempDir,
    data: TempDir,
}

impl Cluster {
    /// Starts the daemons that the policy needs and forms the cluster, one disk of `disk_gib` GiB a host, below `directory`.
    pub fn start(
        programs: &Programs,
        policy: &Policy,
        directory: &Path,
        disk_gib: u32,
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let setup = Setup { hosts: policy.hosts(), disk_gib, config: String::new(), disk_bytes_per_s: None };
        Self::start_as(programs, policy, setup, directory, stop)
    }

    /// The same, made otherwise.
    pub fn start_as(
        programs: &Programs,
        policy: &Policy,
        setup: Setup,
        directory: &Path,
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let Setup { hosts, disk_gib, config, disk_bytes_per_s } = setup;
        ensure_space(directory, (u64::from(disk_gib) << 30) * hosts as u64)?;
        let data = temp_dir(directory)?;
        let run = tempfile::Builder::new().prefix("fb-").tempdir().context("making a run directory")?;
        let limited =
            disk_bytes_per_s.into_iter().flat_map(|speed| (1..=hosts).map(move |number| (number, speed)));
        let limits = limited
            .map(|(number, speed)| DiskLimit::make(&format!("h{number}"), directory, speed))
            .collect::<anyhow::Result<_>>()?;
        let mut cluster = Self {
            daemons: Vec::new(),
            limits,
            hosts: Vec::new(),
            programs: programs.clone(),
            policy: policy.clone(),
            config,
            stop: stop.clone(),
            run,
            data,
        };
        let listen = free_addresses(hosts)?;
        for (number, listen) in (1..).zip(listen) {
            cluster.start_host(number, listen)?;
        }
        cluster.form(disk_gib).map_err(|error| cluster.with_logs(&error))?;
        Ok(cluster)
    }

    /// Creates a volume and opens it on the first host; the path of its socket.
    pub fn volume(&self, name: &str, size: &str) -> anyhow::Result<PathBuf> {
        let vsanctl = self.vsanctl(&self.hosts[0]);
        let socket = vsanctl
            .create_volume(name, size, &self.policy)
            .and_then(|()| vsanctl.open_volume(name))
            .map_err(|error| self.with_logs(&error))?;
        Ok(socket)
    }

    /// The daemons, for `/proc`.
    pub fn watched(&self) -> Vec<Watched> {
        self.daemons.iter().map(Daemon::watched).collect()
    }

    /// The error, then the end of each daemon's log, since the logs are about to be removed.
    pub fn with_logs(&self, error: &anyhow::Error) -> anyhow::Error {
        let mut logs = String::new();
        for daemon in &self.daemons {
            // Writing to a String cannot fail.
            let _ =
                write!(logs, "\n--- the log of {} ends with\n{}", daemon.watched().name, daemon.log_tail());
        }
        anyhow!("{error:#}{logs}")
    }

    fn start_host(&mut self, number: usize, listen: SocketAddr) -> anyhow::Result<()> {
        let name = format!("h{number}");
        let (directory, run_dir) = (self.data.path().join(&name), self.run.path().join(&name));
        let host = Host { name, listen, directory, run_dir };
        for directory in [host.directory.join("state"), host.directory.join("disk"), host.run_dir.clone()] {
            fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let config = host.config();
        fs::write(&config, config_text(&host, &self.config)?)
            .with_context(|| format!("writing {}", config.display()))?;
        self.daemons.push(self.serve(&host, self.limits.get(number - 1))?);
        self.hosts.push(host);
        Ok(())
    }

    fn serve(&self, host: &Host, limit: Option<&DiskLimit>) -> anyhow::Result<Daemon> {
        let config = host.config();
        let config = config.to_str().context("a path that is not UTF-8")?;
        let log = host.directory.join("vsand.log");
        let daemon_name = format!("vsand {}", host.name);
        let mut daemon = Daemon::start(&daemon_name, &self.programs.vsand, &["--config", config], log)?;
        if let Some(limit) = limit {
            limit.hold(&daemon)?;
        }
        let api = host.run_dir.join("api.sock");
        daemon.wait_until("API socket", START_TIMEOUT, &self.stop, || UnixStream::connect(&api).is_ok())?;
        Ok(daemon)
    }

    fn number_of(&self, name: &str) -> anyhow::Result<usize> {
        self.hosts
            .iter()
            .position(|host| host.name == name)
            .with_context(|| format!("there is no host {name}"))
    }

    /// What the first host's `vsanctl` says as JSON.
    pub fn ask<T: DeserializeOwned>(&self, what: &[&str]) -> anyhow::Result<T> {
        let words: Vec<&str> = what.iter().copied().chain(["-o", "json"]).collect();
        let text = self.vsanctl(&self.hosts[0]).run(&words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("reading what `vsanctl {}` said", words.join(" ")))
    }

    /// Ends a host's daemon without a warning.
    pub fn kill(&mut self, host: &str) -> anyhow::Result<()> {
        let number = self.number_of(host)?;
        self.daemons[number].kill()
    }

    /// Starts the daemon of a host again whose daemon was ended.
    pub fn start_again(&mut self, host: &str) -> anyhow::Result<()> {
        let number = self.number_of(host)?;
        self.daemons[number] = self.serve(&self.hosts[number], self.limits.get(number))?;
        Ok(())
    }

    fn form(&self, disk_gib: u32) -> anyhow::Result<()> {
        let Some((first, others)) = self.hosts.split_first() else { bail!("a cluster of no hosts") };
        self.vsanctl(first).bootstrap()?;
        for host in others {
            let token = self.vsanctl(first).token()?;
            self.vsanctl(host).join(&token)?;
        }
        for host in &self.hosts {
            self.vsanctl(host).add_disk(&host.directory.join("disk"), disk_gib)?;
        }
        Ok(())
    }

    fn vsanctl<'a>(&'a self, host: &'a Host) -> Vsanctl<'a> {
        Vsanctl { program: &self.programs.vsanctl, run_dir: &host.run_dir, stop: &self.stop }
    }
}

/// Free loopback addresses. Another process could take one before the daemon does; then the daemon says so.
fn free_addresses(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    // All are bound at once, so that they differ.
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<Vec<_>, _>>()
        .context("finding free ports on 127.0.0.1")?;
    listeners.iter().map(|listener| listener.local_addr().context("reading a port")).collect()
}

/// A directory of our own below `directory`.
pub fn temp_dir(directory: &Path) -> anyhow::Result<TempDir> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    tempfile::Builder::new()
        .prefix("ferro-bench-")
        .tempdir_in(directory)
        .with_context(|| format!("making a directory in {}", directory.display()))
}

/// An error if the file system lacks the bytes.
pub fn ensure_space(directory: &Path, needed_bytes: u64) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let status =
        rustix::fs::statvfs(directory).with_context(|| format!("asking about {}", directory.display()))?;
    let free = status.f_bavail * status.f_frsize;
    ensure!(
        free >= needed_bytes,
        "{} has {} GiB free; {} are needed (choose another with --dir)",
        directory.display(),
        free >> 30,
        needed_bytes >> 30
    );
    Ok(())
}

/// Where to put disks unless told otherwise: the target directory, which is on a disk, as `/tmp` may not be.
pub fn default_directory() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("finding this program")?;
    Ok(here.parent().and_then(Path::parent).context("this program has no directory")?.to_owned())
}
