//! Images made by the tools that every Debian machine has: `mke2fs`, `debugfs`, `e2fsck`, `sfdisk`.
#![allow(dead_code, unreachable_pub)] // each test file uses some of it

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use boot_image::Window;
use boot_image::ext4::Ext4;
use tempfile::TempDir;

/// A folder for one test.
pub struct Lab {
    folder: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self { folder: TempDir::with_prefix("ferro-image-").expect("a folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder with these files; a name that ends with a slash is a folder, and `a -> b` a link.
    pub fn tree(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let root = self.path(name);
        fs::create_dir_all(&root).expect("a folder");
        for (name, contents) in files {
            if let Some((link, target)) = name.split_once(" -> ") {
                let link = root.join(link);
                fs::create_dir_all(link.parent().expect("below the root")).expect("a folder");
                std::os::unix::fs::symlink(target, link).expect("a link");
                continue;
            }
            let path = root.join(name);
            if name.ends_with('/') {
                fs::create_dir_all(&path).expect("a folder");
                continue;
            }
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, contents).expect("a file");
        }
        root
    }

    /// A file system with the contents of a folder.
    pub fn ext4(&self, name: &str, kib: u64, options: &[&str], tree: &Path) -> PathBuf {
        let image = self.path(name);
        let mut args = vec!["-q", "-F", "-d"];
        let (tree, file, size) = (tree.display().to_string(), image.display().to_string(), format!("{kib}k"));
        args.push(&tree);
        args.extend(options);
        args.extend([file.as_str(), &size]);
        run("mke2fs", &args);
        image
    }

    /// A disk with this table and these file systems in its partitions, by number.
    pub fn disk(&self, name: &str, mib: u64, script: &str, parts: &[(u64, &Path)]) -> PathBuf {
        let image = self.path(name);
        fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("a disk");
        let mut sfdisk = command("sfdisk");
        sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(&image);
        feed(sfdisk, script.as_bytes());
        for (start_mib, part) in parts {
            let bytes = fs::read(part).expect("a file system");
            let file = fs::OpenOptions::new().write(true).open(&image).expect("the disk");
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, start_mib << 20).expect("it fits");
        }
        image
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    // One time for all, so that images are the same in each run.
    command.env("SOURCE_DATE_EPOCH", "1700000000").env("E2FSPROGS_FAKE_TIME", "1700000000");
    command
}

fn checked(program: &str, output: Output) -> Vec<u8> {
    assert!(
        output.status.success(),
        "{program}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

pub fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = command(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    checked(program, output)
}

fn feed(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("a pipe").write_all(input).expect("it reads");
    checked("a tool", child.wait_with_output().expect("it ends"))
}

/// Commands of debugfs on an image, changing it.
pub fn debugfs(image: &Path, script: &[String]) -> String {
    let mut command = command("debugfs");
    command.args(["-w", "-f", "-"]).arg(image);
    let mut text = String::new();
    script.iter().for_each(|line| writeln!(text, "{line}").expect("a string takes everything"));
    String::from_utf8_lossy(&feed(command, text.as_bytes())).into_owned()
}

/// What debugfs reads of a file.
pub fn cat(image: &Path, path: &str) -> Vec<u8> {
    run("debugfs", &["-R", &format!("cat \"{path}\""), &image.display().to_string()])
}

/// The blocks of a file.
pub fn blocks(image: &Path, path: &str) -> Vec<u64> {
    let text = run("debugfs", &["-R", &format!("blocks {path}"), &image.display().to_string()]);
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split_whitespace().map(|word| word.parse().expect("a block")).collect()
}

/// Replays an image's journal as the kernel would, on a copy.
pub fn recovered(lab: &Lab, image: &Path) -> PathBuf {
    let copy = lab.path("recovered");
    fs::copy(image, &copy).expect("a copy");
    // It says with its exit code that something was done.
    let output = command("e2fsck").args(["-y", "-E", "journal_only"]).arg(&copy).output().expect("it starts");
    assert!(output.status.code().is_some_and(|code| code < 4), "e2fsck: {output:?}");
    copy
}

/// All of a file, read in pieces of an odd size.
pub fn contents(fs: &Ext4<'_>, path: &str) -> Vec<u8> {
    let file = fs.open_file(path, 1 << 30).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut all = Vec::new();
    let mut piece = vec![0; 70_001];
    loop {
        let read = file.read_at(all.len() as u64, &mut piece).expect("it can be read");
        if read == 0 {
            assert_eq!(all.len() as u64, file.size());
            return all;
        }
        all.extend_from_slice(&piece[..read]);
    }
}

/// Every file, folder and link below `/`, with its contents.
pub fn everything(fs: &Ext4<'_>) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(folder) = open.pop() {
        let names = fs.read_dir(if folder.is_empty() { "/" } else { &folder });
        for entry in names.unwrap_or_else(|error| panic!("{folder}: {error}")) {
            let path = format!("{folder}/{}", entry.name);
            match fs.stat(&path) {
                Ok((boot_image::ext4::FileType::Directory, _)) => open.push(path),
                Ok((boot_image::ext4::FileType::Regular, _)) => {
                    found.push((path.clone(), contents(fs, &path)))
                }
                Ok(_) => found.push((path, Vec::new())),
                Err(error) => found.push((path, error.to_string().into_bytes())),
            }
        }
    }
    found.sort();
    found
}

/// Opens a file system that is a file of its own.
#[allow(clippy::ptr_arg)] // a reader has a known size
pub fn opened(bytes: &Vec<u8>) -> Ext4<'_> {
    Ext4::open(Window::whole(bytes)).unwrap_or_else(|error| panic!("{error}"))
}

/// Bytes that are the same in each run and look like nothing.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The smallest thing that looks like a kernel: boot protocol 2.15, 64-bit.
pub fn kernel(release: &str) -> Vec<u8> {
    let mut file = vec![0; 0x400 + 0x1000];
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&0x100_u32.to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    file[0x20e..0x210].copy_from_slice(&0xd0_u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    file[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    file[0x234] = 1;
    file[0x236..0x238].copy_from_slice(&3_u16.to_le_bytes());
    file[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&0x80_u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&0x800_u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x30_0000_u32.to_le_bytes());
    let version = format!("{release} (nobody@nowhere) #1 SMP\0");
    file[0x2d0..0x2d0 + version.len()].copy_from_slice(version.as_bytes());
    file[0x480..0x484].copy_from_slice(&[0x02, 0x21, 0x4c, 0x18]);
    file
}
