//! One file of a disk whose requests the kernel does not answer, while those to all other files of the disk it does.
//!
//! Another process writes to the file, through the page cache, from memory that is never there: the kernel asks that
//! process for the page (`userfaultfd`), and nobody answers. Meanwhile it holds the inode's lock, for which every read and
//! write of the file waits, direct ones too. Nothing of it is played: the daemon's own requests wait in the kernel, as
//! they do when a drive has lost a few of them. When the process is killed they are carried out.
//!
//! It needs neither a kernel module nor a device of its own; Perl is on every Debian system.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::eventually;

/// Arguments: the file, and the numbers of the system calls `userfaultfd`, `mmap` and `write`.
const HOLDER: &str = r#"
use strict;
my ($path, $userfaultfd, $mmap, $write) = ($ARGV[0], map { int } @ARGV[1 .. 3]);
open(my $file, "+<", $path) or die "$path: $!\n";
my $number = syscall($userfaultfd, 0);
die "userfaultfd: $!\n" if $number < 0;
open(my $faults, "+<&=", $number) or die "userfaultfd: $!\n";
ioctl($faults, 0xC018AA3F, my $api = pack("QQQ", 0xAA, 0, 0)) or die "UFFDIO_API: $!\n";
my $page = syscall($mmap, 0, 4096, 3, 0x22, -1, 0);
die "mmap: $!\n" if $page == -1;
ioctl($faults, 0xC020AA00, my $range = pack("QQQQ", $page, 4096, 1, 0)) or die "UFFDIO_REGISTER: $!\n";
syscall($write, fileno($file), $page, 4096);
die "the write has ended: $!\n";
"#;

/// A file that is held. Dropped, it is let go, unchanged.
#[derive(Debug)]
pub struct HeldFile(Child);

impl HeldFile {
    /// Holds the file from now on.
    pub fn hold(path: &Path) -> Result<Self> {
        let (userfaultfd, mmap, write) = match std::env::consts::ARCH {
            "x86_64" => ("323", "9", "1"),
            "aarch64" => ("282", "222", "64"),
            other => bail!("the numbers of system calls on {other} are not known here"),
        };
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "perl", "-e", HOLDER])
            .arg(path)
            .args([userfaultfd, mmap, write])
            .stdin(Stdio::null())
            .spawn()
            .context("can't start perl")?;
        let mut held = Self(child);
        eventually("the file is held", Duration::from_secs(10), || {
            ensure!(held.0.try_wait()?.is_none(), "its holder has ended");
            let now = std::fs::read_to_string(format!("/proc/{}/syscall", held.0.id()))?;
            ensure!(now.split(' ').next() == Some(write), "it is not writing yet: {now}");
            Ok(())
        })?;
        Ok(held)
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        // It is ours and waits where signals that kill are looked at.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}
