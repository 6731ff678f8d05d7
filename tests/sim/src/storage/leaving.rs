//! Disks and hosts that are taken out while everything else goes wrong: their components move elsewhere first, the operator
//! may change his mind, and what is empty goes. Only some runs have it, by dice of its own, so that the others are as they
//! would be without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferro_protocol::ids::ObjectId;
use vsand_core::directory::{Basis, Command, Departure, ObjectRecord, Outcome, Refused, SyncChange};

use super::control::Purpose;
use super::dice::{Dice, MS, S};
use super::directory::Ask;
use super::event::Event;
use super::faults::Profile;
use super::world::{World, disk_id, disk_of, host_id};

/// So long after the last fault the operator keeps what has not gone.
const PATIENCE: u64 = 25 * S;

/// What the operator is about.
#[derive(Debug)]
pub(super) struct Leaving {
    dice: Dice,
    /// How many departures he still begins.
    left: u32,
    /// Of what is heard late.
    late: Dice,
}

impl Leaving {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x6c65_6176_696e_6721);
        let left = if dice.permille(400) { dice.between(1, 3) as u32 } else { 0 };
        Self { dice, left, late: Dice::new(seed ^ 0x6c61_7465_6469_736b) }
    }
}

impl World {
    pub(super) fn plan_leaving(&mut self) {
        if self.leaving.left > 0 && self.profile != Profile::Single {
            let first = self.leaving.dice.between(4 * S, 20 * S);
            self.at(first, Event::Leave);
        }
    }

    /// The operator looks at what is leaving, and perhaps begins something new.
    pub(super) fn tend_leaving(&mut self) {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        if let Some(by) = self.leaving.dice.pick(&running) {
            let state = self.directory.state.clone();
            let late = !self.faulty && self.now > self.healed_at + PATIENCE;
            let disks: Vec<_> = state.leaving_disks.keys().copied().collect();
            let hosts: Vec<_> =
                state.leaving_hosts.keys().copied().filter(|host| state.is_host_leaving(*host)).collect();
            let unix_s = self.clock(by).unix_s;
            for disk in &disks {
                let stays = late || self.faulty && self.leaving.dice.permille(30);
                if !state.holds_components(&[*disk]) {
                    self.operate(by, Command::RemoveDisk { disk: *disk, unix_s });
                } else if stays {
                    self.operate(by, Command::LeaveDisk { disk: *disk, departure: None });
                }
            }
            for host in &hosts {
                let stays = late || self.faulty && self.leaving.dice.permille(30);
                let empty = !state.holds_components(&state.disks_in(*host));
                if empty && host_id(by) != *host {
                    self.operate(by, Command::RemoveHost { host: *host, unix_s });
                } else if stays {
                    self.operate(by, Command::LeaveHost { host: *host, departure: None });
                }
            }
            if self.faulty && self.leaving.left > 0 && disks.is_empty() && hosts.is_empty() {
                self.begin_leaving(by);
            }
            // What was asked for just before the end may still be on its way.
            let over = !self.faulty && self.now > self.healed_at + 10 * S;
            if over && disks.is_empty() && hosts.is_empty() {
                return;
            }
        }
        let next = self.leaving.dice.between(S / 5, S);
        self.after(next, Event::Leave);
    }

    fn begin_leaving(&mut self, by: usize) {
        let full = |d: &usize| self.directory.state.holds_components(&[disk_id(*d)]);
        let there =
            (0..self.disks.len()).filter(|d| !self.disks[*d].removed).filter(full).collect::<Vec<_>>();
        let Some(disk) = self.leaving.dice.pick(&there) else { return };
        let departure = Some(Departure::WhenEmpty);
        // Another removal may be on its way: enough hosts are left for both.
        let copies = self.objects.iter().map(|o| o.policy.domains()).max().unwrap_or(1);
        let hosts = self.hosts_with_disks();
        let host = self.disks[disk].host;
        let last = self.disks.iter().filter(|d| d.host == host && !d.removed).count() == 1;
        if last && hosts <= copies + 1 {
            return;
        }
        let command = if hosts > copies + 1 && self.leaving.dice.permille(400) {
            Command::LeaveHost { host: host_id(self.disks[disk].host), departure }
        } else {
            Command::LeaveDisk { disk: disk_id(disk), departure }
        };
        self.leaving.left -= 1;
        self.faults += 1;
        self.operate(by, command);
    }

    /// What the disk's host once said of it may come after it was removed.
    pub(super) fn said_of(&mut self, disk: usize) {
        if self.leaving.late.permille(300) {
            let delay = self.leaving.late.between(MS, 3 * S);
            self.after(delay, Event::SaidLate { from: self.process(self.disks[disk].host), disk });
        }
    }

    pub(super) fn hosts_with_disks(&self) -> usize {
        let there = self.disks.iter().filter(|d| !d.removed && !self.hosts[d.host].gone);
        there.map(|d| d.host).collect::<BTreeSet<usize>>().len()
    }

    pub(super) fn operate(&mut self, by: usize, command: Command) {
        self.trace(|| format!("h{by}'s operator: {command:?}"));
        let request = self.ask_directory(by, Ask::Command(Box::new(command)));
        self.hosts[by].requests.insert(request, Purpose::Report);
    }

    /// A move never costs a copy.
    pub(super) fn check_trim(&mut self, command: &Command, result: &Result<Outcome, Refused>) {
        let (Command::Trim { chunk, .. } | Command::TrimFrom { chunk, .. }, Ok(Outcome::Object(record))) =
            (command, result)
        else {
            return;
        };
        let state = &self.directory.state;
        let staying = record.chunks.get(chunk).map_or(0, |c| {
            c.in_sync().filter(|d| !state.is_emptied(record.policy, *d) && !state.is_away(*d)).count()
        });
        if staying < record.policy.components(*chunk) {
            self.violate(format!("chunk {} was left with {staying} good components: {record:?}", chunk.0));
        }
    }

    /// Where a component is about to go, requests to it are slow just then, and it is removed from its disk as soon as it may be: what
    /// was asked of it before gets there when it is gone.
    pub(super) fn hurry_removal(
        &mut self,
        command: &Command,
        result: &Result<Outcome, Refused>,
        before: &BTreeMap<ObjectId, Arc<ObjectRecord>>,
    ) {
        let Ok(Outcome::Object(record)) = result else { return };
        if !self.faulty || self.profile.one_at_a_time() {
            return;
        }
        match command {
            Command::ChangeSync { changes, .. } => {
                let spare = |change: &SyncChange| {
                    let (SyncChange::Add { chunk, .. } | SyncChange::Remove { chunk, .. }) = change;
                    let placed = record.chunks.get(chunk).map_or(0, |c| c.components.len());
                    placed > record.policy.components(*chunk)
                };
                if changes.iter().any(spare) && self.leaving.late.permille(300) {
                    self.net.slow_until = self.net.slow_until.max(self.now + 6 * S / 5);
                }
            }
            Command::Trim { chunk, .. } | Command::TrimFrom { chunk, .. } => {
                let of = |record: &ObjectRecord| {
                    let components = record.chunks.get(chunk).map(|c| c.components.clone());
                    components.unwrap_or_default().into_iter().map(|c| c.disk).collect::<BTreeSet<_>>()
                };
                let had = before.get(&record.id).map(|record| of(record)).unwrap_or_default();
                for disk in had.difference(&of(record)) {
                    let delay = self.leaving.late.between(MS, 40 * MS);
                    self.hosts[self.disks[disk_of(*disk)].host].sweep_at = self.now + delay;
                }
            }
            _ => {}
        }
    }

    /// The bug: what is to go does so at once.
    pub(super) fn trim_at_once(
        &mut self,
        command: &Command,
        result: Result<Outcome, Refused>,
    ) -> Result<Outcome, Refused> {
        match (command, &result) {
            (
                Command::Trim { basis, chunk } | Command::TrimFrom { basis, chunk, .. },
                Ok(Outcome::Object(record)),
            ) => {
                let basis = Basis { revision: record.revision, ..*basis };
                let again = self.directory.apply(Command::Trim { basis, chunk: *chunk });
                if again.is_ok() { again } else { result }
            }
            _ => result,
        }
    }

    /// What is leaving, as this host has heard.
    pub(super) fn tell_leaving(&mut self, host: usize, object: usize) {
        let state = Arc::clone(&self.hosts[host].view);
        self.with_owner(host, object, |owner, now| owner.handle_departures(now, &mut state.departures()));
    }
}
