//! What the worker is given to move frames through: the network cards that the network names, the devices of ports that are to
//! be attached. What can't be had now is noted, and asked for again the next time.

use std::collections::BTreeSet;

use ferro_protocol::api::switch::Attachment;
use ferro_protocol::net::NetName;

use super::Steward;
use crate::data::port::Command;
use crate::plane::devices;

impl Steward {
    /// Opens what the network names and closes what it does not name any more.
    pub(super) async fn uplinks(&mut self) {
        let wanted: BTreeSet<NetName> = {
            let state = self.shared.state();
            state.network.uplinks().iter().map(|uplink| uplink.name.clone()).collect()
        };
        for name in self.cards.difference(&wanted).cloned().collect::<Vec<_>>() {
            let told = name.clone();
            if self.shared.ask(move |answer| Command::RemoveUplink { name: told, answer }).await.is_some() {
                self.cards.remove(&name);
            }
        }
        for name in wanted.difference(&self.cards.clone()) {
            let trouble = self.open(name).await.err();
            if trouble.is_none() {
                self.cards.insert(name.clone());
            }
            let mut state = self.shared.state();
            let uplink = state.uplinks.entry(name.clone()).or_default();
            uplink.open = trouble.is_none();
            if uplink.trouble != trouble {
                if let Some(why) = &trouble {
                    tracing::warn!(uplink = %name, why, "an uplink can't be opened; it is tried again");
                } else {
                    tracing::info!(uplink = %name, "an uplink is open");
                }
                uplink.trouble = trouble;
            }
        }
    }

    /// Gives a network card to the worker; why not, if it can't be.
    async fn open(&self, name: &NetName) -> Result<(), String> {
        let interface = name.to_string();
        let opened = tokio::task::spawn_blocking(move || devices::uplink(&interface)).await;
        let device = opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let name = name.clone();
        let taken = self.shared.ask(move |answer| Command::AddUplink { name, device, answer }).await;
        taken.ok_or_else(|| "the worker did not take it".to_owned())
    }

    /// Ports that are to be attached and have no device get one.
    pub(super) async fn ports(&mut self) {
        let missing: Vec<(NetName, Attachment)> = {
            let state = self.shared.state();
            let missing = state.ports.iter().filter(|(name, port)| {
                !port.plugged && state.configured && state.network.ports().contains_key(*name)
            });
            missing.map(|(name, port)| (name.clone(), port.to.clone())).collect()
        };
        for (name, to) in missing {
            // The API attaches too, and only one of us at a time.
            let _attaching = self.shared.attaching.lock().await;
            let still =
                self.shared.state().ports.get(&name).is_some_and(|port| !port.plugged && port.to == to);
            if !still {
                continue;
            }
            let plugged = self.shared.plug(&name, &to).await;
            if let Ok(true) = plugged {
                // It is written down. A worker that is gone is noticed elsewhere.
                let _gone = self.shared.persist(&name, true).await;
            }
            if let Err(error) = plugged {
                let mut state = self.shared.state();
                if let Some(port) = state.ports.get_mut(&name)
                    && port.trouble.as_ref() != Some(&error.message)
                {
                    tracing::warn!(port = %name, why = %error.message, "a port can't be attached; it is tried again");
                    port.trouble = Some(error.message);
                }
            }
        }
    }
}
