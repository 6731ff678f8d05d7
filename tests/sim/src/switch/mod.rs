//! Networks of up to eight hosts, made of the real `vswitch-core`: ports of all kinds, tunnels whose datagrams get lost, a
//! physical switch with several links to each host, stations of others' behind it; and frames of every kind while
//! machines move, links are cut and the configuration changes.
//!
//! A seed is a run. Beside it stands a model (`model`) that knows the specification as it was written and nothing of how
//! the switch is built. What is checked:
//! - no frame reaches a port to which the model denies it, and none leaves a host for one without ports in its network;
//! - every frame that the model requires arrives (it requires nothing while news of a move are on their way, or after a
//!   datagram was lost);
//! - none arrives twice, none goes round;
//! - what arrives is what was sent, apart from its tag, which is the one that the receiver is to see; of a super-frame with
//!   a gap, the segments that came;
//! - a question for a neighbour is answered by the switch only with the truth, and only to who may reach that neighbour;
//! - what leaves a shaped port keeps to its rate in every span of time.

mod campaign;
mod changes;
mod check;
mod dice;
mod frames;
mod host;
mod model;
mod physical;
mod rates;
mod topology;
mod traffic;
mod world;

pub use campaign::{Settings, Summary, campaign};
pub use world::{Options, Outcome, run};
