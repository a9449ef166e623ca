//! Believable visits: everything that a generated visit carries beside its number and its moment.
//!
//! A visit is drawn from a seed made of (distribution, number) alone, so a retry, another agent and
//! another machine draw the same one. It does not decide how many visits there are nor when
//! (the curve does), and it reads nothing: the catalogue of page paths comes in as data.
//!
//! Invariants:
//! - same seed and same catalogue, same visit; an edit of the catalogue changes page paths alone,
//!   since every attribute has its own place in the order of the draws;
//! - within one distribution no two numbers share an id, whatever their moments;
//! - a draw allocates nothing.
//!
//! The SQL functions draw the same shapes from the same tables, not the same values.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::Rng;
use rand_distr::{Distribution, LogNormal};
use uuid::Uuid;

use crate::domain::time::DbTime;

use self::seed::Seed;
use self::traffic::Device;
pub use self::traffic::{REFERRERS, Referrer, USER_AGENTS, UserAgent};
use self::weighted::Weighted;

mod seed;
#[cfg(test)]
mod tests;
mod traffic;
mod weighted;

/// How many parts a weight of 1 in the catalogue has; a [`PagePath`] counts whole parts.
pub const PARTS_PER_WEIGHT: u64 = 1_000_000;

/// The page path of every visit where the catalogue offers none.
pub const FALLBACK_PATH: &str = "/";

/// The least and the greatest `session_duration`, in seconds.
pub const SESSION_SECONDS: RangeInclusive<i32> = 5..=3600;

/// The median of `session_duration`, in seconds.
pub const SESSION_MEDIAN_SECONDS: i32 = 90;

/// The standard deviation of the logarithm of `session_duration`.
pub const SESSION_SIGMA: f64 = 1.05;

/// How often a session outside of [`SESSION_SECONDS`] is drawn again; one draw in 300 is outside,
/// so that all of them are is not to be seen in 10^19 visits.
const SESSION_DRAWS_MAX: usize = 8;

/// One row of `visit_page_paths`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PagePath {
    /// As it is stored in `store_visits.page_path`.
    pub path: String,
    /// The row's weight in [`PARTS_PER_WEIGHT`]; a path of weight 0 is never drawn.
    pub weight_parts: u64,
    /// The partner whose visits alone go here; `None`: those of all partners without own rows.
    pub partner: Option<Uuid>,
}

/// One row of `store_visits`, but for the partner and the distribution, which the caller knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit<'catalogue> {
    /// UUID of version 7: milliseconds of `visited_at`, then a hash of (distribution, number).
    pub id: Uuid,
    /// The number within the distribution.
    pub number: i64,
    /// The moment that the caller gave.
    pub visited_at: DbTime,
    /// In seconds.
    pub session_duration: i32,
    /// From the catalogue of the partner.
    pub page_path: &'catalogue str,
    /// A browser of [`USER_AGENTS`].
    pub user_agent: &'static str,
    /// A site of [`REFERRERS`]; `None`: the visitor came directly.
    pub referrer: Option<&'static str>,
    /// `desktop`, `mobile` or `tablet`, as the user agent says.
    pub device_type: &'static str,
}

/// Draws visits from one reading of the catalogue.
#[derive(Debug)]
pub struct Generator {
    general_paths: Weighted<String>,
    own_paths: BTreeMap<Uuid, Weighted<String>>,
    user_agents: Weighted<&'static UserAgent>,
    desktop_referrers: Weighted<Option<&'static str>>,
    handheld_referrers: Weighted<Option<&'static str>>,
    session_seconds: LogNormal<f64>,
}

impl Generator {
    /// A partner's own rows are used in place of the general ones, not beside them. Where neither
    /// has any weight, every path is [`FALLBACK_PATH`]. The order of the rows does not matter.
    pub fn new(catalogue: &[PagePath]) -> Self {
        let mut by_partner: BTreeMap<Option<Uuid>, Vec<(String, u64)>> = BTreeMap::new();
        for row in catalogue {
            let rows = by_partner.entry(row.partner).or_default();
            rows.push((row.path.clone(), row.weight_parts));
        }
        for rows in by_partner.values_mut() {
            rows.sort_unstable();
        }
        let general_paths = by_partner.remove(&None).and_then(Weighted::new);
        let own_paths = by_partner
            .into_iter()
            .filter_map(|(partner, rows)| Some((partner?, Weighted::new(rows)?)))
            .collect();
        Self {
            general_paths: general_paths
                .unwrap_or_else(|| Weighted::certain(FALLBACK_PATH.to_owned())),
            own_paths,
            user_agents: traffic::user_agents(),
            desktop_referrers: traffic::referrers(Device::Desktop),
            handheld_referrers: traffic::referrers(Device::Mobile),
            session_seconds: LogNormal::new(f64::from(SESSION_MEDIAN_SECONDS).ln(), SESSION_SIGMA)
                .expect("the median is positive and the deviation finite"),
        }
    }

    /// The visit of this number of a distribution of this partner, at a moment that is given.
    ///
    /// The moment enters nothing but `visited_at` and the time in the id.
    pub fn visit(
        &self,
        distribution: Uuid,
        partner: Uuid,
        number: i64,
        visited_at: DbTime,
    ) -> Visit<'_> {
        let seed = Seed::of(distribution, number);
        let mut random = seed.random();

        // The order of the draws is part of the visit; the one of unknown length comes last.
        let agent = self.user_agents.pick(random.next_u64());
        let referrer = self.referrers(agent.device).pick(random.next_u64());
        let page_path = self.paths(partner).pick(random.next_u64());
        let session_duration = self.session_duration(&mut random);

        Visit {
            id: seed.id(visited_at),
            number,
            visited_at,
            session_duration,
            page_path,
            user_agent: agent.text,
            referrer: *referrer,
            device_type: agent.device.name(),
        }
    }

    fn paths(&self, partner: Uuid) -> &Weighted<String> {
        self.own_paths.get(&partner).unwrap_or(&self.general_paths)
    }

    fn referrers(&self, device: Device) -> &Weighted<Option<&'static str>> {
        match device {
            Device::Desktop => &self.desktop_referrers,
            Device::Mobile | Device::Tablet => &self.handheld_referrers,
        }
    }

    /// Whole seconds, log-normal, cut to [`SESSION_SECONDS`] by drawing again. The one use of
    /// floating point: a last bit that differs between machines is lost with the fraction.
    fn session_duration(&self, random: &mut impl Rng) -> i32 {
        (0..SESSION_DRAWS_MAX)
            .filter_map(|_| whole_seconds(self.session_seconds.sample(random)))
            .find(|seconds| SESSION_SECONDS.contains(seconds))
            .unwrap_or(SESSION_MEDIAN_SECONDS)
    }
}

/// The whole seconds that have passed; `None` where an `i32` does not hold them.
fn whole_seconds(seconds: f64) -> Option<i32> {
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    i32::try_from(duration.as_secs()).ok()
}
