//! virtio-blk (virtio 1.2, section 5.2) over vhost-user.
//!
//! [`BlkDevice`] is owned by the data loop, which does, each time that something happened:
//!
//! ```text
//! woken -> disarm -> control (if its eventfd is readable) -> poll -> carry out, complete -> flush_notifications
//!            ^                                                 |
//!            |  more requests, or arm() said true              | nothing left
//!            +-------------------------------------------------+--> arm() -> sleep
//! ```
//!
//! After a completion, `poll` has to be called again before sleeping: it may have unblocked the rings.

mod config;
mod device;
mod request;

pub use config::{BlkLimits, BlkSettings, CONFIG_BYTES, Sector, feature};
pub use device::{BlkDevice, CopyError, PollOutcome};
pub use request::{Request, RequestKind, SectorRange, Status};

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::error::SessionError;
use crate::event;
use crate::server::{Server, ServerSettings, SharedConfig};

/// Starts serving a block device on a listening socket: the control thread, and the device for the data loop.
pub fn serve(
    listener: UnixListener,
    settings: BlkSettings,
    server: ServerSettings,
) -> Result<(Server, BlkDevice), SessionError> {
    let config = Arc::new(SharedConfig::new(settings.config_space())?);
    let (link, port) = event::channel()?;
    let server = ServerSettings { device_features: settings.features(), queues: settings.queues, ..server };
    let server = Server::spawn(listener.into(), server, Arc::clone(&config), link)?;
    Ok((server, BlkDevice::new(settings, Some(port), config)))
}
