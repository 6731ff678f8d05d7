//! Hosts that are away. While everything else goes wrong each host says which others are, as the daemon does, and the directory knows;
//! where one may go for good, it does so after the last fault, by dice of its own. Then everything must be built elsewhere that it
//! holds, also what nobody writes to, and of objects that nobody has open.

use std::collections::BTreeSet;

use ferro_protocol::ids::DiskId;
use vsand_core::directory::{Command, DiskHealth, ObjectRecord};

use super::control::Purpose;
use super::dice::{Dice, S};
use super::directory::Ask;
use super::event::Event;
use super::faults::Profile;
use super::maintenance::readable_everywhere;
use super::world::{World, disk_of, host_id, host_of, object_of, record_of};

/// So long after the last fault it must have been possible, or it is left.
const TRIED_FOR: u64 = 45 * S;

/// What becomes of hosts.
#[derive(Debug)]
pub(super) struct Departed {
    dice: Dice,
    wanted: bool,
    /// Another one goes with it, and comes back.
    pair: bool,
    /// One is to go yet.
    pending: bool,
    /// The host that went for good, and when all others are there.
    pub gone: Option<(usize, u64)>,
    /// Objects that nobody opens any more.
    pub closed: BTreeSet<usize>,
}

impl Departed {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x6177_6179_666f_7265);
        let (wanted, pair) = (dice.permille(400), dice.permille(300));
        Self { dice, wanted, pair, pending: false, gone: None, closed: BTreeSet::new() }
    }
}

impl World {
    /// Says who is away, as this host sees it.
    pub(super) fn tell_absence(&mut self, host: usize) {
        if self.now < self.hosts[host].absence_at {
            return;
        }
        self.hosts[host].absence_at = self.now + S;
        let (now, delay) = (self.clock(host), self.profile.repair_delay_s());
        let (view, watcher) = (&self.hosts[host].view, &self.hosts[host].watcher);
        let Some(command) = view.next_absence(now, host_id(host), watcher, delay) else { return };
        let request = self.ask_directory(host, Ask::Command(Box::new(command)));
        self.hosts[host].requests.insert(request, Purpose::Report);
    }

    /// The faults have ended: one host is to go for good a while later.
    pub(super) fn plan_departed(&mut self) {
        // Where nothing is ever built elsewhere, nothing would come of it.
        if self.departed.wanted && self.profile != Profile::Single {
            self.departed.pending = true;
            let delay = self.departed.dice.between(8 * S, 13 * S);
            self.after(delay, Event::GoAway);
        }
    }

    /// A host that nothing needs goes for good, if there is one now.
    pub(super) fn go_away(&mut self) {
        let victims: Vec<usize> = (0..self.hosts.len()).filter(|host| self.can_go(*host)).collect();
        // What is written while two go at once may be on the one that does not come back only.
        let early = self.departed.pair && (!self.stopping || self.not_quiet().is_some());
        let Some(victim) = self.departed.dice.pick(&victims).filter(|_| !early) else {
            if self.now < self.healed_at + TRIED_FOR {
                self.after(S, Event::GoAway);
            } else {
                self.departed.pending = false;
            }
            return;
        };
        self.departed.pending = false;
        let power = self.departed.dice.permille(500);
        self.trace(|| format!("h{victim} goes for good"));
        self.stop_process(victim, power);
        let others: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        let back = self.take_along(&others);
        self.departed.gone = Some((victim, back));
        for object in std::mem::take(&mut self.hosts[victim].wanted) {
            if let Some(other) = self.departed.dice.pick(&others) {
                self.hosts[other].wanted.insert(object);
            }
        }
        for object in 0..self.objects.len() {
            let held = record_of(&self.directory.state, object).and_then(|r| r.lock);
            if held.is_none_or(|lock| lock.host != host_id(victim)) && self.departed.dice.permille(400) {
                self.trace(|| format!("nobody opens o{object} any more"));
                self.departed.closed.insert(object);
                for host in &mut self.hosts {
                    host.wanted.remove(&object);
                }
            }
        }
    }

    /// Sometimes another host goes with it, and is back long after both were given up; when. What is on it is needed then.
    fn take_along(&mut self, others: &[usize]) -> u64 {
        let Some(other) = self.departed.dice.pick(others).filter(|_| self.departed.pair) else {
            return self.now;
        };
        let back = self.now + self.departed.dice.between(30 * S, 60 * S);
        self.trace(|| format!("h{other} goes with it, and comes back"));
        self.stop_process(other, true);
        self.at(back, Event::Restart { host: other });
        back
    }

    /// Whether everything can be had without a host, and the others can hold it.
    fn can_go(&self, host: usize) -> bool {
        let state = &self.directory.state;
        let (steady, up) =
            (state.leaving_hosts.is_empty() && state.leaving_disks.is_empty(), &self.hosts[host]);
        if !steady || up.gone || !up.running || up.paused {
            return false;
        }
        let there = |disk: &DiskId| {
            let disk = state.disks.get(disk).filter(|d| d.health == DiskHealth::Healthy);
            disk.is_some_and(|d| host_of(d.host) != host && self.hosts[host_of(d.host)].running)
        };
        let places: BTreeSet<_> = state
            .disks
            .keys()
            .filter(|disk| there(disk))
            .filter_map(|disk| state.fault_domain(*disk))
            .collect();
        // Whatever an object becomes, it needs no more than it began with.
        let most = |record: &ObjectRecord| self.objects[object_of(record.id)].policy.domains();
        let holds = |record: &ObjectRecord| places.len() >= most(record);
        state.objects.values().all(|record| holds(record) && readable_everywhere(record, &there))
    }

    /// What is still on the host that went for good.
    pub(super) fn left_behind(&self) -> Option<String> {
        if self.departed.pending {
            return Some("a host is to go for good yet".to_owned());
        }
        let (gone, _) = self.departed.gone?;
        self.directory.state.objects.values().find_map(|record| {
            let components =
                record.chunks.iter().flat_map(|(index, c)| c.components.iter().map(move |c| (index, c)));
            let there = |disk: DiskId| self.disks[disk_of(disk)].host == gone;
            let (index, component) = components.into_iter().find(|(_, c)| there(c.disk))?;
            Some(format!(
                "chunk {index} of {} is still on h{gone}, which went for good: {component:?}",
                record.id
            ))
        })
    }

    /// A host that is there is not called away for long.
    pub(super) fn check_absence(&mut self, command: &Command) {
        let Command::RenewLease { host } = command else { return };
        if self.directory.state.absences.of(*host).is_some() {
            self.violate(format!("{host} has renewed its lease and is called away"));
        }
    }
}
