//! The back end dies with requests in flight and comes back: each is done, answered once, and in order.

mod common;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Backend, Disk, PATIENCE, eventually, socket_dir};
use ferro_vhost::blk::{RequestKind, Sector};
use ferro_vhost::frontend::{BlkClient, ClientOptions, Op};

fn first_sectors(disk: &Disk) -> Vec<u64> {
    disk.log
        .lock()
        .unwrap()
        .iter()
        .filter_map(|kind| match kind {
            RequestKind::Write { sector, .. } => Some(sector.0),
            _ => None,
        })
        .collect()
}

#[test]
fn requests_in_flight_survive_the_back_end() {
    for (event_idx, indirect, queues) in [(true, true, 1), (false, false, 3), (true, false, 2)] {
        let (_dir, path) = socket_dir();
        let disk = Disk::new(4096);
        let backend = Backend::start(&path, &disk);
        let options =
            ClientOptions { queues, event_idx, indirect, data_bytes_max: 4096, ..ClientOptions::default() };
        let mut client = BlkClient::connect(&path, options).unwrap();
        // Completed before the crash: must not be done again.
        for sector in 1000..1010 {
            client.write(Sector(sector), &[1; 512]).unwrap();
        }
        disk.hold.store(true, Ordering::SeqCst);
        let mut waiting: Vec<HashSet<_>> = vec![HashSet::new(); usize::from(queues)];
        for number in 0..20u64 {
            for queue in 0..queues {
                let sector = Sector(u64::from(queue) * 100 + number);
                let ticket = client.submit(queue, &Op::Write(sector, &[9; 512])).unwrap();
                waiting[usize::from(queue)].insert(ticket);
            }
        }
        eventually("requests taken", || disk.log.lock().unwrap().len() == 10 + 20 * usize::from(queues));
        backend.kill();
        // These were put on the ring while nobody was there.
        for number in 20..24u64 {
            for queue in 0..queues {
                let sector = Sector(u64::from(queue) * 100 + number);
                let ticket = client.submit(queue, &Op::Write(sector, &[9; 512])).unwrap();
                waiting[usize::from(queue)].insert(ticket);
            }
        }
        disk.log.lock().unwrap().clear();
        disk.hold.store(false, Ordering::SeqCst);
        let _backend = Backend::start(&path, &disk);
        client.reconnect().unwrap();
        for queue in 0..queues {
            let waiting = &mut waiting[usize::from(queue)];
            while !waiting.is_empty() {
                let completion = client.wait(queue, PATIENCE).unwrap();
                assert_eq!(completion.status, 0);
                assert!(waiting.remove(&completion.ticket), "answered twice");
            }
            assert!(client.wait(queue, Duration::from_millis(20)).is_err(), "answered twice");
            let done: Vec<u64> =
                first_sectors(&disk).into_iter().filter(|s| s / 100 == u64::from(queue)).collect();
            let wanted: Vec<u64> = (0..24).map(|number| u64::from(queue) * 100 + number).collect();
            assert_eq!(done, wanted, "done again in the order in which they were taken");
        }
        client.write(Sector(2000), &[1; 512]).unwrap();
    }
}

#[test]
fn only_what_was_not_answered_is_done_again() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(4096);
    let backend = Backend::start(&path, &disk);
    let options = ClientOptions { data_bytes_max: 4096, ..ClientOptions::default() };
    let mut client = BlkClient::connect(&path, options).unwrap();
    disk.hold_even.store(true, Ordering::SeqCst);
    let mut waiting = HashSet::new();
    for number in 0..20 {
        waiting.insert(client.submit(0, &Op::Write(Sector(number), &[1; 512])).unwrap());
    }
    for _ in 0..10 {
        assert!(waiting.remove(&client.wait(0, PATIENCE).unwrap().ticket));
    }
    backend.kill();
    disk.log.lock().unwrap().clear();
    disk.hold_even.store(false, Ordering::SeqCst);
    let _backend = Backend::start(&path, &disk);
    client.reconnect().unwrap();
    for _ in 0..10 {
        assert!(waiting.remove(&client.wait(0, PATIENCE).unwrap().ticket));
    }
    assert_eq!(first_sectors(&disk), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
}

#[test]
fn many_crashes_at_any_moment() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(4096);
    let mut backend = Backend::start(&path, &disk);
    let options = ClientOptions { data_bytes_max: 4096, ..ClientOptions::default() };
    let mut client = BlkClient::connect(&path, options).unwrap();
    let mut waiting = HashSet::new();
    let mut answered = 0u64;
    for round in 0..40u64 {
        for number in 0..25 {
            if let Ok(ticket) = client.submit(0, &Op::Write(Sector(number), &[round as u8; 512])) {
                assert!(waiting.insert(ticket));
            }
            // The loop runs meanwhile, so that each round dies with another number done.
            if number % (round % 7 + 1) == 0 {
                while let Some(completion) = client.try_reap(0).unwrap() {
                    assert!(waiting.remove(&completion.ticket));
                    answered += 1;
                }
            }
        }
        backend.kill();
        backend = Backend::start(&path, &disk);
        client.reconnect().unwrap();
    }
    while !waiting.is_empty() {
        let completion = client.wait(0, PATIENCE).unwrap();
        assert_eq!(completion.status, 0);
        assert!(waiting.remove(&completion.ticket));
        answered += 1;
    }
    assert!(answered > 100);
    drop(backend);
}

#[test]
fn an_old_write_never_lands_after_a_new_front_end_began() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(4096);
    let backend = Backend::start(&path, &disk);
    let options = ClientOptions { data_bytes_max: 4096, ..ClientOptions::default() };
    let mut client = BlkClient::connect(&path, options).unwrap();
    disk.hold.store(true, Ordering::SeqCst);
    let ticket = client.submit(0, &Op::Write(Sector(0), &[1; 512])).unwrap();
    eventually("request taken", || disk.log.lock().unwrap().len() == 1);
    // Only the connection goes; the back end still has the write in hand.
    // Turned away for as long as its hang-up was not seen.
    eventually("to be let in again", || client.reconnect().is_ok());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(disk.log.lock().unwrap().len(), 1, "nothing is taken while old requests are out");
    disk.hold.store(false, Ordering::SeqCst);
    backend.nudge();
    let completion = client.wait(0, PATIENCE).unwrap();
    assert_eq!((completion.ticket, completion.status), (ticket, 0));
    assert_eq!(disk.log.lock().unwrap().len(), 2);
    assert_eq!(disk.bytes.lock().unwrap()[0], 1, "the second time its data are there");
}

#[test]
fn a_ring_that_does_not_drain_in_time_costs_the_connection_but_no_request() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(4096);
    let backend = Backend::start(&path, &disk);
    let options = ClientOptions { data_bytes_max: 4096, ..ClientOptions::default() };
    let mut client = BlkClient::connect(&path, options).unwrap();
    disk.hold.store(true, Ordering::SeqCst);
    let ticket = client.submit(0, &Op::Write(Sector(0), &[1; 512])).unwrap();
    eventually("request taken", || disk.log.lock().unwrap().len() == 1);
    // The test back end waits two seconds.
    assert!(client.stop_queue(0).is_err());
    disk.hold.store(false, Ordering::SeqCst);
    backend.nudge();
    client.reconnect().unwrap();
    let completion = client.wait(0, PATIENCE).unwrap();
    assert_eq!((completion.ticket, completion.status), (ticket, 0));
    client.write(Sector(1), &[1; 512]).unwrap();
}
