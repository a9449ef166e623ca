//! What keys do to the table, and the pictures of it.

use std::time::Instant;

use KeyCode::{Backspace, Char, Down, End, Enter, Esc, Home, PageDown, PageUp, Up};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;

use super::*;
use crate::cli::snapshot::StatusSnapshot;
use crate::cli::table::tests::row;
use crate::domain::time::DbTime;

fn numbered(number: u16) -> StatusRow {
    StatusRow {
        id: Uuid::from_u128(u128::from(number) + 1),
        partner: Some(format!("Partner {number}")),
        backlog: Some(i64::from(number)),
        ..row(i64::from(number), 100_000)
    }
}

fn live(rows: Vec<StatusRow>) -> LiveStatus {
    let at = DbTime::from_micros(1_767_225_600_000_000); // 2026-01-01T00:00:00Z
    let agents = Vec::new();
    LiveStatus {
        snapshot: Some(StatusSnapshot { at, rows, agents }),
        ..LiveStatus::default()
    }
}

fn many(count: u16) -> LiveStatus {
    live((0..count).map(numbered).collect())
}

/// A table and the status that it shows.
struct Fixture {
    table: LiveTable,
    live: LiveStatus,
}

impl Fixture {
    fn of(live: LiveStatus) -> Self {
        let mut table = LiveTable::new("the table", &["q quits"]);
        table.update(&live);
        Self { table, live }
    }

    fn update(&mut self, live: LiveStatus) {
        self.live = live;
        self.table.update(&self.live);
    }

    fn press(&mut self, keys: impl IntoIterator<Item = KeyCode>) {
        for key in keys {
            let action = self.table.press(key.into(), &self.live);
            assert_eq!(action, KeyAction::Redraw);
        }
    }

    fn type_in(&mut self, text: &str) {
        self.press(text.chars().map(Char));
    }

    fn terminal(&mut self, width: u16, height: u16) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        assert!(self.table.height(&self.live, height) <= height);
        terminal
            .draw(|frame| self.table.draw(&self.live, height, frame))
            .unwrap();
        terminal
    }

    /// The lines as a terminal of this size has them; `>` is before those of the selected row.
    fn picture(&mut self, width: u16, height: u16) -> Vec<String> {
        let terminal = self.terminal(width, height);
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width)).map(|cells| {
            let text: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            let is_selected = (cells.iter()).all(|cell| cell.modifier.contains(Modifier::REVERSED));
            let mark = if is_selected { ">" } else { "" };
            format!("{mark}{}", text.trim_end())
        });
        lines.collect()
    }

    /// The partners in sight, of a terminal with room for ten of them.
    fn partners(&mut self) -> Vec<String> {
        let names = self.picture(80, 14).into_iter().filter_map(|line| {
            let name = line.split("  ").next()?;
            (name.contains("Partner") && !name.starts_with('/')).then(|| name.to_owned())
        });
        names.collect()
    }

    fn selected(&mut self) -> String {
        let mut partners = self.partners().into_iter();
        let selected = partners.find(|name| name.starts_with('>'));
        selected.unwrap_or_default().replace(">Partner ", "")
    }

    fn last_line(&mut self, width: u16) -> String {
        self.picture(width, 14).pop().unwrap()
    }
}

#[test]
fn the_picture_has_titles_rows_agents_and_keys() {
    let mut fixture = Fixture::of(many(2));
    fixture.press([Down, Down]);
    assert_eq!(
        fixture.picture(80, 9),
        [
            "── the table ── database time 00:00:00 UTC ─────────────────────────────────────",
            "partner    status↑     target  actual  distributed                     backlog",
            "Partner 0  active   33.33/min       –    0/100,000  ░░░░░░░░░░  0.0 %        0",
            ">Partner 1  active   33.33/min       –    1/100,000  ░░░░░░░░░░  0.0 %        1",
            "no agent has been seen for 20 s: start one with visit-pacer run",
            "",
            "",
            "",
            "2 rows · q quits · ↑↓ scroll · / filter · s sort: status↑ · r reverse",
        ]
    );
}

#[test]
fn nothing_is_selected_until_one_moves_and_escape_lets_go() {
    let mut fixture = Fixture::of(many(50));
    assert_eq!(fixture.selected(), "");
    fixture.press([Down]);
    assert_eq!(fixture.selected(), "0");
    fixture.press([End, Esc]);
    assert_eq!(fixture.selected(), "");
    assert_eq!(fixture.partners()[0], "Partner 0");
}

#[test]
fn keys_move_the_selection_and_the_window_follows() {
    for (keys, selected, first) in [
        (vec![Down, Down, Down, Up], "1", "Partner 0"),
        (vec![Char('j'), Char('j'), Char('k')], "0", "Partner 0"),
        (vec![Up], "0", "Partner 0"),
        (vec![PageDown], "10", "Partner 1"),
        (vec![PageDown, PageDown], "20", "Partner 11"),
        (vec![PageDown, PageDown, PageUp], "10", "Partner 1"),
        (vec![PageUp], "0", "Partner 0"),
        (vec![End], "49", "Partner 40"),
        (vec![Char('G')], "49", "Partner 40"),
        (vec![End, Down, PageDown], "49", "Partner 40"),
        (vec![End, Home], "0", "Partner 0"),
        (vec![Char('G'), Char('g'), Down], "1", "Partner 0"),
    ] {
        let mut fixture = Fixture::of(many(50));
        fixture.partners();
        fixture.press(keys.clone());
        assert_eq!(fixture.selected(), selected, "{keys:?}");
        let first_in_sight = fixture.partners()[0].replace('>', "");
        assert_eq!(first_in_sight, first, "{keys:?}");
    }
}

#[test]
fn rows_with_reasons_scroll_whole() {
    let mut rows: Vec<StatusRow> = (0..20).map(numbered).collect();
    for row in &mut rows {
        row.reason = Some("catching up at 2 times the rate".to_owned());
    }
    let mut fixture = Fixture::of(live(rows));
    fixture.partners();
    for place in 0..20 {
        fixture.press([Down]);
        assert_eq!(fixture.selected(), place.to_string());
        let marks = fixture.picture(80, 14);
        let marked = marks.iter().filter(|line| line.starts_with('>')).count();
        assert_eq!(marked, 2, "the row and its reason, of row {place}");
    }
    assert_eq!(fixture.partners().len(), 5);
}

#[test]
fn the_selection_stays_on_its_row_wherever_a_newer_look_has_it() {
    let mut fixture = Fixture::of(many(50));
    fixture.press([Down, Down, Down]);
    assert_eq!(fixture.selected(), "2");
    fixture.update(live((0..50).rev().map(numbered).collect()));
    assert_eq!(fixture.selected(), "2");
}

#[test]
fn where_the_selected_row_was_deleted_the_one_in_its_place_is_selected() {
    let mut fixture = Fixture::of(many(5));
    fixture.press([Down, Down, Down]);
    let rows = |deleted: &[u16]| {
        let left = (0..5).filter(|number| !deleted.contains(number));
        live(left.map(numbered).collect())
    };
    fixture.update(rows(&[2]));
    assert_eq!(fixture.selected(), "3");
    fixture.update(rows(&[2, 0]));
    assert_eq!(fixture.selected(), "3");
    fixture.update(rows(&[0, 1, 2, 3, 4]));
    assert_eq!(
        fixture.picture(80, 14)[1],
        "no distribution yet: insert a row into visit_distribution"
    );
}

#[test]
fn a_filter_narrows_while_it_is_typed_and_enter_keeps_it() {
    let mut fixture = Fixture::of(many(10_000));
    fixture.type_in("/Partner 777");
    assert_eq!(fixture.partners().len(), 10);
    assert!((fixture.last_line(120)).starts_with("/Partner 777  11 of 10,000 rows, 1–10 shown"));
    fixture.press([Enter, End]);
    assert_eq!(fixture.selected(), "7779");
    fixture.press([Char('/'), Backspace, Backspace]);
    assert!((fixture.last_line(80)).starts_with("/Partner 7  1,111 of 10,000 rows"));
    fixture.press([Esc]);
    assert!(
        fixture
            .last_line(80)
            .starts_with("10,000 rows, 7,771–7,780")
    );
    assert_eq!(fixture.selected(), "7779");
}

#[test]
fn the_selected_row_is_selected_again_when_the_filter_that_hid_it_is_gone() {
    let mut fixture = Fixture::of(many(50));
    fixture.press([Down, Down, Down]);
    fixture.type_in("/Partner 4");
    assert_eq!(fixture.selected(), "4");
    fixture.press([Esc]);
    assert_eq!(fixture.selected(), "2");
}

#[test]
fn a_filter_looks_into_partner_id_name_status_and_reason() {
    let mut behind = numbered(7);
    behind.status = "behind".to_owned();
    behind.reason = Some("no agent is running: start one with visit-pacer run".to_owned());
    behind.partner_id = Some(Uuid::from_u128(0xabcd_0000).into());
    let mut rows: Vec<StatusRow> = (0..50).map(numbered).collect();
    rows[7] = behind;
    for filter in [
        "PARTNER 7",
        "abcd0000",
        "000000000008",
        "behind",
        "no agent",
        "visit-pacer run",
    ] {
        let mut fixture = Fixture::of(live(rows.clone()));
        fixture.type_in(&format!("/{filter}"));
        assert_eq!(fixture.partners(), ["Partner 7"], "{filter}");
    }
}

#[test]
fn keys_are_letters_while_a_filter_is_typed_but_arrows_move() {
    let mut fixture = Fixture::of(many(50));
    fixture.type_in("/qsrgGjkp/");
    assert!(
        fixture
            .last_line(80)
            .starts_with("/qsrgGjkp/  0 of 50 rows")
    );
    assert_eq!(
        fixture.picture(80, 14)[1],
        "no distribution matches; Esc clears the filter"
    );
    fixture.press([Down, End, Esc]);
    fixture.type_in("/partner 3");
    fixture.press([Down, Down]);
    assert_eq!(fixture.selected(), "30");
}

#[test]
fn a_filter_is_of_bounded_length_and_an_empty_one_ends_with_backspace() {
    let mut fixture = Fixture::of(many(3));
    fixture.type_in("/");
    fixture.type_in(&"x".repeat(FILTER_MAX + 9));
    fixture.press([Backspace; FILTER_MAX + 1]);
    assert!(fixture.last_line(80).starts_with("3 rows · q quits"));
}

#[test]
fn sorting_goes_from_column_to_column_and_marks_its_title() {
    let mut fixture = Fixture::of(many(50));
    let mut columns = Vec::new();
    for _ in 0..10 {
        columns.push(fixture.table.sort.words());
        fixture.type_in("s");
    }
    assert_eq!(
        columns,
        [
            "status↑",
            "target↓",
            "actual↓",
            "distributed↓",
            "percent↓",
            "backlog↓",
            "completes↑",
            "id↑",
            "partner↑",
            "status↑"
        ]
    );
    let mut fixture = Fixture::of(many(50));
    fixture.type_in("sss");
    let picture = fixture.picture(80, 14);
    assert!(picture[1].contains("distributed↓"), "{picture:?}");
    assert_eq!(fixture.partners()[0], "Partner 49");
    fixture.type_in("r");
    assert!(fixture.last_line(80).contains("s sort: distributed↑"));
    assert_eq!(fixture.partners()[0], "Partner 0");
    fixture.type_in("S");
    assert_eq!(fixture.partners()[0], "Partner 49");
}

#[test]
fn rows_without_a_value_come_last_both_ways() {
    let mut rows: Vec<StatusRow> = (0..3).map(numbered).collect();
    rows[1].backlog = None;
    let mut fixture = Fixture::of(live(rows));
    fixture.type_in("sssss");
    assert_eq!(fixture.partners(), ["Partner 2", "Partner 0", "Partner 1"]);
    fixture.type_in("r");
    assert_eq!(fixture.partners(), ["Partner 0", "Partner 2", "Partner 1"]);
}

#[test]
fn the_selection_stays_on_its_row_when_the_order_changes() {
    let mut fixture = Fixture::of(many(50));
    fixture.press([Down, Down, Down]);
    fixture.type_in("sssr");
    fixture.type_in("r");
    assert_eq!(fixture.selected(), "2");
}

#[test]
fn any_size_of_a_terminal_is_filled_and_the_keys_stay() {
    let mut fixture = Fixture::of(many(50));
    fixture.live.error = Some("the database is away".to_owned());
    fixture.press([End]);
    for width in (1..130).step_by(8) {
        for height in (1..13).chain([29]) {
            let picture = fixture.picture(width, height);
            let last = picture.last().unwrap();
            assert!(last.starts_with(['5', '…']), "{width}×{height}: {last}");
            let selected = picture.iter().any(|line| line.starts_with('>'));
            assert!(selected || height < 4, "{width}×{height}: {picture:#?}");
        }
    }
}

#[test]
fn only_the_rows_in_sight_are_laid_out() {
    let mut rows: Vec<StatusRow> = (0..10_000).map(numbered).collect();
    rows[9_999].partner = Some("A name that is rather long".to_owned());
    let mut fixture = Fixture::of(live(rows));
    let name_column = |fixture: &mut Fixture| fixture.picture(100, 14)[1].find("status").unwrap();
    assert_eq!(name_column(&mut fixture), "Partner 0  ".len());
    let started = Instant::now();
    fixture.press([End]);
    let at_end = name_column(&mut fixture);
    println!(
        "the end of 10,000 rows was drawn after {:?}",
        started.elapsed()
    );
    assert!(at_end > "Partner 9999  ".len());
    fixture.press([Home]);
    assert_eq!(name_column(&mut fixture), at_end, "columns stand still");
}

#[test]
fn the_end_is_q_or_control_c() {
    let mut fixture = Fixture::of(many(1));
    let mut pressed = |key: KeyEvent| fixture.table.press(key, &fixture.live);
    let control_c = KeyEvent::new(Char('c'), KeyModifiers::CONTROL);
    assert_eq!(pressed(Char('q').into()), KeyAction::Quit);
    assert_eq!(pressed(control_c), KeyAction::Quit);
    assert_eq!(pressed(Char('p').into()), KeyAction::PrintIntro);
    assert_eq!(pressed(Char('/').into()), KeyAction::Redraw);
    assert_eq!(pressed(Char('q').into()), KeyAction::Redraw);
    assert_eq!(pressed(control_c), KeyAction::Quit);
}

#[test]
fn before_the_first_look_there_are_only_words() {
    let mut fixture = Fixture::of(LiveStatus::default());
    fixture.press([Down, PageDown, End]);
    assert_eq!(
        fixture.picture(80, 2),
        [
            "",
            "0 rows · q quits · ↑↓ scroll · / filter · s sort: status↑ · r reverse"
        ]
    );
}
