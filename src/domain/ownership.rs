//! Which rows are this agent's, where several share the table: rendezvous hashing.
//!
//! A row belongs to the agent with the highest weight of (agent, row) among those that are there, so that each agent finds the
//! same owner without a word between them, and one that goes or comes moves its own rows only. Agents may see each other a
//! second apart; two that both think a row theirs cost one a refused batch, since the database takes each visit once.
//!
//! Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; the mixing is that of `SplitMix64`.

use uuid::Uuid;

/// Another agent, as it was seen at a beat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAgent {
    /// New at each start of its process.
    pub id: Uuid,
    /// It knows the rows, and its batches get through.
    pub serving: bool,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ownership {
    me: Uuid,
    /// Those that rows are shared with, in the order of their ids.
    others: Vec<Uuid>,
}

impl Ownership {
    /// Every row is `me`'s.
    pub fn alone(me: Uuid) -> Self {
        Self {
            me,
            others: Vec::new(),
        }
    }

    /// The share of `me` beside its peers: only those that serve count, unless nobody does, `me` included.
    pub fn beside(me: Uuid, serving: bool, peers: &[PeerAgent]) -> Self {
        let somebody = serving || peers.iter().any(|peer| peer.serving);
        let mut others: Vec<Uuid> = peers
            .iter()
            .filter(|peer| peer.id != me && (peer.serving || !somebody))
            .map(|peer| peer.id)
            .collect();
        others.sort_unstable();
        Self { me, others }
    }

    /// Whether the row is this agent's.
    pub fn owns(&self, row: Uuid) -> bool {
        let mine = weight(self.me, row);
        self.others.iter().all(|other| weight(*other, row) < mine)
    }

    /// Agents that rows are shared among, this one included.
    pub fn agents(&self) -> usize {
        self.others.len() + 1
    }
}

/// Equal weights, should they ever be, are told apart by the agents' ids.
fn weight(agent: Uuid, row: Uuid) -> (u64, Uuid) {
    let (a, b) = agent.as_u64_pair();
    let (c, d) = row.as_u64_pair();
    (mix(mix(mix(mix(a) ^ b) ^ c) ^ d), agent)
}

/// The output function of `SplitMix64` (Steele, Lea and Flood, 2014), one step on from `x`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn serving(ids: &[Uuid]) -> Vec<PeerAgent> {
        let peer = |id: &Uuid| PeerAgent {
            id: *id,
            serving: true,
        };
        ids.iter().map(peer).collect()
    }

    fn ownership(me: Uuid, all: &[Uuid]) -> Ownership {
        Ownership::beside(me, true, &serving(all))
    }

    fn ids(words: Vec<u128>) -> Vec<Uuid> {
        words.into_iter().map(Uuid::from_u128).collect()
    }

    proptest! {
        #[test]
        fn each_row_belongs_to_exactly_one_of_the_agents(
            agents in prop::collection::hash_set(any::<u128>(), 1..6),
            row in any::<u128>(),
        ) {
            let agents = ids(agents.into_iter().collect());
            let row = Uuid::from_u128(row);
            let owners = agents.iter().filter(|me| ownership(**me, &agents).owns(row)).count();
            prop_assert_eq!(owners, 1);
        }

        #[test]
        fn who_goes_leaves_the_rows_of_all_others_where_they_are(
            agents in prop::collection::hash_set(any::<u128>(), 2..6),
            row in any::<u128>(),
        ) {
            let agents = ids(agents.into_iter().collect());
            let (gone, rest) = agents.split_first().expect("two at least");
            let row = Uuid::from_u128(row);
            for me in rest {
                let (before, after) = (ownership(*me, &agents).owns(row), ownership(*me, rest).owns(row));
                prop_assert!(!before || after);
                prop_assert!(before || !after || ownership(*gone, &agents).owns(row), "it was the gone one's");
            }
        }
    }

    #[test]
    fn agents_of_all_versions_weigh_alike() {
        let agent = Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555);
        let row = Uuid::from_u128(0xaaaa_aaaa_bbbb_cccc_dddd_eeee_eeee_eeee);
        assert_eq!(weight(agent, row), (0xd819_a881_5187_73a8, agent));
    }

    #[test]
    fn three_agents_get_a_third_of_the_rows_each_also_where_ids_count_up() {
        let agents = ids(vec![7, 8, 9]);
        for me in &agents {
            let ownership = ownership(*me, &agents);
            let rows = (0..9_000_u128).filter(|row| ownership.owns(Uuid::from_u128(*row)));
            let rows = rows.count();
            assert!((2_850..=3_150).contains(&rows), "{rows} of 9,000");
        }
    }

    #[test]
    fn who_does_not_serve_gets_no_rows_of_those_who_do_but_keeps_trying_its_own() {
        let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let peer = |serving| PeerAgent { id: other, serving };
        assert_eq!(
            Ownership::beside(me, true, &[peer(false)]),
            Ownership::alone(me),
            "it does not serve"
        );
        assert_eq!(Ownership::beside(me, false, &[peer(true)]).agents(), 2);
    }

    #[test]
    fn where_nobody_serves_all_share_so_that_a_slow_database_is_not_asked_twice() {
        let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let peers = [PeerAgent {
            id: other,
            serving: false,
        }];
        assert_eq!(Ownership::beside(me, false, &peers).agents(), 2);
    }
}
