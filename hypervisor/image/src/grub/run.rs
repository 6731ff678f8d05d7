//! Runs a script.

use std::collections::BTreeMap;

use super::environment::Environment;
use super::menu::{GrubEntry, Item, Menu, Place, pick};
use super::parse::{Block, Node, Piece, Word};
use super::{
    DEPTH_MAX, EXPANDED_BYTES_MAX, Files, LOOK_UPS_MAX, MENU_ENTRIES_MAX, NOTES_MAX, SCRIPT_BYTES_MAX,
    STEPS_MAX, Script,
};
use crate::bls::BlsEntry;
use crate::bytes::printable;

/// Titles and identifiers are cut at this.
const TITLE_CHARS_MAX: usize = 512;

/// What GRUB itself sets: which of its abilities scripts ask for.
const FEATURES: [&str; 8] = [
    "feature_chainloader_bpb",
    "feature_ntldr",
    "feature_platform_search_hint",
    "feature_default_font_path",
    "feature_all_video_module",
    "feature_menuentry_id",
    "feature_menuentry_options",
    "feature_timeout_style",
];

/// What comes after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
    Return,
    /// Started, left, or out of bounds.
    Stop,
}

/// A line of a menu before its block was run.
pub(super) enum Pending {
    Entry { title: String, id: String, words: Vec<String>, block: Block },
    Submenu { title: String, id: String, block: Block },
    Bls { device: String, entry: BlsEntry },
}

/// What `linux` and `initrd` have loaded.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) kernel: Option<(Place, String)>,
    pub(super) initrds: Vec<Place>,
}

/// One script, or one block, while it runs.
pub(super) struct Context {
    pub(super) environment: Environment,
    pub(super) pending: Vec<Pending>,
    pub(super) loaded: Loaded,
    /// `$1`, `$2`, ...
    pub(super) words: Vec<String>,
    pub(super) succeeded: bool,
    pub(super) depth: u32,
}

impl Context {
    fn new(environment: Environment, words: Vec<String>) -> Self {
        let loaded = Loaded::default();
        Self { environment, pending: Vec::new(), loaded, words, succeeded: true, depth: 0 }
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => String::from(if self.succeeded { "0" } else { "1" }),
            "#" => self.words.len().to_string(),
            "@" | "*" => self.words.join(" "),
            _ if name.bytes().all(|byte| byte.is_ascii_digit()) => {
                let at = name.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
                at.and_then(|at| self.words.get(at)).cloned().unwrap_or_default()
            }
            _ => self.environment.get(name).to_owned(),
        }
    }
}

/// What all blocks of a menu share: what may still be done.
pub(super) struct Run<'f> {
    pub(super) files: &'f dyn Files,
    pub(super) functions: BTreeMap<String, Block>,
    pub(super) script_bytes_left: u64,
    steps_left: u32,
    expanded_left: usize,
    look_ups_left: u32,
    entries_left: usize,
    notes: Vec<String>,
}

/// Runs a script that was found on `device` at `folder`, such as `hd0,gpt1` and `/boot/grub`.
pub fn interpret(script: &Script, files: &dyn Files, device: &str, folder: &str) -> Menu {
    let mut run = Run {
        files,
        functions: BTreeMap::new(),
        script_bytes_left: SCRIPT_BYTES_MAX,
        steps_left: STEPS_MAX,
        expanded_left: EXPANDED_BYTES_MAX,
        look_ups_left: LOOK_UPS_MAX,
        entries_left: MENU_ENTRIES_MAX,
        notes: Vec::new(),
    };
    let mut environment = Environment::default();
    let prefix = format!("({device}){folder}");
    let settings = [
        ("root", device),
        ("prefix", &prefix),
        ("config_directory", &prefix),
        ("config_file", &format!("{prefix}/grub.cfg")),
        ("grub_platform", "pc"),
        ("grub_cpu", "i386"),
        ("menuentry_id_option", "--id"),
    ];
    for (name, value) in settings.into_iter().chain(FEATURES.map(|name| (name, "y"))) {
        environment.set(name, value.to_owned());
    }
    let mut context = Context::new(environment, Vec::new());
    run.block(&script.nodes, &mut context);
    let Context { environment, pending, loaded, .. } = context;
    let mut items = run.finish(pending, &environment, 0);
    if items.is_empty()
        && let Some(entry) = entry("grub.cfg".to_owned(), String::new(), loaded)
    {
        items.push(Item::Linux(entry));
    }
    let wanted = match environment.get("default") {
        "saved" => environment.get("saved_entry"),
        other => other,
    };
    let default = pick(&items, wanted);
    Menu { items, default, notes: run.notes }
}

/// What was loaded, if it was a kernel.
fn entry(title: String, id: String, loaded: Loaded) -> Option<GrubEntry> {
    let (kernel, command_line) = loaded.kernel?;
    Some(GrubEntry { title, id, kernel, initrds: loaded.initrds, command_line })
}

impl Run<'_> {
    /// Keeps a remark for people.
    pub(super) fn note(&mut self, text: &str) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(printable(text, 200));
        }
    }

    /// Whether a file or folder may be looked at once more.
    pub(super) fn may_look(&mut self) -> bool {
        let may = self.look_ups_left > 0;
        self.look_ups_left = self.look_ups_left.saturating_sub(1);
        if self.look_ups_left == 1 {
            self.note("grub.cfg looks at too many files: the others are taken as not there");
        }
        may
    }

    /// Whether the menu may have one more line.
    pub(super) fn may_add(&mut self) -> bool {
        let may = self.entries_left > 0;
        self.entries_left = self.entries_left.saturating_sub(1);
        if !may {
            self.note("the menu has too many entries: the last are left out");
        }
        may
    }

    /// Runs the lines' own blocks.
    fn finish(&mut self, pending: Vec<Pending>, environment: &Environment, depth: u32) -> Vec<Item> {
        let mut items = Vec::new();
        for pending in pending {
            match pending {
                Pending::Entry { title, id, words, block } => {
                    let mut context = Context::new(environment.clone(), words);
                    self.block(&block, &mut context);
                    items.push(match entry(title.clone(), id.clone(), context.loaded) {
                        Some(entry) => Item::Linux(entry),
                        None => Item::Other { title, id },
                    });
                }
                Pending::Submenu { title, id, block } => {
                    let mut context = Context::new(environment.clone(), Vec::new());
                    if depth < DEPTH_MAX {
                        self.block(&block, &mut context);
                    }
                    let items_below = self.finish(context.pending, &context.environment, depth + 1);
                    items.push(Item::Submenu { title, id, items: items_below });
                }
                Pending::Bls { device, entry } => items.push(self.bls(&device, entry, environment)),
            }
        }
        items
    }

    /// An entry of the Boot Loader Specification. Its values may have variables in them.
    fn bls(&mut self, device: &str, entry: BlsEntry, environment: &Environment) -> Item {
        let place = |path: String| Place { device: device.to_owned(), path };
        let mut expanded = |text: &str| self.replace(text, environment);
        let linux = expanded(&entry.linux);
        let command_line =
            format!("BOOT_IMAGE=({device}){linux} {}", expanded(&entry.options)).trim_end().to_owned();
        let initrds: Vec<String> = entry.initrds.iter().map(|text| expanded(text)).collect();
        let initrds = initrds.iter().flat_map(|text| text.split_whitespace()).map(str::to_owned);
        Item::Linux(GrubEntry {
            title: printable(&entry.title, TITLE_CHARS_MAX),
            id: printable(&entry.id, TITLE_CHARS_MAX),
            kernel: place(linux),
            initrds: initrds.map(place).collect(),
            command_line,
        })
    }

    /// A value with its variables replaced.
    fn replace(&mut self, text: &str, environment: &Environment) -> String {
        let mut value = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            value.push_str(before);
            let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let (name, after) = braced.unwrap_or_else(|| {
                after.split_at(
                    after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()),
                )
            });
            let found = environment.get(name);
            if self.expanded(found.len()) {
                value.push_str(found);
            }
            rest = after;
        }
        value.push_str(rest);
        value
    }

    /// Whether so many more bytes of words may be made.
    fn expanded(&mut self, bytes: usize) -> bool {
        let left = self.expanded_left.checked_sub(bytes);
        if left.is_none() && self.expanded_left > 0 {
            self.note("grub.cfg makes too long texts: what comes after is left out");
        }
        self.expanded_left = left.unwrap_or(0);
        left.is_some()
    }

    pub(super) fn block(&mut self, block: &Block, context: &mut Context) -> Flow {
        context.depth += 1;
        let mut flow = if context.depth > DEPTH_MAX { Flow::Stop } else { Flow::Next };
        for node in block.iter() {
            if flow != Flow::Next {
                break;
            }
            flow = self.node(node, context);
        }
        context.depth -= 1;
        flow
    }

    fn node(&mut self, node: &Node, context: &mut Context) -> Flow {
        if self.steps_left == 0 {
            return Flow::Stop;
        }
        self.steps_left -= 1;
        if self.steps_left == 0 {
            self.note("grub.cfg runs too many commands: it was stopped");
        }
        match node {
            Node::Command { words, block } => {
                let Some(words) = self.expand(words, context) else { return Flow::Stop };
                self.command(words, block.as_ref(), context)
            }
            Node::If { arms, otherwise } => {
                for (condition, body) in arms {
                    match self.block(condition, context) {
                        Flow::Next if context.succeeded => return self.block(body, context),
                        Flow::Next => {}
                        other => return other,
                    }
                }
                context.succeeded = true;
                self.block(otherwise, context)
            }
            Node::For { name, words, body } => {
                let Some(words) = self.expand(words, context) else { return Flow::Stop };
                for word in words {
                    context.environment.set(name, word);
                    match self.block(body, context) {
                        Flow::Next | Flow::Continue => {}
                        Flow::Break => break,
                        other => return other,
                    }
                    if self.steps_left == 0 {
                        return Flow::Stop;
                    }
                    self.steps_left -= 1;
                }
                Flow::Next
            }
            Node::While { until, condition, body } => loop {
                // An empty body must come to an end as well.
                let Some(left) = self.steps_left.checked_sub(1) else { return Flow::Stop };
                self.steps_left = left;
                match self.block(condition, context) {
                    Flow::Next if context.succeeded != *until => {}
                    Flow::Next => return Flow::Next,
                    other => return other,
                }
                match self.block(body, context) {
                    Flow::Next | Flow::Continue => {}
                    Flow::Break => return Flow::Next,
                    other => return other,
                }
            },
            Node::Function { name, body } => {
                self.functions.insert(name.clone(), Block::clone(body));
                Flow::Next
            }
        }
    }

    /// Words with their variables replaced: an unquoted value becomes as many words as it has.
    fn expand(&mut self, words: &[Word], context: &Context) -> Option<Vec<String>> {
        let mut done = Vec::new();
        for word in words {
            let mut text = String::new();
            let mut is_word = word.quoted;
            for piece in &word.pieces {
                match piece {
                    Piece::Text(more) => {
                        self.expanded(more.len()).then_some(())?;
                        text.push_str(more);
                        is_word = true;
                    }
                    Piece::Variable { name, quoted } => {
                        let value = context.value(name);
                        // A word of one letter takes as much as one of some dozen.
                        self.expanded(value.len() * if *quoted { 1 } else { 16 }).then_some(())?;
                        if *quoted {
                            text.push_str(&value);
                            continue;
                        }
                        for (n, part) in value.split_whitespace().enumerate() {
                            if n > 0 || value.starts_with(char::is_whitespace) && is_word {
                                done.push(std::mem::take(&mut text));
                            }
                            text.push_str(part);
                            is_word = true;
                        }
                    }
                }
            }
            if is_word {
                done.push(text);
            }
        }
        Some(done)
    }
}

/// A title or an identifier within its bound.
pub(super) fn short(text: &str) -> String {
    printable(text, TITLE_CHARS_MAX)
}
