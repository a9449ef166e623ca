//! The shapes of generated visits, held against the distributions that they are drawn from.
//!
//! Seeds are fixed, so each test says the same at every run. The critical values are those that a
//! right generator exceeds once in a thousand seeds.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

const SAMPLE: u32 = 100_000;
const DISTRIBUTION: Uuid = Uuid::from_u128(0x5b1f_8c5e_8d0a_4d53_9a3c_1f6f_2c1e_7a10);
const PARTNER: PartnerId =
    PartnerId::Uuid(Uuid::from_u128(0x0f0e_0d0c_0b0a_4009_8807_0605_0403_0201));
const OTHER_PARTNER: PartnerId =
    PartnerId::Uuid(Uuid::from_u128(0xb2a7_77c2_54b4_4e0f_a8f5_90d1_7fd4_7d11));
/// 2026-11-22 12:00:00.123456 UTC.
const NOON: DbTime = DbTime::from_micros(1_795_348_800_123_456);

#[test]
fn a_visit_is_the_same_in_every_release_and_on_every_machine() {
    let generator = Generator::new(&catalogue());
    assert_eq!(
        generator.visit(DISTRIBUTION, &PARTNER, 4, NOON),
        Visit {
            id: Uuid::from_u128(0x01a2_0320_a27b_7888_885c_d50c_579f_c722),
            number: 4,
            visited_at: NOON,
            session_duration: 15,
            page_path: "/page-2",
            user_agent: Some("Chrome (Android)"),
            referrer: Some("https://search.example/"),
            device_type: Some("mobile"),
        }
    );
}

#[test]
fn a_retry_at_another_moment_changes_the_time_alone() {
    let generator = Generator::new(&catalogue());
    for number in 1..=1_000 {
        let first = generator.visit(DISTRIBUTION, &PARTNER, number, NOON);
        let again = generator.visit(DISTRIBUTION, &PARTNER, number, NOON.plus_micros(70_000_000));
        assert_eq!(
            Visit {
                id: first.id,
                visited_at: NOON,
                ..again
            },
            first
        );
        assert_eq!(again.id.as_u128() << 48, first.id.as_u128() << 48);
    }
}

#[test]
fn an_edit_of_the_catalogue_changes_page_paths_alone() {
    let before = Generator::new(&catalogue());
    let after = Generator::new(&Catalogue {
        page_paths: vec![general("/sale", 1)],
        ..catalogue()
    });
    for number in 1..=1_000 {
        let visit = before.visit(DISTRIBUTION, &PARTNER, number, NOON);
        let edited = after.visit(DISTRIBUTION, &PARTNER, number, NOON);
        assert_eq!(
            edited,
            Visit {
                page_path: "/sale",
                ..visit
            }
        );
    }
}

#[test]
fn the_order_in_which_the_catalogue_is_read_does_not_matter() {
    let forwards = catalogue();
    let mut backwards = forwards.clone();
    backwards.page_paths.reverse();
    backwards.user_agents.reverse();
    backwards.referrers.reverse();
    let [one, other] = [&forwards, &backwards].map(Generator::new);
    assert!(visits(&one).eq(visits(&other)));
}

#[test]
fn page_paths_follow_the_weights_of_the_catalogue() {
    let catalogue = catalogue();
    let generator = Generator::new(&catalogue);
    let seen = tally(&generator, |visit| visit.page_path);
    let expected = (catalogue.page_paths.iter())
        .map(|row| (row.path.as_str(), row.weight_parts))
        .collect::<Vec<_>>();
    assert_fits(&seen, &expected);
}

#[test]
fn user_agents_follow_their_weights_and_bring_their_device() {
    let catalogue = catalogue();
    let generator = Generator::new(&catalogue);
    let seen = tally(&generator, |visit| (visit.user_agent, visit.device_type));
    let expected = (catalogue.user_agents.iter())
        .map(|agent| {
            let of_visit = (Some(agent.text.as_str()), Some(agent.device_type.as_str()));
            (of_visit, agent.weight_parts)
        })
        .collect::<Vec<_>>();
    assert_fits(&seen, &expected);
}

#[test]
fn referrers_follow_the_weights_of_the_device() {
    let catalogue = catalogue();
    let generator = Generator::new(&catalogue);
    let seen = tally(&generator, |visit| {
        (visit.device_type == Some("desktop"), visit.referrer)
    });
    for desktop in [true, false] {
        let of_device = seen
            .iter()
            .filter(|((of_desktop, _), _)| *of_desktop == desktop)
            .map(|((_, site), count)| (*site, *count))
            .collect();
        let expected = (catalogue.referrers.iter())
            .map(|row| {
                let parts = [row.handheld_parts, row.desktop_parts];
                (row.site.as_deref(), parts[usize::from(desktop)])
            })
            .collect::<Vec<_>>();
        assert_fits(&of_device, &expected);
    }
}

#[test]
fn empty_tables_of_user_agents_and_referrers_leave_nulls_and_change_nothing_else() {
    let full = Generator::new(&catalogue());
    let bare = Generator::new(&paths(&catalogue().page_paths));
    for number in 1..=1_000 {
        let visit = bare.visit(DISTRIBUTION, &PARTNER, number, NOON);
        let expected = Visit {
            user_agent: None,
            referrer: None,
            device_type: None,
            ..full.visit(DISTRIBUTION, &PARTNER, number, NOON)
        };
        assert_eq!(visit, expected);
    }
}

#[test]
fn attributes_are_drawn_independently_of_each_other() {
    let generator = Generator::new(&paths(&[general("/", 1), general("/about", 1)]));
    let seen = tally(&generator, |visit| {
        (
            visit.page_path,
            visit.session_duration < 90,
            visit.number % 2 == 0,
        )
    });
    let below_90 = [true, false].map(|short| {
        seen.iter()
            .filter(|((_, s, _), _)| *s == short)
            .map(|(_, n)| u64::from(*n))
            .sum::<u64>()
    });
    let mut expected = Vec::new();
    for path in ["/", "/about"] {
        for even in [true, false] {
            expected.push(((path, true, even), below_90[0]));
            expected.push(((path, false, even), below_90[1]));
        }
    }
    assert_fits(&seen, &expected);
}

#[test]
fn a_visit_says_nothing_about_the_next_one() {
    let catalogue = (0..16)
        .map(|page| general(&page.to_string(), 1))
        .collect::<Vec<_>>();
    let generator = Generator::new(&paths(&catalogue));
    let mut seen = BTreeMap::new();
    for (distribution, number) in (0..SAMPLE / 10).flat_map(|d| (1..=10).map(move |n| (d, n))) {
        let path = |number| {
            let distribution = Uuid::from_u128(u128::from(distribution));
            generator
                .visit(distribution, &PARTNER, number, NOON)
                .page_path
        };
        *seen.entry((path(number), path(number + 1))).or_default() += 1;
    }
    let pairs = catalogue
        .iter()
        .flat_map(|one| {
            catalogue
                .iter()
                .map(|next| ((one.path.as_str(), next.path.as_str()), 1))
        })
        .collect::<Vec<_>>();
    assert_fits(&seen, &pairs);
}

#[test]
fn session_durations_are_log_normal_between_5_seconds_and_an_hour() {
    let generator = Generator::new(&Catalogue::default());
    let seen = tally(&generator, |visit| visit.session_duration);
    assert!(seen.keys().all(|seconds| SESSION_SECONDS.contains(seconds)));

    let below = |seconds: i32| normal_cdf((f64::from(seconds) / 90.0).ln() / SESSION_SIGMA);
    let (least, beyond) = (
        below(*SESSION_SECONDS.start()),
        below(SESSION_SECONDS.end() + 1),
    );
    let mut passed = 0_u32;
    let mut distance = 0.0_f64;
    for (seconds, count) in &seen {
        passed += count;
        let expected = (below(seconds + 1) - least) / (beyond - least);
        distance = distance.max((f64::from(passed) / f64::from(SAMPLE) - expected).abs());
    }
    let critical = 1.95 / f64::from(SAMPLE).sqrt();
    assert!(
        distance < critical,
        "KS distance {distance} is not below {critical}"
    );
}

#[test]
fn half_of_all_sessions_last_less_than_about_90_seconds() {
    let generator = Generator::new(&Catalogue::default());
    let shorter = visits(&generator)
        .filter(|visit| visit.session_duration < 90)
        .count();
    let ownership = f64::from(u32::try_from(shorter).expect("fits")) / f64::from(SAMPLE);
    assert!(
        (ownership - 0.5).abs() < 0.01,
        "{ownership} of the sessions are below 90 s"
    );
}

#[test]
fn a_million_visits_of_one_moment_have_a_million_ids() {
    let generator = Generator::new(&Catalogue::default());
    let ids = (1..=1_000_000)
        .map(|number| generator.visit(DISTRIBUTION, &PARTNER, number, NOON).id)
        .collect::<HashSet<_>>();
    assert_eq!(ids.len(), 1_000_000);
}

#[test]
fn neighbouring_distributions_share_no_id() {
    let generator = Generator::new(&Catalogue::default());
    let ids = (0..1_000_u128)
        .flat_map(|other| (1..=100).map(move |number| (Uuid::from_u128(other), number)))
        .map(|(distribution, number)| generator.visit(distribution, &PARTNER, number, NOON).id)
        .collect::<HashSet<_>>();
    assert_eq!(ids.len(), 100_000);
}

#[test]
fn every_bit_of_the_tail_of_an_id_is_as_often_one_as_zero() {
    let generator = Generator::new(&Catalogue::default());
    let mut ones = [0_u32; 128];
    for visit in visits(&generator) {
        for (bit, count) in ones.iter_mut().enumerate() {
            *count += u32::from(visit.id.as_u128() >> bit & 1 == 1);
        }
    }
    for bit in (0..62).chain(64..76) {
        assert_fits(
            &BTreeMap::from([(true, ones[bit]), (false, SAMPLE - ones[bit])]),
            &[(true, 1), (false, 1)],
        );
    }
}

#[test]
fn ids_sort_by_the_millisecond_of_the_visit() {
    let generator = Generator::new(&Catalogue::default());
    let ids = (1..=10_000)
        .map(|number| {
            generator
                .visit(
                    DISTRIBUTION,
                    &PARTNER,
                    number,
                    NOON.plus_micros(number * 1_000),
                )
                .id
        })
        .collect::<Vec<_>>();
    assert!(ids.is_sorted());
}

#[test]
fn a_partners_own_paths_are_used_in_place_of_the_general_ones() {
    let own = |path: &str| PagePath {
        partner: Some(PARTNER),
        ..general(path, 1)
    };
    let generator = Generator::new(&paths(&[general("/", 1_000), own("/menu"), own("/book")]));

    let of_partner = tally(&generator, |visit| visit.page_path);
    assert_fits(&of_partner, &[("/menu", 1), ("/book", 1)]);
    for number in 1..=1_000 {
        assert_eq!(
            generator
                .visit(DISTRIBUTION, &OTHER_PARTNER, number, NOON)
                .page_path,
            "/"
        );
    }
}

#[test]
fn an_own_catalogue_without_weight_leaves_the_general_one() {
    let generator = Generator::new(&paths(&[
        general("/shop", 1),
        PagePath {
            partner: Some(PARTNER),
            ..general("/x", 0)
        },
    ]));
    assert_eq!(
        generator.visit(DISTRIBUTION, &PARTNER, 1, NOON).page_path,
        "/shop"
    );
}

#[test]
fn an_empty_catalogue_leaves_the_front_page() {
    for catalogue in [vec![], vec![general("/never", 0)]] {
        let generator = Generator::new(&paths(&catalogue));
        assert_eq!(
            generator.visit(DISTRIBUTION, &PARTNER, 1, NOON).page_path,
            FALLBACK_PATH
        );
    }
}

proptest! {
    #[test]
    fn the_same_distribution_and_number_give_the_same_visit(
        distribution: u128, partner: u128, number: i64, micros: i64,
    ) {
        let [distribution, partner] = [distribution, partner].map(Uuid::from_u128);
        let [here, there] = [catalogue(), catalogue()].map(|rows| Generator::new(&rows));
        let at = DbTime::from_micros(micros);
        prop_assert_eq!(
            here.visit(distribution, &partner.into(), number, at),
            there.visit(distribution, &partner.into(), number, at)
        );
    }

    #[test]
    fn an_id_is_a_version_7_uuid_of_its_moment(
        distribution: u128, number: i64, millis in 0..1_i64 << 48, micros in 0..1_000_i64,
    ) {
        let id = Seed::of(Uuid::from_u128(distribution), number)
            .id(DbTime::from_micros(millis * 1_000 + micros));
        prop_assert_eq!(id.get_version_num(), 7);
        prop_assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        prop_assert_eq!(i64::try_from(id.as_u128() >> 80), Ok(millis));
    }
}

fn general(path: &str, weight: u64) -> PagePath {
    PagePath {
        path: path.to_owned(),
        weight_parts: weight * PARTS_PER_WEIGHT,
        partner: None,
    }
}

fn paths(page_paths: &[PagePath]) -> Catalogue {
    Catalogue {
        page_paths: page_paths.to_vec(),
        ..Catalogue::default()
    }
}

/// Thirty paths whose weight falls with their rank, and some browsers and sites.
fn catalogue() -> Catalogue {
    let agent = |text: &str, device_type: &str, weight: u64| UserAgent {
        text: text.to_owned(),
        device_type: device_type.to_owned(),
        weight_parts: weight * PARTS_PER_WEIGHT,
    };
    let referrer = |site: Option<&str>, desktop: u64, handheld: u64| Referrer {
        site: site.map(str::to_owned),
        desktop_parts: desktop * PARTS_PER_WEIGHT,
        handheld_parts: handheld * PARTS_PER_WEIGHT,
    };
    Catalogue {
        page_paths: (1..=30)
            .map(|rank| general(&format!("/page-{rank}"), 1_000 / rank))
            .collect(),
        user_agents: vec![
            agent("Chrome (Windows)", "desktop", 31),
            agent("Safari (Mac)", "desktop", 9),
            agent("Chrome (Android)", "mobile", 35),
            agent("Safari (iPhone)", "mobile", 22),
            agent("Safari (iPad)", "tablet", 3),
        ],
        referrers: vec![
            referrer(None, 42, 43),
            referrer(Some("https://search.example/"), 37, 32),
            referrer(Some("https://desktop.example/"), 21, 0),
            referrer(Some("https://mobile.example/"), 0, 25),
        ],
    }
}

fn visits(generator: &Generator) -> impl Iterator<Item = Visit<'_>> {
    (1..=i64::from(SAMPLE)).map(|number| generator.visit(DISTRIBUTION, &PARTNER, number, NOON))
}

fn tally<'g, K: Ord>(generator: &'g Generator, key: impl Fn(Visit<'g>) -> K) -> BTreeMap<K, u32> {
    let mut counts = BTreeMap::new();
    for visit in visits(generator) {
        *counts.entry(key(visit)).or_default() += 1;
    }
    counts
}

/// Pearson's chi-square test of counts against weights. What has no weight must not have come.
#[track_caller]
fn assert_fits<K: Ord + std::fmt::Debug>(seen: &BTreeMap<K, u32>, expected: &[(K, u64)]) {
    let of = |key: &K| seen.get(key).copied().unwrap_or(0);
    let possible = expected
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .collect::<Vec<_>>();
    let sample: u32 = seen.values().sum();
    let accounted: u32 = possible.iter().map(|(key, _)| of(key)).sum();
    assert_eq!(
        accounted, sample,
        "something came that has no weight: {seen:?}"
    );

    let float = |weight: u64| f64::from(u32::try_from(weight).expect("weights of tests are small"));
    let total: u64 = possible
        .iter()
        .map(|(_, weight)| weight / gcd(&possible))
        .sum();
    let chi_square: f64 = possible
        .iter()
        .map(|(key, weight)| {
            let mean = f64::from(sample) * float(weight / gcd(&possible)) / float(total);
            assert!(
                mean >= 5.0,
                "{key:?} is expected {mean} times: too few for this test"
            );
            (f64::from(of(key)) - mean).powi(2) / mean
        })
        .sum();
    let critical = chi_square_critical(u32::try_from(possible.len() - 1).expect("fits"));
    assert!(
        chi_square < critical,
        "chi-square {chi_square} is not below {critical}: {seen:?}"
    );
}

fn gcd<K>(weighted: &[&(K, u64)]) -> u64 {
    weighted.iter().fold(0, |mut a, (_, weight)| {
        let mut b = *weight;
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    })
}

/// What chi-square exceeds once in a thousand times, by the formula of Wilson and Hilferty.
fn chi_square_critical(degrees: u32) -> f64 {
    let spread = 2.0 / (9.0 * f64::from(degrees));
    f64::from(degrees) * (1.0 - spread + 3.0902 * spread.sqrt()).powi(3)
}

/// Abramowitz and Stegun, formula 26.2.17; its error is below 7.5e-8.
fn normal_cdf(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let polynomial = [
        1.330_274_429,
        -1.821_255_978,
        1.781_477_937,
        -0.356_563_782,
        0.319_381_530,
    ]
    .into_iter()
    .fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    let upper = polynomial * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x < 0.0 { upper } else { 1.0 - upper }
}
