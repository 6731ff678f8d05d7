//! One host: a network namespace with its links, a folder for its state, its `vsand` and its `vswitchd`.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use ferro_protocol::api::{
    ComponentInfo, EventInfo, EventKind, EventList, ObjectDetails, OpenedVolume, Status, TokenInfo,
    VolumeInfo,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::process::run;

/// One host of the laboratory.
#[derive(Debug)]
pub struct Host {
    pub(crate) number: u8,
    pub(crate) namespace: String,
    /// The namespace with the bridge, where the other end of the link is.
    pub(crate) switch: String,
    pub(crate) dir: PathBuf,
    pub(crate) vsand: Daemon,
    pub(crate) vswitchd: Daemon,
}

/// For most tests a host is its `vsand`.
impl std::ops::Deref for Host {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.vsand
    }
}

impl Host {
    /// From their next start on, these programs of this host are those of the folder.
    pub fn install(&self, folder: &Path, programs: &[&str]) -> Result<()> {
        for program in programs {
            let (new, place) = (self.dir.join("bin/new"), self.dir.join("bin").join(program));
            symlink(folder.join(program), &new)?;
            fs::rename(&new, &place)?;
        }
        Ok(())
    }

    /// Its name in the cluster.
    pub fn name(&self) -> String {
        format!("host{}", self.number)
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The folder with all that is this host's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The daemon's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where its disks are unless a test makes others.
    pub fn disks_dir(&self) -> PathBuf {
        self.dir.join("disks")
    }

    /// The switch's state directory.
    pub fn switch_state_dir(&self) -> PathBuf {
        self.dir.join("switch-state")
    }

    /// Where the switch's sockets are.
    pub fn switch_run_dir(&self) -> PathBuf {
        self.dir.join("switch")
    }

    /// Its switch.
    pub fn vswitchd(&self) -> &Daemon {
        &self.vswitchd
    }

    fn port(&self) -> String {
        format!("p{}", self.number)
    }

    /// Nothing leaves this host.
    pub fn cut_out(&self) -> Result<()> {
        run("tc", &["-n", &self.namespace, "qdisc", "replace", "dev", "eth0", "root", "blackhole"]).map(drop)
    }

    /// Nothing reaches this host.
    pub fn cut_in(&self) -> Result<()> {
        run("tc", &["-n", &self.switch, "qdisc", "replace", "dev", &self.port(), "root", "blackhole"])
            .map(drop)
    }

    /// The cable is pulled.
    pub fn cut_cable(&self) -> Result<()> {
        run("ip", &["-n", &self.switch, "link", "set", &self.port(), "down"]).map(drop)
    }

    /// This host's frames to one other get lost; all others arrive, those of that host too.
    pub fn cut_to(&self, other: &Self) -> Result<()> {
        let nobody = ["lladdr", "02:00:00:00:00:ff", "nud", "permanent", "dev", "eth0"];
        let address = other.address().to_string();
        run("ip", &[&["-n", &self.namespace, "neigh", "replace", &address], &nobody[..]].concat()).map(drop)
    }

    /// Its address on an uplink, from 1.
    pub fn uplink_address(&self, uplink: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77 + uplink, 0, self.number)
    }

    fn uplink_port(&self, uplink: u8) -> String {
        format!("u{uplink}-{}", self.number)
    }

    /// The cable of an uplink is pulled.
    pub fn cut_uplink(&self, uplink: u8) -> Result<()> {
        run("ip", &["-n", &self.switch, "link", "set", &self.uplink_port(uplink), "down"]).map(drop)
    }

    /// It is put back.
    pub fn mend_uplink(&self, uplink: u8) -> Result<()> {
        run("ip", &["-n", &self.switch, "link", "set", &self.uplink_port(uplink), "up"]).map(drop)
    }

    /// How long packets on an uplink may be from now on, here and on the way.
    pub fn set_uplink_mtu(&self, uplink: u8, mtu: u16) -> Result<()> {
        let mtu = mtu.to_string();
        run("ip", &["-n", &self.switch, "link", "set", &self.uplink_port(uplink), "mtu", &mtu])?;
        let own = format!("uplink{uplink}");
        run("ip", &["-n", &self.namespace, "link", "set", &own, "mtu", &mtu]).map(drop)
    }

    /// Undoes every cut.
    pub fn mend(&self) -> Result<()> {
        // What was not cut can't be removed: that is as good.
        let _none = run("tc", &["-n", &self.namespace, "qdisc", "del", "dev", "eth0", "root"]);
        let _none = run("tc", &["-n", &self.switch, "qdisc", "del", "dev", &self.port(), "root"]);
        let _none = run("ip", &["-n", &self.namespace, "neigh", "flush", "dev", "eth0", "nud", "permanent"]);
        run("ip", &["-n", &self.switch, "link", "set", &self.port(), "up"]).map(drop)
    }

    /// The cluster at a glance, as this host sees it.
    pub fn status(&self) -> Result<Status> {
        self.ctl(&["status"])
    }

    /// One volume, as this host sees it.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        self.ctl(&["volume", "show", name])
    }

    /// All components of a volume.
    pub fn components(&self, volume: &str) -> Result<Vec<ComponentInfo>> {
        let object: ObjectDetails = self.ctl(&["object", "show", volume])?;
        Ok(object.chunks.into_iter().flat_map(|c| c.components).collect())
    }

    /// The names of the hosts that a volume has something on, in order, once for each component.
    pub fn hosts_of(&self, volume: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.components(volume)?.into_iter().map(|c| c.host_name).collect();
        names.sort();
        Ok(names)
    }

    /// The latest event of this kind within the last hour; an error if there is none.
    pub fn saw(&self, kind: EventKind) -> Result<EventInfo> {
        let list: EventList = self.ctl(&["events", "--since", "1h"])?;
        let found = list.events.iter().rev().find(|event| event.kind == kind).cloned();
        found.ok_or_else(|| anyhow!("no {kind:?} in {:?}", list.events))
    }

    /// Makes a volume.
    pub fn create(&self, name: &str, size: &str, policy: &str) -> Result<()> {
        self.ctl_ok(&["volume", "create", name, "--size", size, "--policy", policy])
    }

    /// Opens a volume here and gives its socket.
    pub fn open(&self, name: &str) -> Result<PathBuf> {
        let opened: OpenedVolume = self.ctl(&["volume", "open", name])?;
        let socket = PathBuf::from(opened.socket);
        ensure!(socket.exists(), "the volume is open and its socket {} is not there", socket.display());
        Ok(socket)
    }

    /// A join token.
    pub fn token(&self) -> Result<String> {
        Ok(self.ctl::<TokenInfo>(&["cluster", "token"])?.token.0)
    }

    /// Gives a directory to the cluster.
    pub fn add_disk(&self, path: &Path, size: &str) -> Result<Value> {
        fs::create_dir_all(path)?;
        self.ctl(&["disk", "add", &path.display().to_string(), "--size", size])
    }

    /// Does something on this host's network: in a thread of its own that lives in the host's namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = fs::File::open(format!("/run/netns/{}", self.namespace))?;
        let thread = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(thread).join().map_err(|_| anyhow!("it panicked"))?)
    }
}
