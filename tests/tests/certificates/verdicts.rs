//! Where another verifier is of another opinion than ours: all of it known, with the reason.

use std::collections::BTreeSet;

use crate::matrix::Row;

/// A row's name or one of our reasons, and why the other verifier does not agree.
type Known = (&'static str, &'static str);

/// Everything that is not listed must be judged alike.
pub(crate) struct Differences {
    /// Our reasons for which they refuse nobody.
    pub(crate) unknown_to_them: &'static [Known],
    /// Rows of such a reason that they refuse for one of their own.
    pub(crate) refused_all_the_same: &'static [Known],
    /// Rows of other reasons that they accept.
    pub(crate) only_we_refuse: &'static [Known],
    /// Rows that we accept.
    pub(crate) only_they_refuse: &'static [Known],
}

impl Differences {
    /// Compares a verdict on each row (`Err`: refused, and why) with ours.
    pub(crate) fn check(&self, verdicts: &[(&Row, Result<(), String>)]) {
        let listed = |list: &[Known], name: &str| list.iter().any(|(known, _why)| *known == name);
        let mut wrong = Vec::new();
        let mut met = BTreeSet::new();
        for (row, theirs) in verdicts {
            let accepts = match row.expected {
                None => !listed(self.only_they_refuse, row.name),
                Some(reason) if listed(self.unknown_to_them, reason) => {
                    !listed(self.refused_all_the_same, row.name)
                }
                Some(_) => listed(self.only_we_refuse, row.name),
            };
            if theirs.is_ok() != accepts {
                wrong.push(format!("{}: {theirs:?}, ours {:?}", row.name, row.expected));
            }
            met.insert(row.name);
            met.extend(row.expected);
        }
        let lists =
            [self.unknown_to_them, self.refused_all_the_same, self.only_we_refuse, self.only_they_refuse];
        let stray: Vec<_> = lists.concat().into_iter().filter(|(known, _)| !met.contains(known)).collect();
        assert!(wrong.is_empty() && stray.is_empty(), "{wrong:#?}; listed but not there: {stray:?}");
    }
}
