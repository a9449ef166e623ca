//! What visits are drawn from, as the user's tables hold it: page paths, user agents with their devices, referrers.

use crate::domain::partner::PartnerId;

/// How many parts a weight of 1 in these tables has.
pub const PARTS_PER_WEIGHT: u64 = 1_000_000;

/// One reading of the three tables. The order of the rows does not matter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Catalogue {
    /// `visit_page_paths`
    pub page_paths: Vec<PagePath>,
    /// `visit_user_agents`
    pub user_agents: Vec<UserAgent>,
    /// `visit_referrers`
    pub referrers: Vec<Referrer>,
}

/// One row of `visit_page_paths`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PagePath {
    /// `path`
    pub path: String,
    /// `weight` in [`PARTS_PER_WEIGHT`]; a path of weight 0 is never drawn.
    pub weight_parts: u64,
    /// `partner_id`: only for visits of this partner; `None`: for all partners that have no paths of their own.
    pub partner: Option<PartnerId>,
}

/// One row of `visit_user_agents`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UserAgent {
    /// `user_agent`: the header as the browser sends it.
    pub text: String,
    /// `device_type`
    pub device_type: String,
    /// `weight`, in parts.
    pub weight_parts: u64,
}

/// One row of `visit_referrers`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Referrer {
    /// `referrer`: the header as the browser sends it; `None`: the visitor came directly.
    pub site: Option<String>,
    /// `desktop_weight`, in parts.
    pub desktop_parts: u64,
    /// `handheld_weight`, in parts: for every device that is not a desktop.
    pub handheld_parts: u64,
}
