//! `logs`: what a VM's console has shown, and with `-f` what it goes on to show.
//!
//! What was is asked of the daemon. What grows is read from the file itself, on the VM's own host. That file is begun anew
//! when it has its size: the old one is renamed, or emptied where it stands, and both are followed.

use std::io::{ErrorKind, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferro_protocol::api::vm::{ConsoleInfo, VmLog, VmName};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::Context;
use super::args::LogsOptions;
use crate::failure::{Failure, Result};

/// How often it is looked for more.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// So many looks apart the VM itself is looked at: one that is off prints nothing more.
const ASK_EVERY: u32 = 10;
/// The most bytes of the file's end that are searched for the last lines.
const TAIL_BYTES_MAX: u64 = 4 << 20;
const PIECE: usize = 64 << 10;

pub(super) async fn logs(context: &Context, options: LogsOptions) -> Result<()> {
    let LogsOptions { name, previous, follow: following, lines } = options;
    if following {
        return follow(context, &name, lines).await;
    }
    let log: VmLog =
        context.client.get(&format!("/v1/vms/{name}/log?previous={previous}&lines={lines}")).await?;
    if context.terminal.is_json() {
        return context.terminal.json(&log);
    }
    context.terminal.print(&safe(&log.text))?;
    if !log.text.is_empty() && !log.text.ends_with('\n') {
        context.terminal.print("\n")?;
    }
    if log.cut {
        context
            .terminal
            .hint(&format!("there is more before it: `vmctl logs {name} -n {}`", u64::from(lines) * 10));
    }
    Ok(())
}

/// A guest's text for a terminal that is not its own: lines stay, and what would drive the terminal does not.
fn safe(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

async fn follow(context: &Context, name: &VmName, lines: u32) -> Result<()> {
    let place: ConsoleInfo = context.client.get(&format!("/v1/vms/{name}/console")).await?;
    let mut tail = Tail::open(Path::new(&place.log), lines).await?;
    let mut looks = 0;
    let watched = async {
        loop {
            let ended =
                looks % ASK_EVERY == ASK_EVERY - 1 && !context.vm(name).await?.status.state.is_active();
            loop {
                let text = tail.more().await?;
                if text.is_empty() {
                    break;
                }
                context.terminal.print(&safe(&text))?;
            }
            if ended {
                return Ok(());
            }
            looks += 1;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        outcome = watched => outcome,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// A file that grows.
struct Tail {
    path: PathBuf,
    file: File,
    at: u64,
    /// The beginning of a character whose end has not come yet.
    half: Vec<u8>,
}

impl Tail {
    async fn open(path: &Path, lines: u32) -> Result<Self> {
        let fail = |error: std::io::Error| Failure::file("reading", path, &error);
        let mut file = File::open(path).await.map_err(fail)?;
        let length = file.metadata().await.map_err(fail)?.len();
        let from = length.saturating_sub(TAIL_BYTES_MAX);
        file.seek(SeekFrom::Start(from)).await.map_err(fail)?;
        let mut end = Vec::new();
        (&mut file).take(TAIL_BYTES_MAX).read_to_end(&mut end).await.map_err(fail)?;
        let at = from + last_lines(&end, lines) as u64;
        file.seek(SeekFrom::Start(at)).await.map_err(fail)?;
        Ok(Self { path: path.to_owned(), file, at, half: Vec::new() })
    }

    /// What has come since.
    async fn more(&mut self) -> Result<String> {
        let path = self.path.clone();
        let fail = |error: std::io::Error| Failure::file("reading", &path, &error);
        let mut buffer = vec![0; PIECE];
        let mut count = self.file.read(&mut buffer).await.map_err(fail)?;
        if count == 0 && self.is_renewed().await.map_err(fail)? {
            count = self.file.read(&mut buffer).await.map_err(fail)?;
        }
        self.at += count as u64;
        self.half.extend_from_slice(&buffer[..count]);
        Ok(whole_text(&mut self.half))
    }

    /// Whether the file was begun anew, which is then the one that is read. What the old one had is read by now.
    async fn is_renewed(&mut self) -> std::io::Result<bool> {
        let now = match tokio::fs::metadata(&self.path).await {
            Ok(meta) => meta,
            // Between the old one and the new.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let ours = self.file.metadata().await?;
        if (now.dev(), now.ino()) != (ours.dev(), ours.ino()) {
            self.file = File::open(&self.path).await?;
            self.at = 0;
            return Ok(true);
        }
        if ours.len() < self.at {
            self.file.seek(SeekFrom::Start(0)).await?;
            self.at = 0;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Where the last lines begin. One that has no end yet is one, too.
fn last_lines(text: &[u8], lines: u32) -> usize {
    let end = if text.last() == Some(&b'\n') { text.len() - 1 } else { text.len() };
    let breaks = text[..end].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    breaks.map(|(at, _)| at + 1).nth(lines.saturating_sub(1) as usize).unwrap_or(0)
}

/// Takes what are whole characters, with what is no UTF-8 replaced; the beginning of one at the end stays.
fn whole_text(bytes: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // Something in it is no UTF-8; what may be half a character at its end is at most three bytes.
        Err(_) => bytes.len() - half_at_end(bytes),
        Ok(_) => bytes.len(),
    };
    let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
    bytes.drain(..whole);
    text
}

/// How many bytes at the end are the beginning of a character.
fn half_at_end(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find(|count| {
            let tail = &bytes[bytes.len() - count..];
            matches!(std::str::from_utf8(tail), Err(error) if error.error_len().is_none() && error.valid_up_to() == 0)
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!([1, 2, 3, 9].map(|lines| last_lines(text, lines)), [8, 4, 0, 0]);
        assert_eq!([1, 2].map(|lines| last_lines(b"one\ntwo", lines)), [4, 0]);
        assert_eq!((last_lines(b"", 5), last_lines(b"\n", 1)), (0, 0));
    }

    #[test]
    fn characters_are_not_torn() {
        let mut bytes = "aé".as_bytes()[..2].to_vec();
        assert_eq!(whole_text(&mut bytes), "a");
        bytes.push("é".as_bytes()[1]);
        assert_eq!(whole_text(&mut bytes), "é");
        let mut bytes = b"a\xffb\xc3".to_vec();
        assert_eq!(whole_text(&mut bytes), "a\u{fffd}b");
        assert_eq!(bytes, b"\xc3");
        assert_eq!(safe("a\x1b[2Jb\r\n\tc\u{7}"), "a[2Jb\n\tc");
    }

    #[tokio::test]
    async fn a_file_is_followed_when_it_is_renamed_and_when_it_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("console.log"), dir.path().join("console.log.1"));
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let mut tail = Tail::open(&path, 2).await.unwrap();
        assert_eq!(tail.more().await.unwrap(), "two\nthree\n");
        assert_eq!(tail.more().await.unwrap(), "");
        std::fs::rename(&path, &old).unwrap();
        assert_eq!(tail.more().await.unwrap(), "", "the new one is not there yet");
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(tail.more().await.unwrap(), "four\n");
        std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        std::fs::write(&path, "5\n").unwrap();
        assert_eq!(tail.more().await.unwrap(), "5\n");
        assert!(Tail::open(&old.join("x"), 1).await.is_err());
    }
}
