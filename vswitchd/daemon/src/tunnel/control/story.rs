//! What a peer has to say, over whichever of its connections, in order.
//!
//! All of it comes between a beginning and an end, on one connection, with a generation that is higher than any before from
//! the same start of its daemon. Changes count only on the connection where the last story ended: what was under way on
//! another when it began is older than the story.

use ferro_protocol::net::{Announcement, Vni};

use super::link::LinkId;
use super::message::ANNOUNCEMENTS_MAX;

/// As far as it has come.
#[derive(Debug)]
struct Story {
    from: LinkId,
    generation: u64,
    networks: Vec<Vni>,
    announcements: Vec<Announcement>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Listener {
    /// The generation that was heard to its end, and on which connection.
    heard: Option<(u64, LinkId)>,
    story: Option<Story>,
}

impl Listener {
    /// Whether changes on this connection count.
    pub(super) fn believes(&self, from: LinkId) -> bool {
        self.heard.is_some_and(|(_, on)| on == from)
    }

    pub(super) fn begin(&mut self, from: LinkId, generation: u64, networks: Vec<Vni>) {
        let known = self.heard.map(|(known, _)| known).max(self.story.as_ref().map(|it| it.generation));
        if known.is_none_or(|known| generation > known) {
            self.story = Some(Story { from, generation, networks, announcements: Vec::new() });
        }
    }

    pub(super) fn part(&mut self, from: LinkId, part: Vec<Announcement>) -> Result<(), &'static str> {
        if let Some(story) = self.story.as_mut().filter(|story| story.from == from) {
            if story.announcements.len() + part.len() > ANNOUNCEMENTS_MAX {
                return Err("it announces more addresses than any host may have");
            }
            story.announcements.extend(part);
        }
        Ok(())
    }

    /// All that it has said, if this is the end of what began last.
    pub(super) fn end(&mut self, from: LinkId) -> Option<(Vec<Vni>, Vec<Announcement>)> {
        let story = self.story.take_if(|story| story.from == from)?;
        self.heard = Some((story.generation, from));
        Some((story.networks, story.announcements))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: LinkId = LinkId(1);
    const NEW: LinkId = LinkId(2);

    #[test]
    fn what_comes_late_on_another_path_is_not_believed() {
        let mut it = Listener::default();
        assert!(!it.believes(OLD), "nothing before the first story");
        it.begin(OLD, 1, Vec::new());
        assert!(!it.believes(OLD) && it.end(NEW).is_none());
        assert!(it.end(OLD).is_some() && it.believes(OLD));
        let vni = Vni::new(7).unwrap();
        it.begin(NEW, 2, vec![vni]);
        assert!(it.believes(OLD), "until the new story is told");
        assert_eq!(it.end(NEW), Some((vec![vni], Vec::new())));
        assert!(it.believes(NEW) && !it.believes(OLD));
        // The old story, told late, changes nothing.
        it.begin(OLD, 1, Vec::new());
        assert!(it.end(OLD).is_none() && it.believes(NEW));
    }

    #[test]
    fn a_story_has_a_bound() {
        let announcement = Announcement {
            vni: Vni::new(7).unwrap(),
            lanes: ferro_protocol::net::Lanes::All,
            mac: ferro_protocol::net::Mac([2; 6]),
            ips: Vec::new(),
            port: "p".parse().unwrap(),
            sequence: ferro_protocol::net::Sequence(1),
        };
        let mut it = Listener::default();
        it.begin(OLD, 1, Vec::new());
        assert_eq!(it.part(OLD, vec![announcement.clone(); ANNOUNCEMENTS_MAX]), Ok(()));
        assert!(it.part(OLD, vec![announcement]).is_err());
    }
}
