//! What goes wrong, and when. A run has one of several profiles, so that each kind of trouble is frequent somewhere.

use vsand_core::directory::Command;

use super::control::Purpose;
use super::dice::{Dice, MS, S};
use super::directory::Ask;
use super::disk::{Death, SimDisk, Stick};
use super::event::{Event, Step};
use super::world::{World, disk_id, host_id, record_of};

/// What kind of trouble a run has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Profile {
    /// Anything, several at once.
    Mixed,
    /// Owners are cut off or stopped, and others take their objects.
    Steal,
    /// The directory is slow, deaf or late while components come and go.
    Directory,
    /// One thing at a time, and never the guest's own host: guests must hardly notice.
    Single,
}

impl Profile {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        match dice.below(100) {
            0..40 => Self::Mixed,
            40..70 => Self::Steal,
            70..85 => Self::Directory,
            _ => Self::Single,
        }
    }

    pub(super) fn news_mean(self) -> u64 {
        match self {
            Self::Mixed | Self::Single => 4 * MS,
            Self::Steal | Self::Directory => 60 * MS,
        }
    }

    pub(super) fn repair_delay_s(self) -> u64 {
        match self {
            Self::Mixed => 6,
            Self::Directory => 4,
            Self::Steal => 20,
            Self::Single => 3_600,
        }
    }

    pub(super) fn one_at_a_time(self) -> bool {
        self == Self::Single
    }
}

impl World {
    pub(super) fn next_fault(&mut self) {
        if !self.faulty {
            return;
        }
        if self.now < self.hold_until {
            let at = self.hold_until + 1;
            return self.at(at, Event::Fault);
        }
        let next = match self.profile {
            Profile::Single => self.single_fault(),
            Profile::Mixed => {
                self.any_fault();
                self.dice.delay(1_200 * MS)
            }
            Profile::Steal => {
                if self.dice.permille(600) {
                    self.steal();
                    self.dice.between(5 * S, 14 * S)
                } else {
                    self.any_fault();
                    self.dice.delay(2 * S)
                }
            }
            Profile::Directory => {
                self.directory_fault();
                self.dice.delay(900 * MS)
            }
        };
        self.after(next, Event::Fault);
    }

    pub(super) fn hosts_that(&self, good: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.hosts.len()).filter(|h| !self.hosts[*h].gone && good(*h)).collect()
    }

    pub(super) fn live_disks(&self) -> Vec<usize> {
        let works = |disk: &SimDisk| !disk.removed && !disk.carried && disk.dead.is_none();
        (0..self.disks.len()).filter(|d| works(&self.disks[*d])).collect()
    }

    fn owner_host(&self, object: usize) -> Option<usize> {
        let lock = record_of(&self.directory.state, object)?.lock?;
        (0..self.hosts.len()).find(|h| host_id(*h) == lock.host)
    }

    /// One thing fails, once all is well again; how long to wait for the next.
    fn single_fault(&mut self) -> u64 {
        let whole = self.directory.state.objects.values().all(|o| o.fully_redundant());
        let owners: Vec<usize> = (0..self.objects.len()).filter_map(|o| self.owner_host(o)).collect();
        let others = self.hosts_that(|h| !owners.contains(&h));
        // One that was switched off to be worked on may be off still.
        let all_there = self.hosts.iter().all(|h| h.gone || h.running);
        let ready = whole && all_there && owners.len() == self.objects.len() && !self.is_maintained();
        let (Some(victim), true) = (self.dice.pick(&others), ready) else { return S / 2 };
        if self.maintain_instead(victim) {
            return 4 * S;
        }
        self.faults += 1;
        let ns = self.dice.between(S / 2, 6 * S);
        match self.dice.below(9) {
            0 => self.script(Step::Kill { host: victim, down_ns: ns, power: false }),
            1 => self.script(Step::Kill { host: victim, down_ns: ns, power: true }),
            2 => self.script(Step::Pause { host: victim, ns }),
            3 => self.script(Step::Isolate { host: victim, ns, directory: true }),
            4 => {
                let there = self.dice.permille(500);
                for host in (0..self.hosts.len()).filter(|h| *h != victim) {
                    let (from, to) = if there { (host, victim) } else { (victim, host) };
                    self.cut(from, to, ns);
                }
            }
            5 => {
                let disks = self.live_disks();
                if let Some(disk) = self.dice.pick(&disks) {
                    self.script(Step::Freeze { disk, ns });
                }
            }
            6 | 7 => {
                let disks = self.live_disks();
                let (ns, late) = (self.dice.between(S, 40 * S), self.dice.permille(500));
                if let Some(disk) = self.dice.pick(&disks) {
                    self.script(Step::Stick { disk, ns, late });
                }
            }
            _ => {
                let disks = self.live_disks();
                if let Some(disk) = self.dice.pick(&disks) {
                    self.trace(|| format!("d{disk} dies until its host restarts"));
                    self.disks[disk].dead = Some(Death::UntilRestart);
                    let host = self.disks[disk].host;
                    if owners.contains(&host) {
                        // Its process must go on: nothing more may fail before the end.
                        return 100 * S;
                    }
                    self.after(ns, Event::Script(Step::Kill { host, down_ns: S / 2, power: false }));
                }
            }
        }
        ns + 4 * S
    }

    fn any_fault(&mut self) {
        self.faults += 1;
        let hosts = self.hosts_that(|_| true);
        let Some(host) = self.dice.pick(&hosts) else { return };
        let down_ns = if self.dice.permille(500) {
            self.dice.between(S / 5, 2 * S)
        } else {
            self.dice.between(S, 14 * S)
        };
        match self.dice.below(100) {
            0..14 => self.script(Step::Kill { host, down_ns, power: false }),
            14..22 => self.script(Step::Kill { host, down_ns, power: true }),
            22..25 => {
                for host in hosts {
                    let down_ns = self.dice.between(S / 5, 5 * S);
                    self.script(Step::Kill { host, down_ns, power: true });
                }
            }
            25..33 => self.script(Step::Pause { host, ns: down_ns }),
            33..41 => {
                let to = self.dice.pick(&hosts).unwrap_or(host);
                self.cut(host, to, down_ns);
                if self.dice.permille(500) {
                    self.cut(to, host, down_ns);
                }
            }
            41..48 => {
                let directory = self.dice.permille(600);
                self.script(Step::Isolate { host, ns: down_ns, directory });
            }
            48..56 => self.reset_some(),
            56..64 => {
                let disks = self.live_disks();
                if let Some(disk) = self.dice.pick(&disks) {
                    self.script(Step::Freeze { disk, ns: down_ns / 2 });
                }
            }
            64..70 => self.spoil_disk(),
            70..76 => self.rot_some(),
            76..80 => {
                let ns = self.dice.between(S / 3, 6 * S);
                self.trace(|| format!("the directory is away for {} ms", ns / MS));
                self.directory.down_until = self.now + ns;
            }
            80..84 => {
                let ns = self.dice.between(2 * S, 10 * S);
                self.script(Step::LoseAnswers { ns });
            }
            84..91 => self.move_something(),
            91..95 => self.rearrange(),
            95..97 => self.steal(),
            _ => self.remove_something(),
        }
    }

    fn directory_fault(&mut self) {
        self.faults += 1;
        if self.now >= self.directory.lossy_until {
            self.script(Step::LoseAnswers { ns: 20 * S });
        }
        let hosts = self.hosts_that(|_| true);
        let Some(host) = self.dice.pick(&hosts) else { return };
        let ns = self.dice.between(S / 10, 3 * S);
        match self.dice.below(10) {
            0..3 => self.script(Step::Kill { host, down_ns: ns, power: self.now.is_multiple_of(2) }),
            3..5 => self.reset_some(),
            5..8 => {
                let disks = self.live_disks();
                if let Some(disk) = self.dice.pick(&disks) {
                    self.script(Step::Freeze { disk, ns });
                }
            }
            8 => self.directory.down_until = self.now + ns,
            _ => self.any_fault(),
        }
    }

    /// An owner is cut off or stopped, another host takes the object, its disks' hosts restart, the old owner comes back.
    fn steal(&mut self) {
        let object = self.dice.below(self.objects.len());
        let Some(old) = self.owner_host(object) else { return };
        let others = self.hosts_that(|h| h != old);
        let Some(new) = self.dice.pick(&others) else { return };
        self.faults += 1;
        self.script(Step::Want { object, host: new });
        let ns = self.dice.between(10 * S, 14 * S);
        if self.dice.permille(350) {
            self.forget_promises(object, old, new, ns);
            return;
        }
        match self.dice.below(6) {
            0 => {
                let away = self.dice.between(2 * S, 6 * S);
                self.script(Step::Pause { host: old, ns });
                // It hears of the world before it hears from the directory.
                self.directory.cut(old, self.now + ns + away);
            }
            1 => self.script(Step::Pause { host: old, ns }),
            2..5 => self.script(Step::Isolate { host: old, ns, directory: true }),
            _ => self.directory.cut(old, self.now + ns),
        }
        if self.dice.permille(600) {
            for host in self.hosts_that(|h| h != old) {
                if self.dice.permille(800) {
                    let down_ns = self.dice.between(S / 10, S / 2);
                    let at = self.now + ns - self.dice.between(S / 2, 2 * S) + S;
                    let power = self.dice.permille(300);
                    self.at(at, Event::Script(Step::Kill { host, down_ns, power }));
                }
            }
        }
        let later = ns + self.dice.between(S, 4 * S);
        self.after(later, Event::Script(Step::Unwant { object, host: old }));
    }

    /// The owner is stopped, another takes over and serves, then that one and all disks' hosts restart: the old owner goes on
    /// before the new one does, and only what the disks have written down keeps it out.
    fn forget_promises(&mut self, object: usize, old: usize, new: usize, ns: u64) {
        self.pause(old, ns);
        let away = self.dice.between(3 * S, 6 * S);
        self.directory.cut(old, self.now + ns + away);
        let at = self.now + ns - self.dice.between(S / 5, S);
        for host in self.hosts_that(|h| h != old) {
            let down_ns =
                if host == new { self.dice.between(2 * S, 5 * S) } else { self.dice.between(S / 50, S / 5) };
            self.at(at, Event::Script(Step::Kill { host, down_ns, power: false }));
        }
        self.after(ns + away + 3 * S, Event::Script(Step::Unwant { object, host: old }));
    }

    /// A component joins just now: the directory is slow to say so, and the component goes away meanwhile.
    pub(super) fn spoil_join(&mut self, disk: usize) {
        let (wait, ns) = (self.dice.between(0, S / 5), self.dice.between(2 * S, 4 * S));
        self.after(wait, Event::Script(Step::Freeze { disk, ns }));
    }

    pub(super) fn script(&mut self, step: Step) {
        if let (Step::Die { disk }, true) = (step, self.faulty) {
            return self.kill_disk(disk, 1);
        }
        if !self.faulty || self.now < self.hold_until {
            return;
        }
        self.trace(|| format!("fault {step:?}"));
        match step {
            Step::Die { .. } => {}
            Step::Kill { host, down_ns, power } => {
                if self.hosts[host].running {
                    self.stop_process(host, power);
                    self.after(down_ns, Event::Restart { host });
                }
            }
            Step::Pause { host, ns } => {
                if self.dice.permille(400) {
                    self.hosts[host].pause_armed = Some(ns);
                } else {
                    self.pause(host, ns);
                }
            }
            Step::Isolate { host, ns, directory } => {
                for other in (0..self.hosts.len()).filter(|h| *h != host) {
                    self.cut(host, other, ns);
                    self.cut(other, host, ns);
                }
                if directory {
                    self.directory.cut(host, self.now + ns);
                }
            }
            Step::Want { object, host } => {
                if !self.objects[object].doomed {
                    self.hosts[host].wanted.insert(object);
                }
            }
            Step::Unwant { object, host } => {
                let wanted = self.hosts_that(|h| h != host && self.hosts[h].wanted.contains(&object));
                if !wanted.is_empty() {
                    self.hosts[host].wanted.remove(&object);
                }
            }
            Step::Freeze { disk, ns } => self.disks[disk].frozen_until = self.now + ns,
            Step::Stick { disk, ns, late } => self.disks[disk].stick = Some(Stick { ns, late }),
            Step::Grow { object } => self.grow(object),
            Step::Doom { object } => self.doom(object),
            Step::Carry { disk, to } => self.carry(disk, to),
            Step::LoseAnswers { ns } => self.directory.lossy_until = self.now + ns,
        }
    }

    fn reset_some(&mut self) {
        let up: Vec<u64> = self.net.conns.iter().filter(|(_, c)| c.up).map(|(id, _)| *id).collect();
        for _ in 0..self.dice.between(1, 3) {
            if let Some(conn) = self.dice.pick(&up) {
                self.close(conn);
            }
        }
        if self.dice.permille(200) {
            self.net.slow_until = self.now + self.dice.between(S / 2, 4 * S);
        }
    }

    fn spoil_disk(&mut self) {
        let disks = self.live_disks();
        let Some(disk) = self.dice.pick(&disks) else { return };
        let ns = self.dice.between(S / 2, 6 * S);
        match self.dice.below(5) {
            4 => {
                let late = self.dice.permille(300);
                self.script(Step::Stick { disk, ns, late });
            }
            0 => self.disks[disk].slow = (self.now + ns, self.dice.between(10, 200)),
            1 => self.disks[disk].full_until = self.now + ns,
            2 => {
                self.trace(|| format!("d{disk} dies until its host restarts"));
                self.disks[disk].dead = Some(Death::UntilRestart);
                let host = self.disks[disk].host;
                self.after(ns, Event::Script(Step::Kill { host, down_ns: S / 2, power: false }));
            }
            _ => self.kill_disk(disk, 0),
        }
    }

    /// Nothing is wrong and all copies are there: what fails now is a single failure.
    fn is_calm(&self) -> bool {
        self.hosts.iter().all(|h| h.gone || (h.running && !h.paused))
            && self.directory.state.objects.values().all(|o| o.fully_redundant() && o.policy.domains() > 1)
            && self
                .disks
                .iter()
                .all(|d| d.dead.is_none() && !d.removed && !d.carried && d.frozen_until <= self.now)
            && self.net.all_connected(self.now)
            && self.directory.down_until <= self.now
    }

    /// A disk dies for good, once a run and only while nothing else has been wrong for a while, nor goes wrong until its
    /// components are out: then no data may be lost.
    fn kill_disk(&mut self, disk: usize, step: u8) {
        if !self.is_calm() {
            return;
        }
        if step == 0 {
            self.hold_until = self.now + 4 * S;
            return self.after(4 * S - 1, Event::Script(Step::Die { disk }));
        }
        self.trace(|| format!("d{disk} dies for good"));
        self.faults += 1;
        self.disks[disk].dead = Some(Death::ForGood);
        self.hold_until = self.now + 12 * S;
    }

    pub(super) fn add_disk(&mut self, host: usize) {
        let disk = self.disks.len();
        let early = self.bug == Some(vsand_core::bugs::Bug::AckBeforeFlush);
        let unchecked = self.bug == Some(vsand_core::bugs::Bug::CrcUnchecked);
        self.disks.push(SimDisk::new(host, early, unchecked, 8));
        let command = self.put_disk(disk);
        self.trace(|| format!("d{disk} is added to h{host}"));
        let bugs = self.bugs();
        if self.hosts[host].running {
            let replica = vsand_core::replica::Replica::new(disk_id(disk), [], |_| false, bugs);
            self.hosts[host].replicas.insert(disk, replica);
        }
        let request = self.ask_directory(host, Ask::Command(Box::new(command)));
        self.hosts[host].requests.insert(request, Purpose::Report);
        self.each_client(host, |world, client, conn| {
            if let Some(conn) = world.net.conns.get_mut(&conn) {
                conn.disks.push(disk);
            }
            world.tell_disk_up(client, host, disk);
        });
    }

    pub(super) fn each_client(&mut self, server: usize, mut act: impl FnMut(&mut Self, usize, u64)) {
        let clients: Vec<(usize, u64)> = (0..self.hosts.len())
            .filter(|c| self.hosts[*c].running)
            .filter_map(|c| Some((c, *self.hosts[c].conns.get(&server)?)))
            .collect();
        for (client, conn) in clients {
            act(self, client, conn);
        }
    }

    /// Guests are started elsewhere too, or moved.
    fn move_something(&mut self) {
        let object = self.dice.below(self.objects.len());
        let hosts = self.hosts_that(|_| true);
        let Some(host) = self.dice.pick(&hosts) else { return };
        if self.hosts[host].wanted.contains(&object) {
            return self.script(Step::Unwant { object, host });
        }
        self.script(Step::Want { object, host });
        if self.dice.permille(700) {
            for other in hosts.into_iter().filter(|h| *h != host) {
                self.script(Step::Unwant { object, host: other });
            }
        }
    }

    fn remove_something(&mut self) {
        let copies = self.objects.iter().map(|o| o.policy.domains()).max().unwrap_or(1);
        let hosts = self.hosts_that(|_| true);
        let calm = self.disks.iter().all(|d| d.dead != Some(Death::ForGood));
        let (Some(victim), Some(by)) = (self.dice.pick(&hosts), self.dice.pick(&hosts)) else { return };
        let leaving = !self.directory.state.leaving().is_empty();
        if !calm || leaving || !self.hosts[by].running || by == victim {
            return;
        }
        let mine: Vec<usize> =
            self.live_disks().into_iter().filter(|d| self.disks[*d].host == victim).collect();
        let unix_s = self.clock(by).unix_s;
        let command = if self.hosts_with_disks() > copies + 1 && self.dice.permille(500) {
            Command::RemoveHost { host: host_id(victim), unix_s }
        } else if mine.len() > 1 {
            Command::RemoveDisk { disk: disk_id(mine[0]), unix_s }
        } else {
            return;
        };
        let request = self.ask_directory(by, Ask::Command(Box::new(command)));
        self.hosts[by].requests.insert(request, Purpose::Report);
    }

    pub(super) fn host_removed(&mut self, host: usize) {
        self.stop_process(host, false);
        self.hosts[host].gone = true;
        let wanted = std::mem::take(&mut self.hosts[host].wanted);
        let hosts = self.hosts_that(|_| true);
        for object in wanted {
            if let Some(other) = self.dice.pick(&hosts) {
                self.hosts[other].wanted.insert(object);
            }
        }
    }

    pub(super) fn disk_removed(&mut self, disk: usize) {
        self.disks[disk].removed = true;
        let host = self.disks[disk].host;
        self.hosts[host].replicas.remove(&disk);
        self.each_client(host, |world, client, conn| {
            if let Some(conn) = world.net.conns.get_mut(&conn) {
                conn.disks.retain(|d| *d != disk);
            }
            world.tell_disk_down(client, disk);
        });
    }

    /// Everything works from now on.
    pub(super) fn heal(&mut self) {
        self.trace(|| "all faults end".to_owned());
        self.faulty = false;
        self.healed_at = self.now;
        self.mend_links();
        self.directory.mend();
        self.unrot();
        for disk in &mut self.disks {
            disk.frozen_until = 0;
            disk.full_until = 0;
            disk.slow = (0, 1);
            disk.stick = None;
        }
        for host in self.hosts_that(|_| true) {
            self.hosts[host].pause_armed = None;
            self.resume(host);
            let sick = self.disks.iter().any(|d| d.host == host && d.dead == Some(Death::UntilRestart));
            if sick {
                self.stop_process(host, false);
            }
            let delay = self.dice.between(0, S);
            self.after(delay, Event::Restart { host });
        }
        let lost: Vec<usize> =
            self.disks.iter().filter(|d| d.dead == Some(Death::ForGood)).map(|d| d.host).collect();
        // Disks were carried away and taken out: each host has one again, or there may be too few fault domains.
        let there = |host| self.disks.iter().any(|d| d.host == host && !d.removed && !d.carried);
        let bare = self.hosts_that(|host| !there(host));
        for host in lost.into_iter().chain(bare) {
            self.start_process(host);
            self.add_disk(host);
        }
        let hosts = self.hosts_that(|_| true);
        for object in (0..self.objects.len()).filter(|o| !self.objects[*o].doomed).collect::<Vec<_>>() {
            let wanting: Vec<usize> =
                hosts.iter().copied().filter(|h| self.hosts[*h].wanted.contains(&object)).collect();
            let Some(keep) = self.dice.pick(&wanting).or_else(|| self.dice.pick(&hosts)) else { continue };
            for host in &mut self.hosts {
                host.wanted.remove(&object);
            }
            self.hosts[keep].wanted.insert(object);
        }
        let delay = self.dice.between(9 * S, 14 * S);
        self.after(delay, Event::StopGuests);
        self.plan_departed();
    }
}
