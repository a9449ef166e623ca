//! Realtime, as one agent gets it: a channel that goes down, drops, delays and reorders events, and that can be joined
//! and yet silent.

/// The state of one agent's channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Feed {
    pub(super) live: bool,
    /// Joined, but nothing comes.
    pub(super) silent: bool,
    /// Only a new socket helps.
    pub(super) stubborn: bool,
    /// Events of an older channel are lost with it.
    pub(super) channel: u32,
}

impl Feed {
    pub(super) fn down(&mut self) {
        self.live = false;
        self.channel += 1;
    }

    /// Joined anew: mostly that helps.
    pub(super) fn join(&mut self, new_socket: bool) {
        self.live = true;
        if new_socket || !self.stubborn {
            self.silent = false;
            self.stubborn = false;
        }
    }

    pub(super) fn delivers(self) -> bool {
        self.live && !self.silent
    }
}
