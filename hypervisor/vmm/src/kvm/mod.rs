//! The one place that talks to KVM. It knows no device: exits go to a [`crate::machine::Machine`].

pub mod error;
mod gate;
pub mod host;
pub mod interrupts;
pub mod processor;
pub mod processors;
pub mod vm;

pub use error::KvmError;
pub use host::Host;
pub use processors::Processors;
pub use vm::Vm;
