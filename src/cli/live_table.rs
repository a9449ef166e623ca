//! The live table: what keys do to it, and how it is drawn into a frame of the terminal.
//!
//! Knows no terminal and no clock; [`super::screen`] has both. Invariants: a selected distribution stays selected, and in sight,
//! wherever a newer snapshot has it; of any number of rows only those in sight are formatted.

mod sort;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Row, StatefulWidget as _, Table, TableState};
use uuid::Uuid;

use self::sort::{Sort, arranged};
use super::snapshot::LiveStatus;
use super::table::{self, Widths};
use crate::postgres::status::StatusRow;

/// Characters of a filter.
const FILTER_MAX: usize = 64;
/// From this height on there is room for more than titles, rows and keys.
const HEIGHT_OF_ALL: u16 = 8;

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum KeyAction {
    /// Nothing, or the table may look different.
    Redraw,
    /// To print the introduction again.
    PrintIntro,
    /// To end.
    Quit,
}

/// The state of the table.
#[derive(Default)]
pub struct LiveTable {
    title: &'static str,
    keys: &'static [&'static str],
    filter: String,
    is_typing: bool,
    sort: Sort,
    selected: Option<Uuid>,
    /// Places in the snapshot of the rows that match, in order.
    shown: Vec<usize>,
    /// Selection and scroll position among these.
    state: TableState,
    /// Rows in sight.
    page: u16,
    widths: Widths,
    width: u16,
}

impl LiveTable {
    /// A table with this title, and these keys besides its own.
    pub fn new(title: &'static str, keys: &'static [&'static str]) -> Self {
        Self {
            title,
            keys,
            ..Self::default()
        }
    }

    /// Takes a newer snapshot.
    pub fn update(&mut self, live: &LiveStatus) {
        let rows = live.rows();
        self.shown = arranged(live, &self.filter, self.sort);
        let Some(id) = self.selected else { return };
        let id_at = |place: &usize| rows.get(*place).map(|row| row.id);
        let found = self.shown.iter().position(|at| id_at(at) == Some(id));
        let last = self.shown.len().saturating_sub(1);
        let place = found.unwrap_or_else(|| self.state.selected().unwrap_or(0).min(last));
        self.state.select(Some(place));
        // A row that only the filter hides is selected again when the filter is gone.
        if found.is_none() && rows.iter().all(|row| row.id != id) {
            self.selected = self.shown.get(place).and_then(id_at).or(Some(id));
        }
    }

    /// Handles a key; `live` is the snapshot of the last update.
    pub fn press(&mut self, key: KeyEvent, live: &LiveStatus) -> KeyAction {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') {
                KeyAction::Quit
            } else {
                KeyAction::Redraw
            };
        }
        if self.scroll(key.code) {
            let last = self.shown.len().saturating_sub(1);
            let place = self.state.selected().unwrap_or(0).min(last);
            let row = self.shown.get(place).and_then(|at| live.rows().get(*at));
            self.selected = row.map_or(self.selected, |row| Some(row.id));
            self.state.select(self.selected.map(|_| place));
        } else if self.is_typing {
            self.type_in(key.code, live);
        } else {
            return self.command(key.code, live);
        }
        KeyAction::Redraw
    }

    fn scroll(&mut self, key: KeyCode) -> bool {
        let page = self.page.max(1);
        let letter = key.as_char().filter(|_| !self.is_typing);
        match (key, letter) {
            (KeyCode::Down, _) | (_, Some('j')) => self.state.select_next(),
            (KeyCode::Up, _) | (_, Some('k')) => self.state.scroll_up_by(1),
            (KeyCode::PageDown, _) => self.state.scroll_down_by(page),
            (KeyCode::PageUp, _) => self.state.scroll_up_by(page),
            (KeyCode::Home, _) | (_, Some('g')) => self.state.select_first(),
            (KeyCode::End, _) | (_, Some('G')) => self.state.select_last(),
            _ => return false,
        }
        true
    }

    fn type_in(&mut self, key: KeyCode, live: &LiveStatus) {
        let before = self.filter.len();
        if let KeyCode::Char(letter) = key {
            let has_room = self.filter.chars().count() < FILTER_MAX;
            self.filter.extend(has_room.then_some(letter));
        } else if key == KeyCode::Backspace {
            self.is_typing = self.filter.pop().is_some();
        } else if key == KeyCode::Enter {
            self.is_typing = false;
        } else if key == KeyCode::Esc {
            self.is_typing = false;
            self.filter.clear();
        }
        if self.filter.len() != before {
            self.start_over(live);
        }
    }

    fn command(&mut self, key: KeyCode, live: &LiveStatus) -> KeyAction {
        match key.as_char() {
            Some('q') => return KeyAction::Quit,
            Some('p') => return KeyAction::PrintIntro,
            Some('/') => self.is_typing = true,
            Some('s') => {
                self.sort = self.sort.next();
                self.start_over(live);
            }
            Some('r' | 'S') => {
                self.sort = self.sort.reversed();
                self.start_over(live);
            }
            None if key == KeyCode::Esc && self.filter.is_empty() => {
                self.selected = None;
                self.state.select(None);
            }
            None if key == KeyCode::Esc => {
                self.filter.clear();
                self.start_over(live);
            }
            Some(_) | None => {}
        }
        KeyAction::Redraw
    }

    /// After a change of filter or order: at the selected row, or else from the top.
    fn start_over(&mut self, live: &LiveStatus) {
        self.state = TableState::default();
        self.widths = Widths::default();
        self.update(live);
    }

    /// The height that shows everything, at most `most`.
    pub fn height(&self, live: &LiveStatus, most: u16) -> u16 {
        let (head, foot) = head_and_foot(live, most);
        let rows = self.heights(live).map(usize::from).sum::<usize>();
        let all = usize::from(head) + 1 + rows + foot.len() + 1;
        u16::try_from(all).unwrap_or(u16::MAX).min(most)
    }

    /// Draws the table; `most` as in [`Self::height`].
    pub fn draw(&mut self, live: &LiveStatus, most: u16, frame: &mut Frame<'_>) {
        let [rest, keys] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
        let (head, foot) = head_and_foot(live, most);
        let foot_height = u16::try_from(foot.len()).unwrap_or(u16::MAX);
        let rows = self.heights(live).map(usize::from).sum::<usize>();
        let body = u16::try_from(rows + 1).unwrap_or(u16::MAX);
        let body = body.min(rest.height.saturating_sub(head + foot_height));
        let heights = [head, body, foot_height].map(Constraint::Length);
        let [head, body, foot_area] = Layout::vertical(heights).areas(rest);
        frame.render_widget(self.rule(live, head.width), head);
        self.draw_body(live, body, frame.buffer_mut());
        frame.render_widget(Text::from(foot), foot_area);
        frame.render_widget(self.key_line(live.rows().len(), keys.width.into()), keys);
    }

    fn heights(&self, live: &LiveStatus) -> impl DoubleEndedIterator<Item = u16> {
        let rows = live.rows();
        let shown = self.shown.iter().filter_map(|place| rows.get(*place));
        shown.map(|row| 1 + u16::from(row.reason.is_some()))
    }

    /// The titles, and the rows that are in sight.
    fn draw_body(&mut self, live: &LiveStatus, area: Rect, buffer: &mut Buffer) {
        let Some(snapshot) = &live.snapshot else {
            return;
        };
        if snapshot.rows.is_empty() {
            return buffer_line(buffer, area, &table::no_distribution());
        }
        if self.shown.is_empty() {
            let text = "no distribution matches; Esc clears the filter".yellow();
            return buffer_line(buffer, area, &Line::from(text));
        }
        if area.width != self.width {
            (self.width, self.widths) = (area.width, Widths::default());
        }
        self.scroll_to_selection(live, area);
        let in_sight: Vec<&StatusRow> = (self.shown.iter().skip(self.state.offset()))
            .take(self.page.into())
            .filter_map(|place| snapshot.rows.get(*place))
            .collect();
        let width = usize::from(area.width);
        let titles = table::titles(Some(self.sort.mark()));
        self.widths.include(&titles);
        let cells = in_sight.iter();
        let cells: Vec<_> = cells
            .map(|row| table::cells(row, snapshot.at, width, Some(&live.rates)))
            .inspect(|cells| self.widths.include(cells))
            .collect();
        let columns = self.widths.fitting(width, true);
        let rows = cells
            .into_iter()
            .zip(self.heights(live).skip(self.state.offset()));
        let rows =
            rows.map(|(cells, height)| Row::new(table::chosen(cells, &columns)).height(height));
        let widths = columns.iter().map(|(_, width)| *width);
        let table = Table::new(
            rows,
            widths.map(|width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))),
        )
        .column_spacing(2)
        .header(Row::new(table::chosen(titles, &columns)))
        .row_highlight_style(Style::new().reversed());
        let selected = self
            .state
            .selected()
            .and_then(|at| at.checked_sub(self.state.offset()));
        table.render(area, buffer, &mut TableState::new().with_selected(selected));
        // A reason spans all columns, which no cell does.
        let mut y = area.y + 1;
        for row in in_sight {
            y += 1;
            if let Some(reason) = table::reason(row, width).filter(|_| y < area.bottom()) {
                buffer.set_line(area.x, y, &reason, area.width);
                y += 1;
            }
        }
    }

    /// Moves the rows in sight so that the selected one is among them, and no line stays empty needlessly.
    fn scroll_to_selection(&mut self, live: &LiveStatus, area: Rect) {
        let room = area.height.saturating_sub(1);
        let fitting = |heights: &mut dyn Iterator<Item = u16>| {
            let mut left = room;
            let fits = |height: &u16| left.checked_sub(*height).map(|rest| left = rest).is_some();
            heights.take_while(fits).count().max(1)
        };
        let last_top = self.shown.len() - fitting(&mut self.heights(live).rev());
        let rows: Vec<Row<'_>> = self
            .heights(live)
            .map(|h| Row::default().height(h))
            .collect();
        *self.state.offset_mut() = self.state.offset().min(last_top);
        // The widget scrolls, over empty rows.
        let rows = Table::new(rows, [Constraint::Fill(1)]);
        let area = Rect::new(0, 0, 1, room);
        rows.render(area, &mut Buffer::empty(area), &mut self.state);
        let offset = self.state.offset();
        let page = fitting(&mut self.heights(live).skip(offset));
        self.page = u16::try_from(page).unwrap_or(u16::MAX);
    }

    fn rule(&self, live: &LiveStatus, width: u16) -> Line<'static> {
        let at = live
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.at.to_datetime());
        let clock = at.map(|at| at.format("── database time %H:%M:%S UTC ").to_string());
        let rule = format!("── {} {}", self.title, clock.unwrap_or_default());
        let rest = usize::from(width).saturating_sub(Span::raw(&rule).width());
        Line::from(format!("{rule}{}", "─".repeat(rest)).dim())
    }

    /// The last line: the number of rows, and as many keys as there is room for.
    fn key_line(&self, total: usize, width: usize) -> Line<'static> {
        let found = self.shown.len();
        let rows = if total == 1 { "row" } else { "rows" };
        let mut count = format!("{} {rows}", grouped(total));
        if !self.filter.is_empty() {
            count = format!("{} of {count}", grouped(found));
        }
        let (first, page) = (self.state.offset(), usize::from(self.page));
        if page < found {
            let last = grouped((first + page).min(found));
            count = format!("{count}, {}–{last} shown", grouped(first + 1));
        }
        let sort = format!("s sort: {}", self.sort.words());
        let mut keys: Vec<&str> = Vec::new();
        if self.is_typing {
            keys.extend(["Enter keeps", "Esc clears", "↑↓ scroll"]);
        } else {
            keys.extend((!self.filter.is_empty()).then_some("Esc clears"));
            keys.extend(self.keys);
            keys.extend(["↑↓ scroll", "/ filter", &sort, "r reverse"]);
        }
        let mut line = Line::default();
        if self.is_typing || !self.filter.is_empty() {
            line.push_span(format!("/{}", self.filter).bold());
            line.push_span(if self.is_typing {
                " ".reversed()
            } else {
                "".into()
            });
            line.push_span(" ");
        }
        line.push_span(count.dim());
        for key in keys {
            let key = format!(" · {key}").dim();
            if line.width() + key.width() > width {
                break;
            }
            line.push_span(key);
        }
        line
    }
}

/// Whether there is a title, and the lines below the table: an error, and the agents.
fn head_and_foot(live: &LiveStatus, most: u16) -> (u16, Vec<Line<'static>>) {
    let mut foot = Vec::new();
    foot.extend(live.error.clone().map(|error| Line::from(error.red())));
    let has_all = most >= HEIGHT_OF_ALL;
    if let Some(snapshot) = live.snapshot.as_ref().filter(|_| has_all) {
        foot.extend(
            table::agents(snapshot)
                .into_iter()
                .take(usize::from(most / 4)),
        );
    }
    (u16::from(has_all), foot)
}

fn buffer_line(buffer: &mut Buffer, area: Rect, line: &Line<'_>) {
    if area.height > 0 {
        buffer.set_line(area.x, area.y, line, area.width);
    }
}

fn grouped(number: usize) -> String {
    table::grouped(i64::try_from(number).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
