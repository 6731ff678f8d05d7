//! How a daemon begins: its configuration file, its log, its threads. The same for all, so that an administrator meets one way.
//!
//! What it must not know: what is set in a file, beyond how it is refused.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// Threads for the control plane; data has its own.
const THREADS: usize = 2;

/// Why a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error(
        "can't read the configuration {path}: {source}; write it (see /usr/share/doc/{daemon}/{daemon}.toml) or name another with --config"
    )]
    Read {
        /// Whose it is.
        daemon: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or not the daemon's.
    #[error("the configuration {path} is not right: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A setting makes no sense.
    #[error("the configuration {path}: {key} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Reads a daemon's configuration file of at most so many bytes.
pub fn read_config(daemon: &'static str, path: &Path, bytes_max: u64) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { daemon, path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > bytes_max {
        let message = format!("it has {length} bytes, at most {bytes_max} are read");
        return Err(ConfigError::Parse { path: path.to_owned(), message });
    }
    std::fs::read_to_string(path).map_err(read)
}

/// Sends this process's messages to standard error: those that the environment's `variable` asks for, or `default`; as
/// objects, one a line, or as text. Once a process.
pub fn log_to_stderr(variable: &str, default: &str, json: bool) {
    let filter = EnvFilter::try_from_env(variable).unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json {
        log.json().init();
    } else {
        log.with_target(false).init();
    }
}

/// The threads of a daemon's control plane.
pub fn threads() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_too_long_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let missing = read_config("somed", &path, 3).unwrap_err().to_string();
        assert!(
            missing.contains("x.toml") && missing.contains("/usr/share/doc/somed/somed.toml"),
            "{missing}"
        );
        std::fs::write(&path, "a=1").unwrap();
        assert_eq!(read_config("somed", &path, 3).unwrap(), "a=1");
        let long = read_config("somed", &path, 2).unwrap_err().to_string();
        assert!(long.contains("3 bytes, at most 2"), "{long}");
    }
}
