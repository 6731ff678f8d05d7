//! A network card as an uplink, over `AF_PACKET`.

/// A network card that an uplink uses.
#[derive(Debug)]
pub struct UplinkDevice {
    interface: String,
}

impl UplinkDevice {
    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }
}
