//! Which session stays when both ends have dialled.
//!
//! Either end dials when it has no session, so that one of them suffices which can reach the other. Of two dials
//! that cross, the lower SPIFFE ID's wins at both ends, in whatever order they complete there; otherwise the newest
//! completed session counts, for its dialler knows of none that is older.

use std::time::Duration;

use crate::clock::BootTime;

/// A session that has completed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completed {
    /// The end with the lower SPIFFE ID has dialled it.
    pub(super) by_lower: bool,
    /// When it completed at this end.
    pub(super) at: BootTime,
}

impl Completed {
    /// Whether this one gives way to `new`. A dial takes up to `setup`: one of the other end that completes within
    /// that of ours may have begun before it knew of ours.
    pub(super) fn gives_way_to(self, new: Self, setup: Duration) -> bool {
        let crossed = new.at.since(self.at) < setup;
        !(crossed && self.by_lower && !new.by_lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP: Duration = Duration::from_secs(5);

    fn completed(by_lower: bool, seconds: u64) -> Completed {
        Completed { by_lower, at: BootTime(seconds * 1_000_000_000) }
    }

    #[test]
    fn the_lower_ends_dial_wins_if_they_cross_and_else_the_newest() {
        assert!(!completed(true, 10).gives_way_to(completed(false, 12), SETUP));
        assert!(completed(false, 10).gives_way_to(completed(true, 12), SETUP));
        assert!(completed(true, 10).gives_way_to(completed(false, 15), SETUP), "a restarted node");
        assert!(completed(true, 10).gives_way_to(completed(true, 11), SETUP), "a renewal");
        assert!(completed(false, 10).gives_way_to(completed(false, 11), SETUP), "a renewal");
    }

    /// What one end sees of the two sessions: L is dialled by the lower one.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct End {
        current: Option<Completed>,
        l: Seen,
        h: Seen,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    enum Seen {
        #[default]
        Dialling,
        Up,
        Closed,
    }

    impl End {
        fn seen(&mut self, by_lower: bool) -> &mut Seen {
            if by_lower { &mut self.l } else { &mut self.h }
        }

        /// As the table does it.
        fn complete(&mut self, by_lower: bool, now: u64) {
            let new = completed(by_lower, now);
            match self.current.filter(|standing| !standing.gives_way_to(new, SETUP)) {
                Some(_) => *self.seen(by_lower) = Seen::Closed,
                None => {
                    if let Some(older) = self.current.replace(new) {
                        *self.seen(older.by_lower) = Seen::Closed;
                    }
                    *self.seen(by_lower) = Seen::Up;
                }
            }
        }

        /// The other end has closed it.
        fn lose(&mut self, by_lower: bool) {
            *self.seen(by_lower) = Seen::Closed;
            self.current = self.current.filter(|current| current.by_lower != by_lower);
        }
    }

    /// Every order in which two crossing dials complete at both ends and closings arrive.
    fn explore(ends: [End; 2], now: u64, visited: &mut u64) {
        let mut quiet = true;
        for (at, by_lower) in [(0, true), (0, false), (1, true), (1, false)] {
            let [mut here, mut there] = [ends, ends];
            let (mine, other) = (*here[at].seen(by_lower), *there[1 - at].seen(by_lower));
            match (mine, other) {
                (Seen::Dialling, Seen::Dialling | Seen::Up) => here[at].complete(by_lower, now),
                (Seen::Dialling | Seen::Up, Seen::Closed) => here[at].lose(by_lower),
                _ => continue,
            }
            quiet = false;
            explore(here, now + 1, visited);
        }
        if quiet {
            *visited += 1;
            for end in ends {
                assert_eq!((end.l, end.h), (Seen::Up, Seen::Closed), "{ends:?}");
            }
        }
    }

    #[test]
    fn in_whatever_order_two_dials_cross_both_ends_keep_the_lower_ones() {
        let mut visited = 0;
        explore([End::default(); 2], 1, &mut visited);
        assert!(visited > 10, "{visited}");
    }
}
