//! What people do to a cluster while it works: volumes grow and are deleted, disks are carried to another host.
//!
//! ```text
//!   delete:  nobody wants the object ──▶ it is closed everywhere ──▶ DeleteObject, until the directory takes it ──▶ swept
//!   move:    the disk is pulled ──▶ some time ──▶ another host opens it and tells the directory
//! ```

use ferro_protocol::ids::ObjectId;
use vsand_core::directory::Command;
use vsand_core::replica::Replica;

use super::control::Purpose;
use super::dice::{MS, S};
use super::directory::Ask;
use super::event::{Event, Step};
use super::world::{World, disk_id, object_id, record_of};

impl World {
    /// Something that an operator does, if it can be done now.
    pub(super) fn rearrange(&mut self) {
        match self.dice.below(3) {
            0 => {
                let object = self.dice.below(self.objects.len());
                self.script(Step::Grow { object });
            }
            1 => {
                // One is left, so that there is always something to do.
                let alive = self.objects.iter().filter(|o| !o.doomed).count();
                let object = self.dice.below(self.objects.len());
                if alive > 1 && !self.objects[object].doomed && self.dice.permille(400) {
                    self.script(Step::Doom { object });
                }
            }
            _ => self.move_some_disk(),
        }
    }

    // ---- volumes ---------------------------------------------------------------------------------------------------

    /// The object grows; guests use the new part when its owner has heard of it.
    pub(super) fn grow(&mut self, object: usize) {
        let layout = &self.objects[object];
        let (grown, doomed) = (layout.grown_bytes, layout.doomed);
        let running = self.hosts_that(|h| self.hosts[h].running);
        let Some(by) = self.dice.pick(&running).filter(|_| !doomed) else { return };
        let Some(object) = record_of(&self.hosts[by].view, object).map(|record| record.id) else { return };
        let command = Command::ResizeObject { object, size_bytes: grown };
        self.faults += 1;
        let request = self.ask_directory(by, Ask::Command(Box::new(command)));
        self.hosts[by].requests.insert(request, Purpose::Report);
    }

    /// Nobody wants the object any more: it is closed, and then deleted.
    pub(super) fn doom(&mut self, object: usize) {
        self.objects[object].doomed = true;
        for host in &mut self.hosts {
            host.wanted.remove(&object);
        }
        self.faults += 1;
        self.after(S / 2, Event::Delete { object });
    }

    /// Asks for the deletion until it is done. Guests' locks stand in its way, repair does not.
    pub(super) fn delete(&mut self, object: usize) {
        if record_of(&self.directory.state, object).is_none() {
            return;
        }
        let running = self.hosts_that(|h| self.hosts[h].running);
        if let Some(by) = self.dice.pick(&running) {
            let id = record_of(&self.directory.state, object).map_or(object_id(object), |record| record.id);
            let command = Command::DeleteObject { object: id };
            let request = self.ask_directory(by, Ask::Command(Box::new(command)));
            self.hosts[by].requests.insert(request, Purpose::Report);
            self.break_dead_lock(by, object);
        }
        let delay = self.dice.between(300 * MS, 900 * MS);
        self.after(delay, Event::Delete { object });
    }

    /// The lock of a host that is gone would keep the object from being deleted: the operator breaks it.
    fn break_dead_lock(&mut self, by: usize, object: usize) {
        let record = record_of(&self.hosts[by].view, object).cloned();
        let Some((record, lock)) = record.and_then(|r| r.lock.map(|lock| (r, lock))) else { return };
        let now = self.clock(by).mono;
        if let Ok(lease) = self.hosts[by].watcher.ended(now, lock.host) {
            let (object, epoch) = (record.id, record.epoch);
            let command = Command::BreakLock { object, epoch, holder: lock.host, lease };
            let request = self.ask_directory(by, Ask::Command(Box::new(command)));
            self.hosts[by].requests.insert(request, Purpose::Report);
        }
    }

    /// Looks for promises to objects that the directory does not know, and of which the disk has nothing.
    pub(super) fn sweep_promises(&mut self, host: usize, disk: usize) {
        let known = |object: &ObjectId| {
            self.hosts[host].view.objects.contains_key(object)
                || self.disks[disk].volatile.components.keys().any(|chunk| chunk.object == *object)
        };
        let bare: Vec<ObjectId> =
            self.hosts[host].replicas[&disk].promises().filter(|object| !known(object)).collect();
        if !bare.is_empty() {
            let request = self.ask_directory(host, Ask::Read);
            self.hosts[host].requests.insert(request, Purpose::Forget { disk, objects: bare });
        }
    }

    // ---- disks -----------------------------------------------------------------------------------------------------

    fn move_some_disk(&mut self) {
        // Each host keeps one, or there may be too few fault domains.
        let live = self.live_disks();
        let host_of = |disk: &usize| self.disks[*disk].host;
        let spare = |disk: &usize| live.iter().filter(|other| host_of(other) == host_of(disk)).count() > 1;
        let disks: Vec<usize> = live.iter().copied().filter(spare).collect();
        let Some(disk) = self.dice.pick(&disks) else { return };
        let from = self.disks[disk].host;
        let others = self.hosts_that(|h| h != from);
        if let Some(to) = self.dice.pick(&others) {
            self.script(Step::Carry { disk, to });
        }
    }

    /// The disk is pulled out of its host, and put into another one a while later.
    pub(super) fn carry(&mut self, disk: usize, to: usize) {
        if self.disks[disk].carried || self.disks[disk].removed || self.disks[disk].dead.is_some() {
            return;
        }
        self.faults += 1;
        self.pull(disk);
        let delay = self.dice.between(S / 5, 6 * S);
        self.after(delay, Event::Plug { disk, to });
    }

    fn pull(&mut self, disk: usize) {
        let host = self.disks[disk].host;
        self.trace(|| format!("d{disk} is pulled out of h{host}"));
        let survive = self.dice.between(0, 1_000) as u32;
        self.disks[disk].carried = true;
        self.disks[disk].cut(&mut self.dice, survive);
        self.hosts[host].replicas.remove(&disk);
        self.each_client(host, |world, client, conn| {
            if let Some(conn) = world.net.conns.get_mut(&conn) {
                conn.disks.retain(|d| *d != disk);
            }
            world.tell_disk_down(client, disk);
        });
    }

    /// The disk is opened by the host that it is in now; where that is not running, when it starts.
    pub(super) fn plug(&mut self, disk: usize, to: usize) {
        // It left the cluster meanwhile, or its new host did.
        let to = if self.hosts[to].gone { self.disks[disk].host } else { to };
        if self.disks[disk].removed || self.hosts[to].gone {
            return;
        }
        self.trace(|| format!("d{disk} is put into h{to}"));
        self.disks[disk].host = to;
        self.disks[disk].carried = false;
        if !self.hosts[to].running {
            return;
        }
        let bugs = self.bugs();
        let replica = {
            let on = &self.disks[disk].durable;
            let sealed = on.epochs.iter().map(|(o, e)| (*o, *e));
            let holds = |object| on.components.keys().any(|chunk| chunk.object == object);
            Replica::new(disk_id(disk), sealed, holds, bugs)
        };
        self.hosts[to].replicas.insert(disk, replica);
        self.each_client(to, |world, client, conn| {
            if let Some(conn) = world.net.conns.get_mut(&conn)
                && !conn.disks.contains(&disk)
            {
                conn.disks.push(disk);
            }
            world.tell_disk_up(client, to, disk);
        });
    }
}
