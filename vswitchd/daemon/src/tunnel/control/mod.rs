//! Control connections: who is there, and where each address is.

mod types;

pub use types::{MeshCommand, MeshEvent, MeshPeer, PathView, PeerView, Revision};
