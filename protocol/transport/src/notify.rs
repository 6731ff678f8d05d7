//! What systemd is told (`sd_notify(3)`): ready, stopping, and that the daemon's loop still turns. Without systemd, nothing.

use std::future::Future;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How often systemd wants a sign of life.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog(Option<Duration>);

/// The daemon serves.
pub fn ready() -> std::io::Result<Watchdog> {
    tell("READY=1")?;
    let period = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
    Ok(Watchdog(period.map(Duration::from_micros)))
}

/// The daemon is about to end.
pub fn stopping() {
    if let Err(error) = tell("STOPPING=1") {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// Gives signs of life for as long as `turns` says that the daemon does its work. Never ends.
pub async fn keep_alive<T: Future<Output = bool>>(watchdog: Watchdog, turns: impl Fn() -> T) {
    let Some(period) = watchdog.0 else { return std::future::pending().await };
    loop {
        tokio::time::sleep(period / 3).await;
        if turns().await
            && let Err(error) = tell("WATCHDOG=1")
        {
            tracing::warn!(%error, "systemd could not be told that the daemon lives");
        }
    }
}

fn tell(message: &str) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let address = match path.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}
