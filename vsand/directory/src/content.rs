//! The directory's content, as `vsand-core` defines it, is a [`StateMachine`].

use vsand_core::directory::{Command, Outcome, Refused, State};

use crate::machine::StateMachine;

impl StateMachine for State {
    type Command = Command;
    type Response = Result<Outcome, Refused>;

    fn apply(&mut self, index: u64, command: Command) -> Self::Response {
        Self::apply(self, index, command)
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::ids::HostId;

    use super::*;

    #[test]
    fn the_content_answers_through_the_trait() {
        let mut state = State::default();
        let renew = Command::RenewLease { host: HostId::from_bytes([1; 16]) };
        let direct = State::default().apply(1, renew.clone());
        assert_eq!(StateMachine::apply(&mut state, 1, renew), direct);
        assert!(direct.is_err() && state == State::default(), "a refusal changes nothing");
    }
}
