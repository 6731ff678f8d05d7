//! Either side of a network device dies and comes back: nothing is lost but frames under way.

mod netlab;

use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;

use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::net::{NetEvent, NetSettings, QueuePair};
use netlab::{Meet, PATIENCE, PLAIN, Switch, eventually, pattern, sockets};

const PAIR: QueuePair = QueuePair(0);

/// Sends numbered frames from one to the other until one arrives, and returns its number.
#[track_caller]
fn pass(a: &mut NetClient, b: &mut NetClient, number: usize) {
    let frame = pattern(number, 100 + number);
    assert!(a.send(PAIR, PLAIN, &frame).unwrap());
    let mut got = Vec::new();
    b.recv(PAIR, &mut got, PATIENCE).unwrap();
    assert_eq!(got, frame);
}

fn options(event_idx: bool) -> NetClientOptions {
    NetClientOptions { event_idx, queue_size: 32, frame_bytes_max: 2000, ..NetClientOptions::default() }
}

#[test]
fn a_switch_that_restarts_goes_on_where_it_was() {
    for event_idx in [true, false] {
        let (_dir, paths) = sockets::<2>();
        let mut switch = Switch::listening(&paths, &NetSettings::default());
        let connect = |port: usize| {
            NetClient::new(NetDestination::Connect(paths[port].clone()), options(event_idx)).unwrap()
        };
        let (mut a, mut b) = (connect(0), connect(1));
        for round in 0..20 {
            for number in 0..7 {
                pass(&mut a, &mut b, number);
            }
            switch.kill();
            // Put on the ring while nobody was there: not lost.
            let waiting = pattern(1000 + round, 300);
            assert!(a.send(PAIR, PLAIN, &waiting).unwrap());
            switch = Switch::listening(&paths, &NetSettings::default());
            b.reconnect().unwrap();
            a.reconnect().unwrap();
            let mut got = Vec::new();
            b.recv(PAIR, &mut got, PATIENCE).unwrap();
            assert_eq!(got, waiting);
        }
        assert!(!a.take_error(PAIR.tx()) && !b.take_error(PAIR.rx()));
        drop(switch);
    }
}

#[test]
fn a_front_end_that_comes_back_finds_its_port() {
    let (_dir, paths) = sockets::<2>();
    let switch = Switch::listening(&paths, &NetSettings::default());
    let connect =
        |port: usize| NetClient::new(NetDestination::Connect(paths[port].clone()), options(true)).unwrap();
    let (mut a, mut b) = (connect(0), connect(1));
    for round in 0..10 {
        pass(&mut a, &mut b, round);
        if round % 2 == 0 {
            // The same guest, another connection.
            b.hang_up().unwrap();
            eventually("to be let in again", || b.reconnect().is_ok());
        } else {
            // Another guest.
            drop(b);
            let again = || NetClient::new(NetDestination::Connect(paths[1].clone()), options(true)).ok();
            let mut found = None;
            eventually("to be let in", || {
                found = again();
                found.is_some()
            });
            b = found.unwrap();
        }
        pass(&mut b, &mut a, round);
    }
    let events = switch.shared.events.lock().unwrap().clone();
    let count = |event: &NetEvent| events.iter().filter(|(port, seen)| *port == 1 && seen == event).count();
    assert_eq!((count(&NetEvent::Attached), count(&NetEvent::Detached)), (11, 10));
}

#[test]
fn a_switch_that_connects_finds_its_front_ends_again() {
    let (_dir, paths) = sockets::<2>();
    let ports: Vec<Meet> = paths.iter().cloned().map(Meet::Connect).collect();
    // The switch is first, and nobody listens yet.
    let switch = Switch::start(&ports, &NetSettings::default());
    let accept = |port: usize| {
        let _ = std::fs::remove_file(&paths[port]);
        let listener = UnixListener::bind(&paths[port]).unwrap();
        NetClient::new(NetDestination::Listen(listener), options(true)).unwrap()
    };
    let (mut a, mut b) = (accept(0), accept(1));
    for number in 0..10 {
        pass(&mut a, &mut b, number);
    }
    // The front end hangs up.
    b.hang_up().unwrap();
    b.reconnect().unwrap();
    pass(&mut a, &mut b, 1);
    // It dies, and another takes its place.
    drop(b);
    let mut b = accept(1);
    pass(&mut a, &mut b, 2);
    // The switch dies.
    switch.kill();
    let waiting = pattern(77, 99);
    assert!(a.send(PAIR, PLAIN, &waiting).unwrap());
    let switch = Switch::start(&ports, &NetSettings::default());
    b.reconnect().unwrap();
    a.reconnect().unwrap();
    let mut got = Vec::new();
    b.recv(PAIR, &mut got, PATIENCE).unwrap();
    assert_eq!(got, waiting);
    pass(&mut b, &mut a, 3);
    assert_eq!(switch.shared.frames.load(Ordering::SeqCst), 2);
}
