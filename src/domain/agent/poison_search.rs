//! What causes a refusal for a missing object: the schema of all rows, or a trigger that only one row fires.
//!
//! The rule: a row that is refused alone is the cause if visits were stored since it was first refused alone. Until then the
//! cause is unknown. If none are stored between two refusals, the cause is common to all rows.

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
    Unknown,
    AllRows,
}

impl PoisonSearch {
    /// The row was refused alone, after this number of visits had been stored.
    pub(super) fn refused(&mut self, id: Uuid, visits: u64) -> Blame {
        let none_got_through = self.refused.values().any(|at| *at == visits);
        let first = *self.refused.entry(id).or_insert(visits);
        if first < visits {
            Blame::ThisRow
        } else if none_got_through {
            Blame::AllRows
        } else {
            Blame::Unknown
        }
    }

    /// The row was stored or deleted.
    pub(super) fn clear(&mut self, id: Uuid) {
        self.refused.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_cause_once_others_were_stored_and_none_is_while_none_are() {
        let mut poison_search = PoisonSearch::default();
        let (row, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(poison_search.refused(row, 7), Blame::Unknown);
        assert_eq!(poison_search.refused(other, 7), Blame::AllRows);
        assert_eq!(poison_search.refused(row, 7), Blame::AllRows);
        assert_eq!(poison_search.refused(row, 8), Blame::ThisRow);
        poison_search.clear(row);
        assert_eq!(poison_search.refused(row, 9), Blame::Unknown);
    }
}
