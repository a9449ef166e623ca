//! `visit-pacer plan`: what a distribution would do, before it is active.
//!
//! Owns the text, the chart and the JSON; the arithmetic is [`crate::domain::plan`]'s. With `--id` moments are dates by the
//! database's clock; without it they count from the start, and no database is needed.

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use uuid::Uuid;

use super::connection::connect;
use super::duration;
use super::output::output;
use crate::domain::agent::ReadRequest;
use crate::domain::distribution::{Distribution, Period, RawRow};
use crate::domain::plan::{BYTES_PER_VISIT, FREE_BYTES, PRO_BYTES, Plan, PlanEnd};
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::rows;
use crate::postgres::sql_functions::{self, Disk};

/// Start of a plan without a row, never shown. 2000-01-01, in microseconds since the Unix epoch.
const SOME_START_US: i64 = 946_684_800_000_000;

/// Flags of `plan`.
#[derive(clap::Args)]
pub struct Args {
    /// Existing distribution; the other options describe a new one
    #[arg(long, value_name = "ID", conflicts_with_all = ["total", "per", "rate", "window"])]
    id: Option<Uuid>,
    /// Total number of visits
    #[arg(long, value_name = "N", required_unless_present = "id")]
    total: Option<String>,
    /// Unit of the rate: second, minute, hour or day
    #[arg(long, value_name = "UNIT", required_unless_present = "id")]
    per: Option<Period>,
    /// Visits per unit
    #[arg(long, value_name = "RATE", required_unless_present = "id")]
    rate: Option<String>,
    /// Length of the window, such as 24h, 90m or 1d12h [default: until it is complete]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    window: Option<i64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the plan.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let shown = match args.id {
        Some(id) => PlanReport::stored(id).await?,
        None => PlanReport::new(args)?,
    };
    if json {
        output!("{}", serde_json::to_string_pretty(&shown.json())?)?;
    } else {
        output!("{}", shown.text().trim_end())?;
    }
    Ok(())
}

/// A plan, and what its text needs.
struct PlanReport {
    plan: Plan,
    /// `visits_per_unit`
    rate: String,
    /// Whether moments are dates.
    dated: bool,
    disk: Disk,
}

impl PlanReport {
    /// From the command line alone.
    fn new(args: Args) -> anyhow::Result<Self> {
        let period = args.per.context("--per is missing")?;
        let rate = args.rate.context("--rate is missing")?;
        let start = DbTime::from_micros(SOME_START_US);
        let row = RawRow {
            id: Uuid::nil(),
            partner_id: Some(Uuid::nil().into()),
            config_version: Some(0),
            is_active: Some(true),
            total_visits: args.total.map(Into::into),
            visits_per_unit: Some(rate.as_str().into()),
            time_period: Some(period.as_str().into()),
            start_time: Some(start),
            end_time: args.window.map(|window| start.plus_micros(window)),
            catch_up: None,
            anchor_units: Some("0".into()),
            anchor_at: Some(start),
        };
        Ok(Self {
            plan: Plan::of(&Distribution::parse(&row)?, 0, start),
            rate,
            dated: false,
            disk: Disk {
                used: 0,
                bytes_per_visit: None,
            },
        })
    }

    /// Of an existing row.
    async fn stored(id: Uuid) -> anyhow::Result<Self> {
        let mut connection = connect().await?;
        let found = rows::read(&mut connection, &ReadRequest::Rows(vec![id])).await?;
        let first = found.rows.first();
        let read = first.with_context(|| format!("no distribution has the id {id}"))?;
        let stored = read.progress.as_ref().map_or(0, |p| p.distributed);
        let parsed = Distribution::parse(&read.row)
            .map_err(|why| anyhow!("distribution {id} is not valid: {why}"))?;
        Ok(Self {
            plan: Plan::of(&parsed, stored, found.db),
            rate: read
                .row
                .visits_per_unit
                .as_deref()
                .unwrap_or("0")
                .to_owned(),
            dated: true,
            disk: sql_functions::disk(&mut connection).await?,
        })
    }

    fn bytes_per_visit(&self) -> i64 {
        self.disk.bytes_per_visit.unwrap_or(BYTES_PER_VISIT)
    }

    /// When the database reaches this size; `None`: this plan does not fill it.
    fn full_at(&self, limit: i64) -> Option<DbTime> {
        self.plan
            .full_at(limit - self.disk.used, self.bytes_per_visit())
    }

    fn moment(&self, at: DbTime) -> String {
        let begins = self.plan.begins();
        match at.to_datetime() {
            _ if at <= begins => "at once".to_owned(),
            Some(date) if self.dated => date.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            _ => {
                let seconds = seconds_up(at.micros_since(begins));
                format!("{} after its start", duration::words(seconds))
            }
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
            PlanEnd::Completed(at) => ("completed", Some(at)),
            PlanEnd::Short(at) => ("short of the total", Some(at)),
            PlanEnd::Never => ("never", None),
        };
        let rates: serde_json::Map<String, Value> = Period::ALL
            .into_iter()
            .map(|period| {
                (
                    period.as_str().to_owned(),
                    self.plan.visits_per(period).into(),
                )
            })
            .collect();
        json!({
            "total_visits": self.plan.total(),
            "visits_per": rates,
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
        let (total, visits) = (self.plan.total(), self.plan.visits());
        let rates = Period::ALL.map(|period| per(&self.plan.visits_per(period), period));
        let mut lines = vec![
            format!("{total} visits at {}", per(&self.rate, self.plan.period())),
            format!("  {}", rates.join(" · ")),
            String::new(),
        ];
        lines.extend(self.chart());
        lines.push(String::new());
        lines.push(match self.plan.end() {
            PlanEnd::Completed(at) if at <= self.plan.begins() => format!(
                "All {visits} visits are due already; the backlog drains at catch_up times the rate."
            ),
            PlanEnd::Completed(at) => format!("Complete {}, with {visits} visits.", self.moment(at)),
            PlanEnd::Short(at) => format!(
                "Ends {} with {visits} visits, {} short of the total.",
                self.moment(at),
                total - visits
            ),
            PlanEnd::Never => "Never ends: the rate is 0, or it never starts.".to_owned(),
        });
        lines.extend(self.warning());
        lines.extend(self.disk_usage());
        lines.join("\n") + "\n"
    }

    /// If rate times window is not the total: what would make them agree.
    fn warning(&self) -> Vec<String> {
        let Some(misfit) = self.plan.misfit() else {
            return Vec::new();
        };
        let mut lines = vec![format!(
            "warning: the rate times the window is {} visits, not {}. To make them agree, use one of:",
            misfit.rate_times_window,
            self.plan.total()
        )];
        lines.push(match misfit.rate_that_fits {
            Some(rate) => {
                let words = per(&rate, self.plan.period());
                format!("  visits_per_unit = {rate}  ({words})")
            }
            None => "  a longer window: no rate up to 1000000 a second is enough for this one"
                .to_owned(),
        });
        lines.extend(misfit.end_that_fits.map(|end| self.end(end)));
        lines.push(format!("  total_visits = {}", misfit.rate_times_window));
        lines
    }

    /// An end as it can be entered: to the microsecond in a row, in whole seconds on the command line.
    fn end(&self, end: DbTime) -> String {
        match end.to_datetime().filter(|_| self.dated) {
            Some(date) => format!("  end_time = '{}'", date.format("%Y-%m-%d %H:%M:%S%.6f+00")),
            None => {
                let seconds = seconds_up(end.micros_since(self.plan.begins()));
                format!("  --for {seconds}s  ({})", duration::words(seconds))
            }
        }
    }

    fn disk_usage(&self) -> Vec<String> {
        let each = self.bytes_per_visit();
        let source = match self.disk.bytes_per_visit {
            Some(_) => "the current average of store_visits",
            None => "measured with the columns of the migrations",
        };
        let mut lines = vec![format!(
            "Disk: {} on its first day, {} in all, at {each} bytes a visit ({source}).",
            bytes(self.plan.remaining_on_the_first_day().saturating_mul(each)),
            bytes(self.plan.remaining().saturating_mul(each)),
        )];
        if self.disk.used > 0 {
            lines.push(format!("  The database has {} now.", bytes(self.disk.used)));
        }
        for (name, limit, effect) in [
            ("Free", FREE_BYTES, "the project turns read-only"),
            ("Pro", PRO_BYTES, "the disk must be larger by then"),
        ] {
            let full = self.full_at(limit).map_or_else(
                || "room for all of it".to_owned(),
                |at| format!("full {}; {effect}", self.moment(at)),
            );
            lines.push(format!("  {name} ({}): {full}", bytes(limit)));
        }
        lines
    }

    /// The curve as bars, with labelled axes.
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
        let (first, last) = self.axis_labels();
        let gap = samples.len().saturating_sub(first.len());
        lines.push(format!("{:>width$}  {first}{last:>gap$}", ""));
        lines
    }

    fn axis_labels(&self) -> (String, String) {
        let (begins, ends) = (self.plan.begins(), self.plan.drawn_until());
        let date = |at: DbTime| {
            let date = at.to_datetime().filter(|_| self.dated)?;
            Some(date.format("%Y-%m-%d %H:%M").to_string())
        };
        let span = duration::words(seconds_up(ends.micros_since(begins)));
        (
            date(begins).unwrap_or_else(|| "start".to_owned()),
            date(ends.max(begins)).unwrap_or_else(|| format!("{span} later")),
        )
    }
}

/// The chart's size, in characters.
const COLUMNS: u8 = 64;
const ROWS: i64 = 8;
/// Cells filled by eighths, from none to all.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Bars of these heights, as lines of text from the top.
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

/// Such as `33.33 a minute`.
fn per(rate: &str, period: Period) -> String {
    let article = if period == Period::Hour { "an" } else { "a" };
    format!("{rate} {article} {}", period.as_str())
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

/// Seconds, rounded up: visit `k` is due half a visit before the curve reaches it.
fn seconds_up(micros: i64) -> i64 {
    let micros = micros.max(0);
    micros / SECOND_US + i64::from(micros % SECOND_US > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(total: &str, per: Period, rate: &str, window: Option<&str>) -> PlanReport {
        PlanReport::new(Args {
            id: None,
            total: Some(total.to_owned()),
            per: Some(per),
            rate: Some(rate.to_owned()),
            window: window.map(|text| duration::parse(text).expect("a span")),
            json: false,
        })
        .expect("a plan")
    }

    #[test]
    fn a_plan_that_fits_says_so_without_a_warning() {
        let text = report("150000", Period::Hour, "6250", Some("24h")).text();
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
        let text = report("2000", Period::Minute, "30", Some("1h")).text();
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
        let text = report("10000000", Period::Second, "10", None).text();
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
        let refused = PlanReport::new(Args {
            id: None,
            total: Some("many".to_owned()),
            per: Some(Period::Hour),
            rate: Some("1".to_owned()),
            window: None,
            json: false,
        });
        let why = refused.err().expect("refused").to_string();
        assert!(why.contains("use a whole number of visits"), "{why}");
    }
}
