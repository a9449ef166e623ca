//! What was measured, as tables: on the terminal and in the README as Markdown, for programs as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// Everything that one run has measured.
#[derive(Serialize, Debug)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// In the order in which they were measured.
    pub tables: Vec<Table>,
}

/// What it was measured on.
#[derive(Serialize, Debug, Default)]
pub struct Machine {
    /// The model, as the kernel names it.
    pub cpu: String,
    /// Cores that we may use.
    pub cores: usize,
    /// In GiB.
    pub memory_gib: u64,
    /// The server's version.
    pub postgres: String,
    /// Our own.
    pub visit_pacer: &'static str,
}

/// One measurement, with its peers beside it.
#[derive(Serialize, Debug)]
pub struct Table {
    /// What was measured.
    pub title: String,
    /// Names of the columns; the first says whose figures a row has.
    pub columns: Vec<&'static str>,
    /// The figures.
    pub rows: Vec<Vec<Cell>>,
    /// What is aimed at, and what was found.
    pub aims: Vec<Aim>,
    /// What could not be measured here, and why; how to read it.
    pub notes: Vec<String>,
}

/// A figure, or a word.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
pub enum Cell {
    /// A name.
    Word(String),
    /// A number, and the decimals that mean something.
    Number(f64, #[serde(skip)] usize),
    /// Not measured.
    None,
}

/// A figure that is aimed at.
#[derive(Serialize, Debug)]
pub struct Aim {
    /// In words.
    pub what: String,
    /// What was found.
    pub found: f64,
    /// Whether it is reached.
    pub reached: bool,
}

impl Table {
    /// A table without rows.
    pub fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self {
            title: title.into(),
            columns: columns.to_vec(),
            rows: Vec::new(),
            aims: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Aims at `found` being at least `bound`.
    pub fn at_least(&mut self, what: &str, found: f64, bound: f64) {
        self.aim(what, found, found >= bound);
    }

    /// Aims at `found` being at most `bound`.
    pub fn at_most(&mut self, what: &str, found: f64, bound: f64) {
        self.aim(what, found, found <= bound);
    }

    fn aim(&mut self, what: &str, found: f64, reached: bool) {
        self.aims.push(Aim {
            what: what.to_owned(),
            found,
            reached,
        });
    }
}

impl Cell {
    /// A name.
    pub fn word(text: impl Into<String>) -> Self {
        Self::Word(text.into())
    }

    /// A whole number.
    pub fn whole(number: impl Into<f64>) -> Self {
        Self::Number(number.into(), 0)
    }

    /// Milliseconds.
    pub fn millis(duration: Duration) -> Self {
        Self::Number(duration.as_secs_f64() * 1_000.0, 1)
    }

    fn text(&self) -> String {
        match self {
            Self::Word(text) => text.clone(),
            Self::Number(number, 0) => grouped(*number),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::None => "–".to_owned(),
        }
    }
}

/// `12,345`
fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number < 0.0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The report as Markdown, its columns aligned.
pub fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{} ({} cores, {} GiB), PostgreSQL {}, visit-pacer {}\n",
        machine.cpu, machine.cores, machine.memory_gib, machine.postgres, machine.visit_pacer
    );
    for table in &report.tables {
        let _infallible = write!(text, "\n{}", table_text(table));
    }
    text
}

/// One table as Markdown.
pub fn table_text(table: &Table) -> String {
    let head: Vec<String> = table
        .columns
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    let body: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| row.iter().map(Cell::text).collect())
        .collect();
    let width = |column: usize| {
        let cells = std::iter::once(&head).chain(&body);
        let widths = cells.map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut line = String::from("|");
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let _infallible = if column == 0 {
                write!(line, " {cell:<width$} |")
            } else {
                write!(line, " {cell:>width$} |")
            };
        }
        line
    };
    let mut rule = String::from("|");
    for (column, width) in widths.iter().enumerate() {
        let dashes = "-".repeat(*width);
        let _infallible = if column == 0 {
            write!(rule, " {dashes} |")
        } else {
            write!(
                rule,
                " {}: |",
                dashes.trim_end_matches(|_| false).get(1..).unwrap_or("")
            )
        };
    }
    let mut text = format!("**{}**\n\n{}\n{rule}\n", table.title, line(&head));
    for row in &body {
        let _infallible = writeln!(text, "{}", line(row));
    }
    if !table.aims.is_empty() || !table.notes.is_empty() {
        text.push('\n');
    }
    for aim in &table.aims {
        let mark = if aim.reached { "reached" } else { "MISSED" };
        let _infallible = writeln!(text, "- {mark}: {} (found {:.2})", aim.what, aim.found);
    }
    for note in &table.notes {
        let _infallible = writeln!(text, "- {note}");
    }
    text
}

/// Moments of a measurement, sorted.
#[derive(Debug, Clone, Default)]
pub struct Spread(Vec<i64>);

impl Spread {
    /// Of figures in microseconds.
    pub fn of(mut micros: Vec<i64>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }

    /// The figure that so many percent are not above, by the nearest rank; of nothing it is no number, which reaches
    /// no aim.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0
            .get(rank - 1)
            .map_or(f64::NAN, |micros| millis(*micros))
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.percentile(100)
    }

    /// How many figures there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `p50`, `p99` and the largest, in milliseconds.
    pub fn cells(&self) -> [Cell; 3] {
        if self.0.is_empty() {
            return [Cell::None, Cell::None, Cell::None];
        }
        [self.percentile(50), self.percentile(99), self.max()].map(|ms| Cell::Number(ms, 1))
    }

    /// All of them, in milliseconds.
    pub fn all(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(|micros| millis(*micros))
    }
}

/// Beyond 35 minutes it stays there.
fn millis(micros: i64) -> f64 {
    f64::from(i32::try_from(micros).unwrap_or(i32::MAX)) / 1_000.0
}

/// `a / b`; no number where there is nothing to compare with, so that no aim is reached.
pub fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let spread = Spread::of((1..=100).rev().map(|ms| ms * 1_000).collect());
        let found = |spread: &Spread| spread.cells().map(|cell| cell.text()).join(" ");
        assert_eq!(found(&spread), "50.0 99.0 100.0");
        assert_eq!(found(&Spread::of(vec![7_000])), "7.0 7.0 7.0");
        assert_eq!(found(&Spread::default()), "– – –");
    }

    #[test]
    fn a_table_is_markdown_with_aligned_columns() {
        let mut table = Table::new("Throughput", &["who", "visits/s"]);
        table
            .rows
            .push(vec![Cell::word("COPY"), Cell::whole(1_234_567.4)]);
        table.rows.push(vec![Cell::word("visit-pacer"), Cell::None]);
        table.at_least("half of COPY", 0.25, 0.5);
        let expected = "\
**Throughput**

| who         |  visits/s |
| ----------- | --------: |
| COPY        | 1,234,567 |
| visit-pacer |         – |

- MISSED: half of COPY (found 0.25)
";
        assert_eq!(table_text(&table), expected);
    }
}
