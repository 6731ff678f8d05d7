//! Serves a raw image over vhost-user-blk with a plain poll(2) loop: the smallest daemon there is.
//!
//! ```text
//! cargo run -p ferro-vhost --example serve_file -- /tmp/vol.sock disk.raw
//! qemu-system-x86_64 -m 512 -object memory-backend-memfd,id=mem,size=512M,share=on -machine q35,memory-backend=mem \
//!   -chardev socket,id=vol,path=/tmp/vol.sock,reconnect=1 -device vhost-user-blk-pci,chardev=vol,num-queues=2
//! ```
//!
//! It may be killed and started again under a running QEMU.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use ferro_vhost::blk::{BlkDevice, BlkSettings, Request, RequestKind, Sector, SectorRange, Status, serve};
use ferro_vhost::server::ServerSettings;
use rustix::event::{PollFd, PollFlags, poll};

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, socket, image] = &args[..] else {
        eprintln!("usage: serve_file SOCKET IMAGE");
        std::process::exit(2);
    };
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let sectors = Sector(file.metadata()?.len() / 512);
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(socket)?;
    let settings = BlkSettings::new(sectors, "serve-file");
    let (_server, device) =
        serve(listener, settings, ServerSettings::new("serve_file")).map_err(std::io::Error::other)?;
    run(device, &file)
}

fn run(mut device: BlkDevice, file: &File) -> std::io::Result<()> {
    let mut attached = false;
    loop {
        device.disarm();
        device.control();
        if device.rings().is_attached() != attached {
            attached = !attached;
            eprintln!("front end {}", if attached { "attached" } else { "gone" });
        }
        loop {
            let mut requests = Vec::new();
            let outcome = device.poll(64, &mut |request| requests.push(request));
            for request in requests {
                carry_out(&mut device, file, &request);
            }
            device.flush_notifications();
            if outcome.taken == 0 {
                break;
            }
        }
        if let Some(broken) = device.rings().broken() {
            eprintln!("{broken}");
        }
        if !device.arm() {
            sleep(&device)?;
        }
    }
}

fn sleep(device: &BlkDevice) -> std::io::Result<()> {
    let kicks = device.rings().kicks();
    let mut fds: Vec<PollFd<'_>> = device
        .rings()
        .control_notifier()
        .into_iter()
        .chain(kicks.iter().map(|kick| &kick.fd))
        .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
        .collect();
    poll(&mut fds, None)?;
    for kick in &kicks {
        kick.fd.drain();
    }
    Ok(())
}

fn carry_out(device: &mut BlkDevice, file: &File, request: &Request) {
    let mut buffer = vec![0u8; request.data_bytes() as usize];
    let zero =
        |range: &SectorRange| file.write_all_at(&vec![0u8; range.count as usize * 512], range.first.bytes());
    let result = match &request.kind {
        RequestKind::Read { sector, .. } => {
            if file.read_exact_at(&mut buffer, sector.bytes()).is_ok() {
                if let Err(error) = device.complete_read(request.tag, [&buffer[..]]) {
                    eprintln!("read: {error}");
                }
                return;
            }
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
        RequestKind::Write { sector, .. } => device
            .copy_out(request.tag, &mut buffer)
            .map_err(std::io::Error::other)
            .and_then(|()| file.write_all_at(&buffer, sector.bytes())),
        RequestKind::Flush => file.sync_data(),
        RequestKind::Discard(_) => Ok(()),
        RequestKind::WriteZeroes { ranges } => ranges.iter().try_for_each(|(range, _)| zero(range)),
    };
    if let Err(error) = &result {
        eprintln!("{:?}: {error}", request.kind);
    }
    device.complete(request.tag, if result.is_ok() { Status::Ok } else { Status::IoErr });
}
