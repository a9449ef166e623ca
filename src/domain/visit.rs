//! Realistic visits: everything that a generated visit carries besides its number and its time.
//!
//! A visit is drawn from a seed made of (distribution, number) alone, so a retry, another agent and another machine draw the
//! same one. This module does not decide how many visits there are nor when (the curve does), and it reads nothing: the
//! [`Catalogue`] is a parameter.
//!
//! Invariants:
//! - a visit is a pure function of (distribution, number, catalogue); every attribute has its own place in the order of the
//!   draws, so an edit of the page paths changes nothing else;
//! - within one distribution no two numbers share an id, whatever their times;
//! - a draw allocates nothing.
//!
//! The SQL functions draw from the same tables by the same weights, but not the same values.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::Rng;
use rand_distr::{Distribution, LogNormal};
use uuid::Uuid;

use super::partner::PartnerId;
use crate::domain::time::DbTime;

pub use self::catalogue::{Catalogue, PARTS_PER_WEIGHT, PagePath, Referrer, UserAgent};
use self::seed::Seed;
use self::weighted::Weighted;

mod catalogue;
mod seed;
#[cfg(test)]
mod tests;
mod weighted;

/// The page path of every visit if the catalogue offers none.
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

/// The device whose visits have referrers of their own.
const DESKTOP: &str = "desktop";

/// One row of `store_visits`, without partner and distribution, which the caller knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit<'catalogue> {
    /// UUID of version 7: milliseconds of `visited_at`, then a hash of (distribution, number).
    pub id: Uuid,
    /// The number within the distribution.
    pub number: i64,
    /// The time that the caller gave.
    pub visited_at: DbTime,
    /// In seconds.
    pub session_duration: i32,
    /// From the catalogue of the partner.
    pub page_path: &'catalogue str,
    /// `None` if the catalogue has no user agents.
    pub user_agent: Option<&'catalogue str>,
    /// `None`: the visitor came directly, or the catalogue has no referrers.
    pub referrer: Option<&'catalogue str>,
    /// The device of the user agent; `None` if the catalogue has none.
    pub device_type: Option<&'catalogue str>,
}

/// Draws visits from one reading of the catalogue.
#[derive(Debug)]
pub struct Generator {
    general_paths: Weighted<String>,
    own_paths: BTreeMap<PartnerId, Weighted<String>>,
    user_agents: Option<Weighted<UserAgent>>,
    desktop_referrers: Option<Weighted<Option<String>>>,
    handheld_referrers: Option<Weighted<Option<String>>>,
    session_seconds: LogNormal<f64>,
}

impl Generator {
    /// A partner's own page paths replace the general ones. If neither has any weight, every path is [`FALLBACK_PATH`].
    pub fn new(catalogue: &Catalogue) -> Self {
        let mut by_partner: BTreeMap<Option<PartnerId>, Vec<(String, u64)>> = BTreeMap::new();
        for row in &catalogue.page_paths {
            let rows = by_partner.entry(row.partner.clone()).or_default();
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
        let mut user_agents: Vec<_> = (catalogue.user_agents.iter())
            .map(|agent| (agent.clone(), agent.weight_parts))
            .collect();
        user_agents.sort_unstable();
        let mut referrers: Vec<&Referrer> = catalogue.referrers.iter().collect();
        referrers.sort_unstable();
        let referrers_by = |parts: fn(&Referrer) -> u64| {
            Weighted::new(referrers.iter().map(|row| (row.site.clone(), parts(row))))
        };
        Self {
            general_paths: general_paths
                .unwrap_or_else(|| Weighted::certain(FALLBACK_PATH.to_owned())),
            own_paths,
            user_agents: Weighted::new(user_agents),
            desktop_referrers: referrers_by(|row| row.desktop_parts),
            handheld_referrers: referrers_by(|row| row.handheld_parts),
            session_seconds: LogNormal::new(f64::from(SESSION_MEDIAN_SECONDS).ln(), SESSION_SIGMA)
                .expect("the median is positive and the deviation finite"),
        }
    }

    /// The visit of this number of a distribution of this partner. The time affects only `visited_at` and the id.
    pub fn visit(
        &self,
        distribution: Uuid,
        partner: &PartnerId,
        number: i64,
        visited_at: DbTime,
    ) -> Visit<'_> {
        let seed = Seed::of(distribution, number);
        let mut random = seed.random();

        // The order of the draws is part of the visit, also if a table is empty; the one of unknown length comes last.
        let draws: [u64; 3] = std::array::from_fn(|_| random.next_u64());
        let [agent_draw, referrer_draw, path_draw] = draws;
        let agent = self.user_agents.as_ref().map(|all| all.pick(agent_draw));
        let device_type = agent.map(|agent| agent.device_type.as_str());
        let referrers = if device_type == Some(DESKTOP) {
            &self.desktop_referrers
        } else {
            &self.handheld_referrers
        };
        let referrer = referrers.as_ref().map(|all| all.pick(referrer_draw));

        Visit {
            id: seed.id(visited_at),
            number,
            visited_at,
            session_duration: self.session_duration(&mut random),
            page_path: self.paths(partner).pick(path_draw),
            user_agent: agent.map(|agent| agent.text.as_str()),
            referrer: referrer.and_then(Option::as_deref),
            device_type,
        }
    }

    fn paths(&self, partner: &PartnerId) -> &Weighted<String> {
        self.own_paths.get(partner).unwrap_or(&self.general_paths)
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
