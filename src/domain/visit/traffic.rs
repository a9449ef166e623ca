//! What traffic looks like: browsers with their devices, and the sites that visitors come from.
//!
//! As of November 2026. Versions follow the release calendars of the browsers, weights the global
//! usage shares; all of it is a likeness, not a measurement. Renew it once or twice a year, along
//! with the list in the SQL function `visit_pacer_generate`, which holds the same rows.

use super::weighted::Weighted;
use Device::{Desktop, Mobile, Tablet};

/// What a visitor holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Device {
    Desktop,
    Mobile,
    Tablet,
}

impl Device {
    /// The `device_type` of `store_visits`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Mobile => "mobile",
            Self::Tablet => "tablet",
        }
    }
}

/// A browser on a device.
#[derive(Debug)]
pub struct UserAgent {
    pub(super) device: Device,
    pub(super) text: &'static str,
    pub(super) weight: u64,
}

impl UserAgent {
    /// `desktop`, `mobile` or `tablet`.
    pub const fn device_type(&self) -> &'static str {
        self.device.name()
    }

    /// The header as the browser sends it.
    pub const fn text(&self) -> &'static str {
        self.text
    }

    /// Visits of a thousand.
    pub const fn weight(&self) -> u64 {
        self.weight
    }
}

/// Where a visitor comes from.
#[derive(Debug)]
pub struct Referrer {
    pub(super) site: Option<&'static str>,
    pub(super) desktop_weight: u64,
    pub(super) handheld_weight: u64,
}

impl Referrer {
    /// The header as the browser sends it; `None`: there is no such header.
    pub const fn site(&self) -> Option<&'static str> {
        self.site
    }

    /// Desktop visits of a thousand.
    pub const fn desktop_weight(&self) -> u64 {
        self.desktop_weight
    }

    /// Visits of a thousand by mobile or tablet: they come by other doors of the same sites.
    pub const fn handheld_weight(&self) -> u64 {
        self.handheld_weight
    }
}

/// [`USER_AGENTS`] by weight.
pub(super) fn user_agents() -> Weighted<&'static UserAgent> {
    Weighted::new(USER_AGENTS.iter().map(|agent| (agent, agent.weight)))
        .expect("the table has weights")
}

/// The sites of [`REFERRERS`] by their weight for a device.
pub(super) fn referrers(device: Device) -> Weighted<Option<&'static str>> {
    Weighted::new(REFERRERS.iter().map(|referrer| {
        let weight = match device {
            Desktop => referrer.desktop_weight,
            Mobile | Tablet => referrer.handheld_weight,
        };
        (referrer.site, weight)
    }))
    .expect("the table has weights for every device")
}

macro_rules! chrome {
    ($platform:literal, $version:literal $(, $tail:literal)?) => {
        concat!(
            "Mozilla/5.0 (", $platform, ") AppleWebKit/537.36 (KHTML, like Gecko) Chrome/",
            $version, ".0.0.0 Safari/537.36" $(, $tail)?
        )
    };
}
macro_rules! chrome_phone {
    ($platform:literal, $version:literal $(, $tail:literal)?) => {
        concat!(
            "Mozilla/5.0 (", $platform, ") AppleWebKit/537.36 (KHTML, like Gecko) Chrome/",
            $version, ".0.0.0 Mobile Safari/537.36" $(, $tail)?
        )
    };
}
macro_rules! samsung {
    ($browser:literal, $chrome:literal) => {
        concat!(
            "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) ",
            $browser,
            " Chrome/",
            $chrome,
            ".0.0.0 Mobile Safari/537.36"
        )
    };
}
macro_rules! firefox {
    ($platform:literal, $version:literal) => {
        concat!(
            "Mozilla/5.0 (",
            $platform,
            "; rv:",
            $version,
            ".0) Gecko/20100101 Firefox/",
            $version,
            ".0"
        )
    };
}
macro_rules! firefox_phone {
    ($platform:literal, $version:literal) => {
        concat!(
            "Mozilla/5.0 (",
            $platform,
            "; Mobile; rv:",
            $version,
            ".0) Gecko/",
            $version,
            ".0 Firefox/",
            $version,
            ".0"
        )
    };
}
macro_rules! safari {
    ($version:literal) => {
        concat!(
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 ",
            "(KHTML, like Gecko) Version/",
            $version,
            " Safari/605.1.15"
        )
    };
}
// Safari itself says 18_7 for good, on every later system; the other browsers say what they run on.
macro_rules! ios {
    ($system:literal, $browser:literal) => {
        concat!(
            "Mozilla/5.0 (",
            $system,
            " like Mac OS X) AppleWebKit/605.1.15 ",
            "(KHTML, like Gecko) ",
            $browser,
            " Mobile/15E148 Safari/604.1"
        )
    };
}

/// The browsers, by device; weights out of a thousand.
#[rustfmt::skip]
pub static USER_AGENTS: [UserAgent; 44] = [
    agent(Desktop, 106, chrome!("Windows NT 10.0; Win64; x64", 157)),
    agent(Desktop, 48, chrome!("Windows NT 10.0; Win64; x64", 156)),
    agent(Desktop, 20, chrome!("Windows NT 10.0; Win64; x64", 154)),
    agent(Desktop, 12, chrome!("Windows NT 10.0; Win64; x64", 146)),
    agent(Desktop, 4, chrome!("Windows NT 6.1; Win64; x64", 109)),
    agent(Desktop, 36, chrome!("Macintosh; Intel Mac OS X 10_15_7", 157)),
    agent(Desktop, 16, chrome!("Macintosh; Intel Mac OS X 10_15_7", 156)),
    agent(Desktop, 9, chrome!("X11; Linux x86_64", 157)),
    agent(Desktop, 5, chrome!("X11; CrOS x86_64 14541.0.0", 156)),
    agent(Desktop, 38, chrome!("Windows NT 10.0; Win64; x64", 156, " Edg/156.0.0.0")),
    agent(Desktop, 14, chrome!("Windows NT 10.0; Win64; x64", 155, " Edg/155.0.0.0")),
    agent(Desktop, 3, chrome!("Macintosh; Intel Mac OS X 10_15_7", 156, " Edg/156.0.0.0")),
    agent(Desktop, 6, chrome!("Windows NT 10.0; Win64; x64", 152, " OPR/136.0.0.0")),
    agent(Desktop, 3, chrome!("Windows NT 10.0; Win64; x64", 151, " OPR/135.0.0.0")),
    agent(Desktop, 12, firefox!("Windows NT 10.0; Win64; x64", 160)),
    agent(Desktop, 7, firefox!("Windows NT 10.0; Win64; x64", 159)),
    agent(Desktop, 3, firefox!("Windows NT 10.0; Win64; x64", 140)),
    agent(Desktop, 4, firefox!("Macintosh; Intel Mac OS X 10.15", 160)),
    agent(Desktop, 4, firefox!("X11; Linux x86_64", 160)),
    agent(Desktop, 9, safari!("27.0")),
    agent(Desktop, 17, safari!("26.6")),
    agent(Desktop, 4, safari!("18.6")),
    agent(Mobile, 239, chrome_phone!("Linux; Android 10; K", 157)),
    agent(Mobile, 75, chrome_phone!("Linux; Android 10; K", 156)),
    agent(Mobile, 28, chrome_phone!("Linux; Android 10; K", 154)),
    agent(Mobile, 14, chrome_phone!("Linux; Android 10; K", 146)),
    agent(Mobile, 30, samsung!("SamsungBrowser/30.0", 143)),
    agent(Mobile, 4, chrome_phone!("Linux; Android 10; K", 156, " EdgA/156.0.0.0")),
    agent(Mobile, 5, firefox_phone!("Android 16", 160)),
    agent(Mobile, 46, ios!("iPhone; CPU iPhone OS 18_7", "Version/27.0")),
    agent(Mobile, 44, ios!("iPhone; CPU iPhone OS 18_7", "Version/26.6.2")),
    agent(Mobile, 34, ios!("iPhone; CPU iPhone OS 18_7", "Version/26.6.1")),
    agent(Mobile, 14, ios!("iPhone; CPU iPhone OS 18_7", "Version/26.5.2")),
    agent(Mobile, 12, ios!("iPhone; CPU iPhone OS 18_7", "Version/18.7.5")),
    agent(Mobile, 6, ios!("iPhone; CPU iPhone OS 17_6", "Version/17.6")),
    agent(Mobile, 20, ios!("iPhone; CPU iPhone OS 26_6_2", "CriOS/154.0.8037.55")),
    agent(Mobile, 8, ios!("iPhone; CPU iPhone OS 27_0_0", "CriOS/154.0.8037.55")),
    agent(Mobile, 16, ios!("iPhone; CPU iPhone OS 26_6_2", "GSA/439.4.980558000")),
    agent(Mobile, 3, ios!("iPhone; CPU iPhone OS 18_7", "FxiOS/156.1")),
    agent(Tablet, 8, chrome!("Linux; Android 10; K", 157)),
    agent(Tablet, 4, chrome!("Linux; Android 10; K", 154)),
    agent(Tablet, 6, ios!("iPad; CPU OS 18_7", "Version/26.6")),
    agent(Tablet, 3, ios!("iPad; CPU OS 26_6_2", "CriOS/154.0.8037.55")),
    agent(Tablet, 1, ios!("iPad; CPU OS 26_6_2", "GSA/439.4.980558000")),
];

/// The sites, search first; weights out of a thousand, for desktop and for what is held in a hand.
#[rustfmt::skip]
pub static REFERRERS: [Referrer; 19] = [
    referrer(None, 420, 430),
    referrer(Some("https://www.google.com/"), 370, 320),
    referrer(Some("https://www.bing.com/"), 52, 9),
    referrer(Some("https://duckduckgo.com/"), 16, 8),
    referrer(Some("https://search.yahoo.com/"), 9, 6),
    referrer(Some("https://www.ecosia.org/"), 4, 2),
    referrer(Some("https://chatgpt.com/"), 24, 14),
    referrer(Some("https://www.perplexity.ai/"), 5, 2),
    referrer(Some("https://www.facebook.com/"), 18, 0),
    referrer(Some("https://l.facebook.com/"), 10, 0),
    referrer(Some("https://m.facebook.com/"), 0, 38),
    referrer(Some("https://lm.facebook.com/"), 0, 24),
    referrer(Some("https://l.instagram.com/"), 6, 66),
    referrer(Some("https://www.tiktok.com/"), 2, 20),
    referrer(Some("https://t.co/"), 10, 20),
    referrer(Some("https://www.youtube.com/"), 16, 14),
    referrer(Some("https://www.reddit.com/"), 18, 10),
    referrer(Some("https://www.linkedin.com/"), 14, 5),
    referrer(Some("https://www.pinterest.com/"), 6, 12),
];

const fn agent(device: Device, weight: u64, text: &'static str) -> UserAgent {
    UserAgent {
        device,
        text,
        weight,
    }
}

const fn referrer(
    site: Option<&'static str>,
    desktop_weight: u64,
    handheld_weight: u64,
) -> Referrer {
    Referrer {
        site,
        desktop_weight,
        handheld_weight,
    }
}
