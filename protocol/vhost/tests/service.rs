//! Front end and back end over a real socket, real eventfds and real shared memory.

mod common;

use std::io::Read;
use std::sync::atomic::Ordering;

use common::{Backend, Disk, PATIENCE, eventually, pattern, socket_dir};
use ferro_vhost::blk::{BlkSettings, Sector, SectorRange, feature};
use ferro_vhost::frontend::{BlkClient, ClientOptions, Op};

const SECTORS: u64 = 8192;

fn variants() -> Vec<ClientOptions> {
    let base = ClientOptions { data_bytes_max: 128 << 10, depth: 8, ..ClientOptions::default() };
    let mut all = Vec::new();
    for (event_idx, indirect, inflight, unusual) in [
        (true, true, true, false),
        (false, true, true, false),
        (true, false, false, true),
        (false, false, true, true),
    ] {
        all.push(ClientOptions {
            event_idx,
            indirect,
            inflight,
            unusual,
            segment_bytes: if indirect { 1536 } else { 32 << 10 },
            ..base.clone()
        });
    }
    all.push(ClientOptions { queue_size: 1024, ..base.clone() });
    all.push(ClientOptions { queue_size: 4, indirect: false, depth: 1, ..base });
    all
}

#[test]
fn every_request_type_works_with_every_ring_flavour() {
    for options in variants() {
        let (_dir, path) = socket_dir();
        let disk = Disk::new(SECTORS);
        let _backend = Backend::start(&path, &disk);
        let mut client = BlkClient::connect(&path, options.clone()).unwrap();
        assert_eq!(client.capacity().unwrap(), Sector(SECTORS));

        // One sector at an odd place, as a 512-byte guest does; then more than fits one segment.
        for (sector, len) in [(Sector(7), 512), (Sector(8), 4096), (Sector(100), 96 << 10)] {
            let data = pattern(sector.0 + 1, len);
            client.write(sector, &data).unwrap();
            let at = sector.bytes() as usize;
            assert_eq!(disk.bytes.lock().unwrap()[at..at + len], data[..]);
            let mut back = vec![0; len];
            client.read(sector, &mut back).unwrap();
            assert!(back == data, "{options:?}");
        }
        assert_eq!(client.run(&Op::Flush).unwrap().status, 0);
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);

        let ranges =
            [SectorRange { first: Sector(100), count: 8 }, SectorRange { first: Sector(116), count: 1 }];
        assert_eq!(client.run(&Op::Discard(&ranges)).unwrap().status, 0);
        let blank = [SectorRange { first: Sector(120), count: 3 }];
        assert_eq!(client.run(&Op::WriteZeroes(&blank, true)).unwrap().status, 0);
        let mut back = vec![0; 32 * 512];
        client.read(Sector(100), &mut back).unwrap();
        let written = pattern(101, 96 << 10);
        for (index, sector) in back.chunks(512).enumerate() {
            let zeroed = index < 8 || index == 16 || (20..23).contains(&index);
            assert_eq!(sector.iter().all(|byte| *byte == 0), zeroed, "sector {index}");
            assert!(zeroed || sector == &written[index * 512..][..512]);
        }

        let completion = client.run(&Op::GetId).unwrap();
        let mut id = [0u8; 20];
        client.data(completion.ticket, &mut id).unwrap();
        assert_eq!(&id[..10], b"test-disk\0");
        assert_eq!((completion.status, completion.written), (0, 21));
    }
}

#[test]
fn bad_requests_fail_and_the_next_one_works() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(SECTORS);
    let _backend = Backend::start(&path, &disk);
    let mut client = BlkClient::connect(&path, ClientOptions::default()).unwrap();
    let range = |first, count| [SectorRange { first: Sector(first), count }];
    let bytes = [1u8; 1000];
    for (op, status) in [
        (Op::Read(Sector(SECTORS), 512), 1),
        (Op::Read(Sector(SECTORS - 1), 1024), 1),
        (Op::Read(Sector(u64::MAX), 512), 1),
        (Op::Write(Sector(u64::MAX - 1), &bytes[..512]), 1),
        (Op::Write(Sector(0), &bytes), 1),
        (Op::Write(Sector(0), &[]), 1),
        (Op::Discard(&range(SECTORS - 1, 2)), 1),
        (Op::Discard(&range(u64::MAX, 2)), 1),
        (Op::Discard(&range(0, u32::MAX)), 1),
        (Op::Discard(&[]), 1),
        (Op::Discard(&range(5, 0)), 0),
        (Op::WriteZeroes(&range(SECTORS, 1), false), 1),
    ] {
        assert_eq!(client.run(&op).unwrap().status, status, "{op:?}");
    }
    client.write(Sector(1), &[7; 512]).unwrap();
    assert!(disk.broken.lock().unwrap().is_none());
}

#[test]
fn a_read_only_disk_refuses_to_change() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(SECTORS);
    let mut settings = BlkSettings::new(Sector(SECTORS), "ro");
    settings.read_only = true;
    assert_eq!(settings.features() & (feature::RO | feature::DISCARD), feature::RO);
    let _backend = Backend::start_with(&path, &disk, settings);
    let mut client = BlkClient::connect(&path, ClientOptions::default()).unwrap();
    let range = [SectorRange { first: Sector(0), count: 1 }];
    for op in [Op::Write(Sector(0), &[1; 512]), Op::Discard(&range), Op::WriteZeroes(&range, false)] {
        assert_eq!(client.run(&op).unwrap().status, 1);
    }
    let mut back = [1u8; 512];
    client.read(Sector(0), &mut back).unwrap();
    assert_eq!(client.run(&Op::Flush).unwrap().status, 0);
}

#[test]
fn four_queues_at_depth_complete_everything() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(SECTORS);
    let _backend = Backend::start(&path, &disk);
    let options = ClientOptions { queues: 4, data_bytes_max: 4096, ..ClientOptions::default() };
    let mut client = BlkClient::connect(&path, options).unwrap();
    // Long enough for the 16-bit indices of a queue to wrap round.
    let mut done = 0u64;
    for round in 0..560u64 {
        for queue in 0..4u16 {
            for slot in 0..32u64 {
                let sector = Sector((u64::from(queue) * 32 + slot) * 8);
                let data = pattern(round + sector.0, 512);
                client.submit_quietly(queue, &Op::Write(sector, &data)).unwrap();
            }
            client.kick(queue).unwrap();
        }
        for queue in (0..4u16).rev() {
            for _ in 0..32 {
                assert_eq!(client.wait(queue, PATIENCE).unwrap().status, 0);
                done += 1;
            }
        }
    }
    assert_eq!(done, 560 * 128);
    for sector in (0..128 * 8).step_by(8) {
        let at = sector as usize * 512;
        assert_eq!(disk.bytes.lock().unwrap()[at..at + 512], pattern(559 + sector, 512)[..]);
    }
}

#[test]
fn a_size_change_is_announced() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(SECTORS);
    let backend = Backend::start(&path, &disk);
    let mut client = BlkClient::connect(&path, ClientOptions::default()).unwrap();
    assert_eq!(client.run(&Op::Write(Sector(SECTORS), &[1; 512])).unwrap().status, 1);
    disk.resize.store(SECTORS * 2, Ordering::SeqCst);
    backend.nudge();
    let mut message = [0u8; 12];
    client.back_channel().set_read_timeout(Some(PATIENCE)).unwrap();
    client.back_channel().read_exact(&mut message).unwrap();
    // BACKEND_CONFIG_CHANGE_MSG, version 1 with no reply wanted, no payload.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(client.capacity().unwrap(), Sector(SECTORS * 2));
    client.write(Sector(SECTORS), &[1; 512]).unwrap();
}

#[test]
fn stopping_a_ring_waits_for_what_is_in_flight() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(SECTORS);
    let backend = Backend::start(&path, &disk);
    let mut client = BlkClient::connect(&path, ClientOptions::default()).unwrap();
    client.write(Sector(0), &[1; 512]).unwrap();
    disk.hold.store(true, Ordering::SeqCst);
    for sector in 0..5 {
        client.submit(0, &Op::Write(Sector(sector), &[2; 512])).unwrap();
    }
    eventually("requests taken", || disk.log.lock().unwrap().len() == 6);
    let releaser = std::thread::spawn({
        let disk = std::sync::Arc::clone(&disk);
        move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert_eq!(disk.bytes.lock().unwrap()[0], 1, "carried out too early");
            disk.hold.store(false, Ordering::SeqCst);
            backend.nudge();
            backend
        }
    });
    assert_eq!(client.stop_queue(0).unwrap(), 6);
    assert_eq!(disk.bytes.lock().unwrap()[4 * 512], 2);
    let _backend = releaser.join().unwrap();
    for _ in 0..5 {
        assert_eq!(client.wait(0, PATIENCE).unwrap().status, 0);
    }
    client.restart_queue(0).unwrap();
    client.write(Sector(9), &[3; 512]).unwrap();
}

#[test]
fn one_front_end_after_the_other_and_a_second_is_turned_away() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(SECTORS);
    let _backend = Backend::start(&path, &disk);
    for round in 0..3u8 {
        let mut client = None;
        // Turned away until the hang-up of the one before was seen.
        eventually("a connection", || {
            client = BlkClient::connect(&path, ClientOptions::default()).ok();
            client.is_some()
        });
        let mut client = client.unwrap();
        client.write(Sector(u64::from(round)), &[round + 1; 512]).unwrap();
        assert!(BlkClient::connect(&path, ClientOptions::default()).is_err());
        client.write(Sector(u64::from(round)), &[round + 1; 512]).unwrap();
        drop(client);
    }
    assert_eq!(disk.bytes.lock().unwrap()[2 * 512], 3);
}
