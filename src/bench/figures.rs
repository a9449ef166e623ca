//! What was measured, as tables: on the terminal and in the README as Markdown, for programs as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// The results of one run.
#[derive(Serialize, Debug)]
pub struct BenchReport {
    /// The machine.
    pub machine: Machine,
    /// The tables, in the order in which they were measured.
    pub tables: Vec<ReportTable>,
}

/// The machine and the versions.
#[derive(Serialize, Debug, Default)]
pub struct Machine {
    /// The processor's model.
    pub cpu: String,
    /// Available cores.
    pub cores: usize,
    /// In GiB.
    pub memory_gib: u64,
    /// The version of PostgreSQL.
    pub postgres: String,
    /// The version of visit-pacer.
    pub visit_pacer: &'static str,
}

/// One measurement, with alternatives.
#[derive(Serialize, Debug)]
pub struct ReportTable {
    /// The measurement.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<&'static str>,
    /// The figures.
    pub rows: Vec<Vec<Cell>>,
    /// The goals.
    pub aims: Vec<Aim>,
    /// What could not be measured, and how to read the figures.
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

/// A goal for a figure.
#[derive(Serialize, Debug)]
pub struct Aim {
    /// The goal, in words.
    pub what: String,
    /// The figure.
    pub found: f64,
    /// Whether it is reached.
    pub reached: bool,
}

impl ReportTable {
    /// A table without rows; the names of the columns are separated by ` | `.
    pub fn new(title: impl Into<String>, columns: &'static str) -> Self {
        Self {
            title: title.into(),
            columns: columns.split(" | ").collect(),
            rows: Vec::new(),
            aims: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds the goal that `found` is at least `bound`.
    pub fn at_least(&mut self, what: &str, found: f64, bound: f64) {
        self.aim(what, found, found >= bound);
    }

    /// Adds the goal that `found` is at most `bound`.
    pub fn at_most(&mut self, what: &str, found: f64, bound: f64) {
        self.aim(what, found, found <= bound);
    }

    /// Adds a note.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
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

    /// A number with decimals, if it was measured.
    pub fn number(number: impl Into<Option<f64>>, decimals: usize) -> Self {
        number
            .into()
            .map_or(Self::None, |number| Self::Number(number, decimals))
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
pub fn markdown(report: &BenchReport) -> String {
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

/// One table as Markdown; the first column is aligned to the left, the others to the right.
pub fn table_text(table: &ReportTable) -> String {
    let head: Vec<String> = table.columns.iter().map(ToString::to_string).collect();
    let body = table.rows.iter();
    let body: Vec<Vec<String>> = body
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
            let _infallible = match column {
                0 => write!(line, " {cell:<width$} |"),
                _ => write!(line, " {cell:>width$} |"),
            };
        }
        line
    };
    let rules = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match column {
            0 => "-".repeat(*width),
            _ => format!("{}:", "-".repeat(width - 1)),
        });
    let rule = line(&rules.collect::<Vec<_>>());
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

/// Measured durations, sorted.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<i64>);

impl Samples {
    /// Durations in microseconds.
    pub fn of(mut micros: Vec<i64>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }

    /// A percentile in milliseconds, by the nearest rank. NaN without samples, which reaches no goal.
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

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no samples.
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

    /// The samples in milliseconds.
    pub fn all(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(|micros| millis(*micros))
    }
}

/// At most 35 minutes.
fn millis(micros: i64) -> f64 {
    f64::from(i32::try_from(micros).unwrap_or(i32::MAX)) / 1_000.0
}

/// `a / b`. NaN if there is nothing to compare with, which reaches no goal.
pub fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let spread = Samples::of((1..=100).rev().map(|ms| ms * 1_000).collect());
        let found = |spread: &Samples| spread.cells().map(|cell| cell.text()).join(" ");
        assert_eq!(found(&spread), "50.0 99.0 100.0");
        assert_eq!(found(&Samples::of(vec![7_000])), "7.0 7.0 7.0");
        assert_eq!(found(&Samples::default()), "– – –");
    }

    #[test]
    fn a_table_is_markdown_with_aligned_columns() {
        let mut table = ReportTable::new("Throughput", "who | visits/s");
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
