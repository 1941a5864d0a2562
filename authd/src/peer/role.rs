//! Which end of a connection somebody is.

/// An end of a connection, with its number in what a MAC covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client = 1,
    Server = 2,
}

impl Role {
    /// The other end's.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}
