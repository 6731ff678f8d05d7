//! What would happen to a frame.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest frame that can be traced: an Ethernet header, a tag and the largest MTU.
pub const TRACE_FRAME_BYTES_MAX: usize = 9216 + 18;

/// Where the frame is supposed to come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TraceFrom {
    /// From the guest at this port.
    Port(String),
    /// From the physical network.
    Uplink(String),
}

/// A frame to trace. Nothing is sent, counted or learned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// Where it comes from.
    pub from: TraceFrom,
    /// The frame from its destination address on, in hexadecimal digits, two a byte, without the frame check sequence.
    pub frame: String,
}

/// One step on its way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TraceStep {
    /// Which kind; stable, for programs, such as `entered` or `dropped`.
    pub step: String,
    /// The step, for people.
    pub text: String,
    /// Where a copy goes, or does not: a port, an uplink or a host, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why a copy does not go there, as counters name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// What would happen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TraceAnswer {
    /// In order.
    pub steps: Vec<TraceStep>,
    /// How many copies would leave, mirrors' copies not counted.
    pub copies: u32,
}
