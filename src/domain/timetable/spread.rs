//! When within the second each row fires.

use uuid::Uuid;

use crate::domain::limits::{FIRE_PERIOD_US, ROWS_PER_SLOT, SLOT_US, SLOTS};
use crate::domain::time::DbTime;

/// How rows are spread over the second. Few rows share one instant, and so one statement; many are dealt over up to
/// [`SLOTS`] instants by their ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spread {
    slots: i64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { slots: 1 }
    }
}

impl Spread {
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
