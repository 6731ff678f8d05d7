//! The peer for frames within a host: Open vSwitch's userspace datapath (Debian's `openvswitch-switch-dpdk`) with one polling
//! thread, in a directory of its own, beside whatever Open vSwitch the machine may run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use super::huge::HugePages;
use crate::process::{self, Daemon, Stop};
use crate::usage::Watched;

const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running Open vSwitch with one bridge and two vhost-user ports, for which the client listens.
pub(super) struct Ovs {
    // Ended in this order, before the directory is removed.
    vswitchd: Daemon,
    _ovsdb: Daemon,
    sockets: [PathBuf; 2],
    _run: TempDir,
}

impl Ovs {
    /// Starts it, polling on processor `core`.
    pub(super) fn start(huge: &HugePages, core: usize, stop: &Stop) -> anyhow::Result<Self> {
        ensure!(Path::new(VSWITCHD).is_file(), "{VSWITCHD} is needed: apt install openvswitch-switch-dpdk");
        let run = tempfile::Builder::new().prefix("fb-ovs-").tempdir().context("making a run directory")?;
        let at = |name: &str| run.path().join(name);
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let (database, socket) = (text(&at("conf.db"))?, format!("unix:{}", text(&at("db.sock"))?));
        let tool = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).env("OVS_RUNDIR", run.path()).env("OVS_LOGDIR", run.path());
            process::output(&mut command, START_TIMEOUT, stop)
        };
        tool("ovsdb-tool", &["create", &database, SCHEMA])?;
        let mut ovsdb = Daemon::start(
            "ovsdb-server",
            Path::new("ovsdb-server"),
            &[
                &database,
                &format!("--remote=punix:{}", text(&at("db.sock"))?),
                &format!("--unixctl={}", text(&at("db.ctl"))?),
            ],
            at("ovsdb.log"),
        )?;
        let listening = at("db.sock");
        ovsdb.wait_until("socket", START_TIMEOUT, stop, || listening.exists())?;
        let vsctl = |args: &[&str]| tool("ovs-vsctl", &[&[&*format!("--db={socket}")], args].concat());
        vsctl(&["--no-wait", "init"])?;
        let options = [
            "dpdk-init=true".to_owned(),
            "dpdk-socket-mem=256".to_owned(),
            format!("pmd-cpu-mask={:#x}", 1_u64 << core),
            format!("dpdk-hugepage-dir={}", text(huge.directory())?),
            "dpdk-extra=--no-pci --no-telemetry --file-prefix=fb-ovs".to_owned(),
        ];
        let settings = options.map(|option| {
            let (key, value) = option.split_once('=').unwrap_or((&option, ""));
            format!("other_config:{key}=\"{value}\"")
        });
        let mut set = vec!["--no-wait", "set", "Open_vSwitch", "."];
        set.extend(settings.iter().map(String::as_str));
        vsctl(&set)?;
        let mut vswitchd = Daemon::start(
            "ovs-vswitchd",
            Path::new(VSWITCHD),
            &[&socket, &format!("--unixctl={}", text(&at("vswitchd.ctl"))?)],
            at("vswitchd.log"),
        )?;
        vsctl(&["--timeout=20", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])
            .with_context(|| vswitchd.log_tail())?;
        let sockets = [at("p0.sock"), at("p1.sock")];
        for (name, path) in ["p0", "p1"].iter().zip(&sockets) {
            let path = format!("options:vhost-server-path={}", text(path)?);
            let set = ["--", "set", "Interface", name, "type=dpdkvhostuserclient", &path];
            vsctl(&[&["--timeout=20", "add-port", "br0", name], &set[..]].concat())?;
        }
        vswitchd.check()?;
        Ok(Self { vswitchd, _ovsdb: ovsdb, sockets, _run: run })
    }

    /// Where the client is to listen.
    pub(super) fn sockets(&self) -> [&Path; 2] {
        [&self.sockets[0], &self.sockets[1]]
    }

    /// For `/proc`.
    pub(super) fn watched(&self) -> Watched {
        self.vswitchd.watched()
    }
}
