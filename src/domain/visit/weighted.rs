//! One item out of many, by weight. Integers only: the same draw picks the same item everywhere.

/// Items with the share of all 2^64 draws that each of them takes. Never empty.
#[derive(Debug)]
pub(super) struct Weighted<T> {
    items: Vec<T>,
    /// Where the draws of each item but the last end; never falling, one shorter than `items`.
    edges: Vec<u64>,
}

impl<T> Weighted<T> {
    /// `None` where nothing has a weight. Exact to one draw in 2^64, or where the weights together
    /// do not fit 64 bits, to as many bits of them as do.
    pub(super) fn new(weighted: impl IntoIterator<Item = (T, u64)>) -> Option<Self> {
        let (items, weights): (Vec<T>, Vec<u64>) = weighted
            .into_iter()
            .filter(|(_, weight)| *weight > 0)
            .unzip();
        let total: u128 = weights.iter().copied().map(u128::from).sum();
        let excess_bits = u64::BITS.saturating_sub(total.leading_zeros());
        let others = weights.len().checked_sub(1)?;
        let edges = weights
            .iter()
            .take(others)
            .scan(0, |passed: &mut u128, weight| {
                *passed += u128::from(*weight);
                let edge = ((*passed >> excess_bits) << u64::BITS) / (total >> excess_bits);
                Some(u64::try_from(edge).unwrap_or(u64::MAX))
            })
            .collect();
        Some(Self { items, edges })
    }

    /// One item, picked by every draw.
    pub(super) fn certain(item: T) -> Self {
        Self {
            items: vec![item],
            edges: Vec::new(),
        }
    }

    /// The item of a draw that is uniform over all of `u64`.
    pub(super) fn pick(&self, draw: u64) -> &T {
        let at = self.edges.partition_point(|edge| *edge <= draw);
        self.items
            .get(at)
            .expect("there is one edge less than items")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_item_has_its_share_of_the_draws_to_the_last_one() {
        let halves = Weighted::new([("low", 1), ("high", 1)]).expect("weights");
        assert_eq!(*halves.pick(0), "low");
        assert_eq!(*halves.pick((1 << 63) - 1), "low");
        assert_eq!(*halves.pick(1 << 63), "high");
        assert_eq!(*halves.pick(u64::MAX), "high");
    }

    #[test]
    fn an_item_without_weight_is_never_picked() {
        let weighted = Weighted::new([("a", 0), ("b", 1), ("c", 0)]).expect("weights");
        assert_eq!(*weighted.pick(0), "b");
        assert_eq!(*weighted.pick(u64::MAX), "b");
    }

    #[test]
    fn nothing_to_pick_from_is_no_choice() {
        assert!(Weighted::<&str>::new([]).is_none());
        assert!(Weighted::new([("a", 0)]).is_none());
    }

    #[test]
    fn weights_that_together_exceed_64_bits_keep_their_proportion() {
        let thirds = Weighted::new([(1, u64::MAX), (2, u64::MAX), (3, u64::MAX)]).expect("weights");
        let third = u64::MAX / 3;
        assert_eq!(*thirds.pick(third - 8), 1);
        assert_eq!(*thirds.pick(third + 8), 2);
        assert_eq!(*thirds.pick(2 * third + 8), 3);
    }

    proptest! {
        #[test]
        fn a_pick_is_the_item_whose_exact_share_holds_the_draw(
            weights in prop::collection::vec(0_u64..1_000_000_000, 1..40),
            draw: u64,
        ) {
            let total: u128 = weights.iter().copied().map(u128::from).sum();
            prop_assume!(total > 0);
            let weighted = Weighted::new(weights.iter().copied().enumerate()).expect("weights");

            let picked = *weighted.pick(draw);

            let before: u128 = weights.iter().take(picked).copied().map(u128::from).sum();
            let through = before + u128::from(weights[picked]);
            prop_assert!((before << 64) / total <= u128::from(draw));
            prop_assert!(u128::from(draw) < (through << 64) / total);
        }
    }
}
