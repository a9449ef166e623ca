//! The texts of the table, and what fits.

use uuid::Uuid;

use super::*;

const NAME: &str = "Nordlicht Books";

/// A row that runs, of whose visits so many are distributed.
pub fn row(distributed: i64, total: i64) -> StatusRow {
    StatusRow {
        id: Uuid::from_u128(0xe273_1c06),
        partner_id: Some(Uuid::from_u128(7).into()),
        partner: Some(NAME.to_owned()),
        status: "active".to_owned(),
        reason: None,
        reason_code: None,
        reason_detail: None,
        pace: Some("33.33 a minute".to_owned()),
        asked: Some(0.5555),
        visits_per_unit: Some("33.33".to_owned()),
        time_period: Some("minute".to_owned()),
        start_time: None,
        end_time: None,
        is_active: true,
        total_visits: Some(total),
        due: Some(distributed),
        distributed: Some(distributed),
        backlog: Some(0),
        purged: Some(0),
        baseline: Some(0),
        missing: Some(0),
        last_visit_at: None,
        completes_at: Some(DbTime::from_micros(1_767_237_120_000_000)), /* 2026-01-01T03:12:00Z */
    }
}

fn agent(
    name: &str,
    seen_seconds_ago: f64,
    realtime: &str,
    rows_owned: i64,
    rows: i64,
) -> AgentRow {
    AgentRow {
        name: name.to_owned(),
        seen_seconds_ago,
        realtime: Some(realtime.to_owned()),
        rows,
        rows_owned,
        serving: true,
        version: None,
    }
}

fn snapshot(rows: Vec<StatusRow>, agents: Vec<AgentRow>) -> StatusSnapshot {
    let at = DbTime::from_micros(1_767_225_600_000_000); // 2026-01-01T00:00:00Z
    StatusSnapshot { at, rows, agents }
}

fn text(lines: &[Line<'_>]) -> Vec<String> {
    lines
        .iter()
        .map(|line| line.to_string().trim_end().to_owned())
        .collect()
}

fn printed(rows: Vec<StatusRow>, width: usize) -> Vec<String> {
    text(&lines(&snapshot(rows, Vec::new()), width))
}

fn agent_lines(agents: &[AgentRow]) -> Vec<String> {
    text(&super::agents(&snapshot(Vec::new(), agents.to_vec())))
}

#[test]
fn a_wide_page_holds_everything_in_one_line() {
    assert_eq!(
        printed(vec![row(1_234, 150_000)], usize::MAX),
        [
            "partner          status     target    distributed         backlog  completes      id",
            "Nordlicht Books  active  33.33/min  1,234/150,000  0.8 %        0  in 3 h 12 min  \
             00000000-0000-0000-0000-0000e2731c06",
        ]
    );
}

#[test]
fn on_a_narrow_page_the_id_has_its_own_line_and_is_not_cut() {
    let lines = printed(vec![row(1_234, 150_000)], 80);
    assert_eq!(lines[2], "  00000000-0000-0000-0000-0000e2731c06");
    let tiny = printed(vec![row(1_234, 150_000)], 20);
    assert_eq!(tiny[2], "  00000000-0000-0000-0000-0000e2731c06");
}

#[test]
fn the_actual_rate_has_the_unit_of_the_target() {
    let row = row(1_000, 2_000);
    let rates = |per_second| [(row.id, per_second)].into_iter().collect();
    assert_eq!(actual(&row, Some(&rates(0.55))), "33.0");
    assert_eq!(actual(&row, Some(&rates(0.0))), "0");
    assert_eq!(actual(&row, Some(&ActualRates::new())), "–");
}

#[test]
fn no_line_but_that_of_an_id_is_wider_than_the_terminal() {
    let mut long = row(123_456_789, 999_999_999);
    long.partner = Some("株式会社ノルトリヒト・ブックス・インターナショナル".to_owned());
    long.status = "invalid".to_owned();
    long.reason = Some("time_period is 'fortnight'; ".repeat(9));
    let id = long.id.to_string();
    for width in 1..200 {
        let lines = printed(vec![row(1, 2), long.clone()], width);
        for line in lines.iter().filter(|line| !line.ends_with(&id)) {
            let found = Span::raw(line.as_str()).width();
            assert!(
                found <= width,
                "{found} columns where there are {width}: {line}"
            );
        }
    }
}

#[test]
fn percent_is_rounded_down_so_that_100_means_all() {
    assert_eq!(percent(&row(149_999, 150_000)), "99.9 %");
    assert_eq!(percent(&row(150_000, 150_000)), "100.0 %");
    assert_eq!(percent(&row(0, 150_000)), "0.0 %");
    assert_eq!(percent(&row(0, 0)), "");
    assert_eq!(percent(&row(3, 2)), "150.0 %");
}

#[test]
fn the_bar_is_full_only_when_all_is_distributed() {
    assert_eq!(bar(&row(0, 100)), "░░░░░░░░░░");
    assert_eq!(bar(&row(1_999, 2_000)), "█████████▉");
    assert_eq!(bar(&row(2_000, 2_000)), "██████████");
    assert_eq!(bar(&row(3_000, 2_000)), "██████████");
    assert_eq!(bar(&row(0, 0)), "░░░░░░░░░░");
}

#[test]
fn a_rate_has_no_needless_zeros_and_may_have_an_unknown_unit() {
    let text = |number: &str, unit: &str| {
        let mut row = row(0, 1);
        row.visits_per_unit = Some(number.to_owned());
        row.time_period = Some(unit.to_owned());
        target(&row)
    };
    assert_eq!(text("6250.00", "hour"), "6250/h");
    assert_eq!(text("200", "second"), "200/s");
    assert_eq!(text("0.50", "day"), "0.5/day");
    assert_eq!(text("5", "fortnight"), "5/fortnight");
}

#[test]
fn a_reason_is_on_a_line_of_its_own_and_says_what_to_do() {
    let mut behind = row(1, 2);
    behind.status = "behind".to_owned();
    behind.reason = Some("no agent is running: start one with visit-pacer run".to_owned());
    let lines = printed(vec![behind], 200);
    assert_eq!(
        lines[2],
        "  no agent is running: start one with visit-pacer run"
    );
}

#[test]
fn a_row_with_nulls_is_shown() {
    let mut bare = row(0, 1);
    (bare.partner, bare.visits_per_unit, bare.completes_at) = (None, None, None);
    (bare.total_visits, bare.distributed, bare.backlog) = (None, None, None);
    let lines = printed(vec![bare], 80);
    assert_eq!(lines[1], "00000000  active       –          0/–");
}

#[test]
fn a_name_cannot_move_the_cursor() {
    let mut sly = row(0, 1);
    sly.partner = Some("a\u{1b}[2Jb\nc".to_owned());
    assert!(printed(vec![sly], 80)[1].starts_with("a [2Jb c"));
}

#[test]
fn an_empty_table_says_what_to_do() {
    let text = "no distribution yet: insert a row into visit_distribution";
    assert_eq!(printed(Vec::new(), 80), [text]);
}

#[test]
fn agents_are_listed_with_their_realtime_state() {
    let live = agent("box:41", 0.4, "live", 2, 2);
    assert_eq!(
        agent_lines(&[live]),
        ["1 agent: box:41, Realtime live, 2 distributions"]
    );
    let two = [
        agent("box:41", 0.4, "live", 1, 3),
        agent("box:42", 0.9, "connecting", 2, 3),
    ];
    assert_eq!(
        agent_lines(&two),
        [
            "2 agents: box:41, Realtime live, 1 of 3 distributions",
            "          box:42, Realtime not live (connecting), 2 of 3 distributions"
        ]
    );
}

#[test]
fn an_agent_without_a_recent_heartbeat_does_not_count() {
    let gone = agent("box:41", 20.1, "live", 2, 2);
    let text_of_none = "no agent has been seen for 20 s: start one with visit-pacer run";
    assert_eq!(agent_lines(&[gone]), [text_of_none]);
    assert_eq!(agent_lines(&[]), [text_of_none]);
}
