//! A front end that nobody here wrote: the `blkio` crate's vhost-user-blk driver.

mod common;

use std::fs::OpenOptions;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::ptr::with_exposed_provenance_mut;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, ReqFlags};
use common::{Backend, Disk, pattern, socket_dir};

fn wait(queue: &mut Blkioq, count: usize) {
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; 32];
    let mut timeout = Duration::from_secs(20);
    let done = queue.do_io(&mut completions[..count], count, Some(&mut timeout), None).unwrap();
    assert_eq!(done, count);
    for completion in &completions[..count] {
        // SAFETY: `do_io` has written as many completions as it says.
        assert_eq!(unsafe { completion.assume_init_ref() }.ret, 0);
    }
}

#[test]
fn a_foreign_client_reads_what_it_wrote() {
    for polling in [false, true] {
        let (_dir, path) = socket_dir();
        let disk = Disk::new(16384);
        let _backend = Backend::start(&path, &disk);
        let mut device = Blkio::new("virtio-blk-vhost-user").unwrap();
        device.set_str("path", path.to_str().unwrap()).unwrap();
        device.connect().unwrap();
        device.set_i32("num-queues", i32::from(!polling)).unwrap();
        device.set_i32("num-poll-queues", i32::from(polling)).unwrap();
        assert_eq!(device.get_u64("capacity").unwrap(), 16384 * 512);
        assert_eq!(device.get_i32("max-segment-len").unwrap(), 1 << 20);
        let mut started = device.start().unwrap();
        let mut queue = started.queues.pop().or_else(|| started.poll_queues.pop()).unwrap();
        let region = device.alloc_mem_region(4 << 20).unwrap();
        device.map_mem_region(&region).unwrap();
        let memory =
            OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", region.fd)).unwrap();
        let at = |offset: usize| with_exposed_provenance_mut::<u8>(region.addr + offset);
        let data = pattern(5, 1 << 20);
        memory.write_all_at(&data, 0).unwrap();

        queue.write(0, at(0), 1 << 20, 0, ReqFlags::empty());
        wait(&mut queue, 1);
        queue.read(0, at(1 << 20), 1 << 20, 0, ReqFlags::empty());
        wait(&mut queue, 1);
        let mut back = vec![0; 1 << 20];
        memory.read_exact_at(&mut back, 1 << 20).unwrap();
        assert!(back == data);

        for round in 0..50u64 {
            for slot in 0..32u64 {
                let place = ((round + slot * 7) % 256) * 4096;
                queue.write(place, at(slot as usize * 4096), 4096, slot as usize, ReqFlags::empty());
            }
            wait(&mut queue, 32);
        }
        queue.flush(0, ReqFlags::empty());
        queue.discard(8192, 4096, 0, ReqFlags::empty());
        queue.write_zeroes(4096, 4096, 0, ReqFlags::empty());
        wait(&mut queue, 3);
        assert!(disk.bytes.lock().unwrap()[4096..12288].iter().all(|byte| *byte == 0));
    }
}
