//! The commands that matter for what is started.

use super::environment::block as environment_block;
use super::menu::Place;
use super::parse::{Block, parse};
use super::run::{Context, Flow, Pending, Run, short};
use super::test::{Look, holds};
use super::{DEPTH_MAX, Found};
use crate::bls::{BlsEntry, ENTRY_BYTES_MAX, ENTRY_FILES_MAX, is_entry_file};

/// A file with variables has 1 KiB.
const GRUBENV_BYTES_MAX: u64 = 64 << 10;
/// Initrds of one entry.
const INITRDS_MAX: usize = 16;
/// Where Fedora keeps entries, with and without a partition for `/boot`.
const BLS_FOLDERS: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// Commands without an effect on what is started, which succeed.
const QUIET: &[&str] = &[
    "true",
    ":",
    "insmod",
    "rmmod",
    "echo",
    "export",
    "save_env",
    "terminal_output",
    "terminal_input",
    "terminal",
    "serial",
    "loadfont",
    "load_video",
    "sleep",
    "clear",
    "play",
    "background_image",
    "background_color",
    "cpuid",
    "cryptomount",
    "recordfail",
    "gfxmode",
    "initrdfail",
    "vt_handoff",
    "hiddenentry",
    "password",
    "password_pbkdf2",
];

impl Run<'_> {
    /// Runs one command. Its name is the first word.
    pub(super) fn command(
        &mut self,
        mut words: Vec<String>,
        block: Option<&Block>,
        context: &mut Context,
    ) -> Flow {
        if words.is_empty() {
            return Flow::Next;
        }
        let mut name = words.remove(0);
        let negated = name == "!" && !words.is_empty();
        if negated {
            name = words.remove(0);
        }
        if let Some(function) = self.functions.get(&name).cloned() {
            let outer = std::mem::replace(&mut context.words, words);
            let flow = self.block(&function, context);
            context.words = outer;
            context.succeeded ^= negated;
            return if flow == Flow::Return { Flow::Next } else { flow };
        }
        let mut flow = Flow::Next;
        context.succeeded = match name.as_str() {
            "menuentry" | "submenu" => self.line(&name, words, block, context),
            "set" => words.iter().all(|word| assign(word, context).unwrap_or(true)),
            "unset" => {
                words.iter().for_each(|name| context.environment.unset(name));
                true
            }
            "[" => words.pop().is_some_and(|last| last == "]") && self.test(&words, context),
            "test" => self.test(&words, context),
            "false" => false,
            "search" => self.search(&words, context),
            "search.fs_uuid" | "search.fs_label" | "search.file" => {
                let what = name.trim_start_matches("search.");
                self.search_for(what, words.first(), words.get(1).map_or("root", String::as_str), context)
            }
            "load_env" => self.load_env(&words, context),
            "linux" | "linux16" | "linuxefi" => linux(&words, context),
            "initrd" | "initrd16" | "initrdefi" => initrd(&words, context),
            "blscfg" => self.blscfg(context),
            "source" | "." | "configfile" | "normal" => {
                flow = self.source(words.first(), context);
                context.succeeded
            }
            "boot" | "exit" | "halt" | "reboot" => {
                flow = Flow::Stop;
                true
            }
            "return" | "break" | "continue" => {
                flow = match name.as_str() {
                    "return" => Flow::Return,
                    "break" => Flow::Break,
                    _ => Flow::Continue,
                };
                words.first().is_none_or(|status| status == "0") || name != "return"
            }
            _ if QUIET.contains(&name.as_str()) => true,
            _ => assign(&name, context).unwrap_or(false),
        };
        context.succeeded ^= negated;
        flow
    }

    /// A line of the menu: `menuentry TITLE [--id ID] [OPTION...] { ... }`.
    fn line(&mut self, kind: &str, words: Vec<String>, block: Option<&Block>, context: &mut Context) -> bool {
        let Some(block) = block else { return false };
        let (mut id, mut rest) = (String::new(), Vec::new());
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = short(&words.next().unwrap_or_default()),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                "--unrestricted" => {}
                other => match other.split_once('=') {
                    Some(("--id", value)) => id = short(value),
                    Some(("--class" | "--users" | "--hotkey" | "--source", _)) => {}
                    _ => rest.push(word),
                },
            }
        }
        if rest.is_empty() || !self.may_add() {
            return false;
        }
        let title = short(&rest.remove(0));
        let block = Block::clone(block);
        context.pending.push(match kind {
            "submenu" => Pending::Submenu { title, id, block },
            // What follows the title is `$1`, `$2`, ... in the block. Nobody needs many, and they are kept.
            _ => Pending::Entry {
                title,
                id,
                words: rest.into_iter().take(8).map(|word| short(&word)).collect(),
                block,
            },
        });
        true
    }

    fn test(&mut self, words: &[String], context: &Context) -> bool {
        holds(words, &mut Disk { run: self, context })
    }

    fn search(&mut self, words: &[String], context: &mut Context) -> bool {
        let (mut what, mut variable, mut wanted) = ("file", "root".to_owned(), None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => what = "fs_uuid",
                "--label" | "--fs-label" | "-l" => what = "fs_label",
                "--file" | "-f" => what = "file",
                "--hint" | "-h" => drop(words.next()),
                "--set" | "-s" | "--no-floppy" | "-n" | "--efidisk-only" | "--cryptodisk-only" => {}
                other => match other.split_once('=') {
                    Some(("--set", name)) => name.clone_into(&mut variable),
                    // The last one counts; `--hint` takes many forms, and leaves a hint behind as a word in some.
                    _ if other.starts_with("--") => {}
                    _ => wanted = Some(word),
                },
            }
        }
        self.search_for(what, wanted, &variable, context)
    }

    fn search_for(
        &mut self,
        what: &str,
        wanted: Option<&String>,
        variable: &str,
        context: &mut Context,
    ) -> bool {
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return false };
        let found = self.files.devices().into_iter().find(|device| match what {
            "fs_uuid" => device.uuid.eq_ignore_ascii_case(wanted),
            "fs_label" => device.label == *wanted,
            _ => self.may_look() && self.files.look(&device.name, wanted) != Found::Nothing,
        });
        match found {
            Some(device) => context.environment.set(variable, device.name),
            None => false,
        }
    }

    fn load_env(&mut self, words: &[String], context: &mut Context) -> bool {
        let mut file = format!("{}/grubenv", context.environment.get("prefix"));
        let mut only = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => {
                    if let Some(path) = words.next() {
                        path.clone_into(&mut file);
                    }
                }
                "-s" | "--skip-sig" => {}
                other => match other.strip_prefix("--file=") {
                    Some(path) => path.clone_into(&mut file),
                    None => only.push(word),
                },
            }
        }
        let Some(bytes) = self.read(&file, GRUBENV_BYTES_MAX, context) else { return false };
        for (name, value) in environment_block(&String::from_utf8_lossy(&bytes)) {
            if only.is_empty() || only.contains(&&name) {
                context.environment.set(&name, value);
            }
        }
        true
    }

    fn blscfg(&mut self, context: &mut Context) -> bool {
        let device = match context.environment.get("boot") {
            "" => context.environment.get("root").to_owned(),
            boot => boot.to_owned(),
        };
        let mut entries = Vec::new();
        for folder in BLS_FOLDERS {
            if !self.may_look() {
                break;
            }
            let names = self.files.list(&device, folder);
            for name in names.iter().filter(|name| is_entry_file(name)).take(ENTRY_FILES_MAX) {
                let path = format!("({device}){folder}/{name}");
                let Some(bytes) = self.read(&path, ENTRY_BYTES_MAX, context) else { continue };
                match BlsEntry::parse(name, &String::from_utf8_lossy(&bytes)) {
                    Ok(entry) => entries.push(entry),
                    Err(problem) => self.note(&format!("{folder}/{name} {problem}")),
                }
                if entries.len() >= ENTRY_FILES_MAX {
                    break;
                }
            }
            if !entries.is_empty() {
                break;
            }
        }
        entries.sort_by(BlsEntry::menu_order);
        for entry in entries {
            if !self.may_add() {
                return false;
            }
            context.pending.push(Pending::Bls { device: device.clone(), entry });
        }
        true
    }

    fn source(&mut self, path: Option<&String>, context: &mut Context) -> Flow {
        context.succeeded = false;
        let Some(path) = path else { return Flow::Next };
        if context.depth >= DEPTH_MAX {
            return Flow::Stop;
        }
        let Some(bytes) = self.read(path, self.script_bytes_left, context) else { return Flow::Next };
        self.script_bytes_left = self.script_bytes_left.saturating_sub(bytes.len() as u64);
        match parse(&String::from_utf8_lossy(&bytes)) {
            Ok(script) => {
                let flow = self.block(&script.nodes, context);
                if flow == Flow::Return { Flow::Next } else { flow }
            }
            Err(error) => {
                self.note(&format!("{path}, {error}"));
                Flow::Next
            }
        }
    }

    fn read(&mut self, path: &str, bytes_max: u64, context: &Context) -> Option<Vec<u8>> {
        let place = place(path, context).filter(|_| self.may_look())?;
        self.files.read(&place.device, &place.path, bytes_max)
    }
}

fn linux(words: &[String], context: &mut Context) -> bool {
    let Some((path, arguments)) = words.split_first() else { return false };
    let Some(kernel) = place(path, context) else { return false };
    let mut line = format!("BOOT_IMAGE={path}");
    for argument in arguments {
        line.push(' ');
        line.push_str(&quoted(argument));
    }
    context.loaded.kernel = Some((kernel, line));
    context.loaded.initrds.clear();
    true
}

fn initrd(words: &[String], context: &mut Context) -> bool {
    if context.loaded.kernel.is_none() || words.len() > INITRDS_MAX {
        return false;
    }
    let places: Option<Vec<Place>> = words.iter().map(|path| place(path, context)).collect();
    context.loaded.initrds = places.unwrap_or_default();
    !context.loaded.initrds.is_empty()
}

/// `name=value`; nothing if it is none.
fn assign(word: &str, context: &mut Context) -> Option<bool> {
    let (name, value) = word.split_once('=').filter(|(name, _)| !name.is_empty())?;
    Some(context.environment.set(name, value.to_owned()))
}

/// `(hd0,gpt1)/boot/x`, or `/boot/x` on the device `root`. Lists of blocks are no paths.
fn place(path: &str, context: &Context) -> Option<Place> {
    let (device, path) = match path.strip_prefix('(') {
        Some(rest) => rest.split_once(')')?,
        None => (context.environment.get("root"), path),
    };
    path.starts_with('/').then(|| Place { device: device.to_owned(), path: path.to_owned() })
}

/// An argument as GRUB hands it to the kernel.
fn quoted(argument: &str) -> String {
    let mut text = String::with_capacity(argument.len());
    for c in argument.chars() {
        if matches!(c, '\\' | '"' | '\'') {
            text.push('\\');
        }
        text.push(c);
    }
    if argument.contains(' ') { format!("\"{text}\"") } else { text }
}

/// The disk as `test` sees it.
struct Disk<'r, 'f> {
    run: &'r mut Run<'f>,
    context: &'r Context,
}

impl Disk<'_, '_> {
    fn look(&mut self, path: &str) -> Found {
        match place(path, self.context) {
            Some(place) if self.run.may_look() => self.run.files.look(&place.device, &place.path),
            _ => Found::Nothing,
        }
    }
}

impl Look for Disk<'_, '_> {
    fn exists(&mut self, path: &str) -> bool {
        self.look(path) != Found::Nothing
    }

    fn is_file(&mut self, path: &str) -> bool {
        matches!(self.look(path), Found::File(_))
    }

    fn is_folder(&mut self, path: &str) -> bool {
        self.look(path) == Found::Folder
    }

    fn has_bytes(&mut self, path: &str) -> bool {
        matches!(self.look(path), Found::File(1..))
    }
}
