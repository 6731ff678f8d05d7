//! A control plane in memory: the configuration goes through the core's own `transact`, frames to trace through a real
//! `Switch`. What hosts have made of a revision is as a test says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferro_protocol::api::switch::{
    Applied, Attachment, ConfigSource, Counters, Flow, FrozenMac, HostApplied, HostProgress, LinkState,
    MacInfo, MacKind, MacPage, MacPlace, MacRelease, NetworkConfig, PORT_SOCKETS_DEFAULT, PortInfo,
    PortTotals, Spec, SwitchStatus, TraceAnswer, Transacted, Transaction, TunnelInfo, TunnelPath,
    Unconfirmed, UplinkInfo,
};
use ferro_protocol::api::{Health, HealthLevel, HealthReason};
use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, Sequence};
use tokio::sync::mpsc;
use vswitch_core::bugs::Bugs;
use vswitch_core::config::{GroupIx, UplinkIx, transact, validate};
use vswitch_core::frame::Offload;
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Frame, Ingress, Settings, Switch};
use vswitch_core::table::{PeerIx, PortIx};
use vswitch_core::time::Instant;
use vswitchd::api::control::{ControlPlane, MacQuery, Point, Result};
use vswitchd::api::fail;
use vswitchd::data::capture::{Capture, CaptureId, Captured};
use vswitchd::metrics::{self, Sample, Worker};
use vswitchd::trace::{Names, describe};

pub(crate) const HERE: HostId = HostId::from_bytes([1; 16]);
pub(crate) const BETA: HostId = HostId::from_bytes([2; 16]);
pub(crate) const GAMMA: HostId = HostId::from_bytes([3; 16]);

#[derive(Default)]
pub(crate) struct Memory(pub(crate) Mutex<State>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) spec: Spec,
    pub(crate) revision: u64,
    pub(crate) attached: BTreeMap<NetName, Attachment>,
    /// What beta and gamma make of every revision; they apply it unless it is said here.
    pub(crate) progress: BTreeMap<HostId, HostProgress>,
    pub(crate) waits: u32,
    pub(crate) unconfirmed: Option<u64>,
    /// So many transactions find that somebody else was quicker.
    pub(crate) races: u32,
    pub(crate) no_quorum: bool,
    pub(crate) frozen: Vec<Mac>,
    /// What the next capture brings before it goes on without anything.
    pub(crate) frames: Vec<Captured>,
    pub(crate) missed: u64,
    /// Keeps captures open.
    pub(crate) captures: Vec<mpsc::Sender<Captured>>,
}

impl Memory {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn host_name(host: HostId) -> &'static str {
    match host {
        HERE => "alpha",
        BETA => "beta",
        _ => "gamma",
    }
}

impl State {
    fn hosts(&self, revision: u64) -> Vec<HostApplied> {
        let one = |host: HostId| {
            let progress = self.progress.get(&host).copied().unwrap_or(HostProgress::Applied);
            let detail = (progress == HostProgress::Failed).then(|| "no interface eth9".to_owned());
            let has = if progress == HostProgress::Applied { revision } else { revision.saturating_sub(1) };
            HostApplied {
                host,
                name: host_name(host).to_owned(),
                this_host: host == HERE,
                progress,
                revision: (progress != HostProgress::Unreachable).then_some(has),
                detail,
            }
        };
        [HERE, BETA, GAMMA].map(one).to_vec()
    }

    fn port_info(&self, name: &NetName) -> Result<PortInfo> {
        let port = self.spec.ports.iter().find(|it| it.name == name.as_str());
        let port = port.ok_or_else(|| fail::port_not_found(name))?;
        let group = self.spec.groups.iter().find(|it| it.name == port.group).unwrap();
        let attachment = self.attached.get(name).cloned();
        let here = attachment.is_some();
        let counters = Counters {
            from: Flow { frames: 12, bytes: 1200 },
            to: Flow { frames: 7, bytes: 700 },
            dropped: [("forged_source".to_owned(), 3), ("vlan_not_carried".to_owned(), 2)].into(),
        };
        Ok(PortInfo {
            name: port.name.clone(),
            group: port.group.clone(),
            switch: group.switch.clone(),
            mac: port.mac.parse().unwrap(),
            addresses: port.addresses.clone(),
            mtu: group.mtu.unwrap_or(1500),
            blocked: port.overrides.and_then(|it| it.blocked).unwrap_or(group.blocked),
            attachment,
            link: here.then_some(LinkState::Up),
            detail: None,
            host: here.then_some(HERE),
            host_name: here.then(|| "alpha".to_owned()),
            features: Vec::new(),
            queue_pairs: u16::from(here),
            counters: here.then_some(counters),
        })
    }

    fn uplinks(&self) -> Vec<UplinkInfo> {
        let of = |switch: &ferro_protocol::api::switch::spec::SwitchSpec| {
            let name = switch.name.clone();
            let one = move |(at, uplink): (usize, &String)| UplinkInfo {
                name: uplink.clone(),
                switch: name.clone(),
                link: if at == 1 { LinkState::Down } else { LinkState::Up },
                detail: None,
                speed_mbit_s: Some(10_000),
                used_by: Vec::new(),
                counters: Counters::default(),
            };
            switch.uplinks.iter().enumerate().map(one).collect::<Vec<_>>()
        };
        self.spec.switches.iter().flat_map(of).collect()
    }

    fn tunnels() -> Vec<TunnelInfo> {
        let path = |local: &str, remote: &str, alive| TunnelPath {
            local: local.to_owned(),
            remote: remote.to_owned(),
            alive,
            rtt_us: alive.then_some(210),
            datagram_bytes_max: Some(1412),
            sent: 100,
            received: 90,
            lost: 1,
            dropped: 0,
        };
        vec![TunnelInfo {
            host: BETA,
            host_name: "beta".to_owned(),
            alive: true,
            since_s: Some(125),
            detail: None,
            networks: vec![1010],
            paths: vec![path("10.1.0.1", "10.1.0.2", true), path("10.2.0.1", "10.2.0.2", false)],
            counters: Counters::default(),
        }]
    }

    fn status(&self) -> SwitchStatus {
        let mut reasons = Vec::new();
        if self.progress.values().any(|it| *it == HostProgress::Unreachable) {
            reasons.push(HealthReason {
                level: HealthLevel::Warning,
                code: "host_unreachable".to_owned(),
                message: "host beta can't be reached".to_owned(),
                next_step: "look after it".to_owned(),
            });
        }
        let level = if reasons.is_empty() { HealthLevel::Ok } else { HealthLevel::Warning };
        SwitchStatus {
            version: "0.1.0".to_owned(),
            host: HERE,
            host_name: "alpha".to_owned(),
            health: Health { level, reasons },
            source: ConfigSource::Directory,
            revision: self.revision,
            applied_revision: self.revision,
            unconfirmed: self.unconfirmed.map(|revision| Unconfirmed {
                revision,
                seconds_left: 20,
                reason: "it was asked for".to_owned(),
            }),
            hosts: self.hosts(self.revision),
            switches: self.spec.switches.len() as u32,
            groups: self.spec.groups.len() as u32,
            ports: PortTotals {
                defined: self.spec.ports.len() as u32,
                attached: self.attached.len() as u32,
                up: self.attached.len() as u32,
            },
            uplinks: self.uplinks(),
            tunnels: Self::tunnels(),
            frozen: self.frozen.iter().map(|mac| FrozenMac { vni: Some(1010), mac: *mac }).collect(),
        }
    }

    fn there(&self, point: &Point) -> bool {
        match point {
            Point::Port(name) => self.attached.contains_key(name),
            Point::Group(name) => self.spec.groups.iter().any(|it| it.name == name.as_str()),
            Point::Uplink(name) => self.uplinks().iter().any(|it| it.name == name.as_str()),
        }
    }
}

/// The names of a configuration's places.
struct Places(Vec<(PortIx, NetName)>, Vec<NetName>);

impl Names for Places {
    fn port(&self, ix: PortIx) -> String {
        self.0.iter().find(|(at, _)| *at == ix).unwrap().1.to_string()
    }
    fn uplink(&self, ix: UplinkIx) -> String {
        self.1[usize::from(ix.0)].to_string()
    }
    fn peer(&self, ix: PeerIx) -> String {
        format!("peer-{}", ix.0)
    }
    fn group(&self, ix: GroupIx) -> String {
        format!("group-{}", ix.0)
    }
}

#[async_trait]
impl ControlPlane for Memory {
    async fn status(&self) -> Result<SwitchStatus> {
        Ok(self.state().status())
    }

    async fn config(&self) -> Result<NetworkConfig> {
        let state = self.state();
        Ok(NetworkConfig {
            revision: state.revision,
            source: ConfigSource::Directory,
            spec: state.spec.clone(),
        })
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted> {
        let mut state = self.state();
        if state.races > 0 {
            state.races -= 1;
            state.revision += 1;
        }
        if let Some(basis) = transaction.basis.filter(|basis| *basis != state.revision) {
            return Err(fail::basis_passed(basis, state.revision));
        }
        let (spec, _) =
            transact(&state.spec, &transaction.changes).map_err(|faults| fail::invalid_network(&faults))?;
        if state.no_quorum {
            return Err(fail::no_quorum("changing the network"));
        }
        let changed = spec != state.spec;
        if changed && !transaction.dry_run {
            state.revision += 1;
            state.spec = spec.clone();
            state.unconfirmed = transaction.confirm_within_s.map(|_| state.revision);
        }
        Ok(Transacted {
            revision: state.revision,
            changed,
            dry_run: transaction.dry_run,
            spec,
            confirm_within_s: transaction.confirm_within_s.filter(|_| changed && !transaction.dry_run),
        })
    }

    async fn applied(&self, revision: u64, _wait: Duration) -> Result<Applied> {
        let mut state = self.state();
        state.waits += 1;
        Ok(Applied { revision, hosts: state.hosts(revision) })
    }

    async fn confirm(&self, revision: u64) -> Result<()> {
        let mut state = self.state();
        if state.unconfirmed.take_if(|it| *it == revision).is_none() {
            return Err(fail::nothing_to_confirm(revision));
        }
        Ok(())
    }

    async fn undo(&self, revision: u64) -> Result<()> {
        self.confirm(revision).await
    }

    async fn ports(&self) -> Result<Vec<PortInfo>> {
        let state = self.state();
        state.spec.ports.iter().map(|port| state.port_info(&port.name.parse().unwrap())).collect()
    }

    async fn port(&self, name: &NetName) -> Result<PortInfo> {
        self.state().port_info(name)
    }

    async fn attach(&self, name: &NetName, mut to: Attachment) -> Result<PortInfo> {
        let mut state = self.state();
        state.port_info(name)?;
        if let Attachment::VhostUser { socket: socket @ None, .. } = &mut to {
            *socket = Some(format!("{PORT_SOCKETS_DEFAULT}/{name}.sock"));
        }
        match state.attached.get(name) {
            Some(there) if *there != to => return Err(fail::port_attached(name, "something else")),
            _ => state.attached.insert(name.clone(), to),
        };
        state.port_info(name)
    }

    async fn detach(&self, name: &NetName) -> Result<()> {
        self.state().attached.remove(name).map(drop).ok_or_else(|| fail::port_not_attached(name))
    }

    async fn uplinks(&self) -> Result<Vec<UplinkInfo>> {
        Ok(self.state().uplinks())
    }

    async fn tunnels(&self) -> Result<Vec<TunnelInfo>> {
        Ok(State::tunnels())
    }

    async fn macs(&self, query: MacQuery) -> Result<MacPage> {
        // 2,500 addresses, so that there are pages.
        let begin: u32 = query.after.map_or(0, |after| after.parse().unwrap());
        let state = self.state();
        let all = (begin..2500).map(|n| {
            let [_, a, b, c] = n.to_be_bytes();
            let mac = Mac([2, 0, 0, a, b, c]);
            MacInfo {
                vni: Some(1010),
                switch: None,
                vlan: None,
                all_vlans: false,
                mac,
                place: MacPlace::Host { id: BETA, name: "beta".to_owned() },
                kind: MacKind::Known,
                frozen: state.frozen.contains(&mac),
            }
        });
        let macs: Vec<MacInfo> = all
            .filter(|it| !query.frozen || it.frozen)
            .filter(|it| query.mac.is_none_or(|mac| mac == it.mac))
            .take(query.rows_max)
            .collect();
        let end = begin + macs.len() as u32;
        let more = !query.frozen && query.mac.is_none() && end < 2500;
        Ok(MacPage { macs, next: more.then(|| end.to_string()) })
    }

    async fn release_mac(&self, release: MacRelease) -> Result<()> {
        let mut state = self.state();
        let at = state.frozen.iter().position(|mac| *mac == release.mac && release.vni == Some(1010));
        state.frozen.remove(at.ok_or_else(|| fail::mac_not_frozen(release.mac))?);
        Ok(())
    }

    async fn trace(&self, from: Point, frame: Bytes) -> Result<TraceAnswer> {
        let state = self.state();
        if !state.there(&from) {
            return Err(fail::point_not_found(&from));
        }
        let config = validate(&state.spec).unwrap();
        let uplinks: Vec<NetName> = config.uplinks().iter().map(|it| it.name.clone()).collect();
        let now = Instant(1);
        let mut switch = Switch::new(Settings {
            host: HERE,
            hash: HashKey(1, 2),
            sequence: Sequence(1),
            bugs: Bugs::default(),
        });
        switch.configure(now, config);
        uplinks.iter().for_each(|name| switch.handle_link(now, name, true));
        let ports = state.attached.keys().map(|name| (switch.attach(now, name).unwrap(), name.clone()));
        let places = Places(ports.collect(), uplinks);
        let from = match from {
            Point::Port(name) => Ingress::Port(switch.port_named(&name).unwrap()),
            Point::Uplink(name) => Ingress::Uplink(switch.config().uplink(&name).unwrap()),
            Point::Group(_) => unreachable!("the API refuses it"),
        };
        let frame = Frame { from, head: &frame, len: frame.len(), offload: Offload::NONE };
        Ok(describe(&switch.trace(now, &frame), &places))
    }

    async fn capture(&self, what: Point, snap_bytes: usize) -> Result<Capture> {
        let mut state = self.state();
        if !state.there(&what) {
            return Err(fail::point_not_found(&what));
        }
        let (sender, frames) = mpsc::channel(4096);
        for mut frame in std::mem::take(&mut state.frames) {
            frame.bytes.truncate(snap_bytes);
            sender.try_send(frame).unwrap();
        }
        let missed = Arc::new(AtomicU64::new(state.missed));
        state.captures.push(sender);
        let waiting_bytes = Arc::new(AtomicUsize::new(1 << 30));
        Ok(Capture { id: CaptureId(1), frames, missed, waiting_bytes })
    }

    async fn metrics(&self) -> Result<String> {
        let ports = self.ports().await?;
        let status = self.status().await?;
        let worker = Worker { turns: 7, sleeps: 3, ..Worker::default() };
        metrics::text(Sample { status, ports, worker, gateways: Vec::new() })
            .map_err(|error| fail::internal("metrics", error))
    }
}
