//! The status of distributions as a table: columns, cells and colours, and the lines of `visit-pacer status`.
//!
//! Pure. Invariants: a column that has no room is left out whole, the least important first; an id is never cut.

use ratatui::layout::Alignment;
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};

use super::duration;
use super::snapshot::{ActualRates, StatusSnapshot};
use crate::domain::distribution::Period;
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::status::{AgentRow, StatusRow};

/// Agents that are listed.
const AGENTS_MAX: usize = 4;
const PARTNER_WIDTH_MIN: usize = 8;
const PARTNER_WIDTH_MAX: usize = 24;
const BAR_WIDTH: usize = 10;
/// Between columns, and before a line that belongs to the one above.
pub const GAP: &str = "  ";
const NONE: &str = "–";

/// A column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableColumn {
    /// The partner's name, or the beginning of its id.
    Partner,
    /// `status`
    Status,
    /// The target rate.
    Target,
    /// The actual rate, in the unit of the target rate.
    Actual,
    /// Visits distributed, of all.
    Distributed,
    /// Progress as a bar.
    Bar,
    /// Progress in percent.
    Percent,
    /// `backlog`
    Backlog,
    /// Time until it is complete.
    Completes,
    /// `id`
    Id,
}

/// From left to right.
pub const COLUMNS: [TableColumn; 10] = [
    TableColumn::Partner,
    TableColumn::Status,
    TableColumn::Target,
    TableColumn::Actual,
    TableColumn::Distributed,
    TableColumn::Bar,
    TableColumn::Percent,
    TableColumn::Backlog,
    TableColumn::Completes,
    TableColumn::Id,
];

/// The most important first: the order in which columns get room.
const RANKS: [TableColumn; 10] = [
    TableColumn::Partner,
    TableColumn::Status,
    TableColumn::Distributed,
    TableColumn::Target,
    TableColumn::Actual,
    TableColumn::Percent,
    TableColumn::Bar,
    TableColumn::Backlog,
    TableColumn::Completes,
    TableColumn::Id,
];

impl TableColumn {
    /// Its title; empty where the neighbour's is enough.
    pub fn title(self) -> &'static str {
        match self {
            Self::Partner => "partner",
            Self::Status => "status",
            Self::Target => "target",
            Self::Actual => "actual",
            Self::Distributed => "distributed",
            Self::Bar | Self::Percent => "",
            Self::Backlog => "backlog",
            Self::Completes => "completes",
            Self::Id => "id",
        }
    }

    /// Whether it has numbers, on the right of their column.
    pub fn is_number(self) -> bool {
        matches!(
            self,
            Self::Target | Self::Actual | Self::Distributed | Self::Percent | Self::Backlog
        )
    }

    fn alignment(self) -> Alignment {
        if self.is_number() {
            Alignment::Right
        } else {
            Alignment::Left
        }
    }
}

/// The cells of a row, one for each of [`COLUMNS`].
pub type TableCells = [Span<'static>; COLUMNS.len()];

/// The titles; `mark` is put behind that of its column.
pub fn titles(mark: Option<(TableColumn, &str)>) -> TableCells {
    COLUMNS.map(|column| {
        let mark = mark.filter(|(marked, _)| *marked == column);
        Span::raw(format!(
            "{}{}",
            column.title(),
            mark.map_or("", |(_, mark)| mark)
        ))
        .dim()
    })
}

/// The cells of a row in a table of this width. `rates` are known in a live table only.
pub fn cells(
    row: &StatusRow,
    now: DbTime,
    width: usize,
    rates: Option<&ActualRates>,
) -> TableCells {
    COLUMNS.map(|column| match column {
        TableColumn::Partner => Span::raw(partner(row, width)),
        TableColumn::Status => Span::styled(row.status.clone(), tone(&row.status)),
        TableColumn::Target => Span::raw(target(row)),
        TableColumn::Actual => Span::raw(actual(row, rates)).bold(),
        TableColumn::Distributed => Span::raw(distributed(row)),
        TableColumn::Bar => Span::styled(bar(row), tone(&row.status)),
        TableColumn::Percent => Span::raw(percent(row)),
        TableColumn::Backlog => Span::raw(row.backlog.map_or_else(String::new, grouped)),
        TableColumn::Completes => Span::raw(completes(row, now)),
        TableColumn::Id => Span::raw(row.id.to_string()).dim(),
    })
}

/// The widths of the columns. They only grow, so that columns stay in place while one scrolls.
#[derive(Clone, Default)]
pub struct Widths([usize; COLUMNS.len()]);

impl Widths {
    /// Makes room for these cells.
    pub fn include(&mut self, cells: &TableCells) {
        for (width, cell) in self.0.iter_mut().zip(cells) {
            *width = cell.width().max(*width);
        }
    }

    /// The columns that fit into `room`, with their widths, from left to right.
    pub fn fitting(&self, mut room: usize, is_live: bool) -> Vec<(TableColumn, usize)> {
        room = room.saturating_add(GAP.len());
        let columns = || COLUMNS.into_iter().zip(self.0);
        let fits = RANKS.into_iter().filter(|column| {
            let is_of_live = matches!(column, TableColumn::Actual | TableColumn::Bar);
            let width = columns().find(|(other, _)| other == column);
            let needed = width.map_or(0, |(_, width)| width + GAP.len());
            let fits = needed <= room && (is_live || !is_of_live);
            room -= if fits { needed } else { 0 };
            fits
        });
        let fits: Vec<TableColumn> = fits.collect();
        columns()
            .filter(|(column, _)| fits.contains(column))
            .collect()
    }
}

/// The cells of these columns, in order.
pub fn chosen(
    cells: TableCells,
    columns: &[(TableColumn, usize)],
) -> impl Iterator<Item = Line<'static>> {
    let cells = COLUMNS.into_iter().zip(cells);
    let chosen = cells.filter(|(column, _)| columns.iter().any(|(other, _)| other == column));
    chosen.map(|(column, cell)| Line::from(cell).alignment(column.alignment()))
}

/// The distributions: a line of titles, then for each a line, its id if the line has no room for it, and its reason.
pub fn lines(snapshot: &StatusSnapshot, width: usize) -> Vec<Line<'static>> {
    if snapshot.rows.is_empty() {
        return vec![no_distribution()];
    }
    let rows = snapshot.rows.iter();
    let rows: Vec<TableCells> = rows
        .map(|row| cells(row, snapshot.at, width, None))
        .collect();
    let titles = titles(None);
    let mut widths = Widths::default();
    widths.include(&titles);
    for row in &rows {
        widths.include(row);
    }
    let columns = widths.fitting(width, false);
    let has_id = columns.iter().any(|(column, _)| *column == TableColumn::Id);
    let mut lines = vec![padded(titles, &columns)];
    for (row, cells) in snapshot.rows.iter().zip(rows) {
        lines.push(padded(cells, &columns));
        if !has_id {
            lines.push(Line::from(format!("{GAP}{}", row.id).dim()));
        }
        lines.extend(reason(row, width));
    }
    lines
}

fn padded(cells: TableCells, columns: &[(TableColumn, usize)]) -> Line<'static> {
    let mut spans = Vec::new();
    for (cell, (_, width)) in chosen(cells, columns).zip(columns) {
        if !spans.is_empty() {
            spans.push(Span::raw(GAP));
        }
        let padding = Span::raw(" ".repeat(width.saturating_sub(cell.width())));
        let is_right = cell.alignment == Some(Alignment::Right);
        let (before, after) = if is_right {
            (Some(padding), None)
        } else {
            (None, Some(padding))
        };
        spans.extend(before.into_iter().chain(cell.spans).chain(after));
    }
    Line::from(spans)
}

/// What to do if there are none.
pub fn no_distribution() -> Line<'static> {
    Line::from("no distribution yet: insert a row into visit_distribution")
}

/// The agents, or what to do if there are none.
pub fn agents(snapshot: &StatusSnapshot) -> Vec<Line<'static>> {
    let alive: Vec<&AgentRow> = snapshot.alive_agents().collect();
    if alive.is_empty() {
        let text = "no agent has been seen for 20 s: start one with visit-pacer run";
        return vec![Line::from(text.yellow())];
    }
    let head = format!("{}: ", counted(alive.len(), "agent"));
    let indent = " ".repeat(head.len());
    let heads = [head].into_iter().chain(std::iter::repeat(indent.clone()));
    let shown = heads.zip(alive.iter().take(AGENTS_MAX));
    let mut lines: Vec<Line<'static>> =
        shown.map(|(head, agent)| described(&head, agent)).collect();
    let rest = alive.len().saturating_sub(AGENTS_MAX);
    if rest > 0 {
        lines.push(Line::from(format!("{indent}and {rest} more")));
    }
    lines
}

fn described(head: &str, agent: &AgentRow) -> Line<'static> {
    let realtime = match agent.realtime.as_deref() {
        Some("live") => "live".green(),
        Some(why) if !why.is_empty() => format!("not live ({why})").yellow(),
        Some(_) | None => "not live yet".yellow(),
    };
    let known = counted(usize::try_from(agent.rows).unwrap_or(0), "distribution");
    let rows = if agent.rows_owned == agent.rows {
        known
    } else {
        format!("{} of {known}", agent.rows_owned)
    };
    Line::from(vec![
        Span::raw(format!("{head}{}, Realtime ", agent.name)),
        realtime,
        format!(", {rows}").into(),
    ])
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Why a distribution does not progress, as the line below its own.
pub fn reason(row: &StatusRow, width: usize) -> Option<Line<'static>> {
    let text = clip(&format!("{GAP}{}", row.reason.as_deref()?), width);
    Some(Line::from(Span::styled(text, tone(&row.status))))
}

fn partner(row: &StatusRow, width: usize) -> String {
    let width = (width / 4).clamp(PARTNER_WIDTH_MIN, PARTNER_WIDTH_MAX);
    match (&row.partner, &row.partner_id) {
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

/// `visits_per_unit` and `time_period`, such as `33.33/min`.
fn target(row: &StatusRow) -> String {
    let (Some(number), Some(unit)) = (&row.visits_per_unit, &row.time_period) else {
        return NONE.to_owned();
    };
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    let unit = match unit.as_str() {
        "second" => "s",
        "minute" => "min",
        "hour" => "h",
        other => other,
    };
    format!("{number}/{unit}")
}

fn actual(row: &StatusRow, rates: Option<&ActualRates>) -> String {
    let rate = || {
        let per_second = rates?.get(&row.id)?;
        let period: Period = row.time_period.as_deref()?.parse().ok()?;
        Some(per_second * f64::from(u32::try_from(period.seconds()).ok()?))
    };
    match rate() {
        None => NONE.to_owned(),
        Some(rate) if rate <= 0.0 => "0".to_owned(),
        Some(rate) if rate >= 100.0 => format!("{rate:.0}"),
        Some(rate) if rate >= 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.2}"),
    }
}

fn distributed(row: &StatusRow) -> String {
    let total = row.total_visits.map_or_else(|| NONE.to_owned(), grouped);
    format!("{}/{total}", grouped(row.distributed.unwrap_or(0)))
}

/// In tenths, rounded down, so that 100 % means all of them.
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
    let total = row.total_visits.unwrap_or(0).max(1);
    let done = row.distributed.unwrap_or(0).clamp(0, total);
    let done = usize::try_from(done).unwrap_or(0);
    let eighths = done.saturating_mul(BAR_WIDTH * 8) / usize::try_from(total).unwrap_or(1);
    let (full, rest) = (eighths / 8, EIGHTHS.get(eighths % 8).copied().unwrap_or(""));
    let empty = BAR_WIDTH - full - usize::from(!rest.is_empty());
    format!("{}{rest}{}", "█".repeat(full), "░".repeat(empty))
}

fn completes(row: &StatusRow, now: DbTime) -> String {
    let seconds = row.completes_at.map(|at| at.micros_since(now) / SECOND_US);
    seconds.map_or_else(String::new, |s| format!("in {}", duration::words(s)))
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

/// Cut to a width of the terminal, with an ellipsis; without control characters.
fn clip(text: &str, width: usize) -> String {
    let mut text = text.replace(char::is_control, " ");
    let is_wide = |text: &str, most: usize| Span::raw(text).width() > most;
    if is_wide(&text, width) {
        while is_wide(&text, width.saturating_sub(1)) {
            text.pop();
        }
        text.push('…');
    }
    text
}

#[cfg(test)]
pub mod tests;
