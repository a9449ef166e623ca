//! Where the distributions stand, in words: rows of the status view become lines of styled text
//! that fit a width. Shared by `status`, `status --watch` and the demo's screen.
//!
//! Pure: it reads no database, no clock and no terminal, and prints nothing.
//!
//! Invariants: no line of a distribution is wider than the width asked for, and an id is never cut;
//! a column that has no room is left out whole, the less telling first.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use uuid::Uuid;

use self::order::Sort;
use crate::domain::time::DbTime;
use crate::postgres::status::{AgentRow, StatusRow};

pub mod order;

/// Visits per second that were really stored, by distribution.
pub type Measured = BTreeMap<Uuid, f64>;

/// Everything that one look at the database tells.
pub struct Look {
    /// When, by the database's clock.
    pub at: DateTime<Utc>,
    /// The distributions.
    pub rows: Vec<StatusRow>,
    /// The agents.
    pub agents: Vec<AgentRow>,
}

/// How the lines are meant to be read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Columns of the terminal.
    pub width: usize,
    /// What was measured, on a screen that shows it live, with progress bars; on paper nothing
    /// was, and each distribution comes with its id instead.
    pub live: Option<&'a Measured>,
}

/// An agent that was not seen for so long is not counted on, as in `visit_distribution_status`.
const AGENT_GONE_AFTER_SECONDS: f64 = 20.0;
/// Agents that are named.
const AGENTS_MAX: usize = 4;
const PARTNER_WIDTH_MIN: usize = 8;
const PARTNER_WIDTH_MAX: usize = 24;
const BAR_WIDTH: usize = 10;
const GAP: &str = "  ";
const INDENT: &str = "  ";
const NONE: &str = "–";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Column {
    Partner,
    Status,
    Asked,
    Measured,
    Distributed,
    Bar,
    Percent,
    Backlog,
    Completes,
    Id,
}

/// From left to right.
const COLUMNS: [Column; 10] = [
    Column::Partner,
    Column::Status,
    Column::Asked,
    Column::Measured,
    Column::Distributed,
    Column::Bar,
    Column::Percent,
    Column::Backlog,
    Column::Completes,
    Column::Id,
];

/// The most telling first: who gets room.
const RANKS: [Column; 10] = [
    Column::Partner,
    Column::Status,
    Column::Distributed,
    Column::Asked,
    Column::Measured,
    Column::Percent,
    Column::Bar,
    Column::Backlog,
    Column::Completes,
    Column::Id,
];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Partner => "partner",
            Self::Status => "status",
            Self::Asked => "asked",
            Self::Measured => "measured",
            Self::Distributed => "distributed",
            Self::Bar | Self::Percent => "",
            Self::Backlog => "backlog",
            Self::Completes => "completes",
            Self::Id => "id",
        }
    }

    fn is_number(self) -> bool {
        matches!(
            self,
            Self::Asked | Self::Measured | Self::Distributed | Self::Percent | Self::Backlog
        )
    }

    fn is_of(self, view: View<'_>) -> bool {
        match self {
            Self::Measured | Self::Bar => view.live.is_some(),
            Self::Partner
            | Self::Status
            | Self::Asked
            | Self::Distributed
            | Self::Percent
            | Self::Backlog
            | Self::Completes
            | Self::Id => true,
        }
    }

    fn cell(self, row: &StatusRow, now: DateTime<Utc>, view: View<'_>) -> Span<'static> {
        match self {
            Self::Partner => Span::raw(partner(row, view.width)),
            Self::Status => Span::styled(row.status.clone(), tone(&row.status)),
            Self::Asked => Span::raw(Pace::of(row).map_or_else(|| NONE.to_owned(), Pace::words)),
            Self::Measured => Span::raw(measured(row, view)).bold(),
            Self::Distributed => Span::raw(distributed(row)),
            Self::Bar => Span::styled(bar(row), tone(&row.status)),
            Self::Percent => Span::raw(percent(row)),
            Self::Backlog => Span::raw(row.backlog.map_or_else(String::new, grouped)),
            Self::Completes => Span::raw(completes(row, now)),
            Self::Id => Span::raw(row.id.to_string()).dim(),
        }
    }
}

/// The distributions: a line of titles, then for each a line, and one below it where there is
/// something to explain.
pub fn distributions(look: &Look, view: View<'_>) -> Vec<Line<'static>> {
    if look.rows.is_empty() {
        return vec![none_yet()];
    }
    let rows: Vec<&StatusRow> = look.rows.iter().collect();
    let sheet = sheet(&rows, look.at, view, &mut Widths::default(), None);
    [vec![sheet.titles], sheet.rows.concat()].concat()
}

/// What to do about there being none.
pub fn none_yet() -> Line<'static> {
    Line::from("no distribution yet: insert a row into visit_distribution")
}

/// Lines that a row takes on a screen.
pub fn height(row: &StatusRow) -> usize {
    1 + usize::from(row.reason.is_some())
}

/// The widths of the columns. They only grow, so that columns stand still while one scrolls.
#[derive(Clone, Default)]
pub struct Widths([usize; COLUMNS.len()]);

impl Widths {
    fn make_room<'a>(&mut self, cells: impl IntoIterator<Item = &'a Span<'static>>) {
        for (width, cell) in self.0.iter_mut().zip(cells) {
            *width = cell.width().max(*width);
        }
    }
}

/// Rows as lines.
pub struct Sheet {
    /// The line of titles.
    pub titles: Line<'static>,
    /// The lines of each row.
    pub rows: Vec<Vec<Line<'static>>>,
}

/// Lays these rows out; `sort` marks the title of its column.
pub fn sheet(
    rows: &[&StatusRow],
    now: DateTime<Utc>,
    view: View<'_>,
    widths: &mut Widths,
    sort: Option<Sort>,
) -> Sheet {
    let titles = COLUMNS.map(|column| {
        let mark = sort.and_then(|sort| sort.mark(column)).unwrap_or("");
        Span::raw(format!("{}{mark}", column.title())).dim()
    });
    let cells: Vec<_> = (rows.iter())
        .map(|row| COLUMNS.map(|column| column.cell(row, now, view)))
        .collect();
    widths.make_room(&titles);
    for row in &cells {
        widths.make_room(row);
    }
    let shown = fitting(widths, view);
    let laid_out = |cells| clipped(laid_out(cells, widths, &shown), view.width);
    let has_id = shown.contains(&Column::Id);
    let rows = rows.iter().zip(cells).map(|(row, cells)| {
        let id = (!has_id && view.live.is_none()).then(|| format!("{INDENT}{}", row.id));
        let reason = (row.reason.as_deref())
            .map(|why| format!("{INDENT}{}", reason(why)))
            .map(|why| Line::from(Span::styled(why, tone(&row.status))));
        [laid_out(cells)]
            .into_iter()
            .chain(id.map(|id| Line::from(id.dim())))
            .chain(reason.map(|line| clipped(line, view.width)))
            .collect()
    });
    Sheet {
        rows: rows.collect(),
        titles: laid_out(titles),
    }
}

/// The columns for which there is room.
fn fitting(widths: &Widths, view: View<'_>) -> Vec<Column> {
    let mut left = view.width.saturating_add(GAP.len());
    let width_of = |column| {
        COLUMNS
            .iter()
            .zip(widths.0)
            .find(|(other, _)| **other == column)
    };
    RANKS
        .into_iter()
        .filter(|column| column.is_of(view))
        .filter(|column| {
            let needed = width_of(*column).map_or(0, |(_, width)| width + GAP.len());
            let fits = needed <= left;
            left -= if fits { needed } else { 0 };
            fits
        })
        .collect()
}

fn laid_out(
    cells: [Span<'static>; COLUMNS.len()],
    widths: &Widths,
    shown: &[Column],
) -> Line<'static> {
    let mut spans = Vec::new();
    for ((column, cell), width) in COLUMNS.iter().zip(cells).zip(widths.0) {
        if !shown.contains(column) {
            continue;
        }
        if !spans.is_empty() {
            spans.push(Span::raw(GAP));
        }
        let padding = Span::raw(" ".repeat(width.saturating_sub(cell.width())));
        spans.extend(if column.is_number() {
            [padding, cell]
        } else {
            [cell, padding]
        });
    }
    Line::from(spans)
}

/// The agents, or what to do about there being none.
pub fn agents(agents: &[AgentRow]) -> Vec<Line<'static>> {
    let present: Vec<&AgentRow> = (agents.iter())
        .filter(|agent| agent.seen_seconds_ago <= AGENT_GONE_AFTER_SECONDS)
        .collect();
    if present.is_empty() {
        let text = "no agent has been seen for 20 s: start one with visit-pacer run";
        return vec![Line::from(text.yellow())];
    }
    let head = counted(present.len(), "agent");
    let mut lines: Vec<Line<'static>> = (present.iter().take(AGENTS_MAX).enumerate())
        .map(|(place, agent)| {
            let head = if place == 0 {
                format!("{head}: ")
            } else {
                " ".repeat(head.len() + 2)
            };
            Line::from([vec![Span::raw(head)], described(agent)].concat())
        })
        .collect();
    let unnamed = present.len().saturating_sub(AGENTS_MAX);
    if unnamed > 0 {
        lines.push(Line::from(format!(
            "{}and {unnamed} more",
            " ".repeat(head.len() + 2)
        )));
    }
    lines
}

fn described(agent: &AgentRow) -> Vec<Span<'static>> {
    let realtime = match agent.realtime.as_deref() {
        Some("live") => "live".green(),
        Some(why) if !why.is_empty() => format!("not live ({why})").yellow(),
        Some(_) | None => "not live yet".yellow(),
    };
    let whole = |rows: i64| usize::try_from(rows).unwrap_or(0);
    let known = counted(whole(agent.rows), "row");
    let rows = if agent.rows_owned == agent.rows {
        known
    } else {
        format!("{} of {known}", agent.rows_owned)
    };
    vec![
        Span::raw(format!("{}, Realtime ", agent.name)),
        realtime,
        format!(", {rows}").into(),
    ]
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn partner(row: &StatusRow, width: usize) -> String {
    let width = (width / 4).clamp(PARTNER_WIDTH_MIN, PARTNER_WIDTH_MAX);
    match (&row.partner, row.partner_id) {
        (Some(name), _) if !name.trim().is_empty() => clip(name.trim(), width),
        (_, Some(id)) => id.to_string().chars().take(8).collect(),
        (_, None) => NONE.to_owned(),
    }
}

fn tone(status: &str) -> Style {
    let style = Style::new();
    match status {
        "active" => style.fg(Color::Green),
        "behind" | "draining" => style.fg(Color::Yellow),
        "invalid" => style.fg(Color::Red),
        "scheduled" | "paused" => style.fg(Color::Cyan),
        _ended => style.dim(),
    }
}

/// The view's short words for a reason, and what to do about it.
fn reason(word: &str) -> String {
    match word {
        "no agent" => "no agent is at work: start one with visit-pacer run",
        "stopped" => "everything is paused: visit-pacer resume --all",
        "bucket" => "catches up, at the pace that catch_up allows",
        words => words,
    }
    .to_owned()
}

/// `visits_per_unit` and `time_period`.
#[derive(Clone, Copy)]
struct Pace<'a> {
    number: &'a str,
    unit: &'a str,
}

impl<'a> Pace<'a> {
    fn of(row: &'a StatusRow) -> Option<Self> {
        let (number, unit) = row.pace.as_deref()?.split_once(" a ")?;
        let number = if number.contains('.') {
            number.trim_end_matches('0').trim_end_matches('.')
        } else {
            number
        };
        Some(Self { number, unit })
    }

    fn words(self) -> String {
        let unit = match self.unit {
            "second" => "s",
            "minute" => "min",
            "hour" => "h",
            other => other,
        };
        format!("{}/{unit}", self.number)
    }

    fn unit_seconds(self) -> Option<f64> {
        match self.unit {
            "second" => Some(1.0),
            "minute" => Some(60.0),
            "hour" => Some(3_600.0),
            "day" => Some(86_400.0),
            _unknown => None,
        }
    }
}

/// In the unit of what was asked, so that the two can be compared at a glance.
fn measured(row: &StatusRow, view: View<'_>) -> String {
    let per_second = view.live.and_then(|measured| measured.get(&row.id));
    let unit_seconds = Pace::of(row).and_then(Pace::unit_seconds);
    let (Some(per_second), Some(unit_seconds)) = (per_second, unit_seconds) else {
        return NONE.to_owned();
    };
    let number = per_second * unit_seconds;
    match number {
        _ if number <= 0.0 => "0".to_owned(),
        _ if number >= 100.0 => format!("{number:.0}"),
        _ if number >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn distributed(row: &StatusRow) -> String {
    let done = grouped(row.distributed.unwrap_or(0));
    format!(
        "{done}/{}",
        row.total_visits.map_or_else(|| NONE.to_owned(), grouped)
    )
}

/// In tenths, rounded down: 100 % means all of them.
fn percent(row: &StatusRow) -> String {
    match (row.distributed, row.total_visits) {
        (Some(done), Some(total)) if total > 0 => {
            let tenths = i128::from(done) * 1_000 / i128::from(total);
            format!("{}.{} %", tenths / 10, tenths % 10)
        }
        _ => String::new(),
    }
}

fn bar(row: &StatusRow) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let (done, total) = (
        row.distributed.unwrap_or(0),
        row.total_visits.unwrap_or(0).max(1),
    );
    let done = usize::try_from(done.clamp(0, total)).unwrap_or(0);
    let eighths = done.saturating_mul(BAR_WIDTH * 8) / usize::try_from(total).unwrap_or(1);
    let (full, rest) = (eighths / 8, EIGHTHS.get(eighths % 8).copied().unwrap_or(""));
    let empty = BAR_WIDTH - full - usize::from(!rest.is_empty());
    format!("{}{rest}{}", "█".repeat(full), "░".repeat(empty))
}

fn completes(row: &StatusRow, now: DateTime<Utc>) -> String {
    let at = row.completes_at.and_then(DbTime::to_datetime);
    at.map_or_else(String::new, |at| format!("in {}", span(at - now)))
}

/// The two largest units of a time.
fn span(time: TimeDelta) -> String {
    let seconds = time.num_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (_, _, _) => format!("{} d {} h", grouped(days), hours % 24),
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Cut to a width of the terminal, with a sign that it was.
fn clip(text: &str, width: usize) -> String {
    let safe = || text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if Span::raw(text).width() <= width {
        return safe().collect();
    }
    let mut clipped = String::new();
    for c in safe() {
        clipped.push(c);
        if Span::raw(clipped.as_str()).width() >= width {
            clipped.pop();
            break;
        }
    }
    clipped + "…"
}

/// The same for a line.
pub fn clipped(line: Line<'static>, width: usize) -> Line<'static> {
    let mut left = width;
    let mut spans = Vec::new();
    for span in line.spans {
        let cut = clip(&span.content, left);
        left = left.saturating_sub(Span::raw(cut.as_str()).width());
        spans.push(Span::styled(cut, span.style));
        if left == 0 {
            break;
        }
    }
    Line::from(spans)
}

#[cfg(test)]
pub mod tests;
