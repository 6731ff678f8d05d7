//! Changes of the network's configuration: any number at once, all or none.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{GroupSpec, MirrorSpec, PortSpec, SwitchSpec};

/// One change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Adds a switch.
    AddSwitch(SwitchSpec),
    /// Replaces the switch of the same name.
    SetSwitch(SwitchSpec),
    /// Removes a switch.
    RemoveSwitch(String),
    /// Adds a port group.
    AddGroup(GroupSpec),
    /// Replaces the port group of the same name.
    SetGroup(GroupSpec),
    /// Removes a port group.
    RemoveGroup(String),
    /// Adds a port.
    AddPort(PortSpec),
    /// Replaces the port of the same name.
    SetPort(PortSpec),
    /// Removes a port.
    RemovePort(String),
    /// Adds a mirror.
    AddMirror(MirrorSpec),
    /// Replaces the mirror of the same name.
    SetMirror(MirrorSpec),
    /// Removes a mirror.
    RemoveMirror(String),
}
