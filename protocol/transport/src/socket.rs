//! How our TCP sockets are set up.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// Sent data that stays unacknowledged this long breaks the connection. Those above notice a dead peer by their own
/// heartbeats long before; this only frees what is left of it.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// A silent connection is probed after this long,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// again after each such interval,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// this often, before it is given up.
const KEEPALIVE_PROBES: u32 = 3;

/// No Nagle (each frame is one write and someone waits for it), and an end to dead peers.
pub(crate) fn tune(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
    Ok(())
}
