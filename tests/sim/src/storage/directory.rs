//! The directory as its users see it: one linearizable state behind requests that take time, are lost, answered too late,
//! or carried out long after the asker has given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use vsand_core::bugs::Bug;
use vsand_core::directory::{
    Absences, Basis, Command, Outcome, Refused, RemovedDisks, State, Sync, SyncChange,
};

use super::dice::{MS, S};
use super::event::{Answer, Event, Process};
use super::world::{World, disk_of, host_of};

/// How long an asker waits.
const TIMEOUT: u64 = 3 * S / 2;

/// A request to the directory.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Command(Box<Command>),
    /// Read it as it is now.
    Read,
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub state: State,
    index: u64,
    requests: BTreeMap<u64, (Process, Ask)>,
    next: u64,
    /// It answers nobody before this time.
    pub down_until: u64,
    /// Answers are lost and proposals come late until then.
    pub lossy_until: u64,
    /// Hosts that can't reach it until then.
    cut: BTreeMap<usize, u64>,
}

impl Directory {
    pub(super) fn apply(&mut self, command: Command) -> Result<Outcome, Refused> {
        self.index += 1;
        self.state.apply(self.index, command)
    }

    pub(super) fn cut(&mut self, host: usize, until: u64) {
        let entry = self.cut.entry(host).or_insert(0);
        *entry = until.max(*entry);
    }

    pub(super) fn mend(&mut self) {
        self.cut.clear();
        self.down_until = 0;
        self.lossy_until = 0;
    }

    /// When the host can use it, if not now.
    pub(super) fn away(&self, now: u64, host: usize) -> Option<u64> {
        let until = self.down_until.max(self.cut.get(&host).copied().unwrap_or(0));
        (until > now).then_some(until)
    }
}

/// The disk that is to join an in-sync set.
fn joining(ask: &Ask) -> Option<usize> {
    let Ask::Command(command) = ask else { return None };
    let Command::ChangeSync { changes, .. } = &**command else { return None };
    changes.iter().find_map(|change| match change {
        SyncChange::Add { disk, .. } => Some(disk_of(*disk)),
        SyncChange::Remove { .. } => None,
    })
}

impl World {
    /// Asks the directory; the answer comes as an event, or a time-out does.
    pub(super) fn ask_directory(&mut self, host: usize, ask: Ask) -> u64 {
        let request = self.directory.next;
        self.directory.next += 1;
        let from = self.process(host);
        let joining = joining(&ask);
        self.directory.requests.insert(request, (from, ask));
        let lossy = self.now < self.directory.lossy_until;
        let late = lossy && self.dice.permille(250);
        let delay = if let (Some(disk), true) = (joining, lossy && self.dice.permille(500)) {
            self.spoil_join(disk);
            self.dice.between(2 * S, 5 * S)
        } else if late {
            self.dice.between(S / 2, 6 * S)
        } else {
            self.dice.delay(2 * MS)
        };
        self.after(delay, Event::DirectoryApply { request });
        self.after(TIMEOUT, Event::DirectoryTimeout { to: from, request });
        request
    }

    pub(super) fn directory_apply(&mut self, request: u64) {
        let Some((from, _)) = self.directory.requests.get(&request) else { return };
        if let Some(until) = self.directory.away(self.now, from.host) {
            if self.dice.permille(500) {
                self.directory.requests.remove(&request);
            } else {
                let delay = self.dice.delay(20 * MS);
                self.at(until + delay, Event::DirectoryApply { request });
            }
            return;
        }
        let Some((from, ask)) = self.directory.requests.remove(&request) else { return };
        let answer = match ask {
            Ask::Read => Answer::State(Arc::new(self.directory.state.clone())),
            Ask::Command(command) => Answer::Applied(self.carry_out(from, *command)),
        };
        let lost = self.now < self.directory.lossy_until && self.dice.permille(250);
        if !lost {
            let delay = self.dice.delay(2 * MS);
            self.after(delay, Event::DirectoryAnswer { to: from, request, answer });
        }
    }

    pub(super) fn carry_out(&mut self, from: Process, mut command: Command) -> Result<Outcome, Refused> {
        if self.bug == Some(Bug::NoRevisionCheck) {
            self.forge(&mut command);
        }
        let renewal = matches!(command, Command::RenewLease { .. });
        let text = if self.tracing() { format!("{command:?}") } else { String::new() };
        let done = command.clone();
        let before = self.directory.state.objects.clone();
        let mut result = self.directory.apply(command);
        if self.bug == Some(Bug::TooFewShards) && matches!(result, Err(Refused::TooFewShards { .. })) {
            result = self.shrink_anyway(&done);
        }
        if self.bug == Some(Bug::GoneAnswered) {
            result = self.trim_at_once(&done, result);
        }
        if self.bug == Some(Bug::MaintenanceRebuilds) && matches!(result, Err(Refused::InMaintenance(_))) {
            result = self.repair_anyway(&done);
        }
        if self.bug == Some(Bug::MaintenanceCountsStale)
            && matches!(result, Err(Refused::WouldBeUnreadable { .. }))
        {
            result = self.enter_anyway(&done);
        }
        if !renewal {
            let index = self.directory.index;
            self.trace(|| match &result {
                Ok(_) => format!("dir {index} h{}: {text}", from.host),
                Err(refused) => format!("dir {index} h{} REFUSED {refused}: {text}", from.host),
            });
        }
        if self.bug == Some(Bug::RemovedForgotten) {
            self.directory.state.removed_disks = RemovedDisks::default();
        }
        if self.bug == Some(Bug::AwayUnknown) {
            self.directory.state.absences = Absences::default();
        }
        if result.is_ok() {
            self.check_directory(&before);
            self.check_absence(&done);
            self.check_trim(&done, &result);
            self.hurry_removal(&done, &result, &before);
            self.check_maintenance();
            self.check_repair(&done, &result);
            let state = Arc::new(self.directory.state.clone());
            self.spread(&state, !renewal);
            match done {
                Command::RemoveHost { host, .. } => self.host_removed(host_of(host)),
                Command::RemoveDisk { disk, .. } => {
                    self.disk_removed(disk_of(disk));
                    self.said_of(disk_of(disk));
                }
                _ => {}
            }
        }
        result
    }

    /// The bug: shards leave the in-sync set however few are left.
    fn shrink_anyway(&mut self, command: &Command) -> Result<Outcome, Refused> {
        let Command::ChangeSync { basis, changes, unix_s } = command else { return Ok(Outcome::Done) };
        let index = self.directory.index;
        let Some(record) = self.directory.state.objects.get_mut(&basis.object) else {
            return Ok(Outcome::Done);
        };
        let record = Arc::make_mut(record);
        for change in changes {
            let SyncChange::Remove { chunk, disk, stale_seq } = *change else { continue };
            let components =
                record.chunks.get_mut(&chunk).map(|c| c.components.as_mut_slice()).unwrap_or_default();
            for component in components.iter_mut().filter(|c| c.disk == disk) {
                component.sync = Sync::Stale { stale_seq, since_unix_s: *unix_s };
            }
        }
        record.revision = index;
        Ok(Outcome::Object(Arc::new(record.clone())))
    }

    /// The bug: whatever revision the proposer has seen, it passes for the latest.
    fn forge(&self, command: &mut Command) {
        let (Command::PlaceChunk { basis, .. }
        | Command::ChangeSync { basis, .. }
        | Command::Trim { basis, .. }
        | Command::TrimFrom { basis, .. }
        | Command::Move { basis, .. }
        | Command::MoveTo { basis, .. }
        | Command::Repair { basis, .. }) = command
        else {
            return;
        };
        if let Some(record) = self.directory.state.objects.get(&basis.object) {
            *basis = Basis { revision: record.revision, ..*basis };
        }
    }
}
