//! Connections between hosts. Within one, messages keep their order and may take long; a cut direction holds them up; when
//! the connection goes, those under way are lost, or reach the other side long after the asker has reconnected and asked again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ferro_protocol::peer::RequestId;

use super::dice::{MS, S, US};
use super::event::{Event, Message, OwnerKey, Process};
use super::world::{World, disk_id};

#[derive(Debug)]
pub(super) struct Conn {
    pub client: Process,
    pub server: Process,
    pub up: bool,
    fifo: [u64; 2],
    stalled: [VecDeque<Message>; 2],
    pub requests: BTreeMap<u64, (OwnerKey, RequestId)>,
    pub disks: Vec<usize>,
    broken_since: Option<u64>,
    patience: u64,
}

impl Conn {
    fn local(&self) -> bool {
        self.client.host == self.server.host
    }
}

#[derive(Debug, Default)]
pub(super) struct Net {
    pub conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    next_request: u64,
    /// Directions that carry nothing until then.
    cuts: BTreeMap<(usize, usize), u64>,
    connecting: BTreeSet<(usize, usize)>,
    /// Everything takes longer until then.
    pub slow_until: u64,
}

impl Net {
    pub(super) fn is_cut(&self, now: u64, from: usize, to: usize) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| *until > now)
    }

    pub(super) fn all_connected(&self, now: u64) -> bool {
        self.cuts.values().all(|until| *until <= now)
    }
}

impl World {
    /// The host reaches these disks at once: its own.
    pub(super) fn connect_locally(&mut self, host: usize) {
        let process = self.process(host);
        self.open_conn(process, process);
    }

    fn open_conn(&mut self, client: Process, server: Process) {
        let id = self.net.next_conn;
        self.net.next_conn += 1;
        let disks: Vec<usize> = self.hosts[server.host].replicas.keys().copied().collect();
        let patience = self.dice.between(S, 3 * S);
        let conn = Conn {
            client,
            server,
            up: true,
            fifo: [0; 2],
            stalled: [VecDeque::new(), VecDeque::new()],
            requests: BTreeMap::new(),
            disks: disks.clone(),
            broken_since: None,
            patience,
        };
        self.net.conns.insert(id, conn);
        self.hosts[client.host].conns.insert(server.host, id);
        self.trace(|| format!("conn {id} h{} -> h{} up", client.host, server.host));
        for disk in disks {
            self.tell_disk_up(client.host, server.host, disk);
        }
    }

    pub(super) fn tell_disk_up(&mut self, client: usize, server: usize, disk: usize) {
        let local = client == server;
        let objects: Vec<usize> = self.hosts[client].owners.keys().copied().collect();
        for object in objects {
            self.with_owner(client, object, |owner, now| owner.handle_disk_up(now, disk_id(disk), local));
        }
    }

    pub(super) fn connected(&mut self, client: Process, server: Process) {
        self.net.connecting.remove(&(client.host, server.host));
        let alive = |w: &Self, p: Process| {
            let host = &w.hosts[p.host];
            host.running && !host.paused && host.life == p.life
        };
        let cut = self.net.is_cut(self.now, client.host, server.host)
            || self.net.is_cut(self.now, server.host, client.host);
        if alive(self, client)
            && alive(self, server)
            && !cut
            && !self.hosts[client.host].conns.contains_key(&server.host)
        {
            self.open_conn(client, server);
        }
    }

    /// Notices connections that are broken, and opens those that are missing.
    pub(super) fn tend_conns(&mut self, host: usize) {
        let now = self.now;
        let me = self.process(host);
        for server in 0..self.hosts.len() {
            if server == host {
                continue;
            }
            let peer = &self.hosts[server];
            let (running, paused, life) = (peer.running, peer.paused, peer.life);
            let cut = self.net.is_cut(now, host, server) || self.net.is_cut(now, server, host);
            let Some(id) = self.hosts[host].conns.get(&server).copied() else {
                if running && !paused && !cut && self.net.connecting.insert((host, server)) {
                    let delay = self.dice.between(2 * MS, 60 * MS);
                    self.after(
                        delay,
                        Event::Connected { client: me, server: Process { host: server, life } },
                    );
                }
                continue;
            };
            let Some(conn) = self.net.conns.get_mut(&id) else { continue };
            if running && !paused && !cut && conn.server.life == life {
                conn.broken_since = None;
            } else {
                let since = *conn.broken_since.get_or_insert(now);
                if now - since > conn.patience {
                    self.close(id);
                }
            }
        }
    }

    /// The client's end of the connection is closed.
    pub(super) fn close(&mut self, id: u64) {
        let Some(conn) = self.net.conns.get_mut(&id).filter(|c| c.up && !c.local()) else { return };
        conn.up = false;
        conn.stalled = [VecDeque::new(), VecDeque::new()];
        conn.requests.clear();
        let (client, server, disks) = (conn.client, conn.server, conn.disks.clone());
        self.trace(|| format!("conn {id} h{} -> h{} closed", client.host, server.host));
        let delay = self.dice.between(0, 3 * S);
        self.after(delay, Event::Forget { server, conn: id });
        let host = &mut self.hosts[client.host];
        if host.life != client.life {
            return;
        }
        host.conns.remove(&server.host);
        if host.running {
            for disk in disks {
                self.tell_disk_down(client.host, disk);
            }
        }
    }

    pub(super) fn tell_disk_down(&mut self, client: usize, disk: usize) {
        let objects: Vec<usize> = self.hosts[client].owners.keys().copied().collect();
        for object in objects {
            self.with_owner(client, object, |owner, now| owner.handle_disk_down(now, disk_id(disk)));
        }
    }

    /// Sends a request of an owner; it is lost if there is no connection.
    pub(super) fn request(
        &mut self,
        host: usize,
        key: OwnerKey,
        owner_id: RequestId,
        disk: usize,
        request: ferro_protocol::peer::Request,
        payload: bytes::Bytes,
    ) {
        let Some(server) = self.disks.get(disk).map(|d| d.host) else { return };
        let Some(id) = self.hosts[host].conns.get(&server).copied() else { return };
        let wire = self.net.next_request;
        self.net.next_request += 1;
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        conn.requests.insert(wire, (key, owner_id));
        self.send(id, true, Message::Request { disk, id: wire, request, payload });
    }

    pub(super) fn send(&mut self, id: u64, to_server: bool, message: Message) {
        let Some(conn) = self.net.conns.get(&id) else { return };
        let delay = if conn.local() {
            self.dice.between(US, 30 * US)
        } else if self.faulty && self.now < self.net.slow_until {
            self.dice.delay(30 * MS)
        } else if self.faulty && self.dice.permille(4) {
            self.dice.between(5 * MS, 300 * MS)
        } else {
            self.dice.delay(200 * US)
        };
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        let fifo = &mut conn.fifo[usize::from(to_server)];
        *fifo = (*fifo + 1).max(self.now + delay);
        let at = *fifo;
        self.at(at, Event::Deliver { conn: id, to_server, late: false, message });
    }

    pub(super) fn deliver(&mut self, id: u64, to_server: bool, late: bool, message: Message) {
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        let (from, to) = if to_server { (conn.client, conn.server) } else { (conn.server, conn.client) };
        let up = conn.up;
        if !late && !up {
            if to_server && self.dice.permille(400) {
                let delay = self.dice.between(0, 4 * S);
                self.after(delay, Event::Deliver { conn: id, to_server, late: true, message });
            }
            return;
        }
        if !late {
            let cut = self.net.is_cut(self.now, from.host, to.host);
            let Some(conn) = self.net.conns.get_mut(&id) else { return };
            let stalled = &mut conn.stalled[usize::from(to_server)];
            if cut || !stalled.is_empty() {
                return stalled.push_back(message);
            }
        }
        let receiver = &mut self.hosts[to.host];
        if !receiver.running || receiver.life != to.life {
            return;
        }
        if receiver.paused {
            return receiver.parked.push(Event::Deliver { conn: id, to_server, late, message });
        }
        match message {
            Message::Request { disk, id: wire, request, payload } => {
                self.replica_request(to.host, id, disk, wire, request, payload);
            }
            Message::Answer { id: wire, reply, payload } => {
                let Some((key, owner_id)) =
                    self.net.conns.get_mut(&id).and_then(|c| c.requests.remove(&wire))
                else {
                    return;
                };
                let epoch = self.hosts[to.host].owners.get(&key.object).map(|r| r.owner.epoch());
                if epoch == Some(key.epoch) {
                    self.trace(|| {
                        let reply = reply.as_ref().map_or_else(
                            |e| format!("refused: {e}"),
                            |r| format!("{r:?}").chars().take(160).collect(),
                        );
                        format!("h{} o{} <- h{} #{}: {reply}", to.host, key.object, from.host, owner_id.0)
                    });
                    self.with_owner(to.host, key.object, |owner, now| {
                        owner.handle_reply(now, owner_id, reply, payload);
                    });
                }
            }
        }
    }

    pub(super) fn cut(&mut self, from: usize, to: usize, ns: u64) {
        let until = self.now + ns;
        let entry = self.net.cuts.entry((from, to)).or_insert(0);
        *entry = until.max(*entry);
        self.at(until, Event::LinkBack { from, to });
    }

    /// What was held up goes on, if the direction works again.
    pub(super) fn link_back(&mut self, from: usize, to: usize) {
        if self.net.is_cut(self.now, from, to) {
            return;
        }
        let held: Vec<(u64, bool)> = self
            .net
            .conns
            .iter()
            .filter(|(_, c)| c.up)
            .flat_map(|(id, c)| {
                let there = (c.client.host, c.server.host) == (from, to);
                let back = (c.server.host, c.client.host) == (from, to);
                [there.then_some((*id, true)), back.then_some((*id, false))]
            })
            .flatten()
            .collect();
        for (id, to_server) in held {
            let Some(conn) = self.net.conns.get_mut(&id) else { continue };
            for message in std::mem::take(&mut conn.stalled[usize::from(to_server)]) {
                self.deliver(id, to_server, false, message);
            }
        }
    }

    pub(super) fn mend_links(&mut self) {
        let cuts: Vec<(usize, usize)> = std::mem::take(&mut self.net.cuts).into_keys().collect();
        self.net.slow_until = 0;
        for (from, to) in cuts {
            self.link_back(from, to);
        }
    }

    /// The server learns that the client is gone.
    pub(super) fn forget(&mut self, host: usize, conn: u64) {
        for replica in self.hosts[host].replicas.values_mut() {
            replica.forget_asker(vsand_core::replica::Asker(conn));
        }
    }
}
