//! When within the second each row fires.

use uuid::Uuid;

use crate::domain::limits::{FIRE_PERIOD_US, ROWS_PER_SLOT, SLOT_US, SLOTS};
use crate::domain::time::DbTime;

/// How rows are spread over the second. Few rows share one instant, and so one statement; many are dealt over up to
/// [`SLOTS`] instants by their ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PhaseSlots {
    slots: i64,
}

impl Default for PhaseSlots {
    fn default() -> Self {
        Self { slots: 1 }
    }
}

impl PhaseSlots {
    /// The numbers of slots that divide a second evenly.
    const STEPS: [i64; 6] = [1, 2, 5, 10, 25, SLOTS];

    /// Fits the slots to so many running rows; says whether that changed them. It shrinks late, so that it does not flap.
    pub(super) fn fit(&mut self, running: usize) -> bool {
        let enough = |rows_per_slot: usize| {
            let holds =
                |slots: &&i64| usize::try_from(**slots).unwrap_or(1) * rows_per_slot >= running;
            Self::STEPS.iter().find(holds).copied().unwrap_or(SLOTS)
        };
        let (grown, shrunk) = (enough(ROWS_PER_SLOT), enough(ROWS_PER_SLOT / 2));
        let before = self.slots;
        self.slots = if grown > before {
            grown
        } else {
            before.min(shrunk)
        };
        self.slots != before
    }

    /// The row's phase: microseconds after the full second.
    fn phase(self, id: Uuid) -> i64 {
        let (high, low) = id.as_u64_pair();
        let mixed = (high ^ low.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let fine = i64::try_from(mixed).unwrap_or(0) % SLOTS;
        let per_step = SLOTS / self.slots;
        fine / per_step * per_step * SLOT_US
    }

    pub(super) fn at_or_before(self, id: Uuid, at: DbTime) -> DbTime {
        let phase = self.phase(id);
        let since = (at.as_micros().saturating_sub(phase)).rem_euclid(FIRE_PERIOD_US);
        at.plus_micros(-since)
    }

    pub(super) fn at_or_after(self, id: Uuid, at: DbTime) -> DbTime {
        self.at_or_before(id, at.plus_micros(FIRE_PERIOD_US - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_instants_are_as_many_as_the_rows_need_and_divide_the_second_evenly() {
        for (running, slots) in [(1, 1), (50, 1), (51, 2), (500, 10), (25_000, SLOTS)] {
            let mut phases = PhaseSlots::default();
            assert_eq!(phases.fit(running), slots > 1, "{running} rows");
            assert!(!phases.fit(running), "and stays so");
            let phases: BTreeSet<i64> = (0..2_000)
                .map(|row| phases.phase(Uuid::from_u128(row)))
                .collect();
            let even = (0..slots).map(|slot| slot * FIRE_PERIOD_US / slots);
            assert_eq!(phases, even.collect(), "{running} rows");
        }
    }

    #[test]
    fn it_shrinks_when_half_the_rows_per_instant_are_left_and_not_before() {
        let mut phases = PhaseSlots::default();
        phases.fit(250);
        assert!(!phases.fit(101), "five instants hold 25 rows each, still");
        assert!(phases.fit(50));
        assert_eq!(phases, PhaseSlots { slots: 2 });
    }

    #[test]
    fn a_row_fires_at_its_phase_of_each_second() {
        let mut phases = PhaseSlots::default();
        phases.fit(100_000);
        let row = Uuid::from_u128(77);
        let phase = phases.phase(row);
        let second = DbTime::from_micros(1_800_000_000_000_000);
        let fire = second.plus_micros(phase);
        assert_eq!(phases.at_or_before(row, fire), fire);
        assert_eq!(phases.at_or_after(row, fire), fire);
        assert_eq!(
            phases.at_or_after(row, fire.plus_micros(1)),
            fire.plus_micros(FIRE_PERIOD_US)
        );
        assert_eq!(
            phases.at_or_before(row, fire.plus_micros(-1)),
            fire.plus_micros(-FIRE_PERIOD_US)
        );
    }
}
