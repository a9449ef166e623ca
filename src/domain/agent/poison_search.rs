//! Who is to blame for a refusal that may be everybody's or one row's: something that is missing, in the schema of all rows
//! or in a trigger that only one row meets.
//!
//! The rule: a row that is refused alone is to blame if visits were stored since it was first refused alone. Until then
//! nobody is. If none are stored between two refusals, it is everybody's.

use std::collections::BTreeMap;

use uuid::Uuid;

/// Rows that were refused alone and not stored since, with the number of visits stored by then.
#[derive(Debug, Default)]
pub(super) struct PoisonSearch {
    refused: BTreeMap<Uuid, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Blame {
    ThisRow,
    Nobody,
    Everybody,
}

impl PoisonSearch {
    /// The row was refused alone, when so many visits had been stored.
    pub(super) fn refused(&mut self, id: Uuid, visits: u64) -> Blame {
        let none_got_through = self.refused.values().any(|at| *at == visits);
        let first = *self.refused.entry(id).or_insert(visits);
        if first < visits {
            Blame::ThisRow
        } else if none_got_through {
            Blame::Everybody
        } else {
            Blame::Nobody
        }
    }

    /// The row was stored, or is gone.
    pub(super) fn clear(&mut self, id: Uuid) {
        self.refused.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_to_blame_once_others_got_through_and_nobody_is_while_none_does() {
        let mut poison_search = PoisonSearch::default();
        let (row, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(poison_search.refused(row, 7), Blame::Nobody);
        assert_eq!(poison_search.refused(other, 7), Blame::Everybody);
        assert_eq!(poison_search.refused(row, 7), Blame::Everybody);
        assert_eq!(poison_search.refused(row, 8), Blame::ThisRow);
        poison_search.clear(row);
        assert_eq!(poison_search.refused(row, 9), Blame::Nobody);
    }
}
