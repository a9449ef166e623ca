//! The live table as its reader has it: scrolled, filtered, sorted, with one row selected.
//!
//! Pure: keys and looks in, lines out. It knows no terminal and no clock; `screen` has them.
//!
//! Invariants: a selected row stays selected, and in sight, wherever a newer look puts it; of any
//! number of rows only those in sight are laid out; the lines fit the room they were asked for.

use std::iter::{repeat, repeat_n};
use std::ops::Range;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Stylize as _;
use ratatui::text::{Line, Span};
use uuid::Uuid;

use super::status::Seen;
use super::table::order::{Sort, arranged};
use super::table::{self, Look, View, Widths};
use crate::postgres::status::StatusRow;

/// Characters of a filter.
const FILTER_MAX: usize = 64;
/// From so many lines on there is room for more than titles, rows and keys.
const HEIGHT_OF_ALL: usize = 8;
const GAP: &str = " · ";

/// What is shown besides the rows.
#[derive(Clone, Copy)]
pub struct Words {
    /// In the rule above the table.
    pub title: &'static str,
    /// Which keys do what besides those of the table, below it.
    pub keys: &'static [&'static str],
}

/// Where it is drawn, in columns and lines of the terminal.
#[derive(Clone, Copy)]
pub struct Room {
    /// Columns.
    pub width: usize,
    /// Lines that are filled, if need be with empty ones above the keys.
    pub least: usize,
    /// Lines that there may be.
    pub most: usize,
}

/// What is to be done about a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// It may have changed what is seen.
    Look,
    /// The end.
    Quit,
    /// The table has no use for this key.
    Other,
}

/// What the reader has chosen.
#[derive(Default)]
pub struct Browser {
    filter: String,
    is_typing: bool,
    sort: Sort,
    selected: Option<Uuid>,
    /// Places in the look of the rows that match, in order.
    shown: Vec<usize>,
    /// Of the selected row, among these.
    place: usize,
    /// Of the first row in sight, among these.
    top: usize,
    /// Rows in sight.
    page: usize,
    widths: Widths,
    width: usize,
}

impl Browser {
    /// Takes a newer look.
    pub fn arrange(&mut self, seen: &Seen) {
        let rows = rows(seen);
        self.shown = arranged(rows, &seen.measured, &self.filter, self.sort);
        let Some(id) = self.selected else { return };
        let id_at = |place: &usize| rows.get(*place).map(|row| row.id);
        if let Some(place) = self.shown.iter().position(|at| id_at(at) == Some(id)) {
            self.place = place;
            return;
        }
        self.place = self.place.min(self.shown.len().saturating_sub(1));
        // A row that only the filter hides is selected again when the filter is gone.
        if rows.iter().all(|row| row.id != id) {
            self.selected = self.shown.get(self.place).and_then(id_at).or(Some(id));
        }
    }

    /// Takes a key; `seen` is the look that was arranged last.
    pub fn press(&mut self, key: KeyEvent, seen: &Seen) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') {
                Wish::Quit
            } else {
                Wish::Other
            };
        }
        if let Some(place) = self.place_after(key.code) {
            self.select(place, rows(seen));
        } else if self.is_typing {
            self.type_in(key.code, seen);
        } else {
            return self.command(key.code, seen);
        }
        Wish::Look
    }

    /// The place to which a key moves, if it does.
    fn place_after(&self, key: KeyCode) -> Option<usize> {
        let letter = key.as_char().filter(|_| !self.is_typing);
        let is = |code, command| key == code || letter == Some(command);
        let step = usize::from(self.selected.is_some());
        if is(KeyCode::Down, 'j') {
            Some(self.place.saturating_add(step))
        } else if is(KeyCode::Up, 'k') {
            Some(self.place.saturating_sub(step))
        } else if key == KeyCode::PageDown {
            Some(self.place.saturating_add(self.page.max(1)))
        } else if key == KeyCode::PageUp {
            Some(self.place.saturating_sub(self.page.max(1)))
        } else if is(KeyCode::Home, 'g') {
            Some(0)
        } else if is(KeyCode::End, 'G') {
            Some(usize::MAX)
        } else {
            None
        }
    }

    fn select(&mut self, place: usize, rows: &[StatusRow]) {
        self.place = place.min(self.shown.len().saturating_sub(1));
        let row = self.shown.get(self.place).and_then(|at| rows.get(*at));
        self.selected = row.map_or(self.selected, |row| Some(row.id));
    }

    fn type_in(&mut self, key: KeyCode, seen: &Seen) {
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
            self.start_over(seen);
        }
    }

    fn command(&mut self, key: KeyCode, seen: &Seen) -> Wish {
        match key.as_char() {
            Some('q') => return Wish::Quit,
            Some('/') => self.is_typing = true,
            Some('s') => {
                self.sort = self.sort.next();
                self.start_over(seen);
            }
            Some('r' | 'S') => {
                self.sort = self.sort.reversed();
                self.start_over(seen);
            }
            None if key == KeyCode::Esc && self.filter.is_empty() => {
                (self.selected, self.place) = (None, 0);
            }
            None if key == KeyCode::Esc => {
                self.filter.clear();
                self.start_over(seen);
            }
            Some(_) | None => return Wish::Other,
        }
        Wish::Look
    }

    /// Other rows, or another order: at the selected row, or else from the top.
    fn start_over(&mut self, seen: &Seen) {
        (self.place, self.top) = (0, 0);
        self.widths = Widths::default();
        self.arrange(seen);
    }

    /// The picture; `seen` is the look that was arranged last.
    pub fn view(&mut self, seen: &Seen, words: Words, room: Room) -> Vec<Line<'static>> {
        if room.width != self.width {
            (self.width, self.widths) = (room.width, Widths::default());
        }
        let has_all = room.most >= HEIGHT_OF_ALL;
        let mut head = Vec::new();
        let mut foot = Vec::new();
        if has_all {
            head.push(rule(words.title, seen.look.as_ref(), room.width));
        }
        foot.extend((seen.kind.as_ref()).map(|why| Line::from(why.clone().red())));
        if let Some(look) = seen.look.as_ref().filter(|_| has_all) {
            let agents = table::agents(&look.agents);
            foot.extend(agents.into_iter().take(room.most / 4));
        }
        let taken = head.len() + foot.len() + 1;
        let body = self.body(seen, room.width, room.most.saturating_sub(taken));
        let empty = room.least.saturating_sub(taken + body.len());
        let keys = self.keys(rows(seen).len(), words, room.width);
        let mut lines = [head, body, foot].concat();
        lines.truncate(room.most.saturating_sub(1));
        lines.extend(repeat_n(Line::default(), empty));
        lines.push(keys);
        (lines.into_iter())
            .map(|line| table::clipped(line, room.width))
            .collect()
    }

    /// The titles, and the rows that are in sight.
    fn body(&mut self, seen: &Seen, width: usize, height: usize) -> Vec<Line<'static>> {
        let Some(look) = &seen.look else {
            return Vec::new();
        };
        if look.rows.is_empty() {
            return vec![table::none_yet()];
        }
        if self.shown.is_empty() {
            return vec![Line::from("no row matches; Esc clears the filter".yellow())];
        }
        let window = self.window(look, height.saturating_sub(1));
        let in_sight: Vec<&StatusRow> = (self.shown.iter())
            .skip(window.start)
            .take(window.len())
            .filter_map(|at| look.rows.get(*at))
            .collect();
        let view = View {
            width,
            live: Some(&seen.measured),
        };
        let sort = Some(self.sort);
        let mut sheet = table::sheet(&in_sight, look.at, view, &mut self.widths, sort);
        let selected = (self.place.checked_sub(window.start)).filter(|_| self.selected.is_some());
        for line in selected
            .and_then(|place| sheet.rows.get_mut(place))
            .into_iter()
            .flatten()
        {
            let padding = " ".repeat(width.saturating_sub(line.width()));
            line.spans.push(Span::raw(padding));
            for span in &mut line.spans {
                span.style = span.style.reversed();
            }
        }
        let mut lines = vec![sheet.titles];
        lines.extend(sheet.rows.into_iter().flatten());
        // A last row may have more lines than are left.
        lines.truncate(height.max(1));
        lines
    }

    /// Moves the window so that the selected row is in it, and no line stays empty needlessly.
    fn window(&mut self, look: &Look, height: usize) -> Range<usize> {
        let shown = &self.shown;
        let height_at = |place: &usize| {
            let row = shown.get(*place).and_then(|at| look.rows.get(*at));
            row.map_or(1, table::height)
        };
        let fit = |places: &mut dyn Iterator<Item = usize>| {
            let mut left = height;
            let fits = |place: &usize| {
                let needed = height_at(place);
                let fits = needed <= left;
                left = left.saturating_sub(needed);
                fits
            };
            places.take_while(fits).count()
        };
        let last_of_all = shown.len().saturating_sub(1);
        let top_of = |last: usize| (last + 1).saturating_sub(fit(&mut (0..=last).rev()).max(1));
        let wanted = if self.selected.is_some() {
            self.top.clamp(top_of(self.place), self.place)
        } else {
            0
        };
        self.top = wanted.min(top_of(last_of_all));
        self.page = fit(&mut (self.top..shown.len())).max(1);
        self.top..(self.top + self.page).min(shown.len())
    }

    /// The last line: how many rows, and which keys there are, as far as there is room.
    fn keys(&self, total: usize, words: Words, width: usize) -> Line<'static> {
        let found = self.shown.len();
        let rows = if total == 1 { "row" } else { "rows" };
        let mut count = format!("{} {rows}", grouped(total));
        if !self.filter.is_empty() {
            count = format!("{} of {count}", grouped(found));
        }
        if self.page < found {
            let last = grouped((self.top + self.page).min(found));
            count = format!("{count}, {}–{last} in sight", grouped(self.top + 1));
        }
        let mut parts = vec![count];
        if self.is_typing {
            parts.extend(["Enter keeps", "Esc clears", "↑↓ scroll"].map(str::to_owned));
        } else {
            let escape = (!self.filter.is_empty()).then_some("Esc clears");
            parts.extend(escape.iter().chain(words.keys).map(ToString::to_string));
            parts.extend(["↑↓ scroll", "/ filter"].map(str::to_owned));
            parts.push(format!("s sort: {}", self.sort.words()));
            parts.push("r reverse".to_owned());
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
        for (place, part) in parts.into_iter().enumerate() {
            let part = Span::raw(if place == 0 {
                part
            } else {
                format!("{GAP}{part}")
            })
            .dim();
            if place > 0 && line.width() + part.width() > width {
                break;
            }
            line.push_span(part);
        }
        line
    }
}

fn rows(seen: &Seen) -> &[StatusRow] {
    seen.look.as_ref().map_or(&[], |look| &look.rows)
}

fn rule(title: &str, look: Option<&Look>, width: usize) -> Line<'static> {
    let clock = look.map(|look| look.at.format("── database time %H:%M:%S UTC ").to_string());
    let rule: String = format!("── {title} {}", clock.unwrap_or_default())
        .chars()
        .chain(repeat('─'))
        .take(width)
        .collect();
    Line::from(rule.dim())
}

fn grouped(number: usize) -> String {
    table::grouped(i64::try_from(number).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
