//! What happens to connections: from the sockets, to the sockets, and in between.

use super::conn::Tally;
use super::peer::Lane;
use super::quic::slot_of;
use super::settings::Settings;
use super::{
    Arrived, BEAT_EVERY, BLOCKED_FOR, CLOSED, CertificateDer, Conn, DatagramEvent, EVENTS_MAX, Event,
    Incoming, Instant, PIECES_EVERY, Path, Peer, PeerIx, PeerStats, REPLACED, SENDS_MAX, SocketAddr, Stage,
    Tunnels, UNKNOWN, VarInt, Volume, debug, info, tls, warn,
};
use bytes::Bytes;
use quinn_proto::ConnectionError;

impl Tunnels {
    pub(super) fn peer(&self, peer: PeerIx) -> Option<&Peer> {
        self.peers.get(usize::from(peer.0))?.as_ref()
    }

    pub(super) fn count(&mut self, peer: PeerIx, with: impl FnOnce(&mut PeerStats)) {
        if let Some(peer) = self.peers.get_mut(usize::from(peer.0)).and_then(Option::as_mut) {
            with(&mut peer.stats);
        }
    }

    /// Counts what became of frames to a peer.
    pub(super) fn tally(&mut self, peer: PeerIx, tally: Tally) {
        self.count(peer, |stats| {
            stats.frames_out.add_all(tally.sent);
            stats.unsendable += tally.unsendable;
            stats.full += tally.dropped;
        });
    }

    pub(super) fn event(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn mark(&mut self, at: usize) {
        if let Some(conn) = &mut self.conns[at]
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push(at);
        }
    }

    /// Takes one batch from a socket; how many datagrams it had.
    pub(super) fn receive_batch(&mut self, at: usize, deliver: &mut dyn FnMut(PeerIx, Arrived<'_>)) -> usize {
        let entries = match self.sockets[at].receive(&mut self.batch) {
            Ok(entries) => entries,
            Err(error) => {
                self.sockets[at].foreign += 1;
                debug!(%error, local = %self.locals[at], "cannot receive");
                0
            }
        };
        let now = self.clock.quic();
        let mut datagrams = 0;
        let mut touched = Vec::new();
        for entry in 0..entries {
            let (meta, mut bytes) = self.batch.entry(entry);
            while !bytes.is_empty() {
                let one = bytes.split_to(meta.stride.clamp(1, bytes.len()));
                datagrams += 1;
                #[cfg(test)]
                if self.filter.as_mut().is_some_and(|filter| filter(at, &one)) {
                    continue;
                }
                let ecn = meta.ecn.and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8));
                self.scratch.clear();
                let socket = &mut self.sockets[at];
                match socket.endpoint.handle(now, meta.addr, meta.dst_ip, ecn, one, &mut self.scratch) {
                    Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                        let Some(to) = socket.get(handle) else { continue };
                        if let Some(conn) = &mut self.conns[to] {
                            conn.quic.handle_event(event);
                            if touched.last() != Some(&to) {
                                touched.push(to);
                            }
                        }
                    }
                    Some(DatagramEvent::NewConnection(incoming)) => self.incoming(at, incoming),
                    Some(DatagramEvent::Response(transmit)) => {
                        socket.foreign += 1;
                        socket.send(&transmit, &self.scratch);
                    }
                    None => socket.foreign += 1,
                }
            }
            // At once, while what was decrypted is still in the cache.
            for to in touched.drain(..) {
                self.settle(to);
                self.unpack(to, deliver);
                self.mark(to);
            }
        }
        datagrams
    }

    /// Somebody wants to connect.
    fn incoming(&mut self, at: usize, incoming: Incoming) {
        let remote = incoming.remote_address();
        let expected = self.peers.iter().flatten().find(|peer| {
            !peer.dials && peer.lanes.iter().any(|lane| lane.socket == at && lane.remote == remote)
        });
        if expected.is_none() {
            self.refuse(at, remote, "it is no address of a host that is to connect here");
            let socket = &mut self.sockets[at];
            self.scratch.clear();
            let transmit = socket.endpoint.refuse(incoming, &mut self.scratch);
            socket.send(&transmit, &self.scratch);
            return;
        }
        // Handshakes of one address: each of its connections, and as many again for those who have shown that they are there:
        // who only pretends to have the address can't keep its owner out.
        let of_it =
            |conn: &&Conn| conn.socket == at && conn.remote == remote && conn.stage == Stage::Handshake;
        let pending = self.conns.iter().flatten().map(|conn| &**conn).filter(of_it).count();
        let most = usize::from(Settings::CONNECTIONS_MAX);
        self.scratch.clear();
        let socket = &mut self.sockets[at];
        if pending >= 2 * most {
            socket.endpoint.ignore(incoming);
            return;
        }
        if pending >= most && incoming.may_retry() {
            if let Ok(transmit) = socket.endpoint.retry(incoming, &mut self.scratch) {
                socket.send(&transmit, &self.scratch);
            }
            return;
        }
        let slot = slot_of(incoming.orig_dst_cid());
        let now = self.clock.quic();
        match socket.endpoint.accept(incoming, now, &mut self.scratch, None) {
            Ok(made) => {
                let queue_bytes = self.settings.connection_queue_bytes();
                let conn = Conn::new(self.clock.now(), made, at, slot, None, queue_bytes);
                self.add(conn);
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    socket.send(&transmit, &self.scratch);
                }
                self.refuse(at, remote, &error.cause.to_string());
            }
        }
    }

    fn refuse(&mut self, at: usize, remote: SocketAddr, reason: &str) {
        self.sockets[at].refused += 1;
        self.refusals.log(remote, reason);
    }

    fn add(&mut self, conn: Conn) -> usize {
        let (socket, handle) = (conn.socket, conn.handle);
        let at = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.conns[at] = Some(Box::new(conn));
        self.sockets[socket].set(handle, Some(at));
        self.mark(at);
        at
    }

    /// Hands on the frames of what has been received.
    fn unpack(&mut self, at: usize, deliver: &mut dyn FnMut(PeerIx, Arrived<'_>)) {
        let now = self.clock.now();
        let Some(conn) = &mut self.conns[at] else { return };
        let Some(peer) = conn.peer.filter(|_| conn.stage == Stage::Open) else { return };
        let (mut volume, mut malformed) = (Volume::default(), 0);
        while let Some(datagram) = conn.quic.datagrams().recv() {
            let read = conn.unpacker.handle(now, &datagram, |frame| {
                volume.add(frame.bytes.len());
                deliver(peer, frame);
            });
            if let Err(reason) = read {
                malformed += 1;
                debug!(%reason, remote = %conn.remote, "a malformed datagram");
            }
        }
        if conn.unpacker.is_waiting() {
            self.wake_at = self.wake_at.min(now + PIECES_EVERY);
        }
        self.count(peer, |stats| {
            stats.frames_in.add_all(volume);
            stats.malformed += malformed;
        });
    }

    /// Lets QUIC say what it has to say.
    fn settle(&mut self, at: usize) {
        loop {
            let Some(conn) = &mut self.conns[at] else { return };
            while let Some(event) = conn.quic.poll_endpoint_events() {
                let socket = &mut self.sockets[conn.socket];
                if let Some(event) = socket.endpoint.handle_event(conn.handle, event) {
                    conn.quic.handle_event(event);
                }
            }
            match conn.quic.poll() {
                Some(quinn_proto::Event::Connected) if !conn.dialled => self.accepted(at),
                Some(quinn_proto::Event::ConnectionLost { reason }) => self.lost(at, &reason),
                Some(_) => {}
                None => {
                    // The other side has confirmed that it takes our certificate.
                    if conn.dialled
                        && conn.stage == Stage::Handshake
                        && conn.quic.stats().frame_rx.handshake_done > 0
                    {
                        self.opened(at);
                    }
                    return;
                }
            }
        }
    }

    /// A connection that was accepted has shown who it is.
    fn accepted(&mut self, at: usize) {
        let Some(conn) = &self.conns[at] else { return };
        let (socket, remote, slot) = (conn.socket, conn.remote, conn.slot);
        let shown = conn.quic.crypto_session().peer_identity();
        let chain = shown.and_then(|it| it.downcast::<Vec<CertificateDer<'static>>>().ok());
        let host = match tls::peer(chain.as_deref().map_or(&[][..], Vec::as_slice)) {
            Ok(host) => host,
            Err(reason) => {
                self.refuse(socket, remote, &format!("its certificate is not a host's: {reason}"));
                self.close(at, UNKNOWN, "your certificate is not a host's");
                return;
            }
        };
        let found = self.peers.iter().flatten().find(|peer| peer.host == host && !peer.dials);
        let Some((peer, _)) = found.and_then(|it| Some((it.stats.peer, it.lane(socket, remote, slot)?)))
        else {
            self.refuse(socket, remote, &format!("host {host} is not expected from there"));
            self.close(at, UNKNOWN, "this host is not expected from there");
            return;
        };
        if let Some(conn) = &mut self.conns[at] {
            conn.peer = Some(peer);
        }
        self.opened(at);
    }

    /// A connection works: it takes its lane, and the one that had it goes.
    fn opened(&mut self, at: usize) {
        let now = self.clock.now();
        let Some(conn) = &mut self.conns[at] else { return };
        let Some(ix) = conn.peer else { return };
        if conn.quic.datagrams().max_size().is_none() {
            warn!(remote = %conn.remote, "a peer's tunnel takes no datagrams; check that both hosts run the same release");
            self.close(at, UNKNOWN, "datagrams are needed");
            return;
        }
        conn.stage = Stage::Open;
        conn.heart.handle_heard(now);
        conn.follow();
        let (socket, remote, slot) = (conn.socket, conn.remote, conn.slot);
        let Some(peer) = self.peers.get_mut(usize::from(ix.0)).and_then(Option::as_mut) else { return };
        let Some(lane) = peer.lane(socket, remote, slot) else { return };
        let lane = &mut peer.lanes[lane];
        lane.succeeded();
        lane.attempt = lane.attempt.filter(|attempt| *attempt != at);
        let old = lane.live.replace(at);
        debug!(host = %peer.host, path = %Path { local: self.locals[socket], remote }, slot, "a tunnel is up");
        if let Some(old) = old.filter(|old| *old != at) {
            self.close(old, REPLACED, "replaced by a newer connection");
        }
        self.look_at(ix);
    }

    /// A connection is over.
    fn lost(&mut self, at: usize, reason: &ConnectionError) {
        let now = self.clock.now();
        let Some(conn) = &mut self.conns[at] else { return };
        let (dialled, socket, remote, ix) = (conn.dialled, conn.socket, conn.remote, conn.peer);
        let stage = std::mem::replace(&mut conn.stage, Stage::Closed);
        if stage == Stage::Closed {
            return;
        }
        if stage == Stage::Handshake && !dialled {
            self.refuse(socket, remote, &reason.to_string());
        }
        let Some(ix) = ix else { return };
        let path = Path { local: self.locals[socket], remote };
        let Some(peer) = self.peers.get_mut(usize::from(ix.0)).and_then(Option::as_mut) else { return };
        for lane in peer.lanes.iter_mut().filter(|lane| lane.live == Some(at) || lane.attempt == Some(at)) {
            lane.live = lane.live.filter(|live| *live != at);
            if lane.attempt == Some(at) {
                lane.attempt = None;
                lane.failed(now);
                let reason = reason.to_string();
                if lane.trouble.as_ref() != Some(&reason) {
                    warn!(host = %peer.host, %path, reason, "cannot open a tunnel; trying again");
                    lane.trouble = Some(reason);
                }
            } else {
                debug!(host = %peer.host, %path, %reason, "a tunnel is closed");
            }
        }
        self.look_at(ix);
    }

    /// Closes a connection. Whoever calls has taken it out of its lane, or this does.
    pub(super) fn close(&mut self, at: usize, code: VarInt, reason: &'static str) {
        let now = self.clock.quic();
        let Some(conn) = &mut self.conns[at] else { return };
        conn.stage = Stage::Closed;
        conn.quic.close(now, code, Bytes::from_static(reason.as_bytes()));
        if let Some(peer) = conn.peer.and_then(|ix| self.peers.get_mut(usize::from(ix.0))?.as_mut()) {
            for lane in &mut peer.lanes {
                lane.live = lane.live.filter(|live| *live != at);
                lane.attempt = lane.attempt.filter(|attempt| *attempt != at);
            }
        }
        self.mark(at);
    }

    /// Lanes are gone.
    pub(super) fn end(&mut self, peer: PeerIx, lanes: Vec<Lane>, reason: &'static str) {
        for lane in lanes {
            if lane.up {
                let path = Path { local: self.locals[lane.socket], remote: lane.remote };
                self.event(Event::Down { peer, path });
            }
            for connection in [lane.live, lane.attempt].into_iter().flatten() {
                self.close(connection, CLOSED, reason);
            }
        }
    }

    /// Which of a peer's lanes work now: says what has changed.
    pub(super) fn look_at(&mut self, ix: PeerIx) {
        let Some(peer) = self.peers.get_mut(usize::from(ix.0)).and_then(Option::as_mut) else { return };
        let conns = &self.conns;
        let up = |at: usize| conns[at].as_ref().is_some_and(|conn| conn.is_up());
        let mut events = Vec::new();
        let worked = peer.works.contains(&true);
        peer.works.clear();
        for lane in &mut peer.lanes {
            let now = lane.live.is_some_and(up);
            peer.works.push(now);
            if now != std::mem::replace(&mut lane.up, now) {
                let path = Path { local: self.locals[lane.socket], remote: lane.remote };
                events.push(if now { Event::Up { peer: ix, path } } else { Event::Down { peer: ix, path } });
            }
        }
        // One line a host, however many connections it has.
        match (worked, peer.works.contains(&true)) {
            (false, true) => info!(host = %peer.host, "tunnels to a host work"),
            (true, false) => warn!(host = %peer.host, "no tunnel to a host works any more"),
            _ => {}
        }
        for event in events {
            self.event(event);
        }
    }

    /// Gives what is packed to QUIC, and what QUIC has to the socket.
    pub(super) fn drive(&mut self, at: usize) {
        let now = self.clock.quic();
        let Some(conn) = &mut self.conns[at] else { return };
        let mut tally = Tally::default();
        if conn.stage == Stage::Open {
            conn.fill(&mut tally);
        }
        self.settle(at);
        let Some(conn) = &mut self.conns[at] else { return };
        let socket = &mut self.sockets[conn.socket];
        let mut sends = 0;
        loop {
            let before = sends;
            while !socket.is_blocked() && sends < SENDS_MAX {
                self.scratch.clear();
                let segments = socket.segments_max(conn.payload);
                let Some(transmit) = conn.quic.poll_transmit(now, segments, &mut self.scratch) else { break };
                socket.send(&transmit, &self.scratch);
                sends += 1;
            }
            // As long as the path takes what waits.
            if sends == before || sends == SENDS_MAX || conn.stage != Stage::Open || !conn.is_waiting() {
                break;
            }
            conn.fill(&mut tally);
        }
        let (blocked, peer) = (socket.is_blocked(), conn.peer);
        conn.follow();
        conn.due = conn.quic.poll_timeout();
        let drained = conn.quic.is_drained();
        if let Some(due) = conn.due {
            self.wake_at = self.wake_at.min(self.clock.of_quic(due));
        }
        if let Some(peer) = peer {
            self.tally(peer, tally);
        }
        if drained {
            self.settle(at);
            self.forget(at);
        } else if blocked {
            self.mark(at);
            self.wake_at = self.wake_at.min(self.clock.now() + BLOCKED_FOR);
        } else if sends == SENDS_MAX {
            self.mark(at);
        }
    }

    /// QUIC has nothing more to say about a connection.
    fn forget(&mut self, at: usize) {
        let Some(conn) = self.conns[at].take() else { return };
        // The endpoint has forgotten it already, and may have given its handle to another.
        let socket = &mut self.sockets[conn.socket];
        if socket.get(conn.handle) == Some(at) {
            socket.set(conn.handle, None);
        }
        self.free.push(at);
    }

    /// A heartbeat's time has passed for a connection.
    pub(super) fn beat(&mut self, at: usize) {
        let now = self.clock.now();
        let Some(conn) = &mut self.conns[at] else { return };
        if conn.stage != Stage::Open {
            return;
        }
        let was = conn.heart.alive();
        let beat = conn.beat(now);
        let is = conn.heart.alive();
        if was != is {
            let path = Path { local: self.locals[conn.socket], remote: conn.remote };
            if is {
                info!(%path, "a tunnel's path is back");
            } else {
                warn!(%path, "a tunnel's path is dead: its flows move");
            }
            if let Some(peer) = conn.peer {
                self.look_at(peer);
            }
        }
        if beat.send {
            self.mark(at);
        }
    }

    /// Dials where there is no connection that works, nor an attempt under way.
    pub(super) fn dial_all(&mut self) {
        let now = self.clock.now();
        for at in 0..self.peers.len() {
            let Some(peer) = &self.peers[at] else { continue };
            if !peer.dials || !peer.works.contains(&false) {
                continue;
            }
            let name = tls::server_name(peer.host);
            for lane in 0..peer.lanes.len() {
                let Some(peer) = &self.peers[at] else { break };
                let it = &peer.lanes[lane];
                if peer.works[lane] || it.attempt.is_some() || now < it.retry_at {
                    continue;
                }
                let (ix, socket, remote, slot) = (peer.stats.peer, it.socket, it.remote, it.slot);
                let config = self.quic.client[usize::from(slot)].clone();
                let quic_now = self.clock.quic();
                let made = self.sockets[socket].endpoint.connect(quic_now, config, remote, &name);
                let attempt = match made {
                    Ok(made) => {
                        let queue_bytes = self.settings.connection_queue_bytes();
                        Ok(self.add(Conn::new(now, made, socket, slot, Some(ix), queue_bytes)))
                    }
                    Err(error) => Err(error.to_string()),
                };
                let Some(peer) = &mut self.peers[at] else { break };
                let lane = &mut peer.lanes[lane];
                match attempt {
                    Ok(attempt) => lane.attempt = Some(attempt),
                    Err(reason) => {
                        lane.failed(now);
                        if lane.trouble.as_ref() != Some(&reason) {
                            warn!(host = %peer.host, %remote, reason, "cannot open a tunnel; trying again");
                            lane.trouble = Some(reason);
                        }
                    }
                }
            }
        }
    }

    /// The earliest of all timers.
    pub(super) fn next_timer(&self) -> Instant {
        let mut next = self.beat_at;
        for conn in self.conns.iter().flatten() {
            if let Some(due) = conn.due {
                next = next.min(self.clock.of_quic(due));
            }
            if conn.unpacker.is_waiting() {
                next = next.min(self.clock.now() + PIECES_EVERY);
            }
        }
        if self.sockets.iter().any(super::Socket::is_blocked) {
            next = next.min(self.clock.now() + BLOCKED_FOR);
        }
        // At least so often the clock is looked at: see `clock`.
        next.min(self.clock.now() + BEAT_EVERY)
    }
}

impl Drop for Tunnels {
    /// The peers need not wait for three heartbeats.
    fn drop(&mut self) {
        for at in 0..self.conns.len() {
            if self.conns[at].as_ref().is_some_and(|conn| conn.stage != Stage::Closed) {
                self.close(at, CLOSED, "the switch stops");
                self.drive(at);
            }
        }
    }
}
