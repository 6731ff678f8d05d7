//! Hosts that somebody works on while everything else goes wrong: they enter maintenance, are switched off when they may be, come
//! back, and leave it. Only some runs have it, by dice of its own, so that the others are as they would be without.
//!
//! ```text
//!   LeaveHost(Maintenance) ──▶ ready? ──▶ switched off ──▶ started ──▶ LeaveHost(None)
//! ```
//!
//! What must hold, reckoned from the records alone and not by the code that decides:
//!
//! - a host that may be switched off is needed by nobody: without it and the other hosts in maintenance each chunk has a good copy,
//!   or shards enough and a log, unless that is so with it too;
//! - what its mode moves is not there any more;
//! - nothing is built elsewhere because its host is in maintenance, however long it is away;
//! - where only one thing goes wrong at a time ([`Profile::Single`]), maintenance is such a thing, and guests hardly notice it.

use std::collections::BTreeSet;

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, Role};
use vsand_core::bugs::Bug;
use vsand_core::directory::{
    Command, Departure, DiskHealth, MaintenanceMode, ObjectRecord, Outcome, Policy, Refused, State, Sync,
};

use super::dice::{Dice, S};
use super::event::Event;
use super::faults::Profile;
use super::world::{World, host_id, host_of};

/// So long after the last fault the work is over.
const PATIENCE: u64 = 15 * S;
const MODES: [MaintenanceMode; 3] =
    [MaintenanceMode::EnsureAccess, MaintenanceMode::Full, MaintenanceMode::NoMove];

/// What the operator is about.
#[derive(Debug)]
pub(super) struct Maintenance {
    dice: Dice,
    /// How often he still begins to work on a host.
    left: u32,
    /// How often he switched off a host for it.
    switched_off: u64,
}

impl Maintenance {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x6d61_696e_7461_696e);
        let left = if dice.permille(400) { dice.between(1, 4) as u32 } else { 0 };
        Self { dice, left, switched_off: 0 }
    }
}

impl World {
    pub(super) fn plan_maintenance(&mut self) {
        if self.maintenance.left > 0 {
            let first = self.maintenance.dice.between(4 * S, 20 * S);
            self.at(first, Event::Maintain);
        }
    }

    /// The hosts in maintenance.
    fn worked_on(&self) -> Vec<HostId> {
        let state = &self.directory.state;
        state.leaving_hosts.keys().copied().filter(|host| state.maintenance(*host).is_some()).collect()
    }

    pub(super) fn is_maintained(&self) -> bool {
        !self.worked_on().is_empty()
    }

    /// The operator looks at the hosts that he works on, and perhaps begins with another.
    pub(super) fn tend_maintenance(&mut self) {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        let over = !self.faulty && self.now > self.healed_at + PATIENCE;
        if let Some(by) = self.maintenance.dice.pick(&running) {
            let hosts = self.worked_on();
            for host in &hosts {
                if over || self.maintenance.dice.permille(60) {
                    self.operate(by, Command::LeaveHost { host: *host, departure: None });
                } else if self.faulty && self.may_switch_off(*host) && self.maintenance.dice.permille(500) {
                    self.switch_off(*host);
                }
            }
            let begins = self.profile != Profile::Single && self.faulty && hosts.len() < 2;
            if begins && self.maintenance.left > 0 {
                let there: Vec<usize> = (0..self.hosts.len()).filter(|h| !self.hosts[*h].gone).collect();
                if let Some(host) = self.maintenance.dice.pick(&there) {
                    self.begin_maintenance(by, host);
                }
            }
            if over && hosts.is_empty() && self.now > self.healed_at + PATIENCE + 10 * S {
                return;
            }
        }
        let next = self.maintenance.dice.between(S / 5, S);
        self.after(next, Event::Maintain);
    }

    fn begin_maintenance(&mut self, by: usize, host: usize) {
        let Some(mode) = self.maintenance.dice.pick(&MODES) else { return };
        self.maintenance.left -= 1;
        let departure = Some(Departure::Maintenance { mode, since_unix_s: self.clock(by).unix_s });
        self.operate(by, Command::LeaveHost { host: host_id(host), departure });
    }

    /// Where one thing goes wrong at a time, this may be it.
    pub(super) fn maintain_instead(&mut self, victim: usize) -> bool {
        let begins = self.maintenance.left > 0 && self.maintenance.dice.permille(400);
        if begins {
            self.begin_maintenance(victim, victim);
        }
        begins
    }

    fn may_switch_off(&self, host: HostId) -> bool {
        let n = host_of(host);
        // Its guests are elsewhere by then; where they are told to stay, nobody asks how long they wait.
        let used = self.hosts[n].owners.values().any(|running| running.session.is_some());
        if !self.hosts[n].running || (used && self.profile == Profile::Single) {
            return false;
        }
        self.called_ready(&self.directory.state, host)
    }

    /// What the cluster says; with the bug, as if a copy that is not in sync were as good as one that is.
    fn called_ready(&self, state: &State, host: HostId) -> bool {
        if self.bug != Some(Bug::MaintenanceCountsStale) {
            return state.maintenance_ready(host) == Some(true);
        }
        let mut state = state.clone();
        for object in state.objects.values_mut() {
            let object = std::sync::Arc::make_mut(object);
            for component in object.chunks.values_mut().flat_map(|c| &mut c.components) {
                component.sync = Sync::InSync;
            }
        }
        state.maintenance_ready(host) == Some(true)
    }

    fn switch_off(&mut self, host: HostId) {
        let n = host_of(host);
        self.trace(|| format!("h{n} is switched off for maintenance"));
        if let Some(what) = needs(&self.directory.state, host) {
            return self.violate(what);
        }
        let power = self.maintenance.dice.permille(500);
        self.stop_process(n, power);
        self.maintenance.switched_off += 1;
        // Often for longer than the repair delay.
        let delay = self.maintenance.dice.between(S, 12 * S);
        self.after(delay, Event::Restart { host: n });
    }

    /// Who may be switched off is needed by nobody.
    pub(super) fn check_maintenance(&mut self) {
        for host in self.worked_on() {
            if self.directory.state.maintenance_ready(host) == Some(true)
                && let Some(what) = needs(&self.directory.state, host)
            {
                self.violate(what);
            }
        }
    }

    /// Nothing is given up that is only waited for.
    pub(super) fn check_repair(&mut self, command: &Command, result: &Result<Outcome, Refused>) {
        let (Command::Repair { chunk, drop: Some(drop), .. }, Ok(Outcome::Object(record))) =
            (command, result)
        else {
            return;
        };
        // A repair changes neither hosts nor disks: they are as they were before it.
        let before = &self.directory.state;
        let Some(disk) = before.disks.get(drop).filter(|d| d.health == DiskHealth::Healthy) else { return };
        let Some((mode, _)) = before.maintenance(disk.host) else { return };
        if !leaves(mode, record.policy) && !before.leaving_disks.contains_key(drop) {
            self.violate(format!(
                "chunk {chunk} of {} is built elsewhere, because {} is in maintenance ({mode:?})",
                record.id, disk.host
            ));
        }
    }

    /// The bug: the directory lets a host enter that is needed.
    pub(super) fn enter_anyway(&mut self, command: &Command) -> Result<Outcome, Refused> {
        if let Command::LeaveHost { host, departure: Some(departure) } = command {
            self.directory.state.leaving_hosts.insert(*host, *departure);
        }
        Ok(Outcome::Done)
    }

    /// The bug: the directory lets what is waited for be built elsewhere.
    pub(super) fn repair_anyway(&mut self, command: &Command) -> Result<Outcome, Refused> {
        let kept = std::mem::take(&mut self.directory.state.leaving_hosts);
        let result = self.directory.apply(command.clone());
        self.directory.state.leaving_hosts = kept;
        result
    }
}

/// Whether a mode moves what an object has on a host.
fn leaves(mode: MaintenanceMode, policy: Policy) -> bool {
    match mode {
        MaintenanceMode::Full => true,
        MaintenanceMode::EnsureAccess => policy == Policy::Mirror { copies: 1 },
        MaintenanceMode::NoMove => false,
    }
}

/// Why a host in maintenance must not be switched off, if so.
fn needs(state: &State, host: HostId) -> Option<String> {
    let (mode, _) = state.maintenance(host)?;
    let of = |disk: &DiskId| state.disks.get(disk).map(|d| d.host);
    let works = |disk: &DiskId| state.disks.get(disk).is_some_and(|d| d.health == DiskHealth::Healthy);
    let stays = |disk: &DiskId| of(disk).is_some_and(|h| h != host && state.maintenance(h).is_none());
    for (id, record) in &state.objects {
        let bases: BTreeSet<ChunkIndex> = record.chunks.keys().map(|index| index.base()).collect();
        for base in bases {
            let with = readable(record, base, &|disk| works(disk) && (stays(disk) || of(disk) == Some(host)));
            let without = readable(record, base, &|disk| works(disk) && stays(disk));
            if with && !without {
                return Some(format!(
                    "{host} may be switched off ({mode:?}), and chunk {base} of {id} needs it"
                ));
            }
        }
        let mut disks = record.chunks.values().flat_map(|c| &c.components).map(|c| c.disk);
        if leaves(mode, record.policy) && disks.any(|disk| of(&disk) == Some(host)) {
            return Some(format!("{host} may be switched off ({mode:?}), and {id} has not moved from it"));
        }
    }
    None
}

/// Whether all of an object can be had from these disks.
pub(super) fn readable_everywhere(record: &ObjectRecord, there: &dyn Fn(&DiskId) -> bool) -> bool {
    let bases: BTreeSet<ChunkIndex> = record.chunks.keys().map(|index| index.base()).collect();
    bases.into_iter().all(|base| readable(record, base, there))
}

/// Whether a chunk can be had from these disks.
fn readable(record: &ObjectRecord, base: ChunkIndex, there: &dyn Fn(&DiskId) -> bool) -> bool {
    let mine = record.chunks.iter().filter(|(index, _)| index.base() == base);
    let (mut shards, mut others) = (0, true);
    for (index, chunk) in mine {
        let good = chunk.in_sync().any(|disk| there(&disk));
        match index.role() {
            Role::Shard(_) => shards += usize::from(good),
            Role::Whole | Role::Log => others &= good,
        }
    }
    match record.policy {
        Policy::Mirror { .. } => others,
        Policy::Parity { data, .. } => others && shards >= usize::from(data),
    }
}
