//! Network namespaces of our own, and commands in them.

use std::process::Command;
use std::time::Duration;

use crate::process::{self, Stop};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Namespaces that are gone, with all that is in them, when this is dropped.
#[derive(Debug)]
pub struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    /// Makes them, each with its loopback interface up. Their names end with `suffixes`.
    pub fn make(suffixes: &[&str], stop: &Stop) -> anyhow::Result<Self> {
        let id = std::process::id();
        let mut made = Self { names: Vec::new() };
        for suffix in suffixes {
            let name = format!("fb{id}{suffix}");
            ip(&["netns", "add", &name], stop)?;
            inside(&name, &["link", "set", "lo", "up"], stop)?;
            made.names.push(name);
        }
        Ok(made)
    }

    /// Their names, in the order in which they were asked for.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let removed = Command::new("ip").args(["netns", "del", name]).status();
            if !removed.as_ref().is_ok_and(|status| status.success()) {
                eprintln!("ferro-bench: removing the namespace {name}: {removed:?}");
            }
        }
    }
}

/// `ip` in a namespace.
pub fn inside(name: &str, args: &[&str], stop: &Stop) -> anyhow::Result<()> {
    ip(&[&["-netns", name], args].concat(), stop)
}

/// `ip`.
pub fn ip(args: &[&str], stop: &Stop) -> anyhow::Result<()> {
    process::output(Command::new("ip").args(args), TIMEOUT, stop).map(drop)
}
