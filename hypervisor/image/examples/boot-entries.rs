//! Prints what a raw image would boot: `cargo run -p boot-image --example boot-entries -- IMAGE [ENTRY]`.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // the example has a file, the crate has none

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use boot_image::{BootVolume, BoxedError, ReadAt};

struct Image(File, u64);

impl ReadAt for Image {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        Ok(self.0.read_exact_at(buf, offset)?)
    }
}

fn show(path: &str, wanted: Option<&str>) -> Result<(), BoxedError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let image = Image(file, size);
    let volume = BootVolume::open(&image)?;
    let default = match wanted {
        Some(name) => volume.entry(name),
        None => volume.default_entry(),
    };
    for entry in volume.entries() {
        let mark = if default.as_ref().is_ok_and(|it| *it == entry) { '*' } else { ' ' };
        println!("{mark} {:6} {} ({:?})", entry.position, entry.title, entry.source);
    }
    volume.notes().iter().for_each(|note| println!("  note: {note}"));
    let entry = default?;
    println!("\n{}", entry.command_line);
    for file in std::iter::once(&entry.kernel).chain(&entry.initrds) {
        println!("partition {}: {} ({} bytes)", file.partition, file.path, volume.open_file(file)?.size());
    }
    println!("{}", volume.inspect(entry)?);
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((path, wanted)) = args.split_first() else {
        eprintln!("usage: boot-entries IMAGE [ENTRY]");
        return ExitCode::from(2);
    };
    match show(path, wanted.first().map(String::as_str)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}
