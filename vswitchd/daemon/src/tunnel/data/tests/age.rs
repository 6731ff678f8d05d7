//! What time does to connections: a day of them, and clocks that jump.

use super::*;

/// Between two looks that both sides take at their tunnels; no less often than a switch that is idle.
const ROUND_MS: u64 = 190;
/// The time after which what was received is acknowledged at the latest (RFC 9000, 18.2: `max_ack_delay`), and a bit.
const ACKNOWLEDGED_MS: u64 = 26;
const HOUR_ROUNDS: u64 = 3600 * 1000 / ROUND_MS;

impl Pair {
    /// One round of an idle day: heartbeats, and whatever else is due.
    fn round(&mut self) {
        self.now = self.now + Duration::from_millis(ROUND_MS - ACKNOWLEDGED_MS);
        self.a.turn(self.now);
        self.b.turn(self.now);
        self.now = self.now + Duration::from_millis(ACKNOWLEDGED_MS);
        self.a.turn(self.now);
        self.b.turn(self.now);
    }

    fn renew(&mut self) {
        for side in [&self.a, &self.b] {
            side.identity.replace(self.cluster.identity(side.host)).unwrap();
        }
    }

    /// The accepting side is killed and comes back with what certificate it has now.
    fn restart_b(self) -> Self {
        let Self { now, cluster, a, b } = self;
        let identity = b.identity.clone();
        let addresses: Vec<String> = b.crash().iter().map(ToString::to_string).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let b = Side::new(now, identity, &addresses, |_| {});
        let mut it = Self { now, cluster, a, b };
        it.meet();
        it
    }
}

/// 24 hours between two hosts that mostly have nothing to say: heartbeats, a few frames every ten minutes, new keys every
/// hour, ids of connections and the path's MTU looked at again and again; certificates, good for an hour, renewed in time,
/// and the wall clock set forwards and back. The connection is the same at the end, and a peer that restarts then with a
/// certificate of the day's end is back at once.
#[test]
fn a_day() {
    let mut it = Pair::up();
    let first = it.a.tunnels.conns.iter().flatten().next().unwrap().handle;
    for hour in 0..24_u64 {
        for part in 0..6 {
            (0..HOUR_ROUNDS / 6).for_each(|_| it.round());
            assert_eq!((it.a.downs(), it.b.downs()), (0, 0), "hour {hour}, part {part}");
            it.talk();
        }
        let side = if hour % 2 == 0 { &mut it.a } else { &mut it.b };
        side.tunnels.conns.iter_mut().flatten().for_each(|conn| conn.quic.force_key_update());
        it.talk();
        it.cluster.pass(LIFETIME);
        it.renew();
        if hour % 8 == 3 {
            it.cluster.set_back(Duration::from_secs(7200));
            it.talk();
            it.cluster.pass(Duration::from_secs(7200));
        }
    }
    let stats = it.a.tunnels.stats();
    let connection = &stats.peers[0].connections[0];
    assert_eq!((stats.peers[0].connections.len(), connection.incomplete, connection.lost), (1, 0, 0));
    assert_eq!(it.a.tunnels.conns.iter().flatten().next().unwrap().handle, first, "one connection all day");
    assert_eq!((it.a.events.len(), it.b.events.len()), (1, 1), "up, and nothing else");
    it = it.restart_b();
    it.until(1000, |it| it.b.up());
    it.run(600);
    it.talk();
    assert!(it.a.downs() <= 1 && it.b.downs() == 0);
}

/// The wall clock says whether a certificate is good, and nothing else: what stands is not touched by a jump, and what could not
/// be opened meanwhile is opened when the clock is right again, by itself.
#[test]
fn the_wall_clock_jumps() {
    let year = Duration::from_secs(365 * 24 * 3600);
    let mut it = Pair::up();
    for (forwards, back) in [(10 * year, Duration::ZERO), (Duration::ZERO, 20 * year)] {
        it.cluster.pass(forwards);
        it.cluster.set_back(back);
        it.run(1500);
        it.talk();
        assert_eq!((it.a.downs(), it.b.downs()), (0, 0), "connections that stand stay");
        // One that has to be opened now finds no certificate that is good.
        it = it.restart_b();
        it.run(3000);
        assert!(!it.a.up() && !it.b.up());
        it.cluster.set_back(forwards);
        it.cluster.pass(back);
        it.until(3000, |it| it.a.up() && it.b.up());
        it.talk();
        it.a.events.clear();
        it.b.events.clear();
    }
}

/// The monotonic clock of a machine that slept, of one that was moved to another, or of a broken hypervisor.
#[test]
fn the_monotonic_clock_jumps() {
    let mut it = Pair::up();
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
    for jump in [Duration::from_millis(250), hour, day, 30 * day] {
        it.now = it.now + jump;
        it.run(500);
        it.talk();
    }
    // Back: for the connections, no time passes until it is as late again. Nothing is sent twice, nothing falls.
    let late = it.now;
    it.now = Instant(late.0 - 200_000_000);
    it.run(300);
    it.talk();
    assert_eq!((it.a.downs(), it.b.downs()), (0, 0));
}

/// Addresses that are validated by a token are so by a time that does not jump either.
#[test]
fn tokens_live_by_the_monotonic_clock() {
    let source = super::super::quic::Monotonic::default();
    let first = quinn_proto::TimeSource::now(&source);
    assert!(
        first < std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(60),
        "not the wall clock: {first:?}"
    );
    assert!(quinn_proto::TimeSource::now(&source) >= first);
}
