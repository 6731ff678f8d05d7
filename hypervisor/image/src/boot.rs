//! A volume's boot entries.
//!
//! The menu is that of the first partition that has one: XBOOTLDR, then those marked bootable, then the others by number.
//! In each, GRUB's `grub.cfg` is looked for, then entries of the Boot Loader Specification. Only if no partition has a
//! menu, kernels are looked for by their names.
//!
//! **Invariant:** an error of the volume itself ends the search: a menu from half of what is there could be another one.

use std::cell::{Cell, RefCell};

use crate::bls::{BlsEntry, ENTRY_BYTES_MAX, ENTRY_FILES_MAX, default_pattern, fits, is_entry_file};
use crate::bytes::printable;
use crate::error::{BootError, NoKernel};
use crate::ext4::{Ext4, Ext4Error, File, FileType};
use crate::fallback::{pairs, root_of};
use crate::grub::{self, Device, Files, Found, Item, Menu, Place};
use crate::kernel::{self, Kernel};
use crate::partition::{self, Partition, Scheme, Table};
use crate::probe::{FileSystem, probe};
use crate::source::{ReadAt, ReadFailed, Window};

/// A kernel or an initrd of more than this is refused.
pub const BOOT_FILE_BYTES_MAX: u64 = 1 << 30;
/// The longest command line: what the kernel takes on x86, less the zero at its end.
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;
/// Entries that are listed.
pub const ENTRIES_MAX: usize = 256;
/// File systems that are opened.
const FILE_SYSTEMS_MAX: usize = 16;
/// Remarks that are kept.
const NOTES_MAX: usize = 24;
/// Names in an error.
const KNOWN_MAX: usize = 12;
const FSTAB_BYTES_MAX: u64 = 256 << 10;
/// Where a menu is: `/boot` on the root file system, or a file system of its own.
const BASES: [&str; 2] = ["/boot", ""];

/// Where an entry was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntrySource {
    /// GRUB's menu.
    Grub,
    /// A file of the Boot Loader Specification.
    Bls,
    /// No menu: a kernel by its name.
    FileName,
}

/// A file on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// The partition's number; 0 is the whole volume.
    pub partition: u32,
    /// From its file system's root.
    pub path: String,
}

/// What can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// Its place in the menu, as GRUB writes it: `0`, or `1>2` within a submenu.
    pub position: String,
    /// Its identifier; may be empty.
    pub id: String,
    /// For people.
    pub title: String,
    /// Where it was found.
    pub source: EntrySource,
    /// The kernel.
    pub kernel: FileRef,
    /// To be put one behind the other in memory.
    pub initrds: Vec<FileRef>,
    /// At most [`COMMAND_LINE_BYTES_MAX`] bytes, no control characters.
    pub command_line: String,
}

impl BootEntry {
    /// By what it is best chosen: its identifier, or else its title.
    pub fn name(&self) -> &str {
        if self.id.is_empty() { &self.title } else { &self.id }
    }
}

/// One partition, and what of it can be read.
struct Part<'a> {
    partition: Partition,
    /// `hd0,gpt1`.
    device: String,
    fs: Option<Ext4<'a>>,
    /// Why not.
    why: String,
}

/// A volume whose boot entries are known.
pub struct BootVolume<'a> {
    scheme: Scheme,
    parts: Vec<Part<'a>>,
    entries: Vec<BootEntry>,
    /// Of `entries`, or the title of what else is the default.
    default: Result<usize, String>,
    notes: Vec<String>,
}

/// What the search for a menu comes to.
#[derive(Default)]
struct Search {
    entries: Vec<BootEntry>,
    default: Option<Result<usize, String>>,
}

impl<'a> BootVolume<'a> {
    /// Looks for what `disk` boots.
    ///
    /// # Errors
    ///
    /// If it can't be read, or has no kernel that can be found.
    pub fn open(disk: &'a dyn ReadAt) -> Result<Self, BootError> {
        let disk = Window::whole(disk);
        let Table { scheme, partitions } = partition::read(&disk)?;
        let mut parts = Vec::new();
        for partition in partitions {
            let opened = parts.iter().filter(|part: &&Part<'_>| part.fs.is_some()).count();
            parts.push(Part::open(&disk, scheme, partition, opened)?);
        }
        let mut notes = Vec::new();
        let mut order: Vec<&Part<'_>> = parts.iter().filter(|part| part.fs.is_some()).collect();
        order.sort_by_key(|part| (!part.partition.is_xbootldr(), !part.partition.bootable));
        let mut found = Search::default();
        for look in [menu, by_name] {
            for part in &order {
                if found.entries.is_empty() {
                    found = look(&parts, part, &mut notes)?;
                }
            }
        }
        if found.entries.is_empty() {
            let looked_at = parts.iter().map(Part::verdict).collect();
            return Err(BootError::NoKernel(NoKernel { looked_at, notes }));
        }
        let default = found.default.unwrap_or(Ok(0));
        Ok(Self { scheme, parts, entries: found.entries, default, notes })
    }

    /// Which partition table it has.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// All entries, in the menu's order.
    pub fn entries(&self) -> &[BootEntry] {
        &self.entries
    }

    /// What was left out, and why; for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The entry that the menu starts by itself.
    ///
    /// # Errors
    ///
    /// If that does not start Linux.
    pub fn default_entry(&self) -> Result<&BootEntry, BootError> {
        match &self.default {
            Ok(at) => self.entries.get(*at).ok_or_else(|| self.no_such(&at.to_string())),
            Err(title) => Err(BootError::DefaultIsOther { title: title.clone(), known: self.known() }),
        }
    }

    /// The entry with this identifier, title or position.
    ///
    /// # Errors
    ///
    /// If there is none; the error names those that there are.
    pub fn entry(&self, wanted: &str) -> Result<&BootEntry, BootError> {
        let by = |name: fn(&BootEntry) -> &str| self.entries.iter().find(|entry| name(entry) == wanted);
        let found = by(|entry| &entry.id)
            .or_else(|| by(|entry| &entry.title))
            .or_else(|| by(|entry| &entry.position));
        found.filter(|_| !wanted.is_empty()).ok_or_else(|| self.no_such(wanted))
    }

    fn no_such(&self, wanted: &str) -> BootError {
        BootError::NoSuchEntry { wanted: printable(wanted, 200), known: self.known() }
    }

    fn known(&self) -> String {
        let names: Vec<String> = self
            .entries
            .iter()
            .take(KNOWN_MAX)
            .map(|entry| format!("{:?}", printable(entry.name(), 80)))
            .collect();
        let more = if self.entries.len() > KNOWN_MAX { ", ..." } else { "" };
        names.join(", ") + more
    }

    /// Opens a file of an entry, to be read in pieces.
    ///
    /// # Errors
    ///
    /// If it is not there, larger than [`BOOT_FILE_BYTES_MAX`], or can't be read.
    pub fn open_file(&self, file: &FileRef) -> Result<File<'_>, BootError> {
        let failed = |source| BootError::File { partition: file.partition, path: file.path.clone(), source };
        let part = self.parts.iter().find(|part| part.partition.number == file.partition);
        let fs = part.and_then(|part| part.fs.as_ref());
        let fs = fs.ok_or_else(|| failed(Ext4Error::NotFound { path: file.path.clone() }))?;
        fs.open_file(&file.path, BOOT_FILE_BYTES_MAX).map_err(failed)
    }

    /// Looks at an entry's kernel: whether it can be started, and whether it has the drivers that it needs, as far as that
    /// can be told.
    ///
    /// # Errors
    ///
    /// If it can't be read or started, or lacks a driver.
    pub fn inspect(&self, entry: &BootEntry) -> Result<Kernel, BootError> {
        let (partition, path) = (entry.kernel.partition, entry.kernel.path.clone());
        let file = self.open_file(&entry.kernel)?;
        let kernel = kernel::inspect(&file).map_err(|source| BootError::Kernel {
            partition,
            path: path.clone(),
            source,
        })?;
        let config = self.kernel_config(entry, &kernel)?;
        if let Some(lack) = kernel::lack(&config, !entry.initrds.is_empty()) {
            return Err(BootError::Drivers { partition, path, lack });
        }
        Ok(kernel)
    }

    /// The configuration beside a kernel; empty if there is none.
    fn kernel_config(&self, entry: &BootEntry, kernel: &Kernel) -> Result<String, BootError> {
        let (folder, name) = entry.kernel.path.rsplit_once('/').unwrap_or(("", &entry.kernel.path));
        let mut paths = Vec::new();
        if let Kernel::BzImage(kernel) = kernel
            && !kernel.release.is_empty()
        {
            paths.push(format!("{folder}/config-{}", kernel.release));
            paths.push(format!("/boot/config-{}", kernel.release));
        }
        paths.extend(name.split_once('-').map(|(_, version)| format!("{folder}/config-{version}")));
        let part = self.parts.iter().find(|part| part.partition.number == entry.kernel.partition);
        let Some(fs) = part.and_then(|part| part.fs.as_ref()) else { return Ok(String::new()) };
        for path in paths {
            match fs.read_file(&path, kernel::CONFIG_BYTES_MAX) {
                Ok(bytes) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(Ext4Error::Read(error @ ReadFailed::Volume { .. })) => return Err(error.into()),
                // It is only there to help: without it the guest tells what is missing.
                Err(_) => {}
            }
        }
        Ok(String::new())
    }
}

impl<'a> Part<'a> {
    fn open(
        disk: &Window<'a>,
        scheme: Scheme,
        partition: Partition,
        opened: usize,
    ) -> Result<Self, ReadFailed> {
        let device = match scheme {
            Scheme::Gpt { .. } => format!("hd0,gpt{}", partition.number),
            Scheme::Mbr => format!("hd0,msdos{}", partition.number),
            Scheme::Whole => "hd0".to_owned(),
        };
        let window = disk.part(partition.start, partition.len);
        let kind = probe(&window)?;
        let mut fs = None;
        let why = match kind {
            FileSystem::Ext if opened >= FILE_SYSTEMS_MAX => "one file system too many".to_owned(),
            FileSystem::Ext => match Ext4::open(window) {
                Ok(opened) => {
                    fs = Some(opened);
                    String::new()
                }
                Err(Ext4Error::Read(error @ ReadFailed::Volume { .. })) => return Err(error),
                Err(error) => format!("ext4, but {error}"),
            },
            FileSystem::Fat if partition.is_esp() => {
                "an EFI system partition, which is not read (systemd-boot and unified kernel images need UEFI)"
                    .to_owned()
            }
            FileSystem::Unknown => kind.to_string(),
            _ => format!("{kind}, which is not read"),
        };
        Ok(Self { partition, device, fs, why })
    }

    /// For the error that there is no kernel.
    fn verdict(&self) -> String {
        match self.fs {
            Some(_) => format!("{} is ext4 without a menu or a kernel", self.partition),
            None => format!("{} is {}", self.partition, self.why),
        }
    }
}

/// A menu on this partition.
fn menu(parts: &[Part<'_>], part: &Part<'_>, notes: &mut Vec<String>) -> Result<Search, ReadFailed> {
    let volume = Volume::new(parts);
    let mut found = Search::default();
    for base in BASES {
        for folder in ["grub", "grub2"] {
            let folder = format!("{base}/{folder}");
            let config = volume.read(&part.device, &format!("{folder}/grub.cfg"), grub::SCRIPT_BYTES_MAX);
            if let (Some(text), true) = (config, found.entries.is_empty()) {
                let here = format!("{folder}/grub.cfg on {}", part.partition);
                match grub::parse(&String::from_utf8_lossy(&text)) {
                    Ok(script) => {
                        let menu = grub::interpret(&script, &volume, &part.device, &folder);
                        found = from_grub(&volume, menu, &here, notes);
                    }
                    Err(error) => note(notes, &format!("{here}, {error}")),
                }
            }
        }
        if found.entries.is_empty() {
            found = from_bls(&volume, part, base, notes);
        }
    }
    volume.finish(notes)?;
    Ok(found)
}

fn from_grub(volume: &Volume<'_, '_>, menu: Menu, here: &str, notes: &mut Vec<String>) -> Search {
    let mut found = Search::default();
    for text in &menu.notes {
        note(notes, &format!("{here}: {text}"));
    }
    for (place, entry) in menu.entries() {
        let position = place.iter().map(usize::to_string).collect::<Vec<_>>().join(">");
        let files = volume.file(&entry.kernel).zip(entry.initrds.iter().map(|it| volume.file(it)).collect());
        let Some((kernel, initrds)) = files else {
            note(notes, &format!("{here}: {:?} is left out: it is on another disk", entry.title));
            continue;
        };
        let entry = BootEntry {
            position,
            id: entry.id.clone(),
            title: entry.title.clone(),
            source: EntrySource::Grub,
            kernel,
            initrds,
            command_line: entry.command_line.clone(),
        };
        if menu.default == place && is_usable(&entry, notes) {
            found.default = Some(Ok(found.entries.len()));
        }
        add(&mut found.entries, entry, notes);
    }
    if found.default.is_none() {
        let title = menu.at(&menu.default).map(Item::title).unwrap_or_default();
        found.default = Some(Err(printable(title, 200)));
    }
    found
}

fn from_bls(volume: &Volume<'_, '_>, part: &Part<'_>, base: &str, notes: &mut Vec<String>) -> Search {
    let folder = format!("{base}/loader/entries");
    let names = volume.list(&part.device, &folder);
    let mut entries = Vec::new();
    for name in names.iter().filter(|name| is_entry_file(name)).take(ENTRY_FILES_MAX) {
        let Some(text) = volume.read(&part.device, &format!("{folder}/{name}"), ENTRY_BYTES_MAX) else {
            continue;
        };
        match BlsEntry::parse(name, &String::from_utf8_lossy(&text)) {
            Ok(entry) => entries.push(entry),
            Err(problem) => note(notes, &format!("{folder}/{name} on {} {problem}", part.partition)),
        }
    }
    entries.sort_by(BlsEntry::menu_order);
    let config = volume.read(&part.device, &format!("{base}/loader/loader.conf"), ENTRY_BYTES_MAX);
    let config = config.map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let pattern = default_pattern(&config).unwrap_or("*");
    let mut found = Search::default();
    for (position, entry) in entries.into_iter().enumerate() {
        let file = |path: &str| FileRef { partition: part.partition.number, path: path.to_owned() };
        let entry = BootEntry {
            position: position.to_string(),
            title: printable(&entry.title, 200),
            source: EntrySource::Bls,
            kernel: file(&entry.linux),
            initrds: entry.initrds.iter().map(|path| file(path)).collect(),
            command_line: entry.options.clone(),
            id: printable(&entry.id, 200),
        };
        let is_default = found.default.is_none() && fits(pattern, &entry.id) && is_usable(&entry, notes);
        if is_default {
            found.default = Some(Ok(found.entries.len()));
        }
        add(&mut found.entries, entry, notes);
    }
    found
}

/// Kernels by their names, on this partition.
fn by_name(parts: &[Part<'_>], part: &Part<'_>, notes: &mut Vec<String>) -> Result<Search, ReadFailed> {
    let volume = Volume::new(parts);
    let mut found = Search::default();
    for base in BASES {
        let names = volume.list(&part.device, if base.is_empty() { "/" } else { base });
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let kernels = pairs(&names);
        if kernels.is_empty() || !found.entries.is_empty() {
            continue;
        }
        let Some(root) = volume.root(part, base) else {
            note(
                notes,
                &format!("{} has kernels, and no /etc/fstab says which file system is /", part.partition),
            );
            continue;
        };
        for (position, pair) in kernels.into_iter().take(ENTRIES_MAX).enumerate() {
            let file =
                |name: &str| FileRef { partition: part.partition.number, path: format!("{base}/{name}") };
            let entry = BootEntry {
                position: position.to_string(),
                title: format!("Linux {}", printable(&pair.version, 200)),
                id: printable(&pair.version, 200),
                source: EntrySource::FileName,
                kernel: file(&pair.kernel),
                initrds: pair.initrd.iter().map(|name| file(name)).collect(),
                command_line: format!("root={root} ro"),
            };
            add(&mut found.entries, entry, notes);
        }
    }
    volume.finish(notes)?;
    Ok(found)
}

/// Keeps an entry that can be handed to a kernel.
fn add(entries: &mut Vec<BootEntry>, entry: BootEntry, notes: &mut Vec<String>) {
    if entries.len() < ENTRIES_MAX && is_usable(&entry, notes) {
        entries.push(entry);
    }
}

fn is_usable(entry: &BootEntry, notes: &mut Vec<String>) -> bool {
    let len = entry.command_line.len();
    if len > COMMAND_LINE_BYTES_MAX {
        let title = printable(&entry.title, 80);
        note(
            notes,
            &format!("{title:?} is left out: its command line has {len} bytes, more than the kernel takes"),
        );
        return false;
    }
    let printable = !entry.command_line.contains(char::is_control);
    if !printable {
        note(notes, &format!("{:?} is left out: its command line has control characters", entry.title));
    }
    printable
}

fn note(notes: &mut Vec<String>, text: &str) {
    let text = printable(text, 300);
    if notes.len() < NOTES_MAX && !notes.contains(&text) {
        notes.push(text);
    }
}

/// The volume as a script sees it. Files that are damaged are not there, and a remark says so.
struct Volume<'p, 'a> {
    parts: &'p [Part<'a>],
    failed: Cell<Option<ReadFailed>>,
    damaged: RefCell<Vec<String>>,
}

impl<'p, 'a> Volume<'p, 'a> {
    fn new(parts: &'p [Part<'a>]) -> Self {
        Self { parts, failed: Cell::new(None), damaged: RefCell::new(Vec::new()) }
    }

    /// An error of the volume, if there was one; remarks on damage otherwise.
    fn finish(self, notes: &mut Vec<String>) -> Result<(), ReadFailed> {
        self.damaged.into_inner().iter().for_each(|text| note(notes, text));
        self.failed.into_inner().map_or(Ok(()), Err)
    }

    /// By GRUB's name. Partitions of other disks are not here, and the number is what counts.
    fn part(&self, device: &str) -> Option<&'p Part<'a>> {
        let (disk, number) = match device.split_once(',') {
            Some((disk, name)) => {
                let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
                (disk, digits.parse().ok()?)
            }
            None => (device, 0),
        };
        self.parts.iter().find(|part| disk == "hd0" && part.partition.number == number)
    }

    fn file(&self, place: &Place) -> Option<FileRef> {
        let part = self.part(&place.device)?;
        Some(FileRef { partition: part.partition.number, path: place.path.clone() })
    }

    /// An answer, or nothing; what that hides is kept.
    fn kept<T>(&self, part: &Part<'_>, answer: Result<T, Ext4Error>) -> Option<T> {
        match answer {
            Ok(answer) => return Some(answer),
            Err(Ext4Error::NotFound { .. } | Ext4Error::WrongType { .. }) => {}
            Err(Ext4Error::Read(error @ ReadFailed::Volume { .. })) => self.failed.set(Some(error)),
            Err(error) => {
                let mut damaged = self.damaged.borrow_mut();
                if damaged.len() < NOTES_MAX {
                    damaged.push(format!("{}: {error}", part.partition));
                }
            }
        }
        None
    }

    /// What a kernel from `base` on this partition takes as its root: `/etc/fstab` of the same file system, or of another
    /// if this one is only for `/boot`, or else the file system itself that `/boot` is a folder of.
    fn root(&self, part: &Part<'_>, base: &str) -> Option<String> {
        let fstab = |part: &Part<'_>| {
            let text = self.read(&part.device, "/etc/fstab", FSTAB_BYTES_MAX)?;
            root_of(&String::from_utf8_lossy(&text))
        };
        if let Some(root) = fstab(part) {
            return Some(root);
        }
        if !base.is_empty() {
            return part.fs.as_ref().map(|fs| format!("UUID={}", fs.uuid()));
        }
        self.parts.iter().find_map(fstab)
    }
}

impl Files for Volume<'_, '_> {
    fn read(&self, device: &str, path: &str, size_max: u64) -> Option<Vec<u8>> {
        let part = self.part(device)?;
        self.kept(part, part.fs.as_ref()?.read_file(path, size_max))
    }

    fn look(&self, device: &str, path: &str) -> Found {
        let Some((part, fs)) = self.part(device).and_then(|part| Some((part, part.fs.as_ref()?))) else {
            return Found::Nothing;
        };
        match self.kept(part, fs.stat(path)) {
            Some((FileType::Regular, size)) => Found::File(size),
            Some((FileType::Directory, _)) => Found::Folder,
            _ => Found::Nothing,
        }
    }

    fn list(&self, device: &str, path: &str) -> Vec<String> {
        let Some((part, fs)) = self.part(device).and_then(|part| Some((part, part.fs.as_ref()?))) else {
            return Vec::new();
        };
        let names = self.kept(part, fs.read_dir(path)).unwrap_or_default();
        names.into_iter().map(|entry| entry.name).collect()
    }

    fn devices(&self) -> Vec<Device> {
        let readable = self.parts.iter().filter_map(|part| Some((part, part.fs.as_ref()?)));
        readable
            .map(|(part, fs)| Device {
                name: part.device.clone(),
                uuid: fs.uuid(),
                label: fs.label().to_owned(),
            })
            .collect()
    }
}
