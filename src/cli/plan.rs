//! `visit-pacer plan`: what a row would do, before it is made active.
//!
//! Owns the words, the chart and the JSON; the arithmetic is [`crate::domain::plan`]'s. With `--id` moments are dates, by
//! the database's clock; without it they are counted from the start, and no database is asked.

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use uuid::Uuid;

use super::connect;
use crate::domain::agent::ReadRequest;
use crate::domain::distribution::{Distribution, RawRow};
use crate::domain::plan::{BYTES_PER_VISIT, End, FREE_BYTES, PRO_BYTES, Plan, Unit};
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::failure::Failure;
use crate::postgres::rows;
use crate::postgres::sql_functions::{self, Disk};

/// Where a plan without a row begins; nothing of it is shown. 2000-01-01, in microseconds since the Unix epoch.
const SOME_START_US: i64 = 946_684_800_000_000;

/// Flags of `plan`.
#[derive(clap::Args)]
pub struct Args {
    /// A distribution that is there; the other flags describe one that is not
    #[arg(long, value_name = "ID", conflicts_with_all = ["total", "per", "rate", "window"])]
    id: Option<Uuid>,
    /// How many visits in all
    #[arg(long, value_name = "N", required_unless_present = "id")]
    total: Option<String>,
    /// What the rate counts in: second, minute, hour or day
    #[arg(long, value_name = "UNIT", required_unless_present = "id")]
    per: Option<Unit>,
    /// How many visits in each of these
    #[arg(long, value_name = "RATE", required_unless_present = "id")]
    rate: Option<String>,
    /// How long it runs, such as 24h, 90m or 1d12h [default: until it is complete]
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    window: Option<i64>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows the plan.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let subject = match args.id {
        Some(id) => Subject::stored(id).await?,
        None => Subject::asked(args)?,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&subject.json())?);
    } else {
        print!("{}", subject.text());
    }
    Ok(())
}

/// A plan, and what its words need.
struct Subject {
    plan: Plan,
    /// Such as `33.33 a minute`.
    pace: String,
    unit: Unit,
    /// Whether moments are dates.
    dated: bool,
    disk: Disk,
}

impl Subject {
    /// From the command line alone.
    fn asked(args: Args) -> anyhow::Result<Self> {
        let unit = args.per.context("--per is missing")?;
        let rate = args.rate.context("--rate is missing")?;
        let start = DbTime::from_micros(SOME_START_US);
        let row = RawRow {
            id: Uuid::nil(),
            partner_id: Some(Uuid::nil()),
            config_version: Some(0),
            is_active: Some(true),
            total_visits: args.total.map(Into::into),
            visits_per_unit: Some(rate.as_str().into()),
            time_period: Some(unit.name().into()),
            start_time: Some(start),
            end_time: args.window.map(|window| start.plus_micros(window)),
            catch_up: None,
            anchor_units: Some("0".into()),
            anchor_at: Some(start),
        };
        Ok(Self {
            plan: Plan::of(&Distribution::parse(&row)?, unit, 0, start),
            pace: format!("{rate} {}", a(unit)),
            unit,
            dated: false,
            disk: Disk {
                used: 0,
                bytes_per_visit: None,
            },
        })
    }

    /// Of a row that is there.
    async fn stored(id: Uuid) -> anyhow::Result<Self> {
        let mut connection = connect().await?;
        let found = rows::read(&mut connection, &ReadRequest::Rows(vec![id]))
            .await
            .map_err(Failure::from)?;
        let read = found
            .rows
            .first()
            .ok_or_else(|| anyhow!("no distribution has the id {id}"))?;
        let row = &read.row;
        let stored = read.progress.as_ref().map_or(0, |p| p.distributed);
        let parsed = Distribution::parse(row)
            .map_err(|why| anyhow!("the distribution {id} cannot be paced: {why}"))?;
        let unit: Unit = row.time_period.as_deref().unwrap_or_default().parse()?;
        let rate = row.visits_per_unit.as_deref().unwrap_or_default();
        Ok(Self {
            plan: Plan::of(&parsed, unit, stored, found.db),
            pace: format!("{rate} {}", a(unit)),
            unit,
            dated: true,
            disk: sql_functions::disk(&mut connection)
                .await
                .map_err(Failure::from)?,
        })
    }

    fn bytes_per_visit(&self) -> i64 {
        self.disk.bytes_per_visit.unwrap_or(BYTES_PER_VISIT)
    }

    /// When the database is as large as that; `None`: this plan does not fill it.
    fn full_at(&self, limit: i64) -> Option<DbTime> {
        self.plan
            .full_at(limit - self.disk.used, self.bytes_per_visit())
    }

    fn moment(&self, at: DbTime) -> String {
        let begins = self.plan.begins();
        match at.to_datetime() {
            _ if at <= begins => "at once".to_owned(),
            Some(date) if self.dated => date.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            _ => format!("{} after its start", span_words(at.micros_since(begins))),
        }
    }

    fn json(&self) -> Value {
        let begins = self.plan.begins();
        let moment = |at: DbTime| {
            let date = at.to_datetime().filter(|_| self.dated);
            json!({
                "at": date.map(|date| date.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()),
                "seconds_after_start": seconds_up(at.micros_since(begins)),
            })
        };
        let (how, at) = match self.plan.end() {
            End::Completed(at) => ("completed", Some(at)),
            End::Short(at) => ("short of the total", Some(at)),
            End::Never => ("never", None),
        };
        let pace: serde_json::Map<String, Value> = Unit::ALL
            .into_iter()
            .map(|unit| (unit.name().to_owned(), self.plan.visits_per(unit).into()))
            .collect();
        json!({
            "total_visits": self.plan.total(),
            "visits_per": pace,
            "ends": { "how": how, "when": at.map(moment), "visits": self.plan.visits() },
            "misfit": self.plan.misfit().map(|misfit| json!({
                "rate_times_window": misfit.rate_times_window,
                "visits_per_unit_that_fits": misfit.rate_that_fits,
                "end_that_fits": misfit.end_that_fits.map(moment),
            })),
            "disk": {
                "bytes_per_visit": self.bytes_per_visit(),
                "used_bytes": self.disk.used,
                "first_day_bytes": self.plan.remaining_on_the_first_day().saturating_mul(self.bytes_per_visit()),
                "free_plan_full": self.full_at(FREE_BYTES).map(moment),
                "pro_plan_full": self.full_at(PRO_BYTES).map(moment),
            },
        })
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("{} visits at {}", self.plan.total(), self.pace)];
        let pace = Unit::ALL.map(|unit| format!("{} {}", self.plan.visits_per(unit), a(unit)));
        lines.push(format!("  {}", pace.join(" · ")));
        lines.push(String::new());
        lines.extend(self.chart());
        lines.push(String::new());
        lines.push(match self.plan.end() {
            End::Completed(at) if at <= self.plan.begins() => format!(
                "All {} visits are due already; what is owed drains at catch_up times the pace.",
                self.plan.visits()
            ),
            End::Completed(at) => format!(
                "Complete {}, with {} visits.",
                self.moment(at),
                self.plan.visits()
            ),
            End::Short(at) => format!(
                "Ends {} with {} visits, {} short of the total.",
                self.moment(at),
                self.plan.visits(),
                self.plan.total() - self.plan.visits()
            ),
            End::Never => "It never ends: nothing comes at this rate.".to_owned(),
        });
        lines.extend(self.warning());
        lines.extend(self.disk_words());
        lines.join("\n") + "\n"
    }

    /// That rate and window do not make the total, and what would.
    fn warning(&self) -> Vec<String> {
        let Some(misfit) = self.plan.misfit() else {
            return Vec::new();
        };
        let mut lines = vec![format!(
            "warning: the rate times the window is {} visits, not {}. To make them agree, use one of:",
            misfit.rate_times_window,
            self.plan.total()
        )];
        match misfit.rate_that_fits {
            Some(rate) => lines.push(format!(
                "  visits_per_unit = {rate}  ({rate} {})",
                a(self.unit)
            )),
            None => lines.push(
                "  a longer window: no rate up to 1000000 a second is enough for this one"
                    .to_owned(),
            ),
        }
        if let Some(end) = misfit.end_that_fits {
            lines.push(self.end_words(end));
        }
        lines.push(format!("  total_visits = {}", misfit.rate_times_window));
        lines
    }

    /// An end as it can be written down: to the microsecond in a row, in whole seconds on the command line.
    fn end_words(&self, end: DbTime) -> String {
        match end.to_datetime().filter(|_| self.dated) {
            Some(date) => format!("  end_time = '{}'", date.format("%Y-%m-%d %H:%M:%S%.6f+00")),
            None => {
                let span = end.micros_since(self.plan.begins());
                format!("  --for {}s  ({})", seconds_up(span), span_words(span))
            }
        }
    }

    fn disk_words(&self) -> Vec<String> {
        let each = self.bytes_per_visit();
        let source = match self.disk.bytes_per_visit {
            Some(_) => "as your store_visits has now",
            None => "as measured with the columns of the migrations",
        };
        let mut lines = vec![format!(
            "Disk: {} on its first day, {} in all, at {each} bytes a visit, {source}.",
            bytes(self.plan.remaining_on_the_first_day().saturating_mul(each)),
            bytes(self.plan.remaining().saturating_mul(each)),
        )];
        if self.disk.used > 0 {
            lines.push(format!("  The database has {} now.", bytes(self.disk.used)));
        }
        for (name, limit, then) in [
            ("Free", FREE_BYTES, "the project turns read-only"),
            ("Pro", PRO_BYTES, "the disk must have grown by then"),
        ] {
            lines.push(match self.full_at(limit) {
                Some(at) => format!(
                    "  {name} ({}): full {}; {then}",
                    bytes(limit),
                    self.moment(at)
                ),
                None => format!("  {name} ({}): room for all of it", bytes(limit)),
            });
        }
        lines
    }

    /// The curve, its axes labelled.
    fn chart(&self) -> Vec<String> {
        let samples = self.plan.samples(COLUMNS);
        let top = samples.iter().copied().max().unwrap_or(0);
        let label = top.to_string();
        let width = label.len();
        let mut lines: Vec<String> = blocks(&samples, top)
            .into_iter()
            .enumerate()
            .map(|(row, cells)| {
                let label = if row == 0 { label.as_str() } else { "" };
                format!("{label:>width$} │{cells}")
            })
            .collect();
        let axis = "─".repeat(samples.len());
        lines.push(format!("{:>width$} └{axis}", 0));
        let (first, last) = self.ends_of_the_axis();
        let gap = samples.len().saturating_sub(first.len());
        lines.push(format!("{:>width$}  {first}{last:>gap$}", ""));
        lines
    }

    fn ends_of_the_axis(&self) -> (String, String) {
        let (begins, ends) = (self.plan.begins(), self.plan.watermark());
        let date = |at: DbTime| {
            let date = at.to_datetime().filter(|_| self.dated)?;
            Some(date.format("%Y-%m-%d %H:%M").to_string())
        };
        let span = span_words(ends.micros_since(begins));
        (
            date(begins).unwrap_or_else(|| "start".to_owned()),
            date(ends.max(begins)).unwrap_or_else(|| format!("{span} later")),
        )
    }
}

/// The chart's size, in characters.
const COLUMNS: u8 = 64;
const ROWS: i64 = 8;
/// A cell that is filled by so many eighths.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Bars of these heights, as lines from the top.
fn blocks(samples: &[i64], top: i64) -> Vec<String> {
    let eighths = |value: i64| {
        let scaled = i128::from(value) * i128::from(ROWS * 8) / i128::from(top.max(1));
        i64::try_from(scaled).unwrap_or(0)
    };
    (0..ROWS)
        .rev()
        .map(|row| {
            let cell = |value: &i64| {
                let filled = (eighths(*value) - row * 8).clamp(0, 8);
                usize::try_from(filled)
                    .ok()
                    .and_then(|filled| EIGHTHS.get(filled))
                    .copied()
                    .unwrap_or(' ')
            };
            let line: String = samples.iter().map(cell).collect();
            line.trim_end().to_owned()
        })
        .collect()
}

fn a(unit: Unit) -> &'static str {
    match unit {
        Unit::Second => "a second",
        Unit::Minute => "a minute",
        Unit::Hour => "an hour",
        Unit::Day => "a day",
    }
}

/// Bytes for people: kB, MB and GB are powers of ten, as the plans count.
fn bytes(count: i64) -> String {
    for (unit, size) in [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)] {
        if count >= size {
            let tenths = count / (size / 10);
            return match tenths % 10 {
                0 => format!("{} {unit}", tenths / 10),
                tenth => format!("{}.{tenth} {unit}", tenths / 10),
            };
        }
    }
    format!("{count} bytes")
}

/// The units of [`span`], in seconds.
const SPAN_UNITS: [(char, i64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Microseconds of a span such as `24h`, `90m` or `1d12h`.
fn span(text: &str) -> anyhow::Result<i64> {
    let wanted = || anyhow!("use numbers with d, h, m or s, such as 24h, 90m or 1d12h");
    let mut seconds: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(wanted)?;
        let (number, behind) = rest.split_at_checked(at).ok_or_else(wanted)?;
        let unit = behind.chars().next().ok_or_else(wanted)?;
        let (_, size) = SPAN_UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wanted)?;
        let number: i64 = number.parse().map_err(|_| wanted())?;
        seconds = number
            .checked_mul(size)
            .and_then(|part| seconds.checked_add(part))
            .ok_or_else(wanted)?;
        rest = behind.strip_prefix(unit).ok_or_else(wanted)?;
    }
    seconds
        .checked_mul(SECOND_US)
        .filter(|micros| *micros > 0)
        .ok_or_else(wanted)
}

/// Seconds, rounded up: visit `k` is due half a visit before the curve reaches it.
fn seconds_up(micros: i64) -> i64 {
    let micros = micros.max(0);
    micros / SECOND_US + i64::from(micros % SECOND_US > 0)
}

/// A span in words: its two greatest units.
fn span_words(micros: i64) -> String {
    let seconds = seconds_up(micros);
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    let words: Vec<String> = parts
        .iter()
        .skip(first)
        .take(2)
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n} {unit}"))
        .collect();
    if words.is_empty() {
        "0 s".to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(total: &str, per: Unit, rate: &str, window: Option<&str>) -> Subject {
        Subject::asked(Args {
            id: None,
            total: Some(total.to_owned()),
            per: Some(per),
            rate: Some(rate.to_owned()),
            window: window.map(|text| span(text).expect("a span")),
            json: false,
        })
        .expect("a plan")
    }

    #[test]
    fn a_span_is_numbers_with_units() {
        let seconds = |text| span(text).map(|micros| micros / SECOND_US).ok();
        assert_eq!(seconds("24h"), Some(86_400));
        assert_eq!(seconds("1d12h"), Some(129_600));
        assert_eq!(seconds("90m30s"), Some(5_430));
        for bad in [
            "",
            "24",
            "h",
            "0s",
            "1w",
            "-1h",
            "1.5h",
            "１h",
            "99999999999999999d",
        ] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_plan_that_fits_says_so_without_a_warning() {
        let text = subject("150000", Unit::Hour, "6250", Some("24h")).text();
        assert!(
            text.starts_with("150000 visits at 6250 an hour\n"),
            "{text}"
        );
        assert!(
            text.contains("1.736111 a second · 104.166667 a minute · 6250 an hour · 150000 a day")
        );
        assert!(
            text.contains("Complete 1 d after its start, with 150000 visits."),
            "{text}"
        );
        assert!(!text.contains("warning"), "{text}");
        assert!(text.contains("52.5 MB on its first day"), "{text}");
        assert!(text.contains("Free (500 MB): room for all of it"), "{text}");
    }

    #[test]
    fn a_plan_that_does_not_fit_names_the_rate_the_end_and_the_total_that_would() {
        let text = subject("2000", Unit::Minute, "30", Some("1h")).text();
        assert!(
            text.contains("with 1800 visits, 200 short of the total"),
            "{text}"
        );
        assert!(text.contains("visits_per_unit = 33.33 "), "{text}");
        assert!(text.contains("--for 3999s  (1 h 6 min)"), "{text}");
        assert!(text.contains("total_visits = 1800"), "{text}");
    }

    #[test]
    fn the_day_on_which_a_free_project_is_full_is_told() {
        let text = subject("10000000", Unit::Second, "10", None).text();
        // 1,428,571 visits have room: 39.68 hours.
        assert!(
            text.contains(
                "Free (500 MB): full 1 d 15 h after its start; the project turns read-only"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_chart_rises_to_the_total_and_stays_there() {
        let lines = blocks(&[25, 50, 100, 100], 100);
        assert_eq!(lines.first().map(String::as_str), Some("  ██"));
        assert_eq!(lines.get(4).map(String::as_str), Some(" ███"));
        assert_eq!(lines.last().map(String::as_str), Some("████"));
    }

    #[test]
    fn what_cannot_be_planned_says_what_to_write() {
        let refused = Subject::asked(Args {
            id: None,
            total: Some("many".to_owned()),
            per: Some(Unit::Hour),
            rate: Some("1".to_owned()),
            window: None,
            json: false,
        });
        let why = refused.err().expect("refused").to_string();
        assert!(why.contains("use a whole number of visits"), "{why}");
    }
}
