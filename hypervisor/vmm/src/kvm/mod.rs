//! The one place that talks to KVM. It knows no device: exits go to a [`crate::machine::Machine`].

pub mod error;
pub mod host;
pub mod interrupts;
pub mod processor;
pub mod vm;

pub use error::KvmError;
pub use host::Host;
pub use vm::Vm;
