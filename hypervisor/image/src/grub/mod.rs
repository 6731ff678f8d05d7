//! GRUB's menu: enough of its script language to find what a distribution's `grub.cfg` would start.
//!
//! ```text
//!   grub.cfg ─► lexer ─► parser: commands, if, for, while, functions, menuentry and submenu with their blocks
//!                           │
//!   grubenv ────────────► run: variables, tests, `search`, `source`, `blscfg` ─► Menu: entries in their submenus,
//!                                                                                     and the default among them
//! ```
//!
//! GRUB runs an entry's block when it is chosen. Here the block of each is run, by itself, with the variables as they are
//! at the end of the script, and what it would have loaded is written down. Commands that draw, wait, or load modules have
//! no effect; a command that is not known fails, as it would without its module. Files are read through [`Files`].
//!
//! **Bounds.** A script of [`SCRIPT_BYTES_MAX`], [`STEPS_MAX`] commands in all, [`EXPANDED_BYTES_MAX`] of expanded words,
//! [`VARIABLES_BYTES_MAX`] of variables, [`LOOK_UPS_MAX`] looks at files, [`MENU_ENTRIES_MAX`] entries, and
//! [`DEPTH_MAX`] of anything within itself. What is beyond is left out, and [`Menu::notes`] says so.

mod commands;
mod environment;
mod menu;
mod parse;
mod run;
mod test;

use std::fmt;

pub use menu::{GrubEntry, Item, Menu, Place};
pub use parse::{Script, parse};
pub use run::interpret;

/// The longest script, and all scripts that one sources.
pub const SCRIPT_BYTES_MAX: u64 = 512 << 10;
/// Commands that are run, for the whole menu.
pub const STEPS_MAX: u32 = 100_000;
/// Bytes that all expanded words may take together.
pub const EXPANDED_BYTES_MAX: usize = 8 << 20;
/// Bytes of all variables at one time.
pub const VARIABLES_BYTES_MAX: usize = 256 << 10;
/// Looks at files and folders.
pub const LOOK_UPS_MAX: u32 = 2048;
/// Entries of a menu with its submenus.
pub const MENU_ENTRIES_MAX: usize = 256;
/// Blocks in blocks, functions in functions, scripts in scripts.
pub const DEPTH_MAX: u32 = 24;
/// Words and commands of a script.
pub(crate) const NODES_MAX: usize = 100_000;
/// Remarks that are kept.
pub(crate) const NOTES_MAX: usize = 16;

/// What a script can ask about the disk. Devices are GRUB's: `hd0`, `hd0,gpt2`, `hd0,msdos1`.
pub trait Files {
    /// The contents of a file of at most `size_max` bytes, if there is one.
    fn read(&self, device: &str, path: &str, size_max: u64) -> Option<Vec<u8>>;
    /// What is at a path.
    fn look(&self, device: &str, path: &str) -> Found;
    /// The names in a folder, sorted; none if there is none.
    fn list(&self, device: &str, path: &str) -> Vec<String>;
    /// The devices with a file system that is read, in order, each with its file system's UUID and label.
    fn devices(&self) -> Vec<Device>;
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A file of so many bytes.
    File(u64),
    /// A folder.
    Folder,
}

/// A device that can be searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name, without parentheses.
    pub name: String,
    /// Its file system's.
    pub uuid: String,
    /// Its file system's; may be empty.
    pub label: String,
}

/// Why a script can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: u32,
    /// What is wrong.
    pub what: Problem,
}

/// What is wrong with a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A quotation without its end.
    Quote,
    /// A block or a statement without its end.
    End(&'static str),
    /// A word where it can't be.
    Unexpected(&'static str),
    /// Too much within each other.
    Depth,
    /// Too many words.
    Size,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quote => f.write_str("a quotation does not end"),
            Self::End(what) => write!(f, "there is no `{what}`"),
            Self::Unexpected(what) => write!(f, "an unexpected `{what}`"),
            Self::Depth => f.write_str("too many blocks within each other"),
            Self::Size => f.write_str("too many words"),
        }
    }
}
