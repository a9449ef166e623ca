//! The one source of a visit's randomness: 128 bits made of (distribution, number), the same ones
//! on every machine.

use rand_pcg::Pcg64Mcg;
use uuid::Uuid;

use crate::domain::time::DbTime;

/// Where the two halves start: the fractional digits of pi, as they come.
const HALVES: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];

/// RFC 9562, section 5.7: the bits of a version 7 UUID.
const MILLIS_BITS: u32 = 48;
const TAIL_BITS: u32 = 74;
const TAIL_LOW_BITS: u32 = 62;
const VERSION: u128 = 0x7 << 76;
const VARIANT: u128 = 0b10 << TAIL_LOW_BITS;

/// A hash of (distribution, number).
///
/// For one distribution the first half is a bijection of the number, and the id holds all of it:
/// so that no two of its visits share an id.
#[derive(Clone, Copy)]
pub(super) struct Seed(u128);

impl Seed {
    pub(super) fn of(distribution: Uuid, number: i64) -> Self {
        let (high, low) = distribution.as_u64_pair();
        let [first, second] = HALVES
            .map(|start| {
                [high, low, number.cast_unsigned()]
                    .into_iter()
                    .fold(start, absorb)
            })
            .map(u128::from);
        Self(first << u64::BITS | second)
    }

    /// The generator that every attribute of the visit is drawn from.
    pub(super) fn random(self) -> Pcg64Mcg {
        Pcg64Mcg::new(self.0)
    }

    /// A version 7 UUID: sorted by the millisecond of the moment (one before 1970 counts as 1970).
    pub(super) fn id(self, visited_at: DbTime) -> Uuid {
        let millis = u128::try_from(visited_at.as_micros() / 1_000).unwrap_or(0);
        let tail = self.0 >> (u128::BITS - TAIL_BITS);
        let tail_high = tail >> TAIL_LOW_BITS;
        let tail_low = tail & ((1 << TAIL_LOW_BITS) - 1);
        Uuid::from_u128(
            millis << (u128::BITS - MILLIS_BITS) | VERSION | tail_high << 64 | VARIANT | tail_low,
        )
    }
}

/// Takes one more word into a hash; a bijection of the word.
///
/// The finalizer is "variant 13" of David Stafford's "Better Bit Mixing", the one of `SplitMix64`.
fn absorb(hash: u64, word: u64) -> u64 {
    let mixed = hash ^ word;
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
