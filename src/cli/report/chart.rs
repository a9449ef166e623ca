//! The report as a picture: SVG, light or dark as the reader's system is; and an HTML page around it with the figures.
//!
//! Pure: figures in, text out.

use std::fmt::Write as _;

use uuid::Uuid;

use crate::domain::time::DbTime;
use crate::svg::{Drawing, escaped};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
/// Top and height of the three panels: visits of each step, cumulative visits, backlog.
const PANELS: [(f64, f64); 3] = [(120.0, 150.0), (314.0, 150.0), (508.0, 70.0)];
const HEIGHT: f64 = 664.0;
/// Edits that are listed below the picture.
const EDITS_MAX: usize = 40;

const STYLE: &str = "
  .paper{fill:#fff} .ink{fill:#11181c} .quiet{fill:#5b666d} .axis{stroke:#dfe3e6} .pause{fill:#8a5a00;opacity:.12}
  .bar{fill:#12774b;opacity:.45} .due{stroke:#11181c;stroke-width:1.5;stroke-dasharray:5 3}
  .stored{stroke:#12774b;stroke-width:2} .backlog{fill:#b42318;opacity:.75} .edit{stroke:#8a5a00;stroke-dasharray:3 3}
  text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif} .title{font-size:18px;font-weight:600} .head{font-weight:600}
  @media (prefers-color-scheme:dark){.paper{fill:#141617} .ink{fill:#edf1f2} .quiet{fill:#a3adb3} .axis{stroke:#303538}
  .bar{fill:#3ecf8e} .due{stroke:#edf1f2} .stored{stroke:#3ecf8e} .backlog{fill:#ff8a80} .edit{stroke:#f0b949} .pause{fill:#f0b949}}";

/// One step of the time.
#[derive(Clone, Copy)]
pub struct ReportStep {
    /// When it began.
    pub at: DbTime,
    /// When it ended.
    pub end: DbTime,
    /// Visits that became due in it; `None` where the rate is not known.
    pub became_due: Option<i64>,
    /// Visits that were due at its end.
    pub due: Option<i64>,
    /// Visits dated in it.
    pub stored: i64,
    /// Visits stored by its end.
    pub total: i64,
}

impl ReportStep {
    fn backlog(&self) -> Option<i64> {
        self.due.map(|due| (due - self.total).max(0))
    }
}

/// What is reported.
pub struct DistributionReport {
    /// The distribution.
    pub id: Uuid,
    /// The partner's name, or its id.
    pub partner: String,
    /// When the report was made.
    pub made_at: DbTime,
    /// In order, without gaps.
    pub steps: Vec<ReportStep>,
    /// When, what, by whom.
    pub edits: Vec<(DbTime, String, Option<String>)>,
    /// From and to.
    pub pauses: Vec<(DbTime, Option<DbTime>)>,
}

impl DistributionReport {
    /// Visits that became due.
    pub fn became_due(&self) -> i64 {
        self.steps.iter().filter_map(|step| step.became_due).sum()
    }

    /// Visits that are dated in the time.
    pub fn stored(&self) -> i64 {
        self.steps.iter().map(|step| step.stored).sum()
    }

    /// The largest backlog at the end of a step.
    pub fn largest_backlog(&self) -> String {
        let backlogs = self
            .steps
            .iter()
            .filter_map(|s| Some((s.backlog()?, s.end)));
        match backlogs.max_by_key(|(backlog, at)| (*backlog, std::cmp::Reverse(*at))) {
            Some((backlog, at)) if backlog > 0 => {
                let visits = if backlog == 1 { "visit" } else { "visits" };
                format!("largest backlog: {backlog} {visits} at {} UTC", moment(at))
            }
            Some(_) | None => "no backlog at the end of a step".to_owned(),
        }
    }

    /// The shown time; never empty.
    fn span(&self) -> (f64, f64) {
        let first = self.steps.first().map_or(0, |step| step.at.as_micros());
        let last = self.steps.last().map_or(1, |step| step.end.as_micros());
        (float(first), float(last).max(float(first) + 1.0))
    }

    fn x(&self, at: DbTime) -> f64 {
        let (first, last) = self.span();
        let part = ((float(at.as_micros()) - first) / (last - first)).clamp(0.0, 1.0);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }
}

/// A moment as the pictures show it.
pub fn moment(at: DbTime) -> String {
    at.to_datetime().map_or_else(
        || at.as_micros().to_string(),
        |at| at.format("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// Exact enough for a picture.
fn float(number: i64) -> f64 {
    let (high, low) = (number.div_euclid(1 << 31), number.rem_euclid(1 << 31));
    let part = |n: i64| i32::try_from(n).map_or_else(|_| f64::from(i32::MAX), f64::from);
    part(high) * 2_147_483_648.0 + part(low)
}

/// The largest of these numbers, rounded up to a scale's end.
fn ceiling(numbers: impl Iterator<Item = i64>) -> i64 {
    const TENS: u32 = 15;
    let most = numbers.max().unwrap_or(1).max(1);
    let candidates = (0..TENS).flat_map(|power| [1, 2, 5].map(|n| n * 10_i64.pow(power)));
    candidates.into_iter().find(|n| *n >= most).unwrap_or(most)
}

/// The picture alone.
pub fn svg(report: &DistributionReport) -> String {
    let listed = report.edits.len().min(EDITS_MAX);
    let edits_height = 18.0 * float(i64::try_from(listed).unwrap_or(0)) + 30.0;
    let title = format!("{}: visits due and stored", report.partner);
    let mut drawing = Drawing::new((WIDTH, HEIGHT + edits_height), &title, STYLE);
    head(&mut drawing, report);
    for panel in PANELS {
        pauses_and_edits(&mut drawing, report, panel);
    }
    steps(&mut drawing, report);
    totals(&mut drawing, report);
    backlogs(&mut drawing, report);
    foot(&mut drawing, report, listed);
    drawing.finish()
}

fn head(drawing: &mut Drawing, report: &DistributionReport) {
    drawing.text((LEFT, 34.0), "ink title", "start", &report.partner);
    let span = report.steps.first().zip(report.steps.last());
    let span = span.map_or_else(String::new, |(first, last)| {
        format!("{} to {} UTC", moment(first.at), moment(last.end))
    });
    let line = format!("distribution {} · {span}", report.id);
    drawing.text((LEFT, 54.0), "quiet", "start", &line);
    let line = format!(
        "{} visits became due, {} are stored; {}",
        report.became_due(),
        report.stored(),
        report.largest_backlog()
    );
    drawing.text((LEFT, 74.0), "ink head", "start", &line);
}

/// Pauses as bands, edits as lines.
fn pauses_and_edits(drawing: &mut Drawing, report: &DistributionReport, (top, height): (f64, f64)) {
    let (first, last) = report.span();
    for (from, to) in &report.pauses {
        let left = report.x(*from);
        let right = to.map_or(WIDTH - RIGHT, |to| report.x(to));
        drawing.rect("pause", (left, top), ((right - left).max(0.0), height));
    }
    let edits = report.edits.iter().map(|(at, ..)| *at);
    for at in edits.filter(|at| (first..=last).contains(&float(at.as_micros()))) {
        let x = report.x(at);
        drawing.line("edit", [(x, top), (x, top + height)]);
    }
    let bottom = top + height;
    drawing.line("axis", [(LEFT, bottom), (WIDTH - RIGHT, bottom)]);
}

/// A panel's title, and the numbers at both ends of its scale.
fn scale(drawing: &mut Drawing, (top, height): (f64, f64), title: &str, (least, most): (i64, i64)) {
    let x = LEFT - 8.0;
    drawing.text((LEFT, top - 8.0), "ink head", "start", title);
    drawing.text((x, top + 10.0), "quiet", "end", &most.to_string());
    drawing.text((x, top + height), "quiet", "end", &least.to_string());
}

/// Bars from the bottom of a panel, one for each step.
fn bars(
    drawing: &mut Drawing,
    report: &DistributionReport,
    (class, (top, height), most): (&str, (f64, f64), i64),
    number: impl Fn(&ReportStep) -> i64,
) {
    for step in &report.steps {
        let (left, right) = (report.x(step.at), report.x(step.end));
        let tall = height * float(number(step)) / float(most);
        let width = (right - left - 0.6).max(0.4);
        drawing.rect(class, (left, top + height - tall), (width, tall));
    }
}

fn steps(drawing: &mut Drawing, report: &DistributionReport) {
    let (top, height) = PANELS[0];
    let first = report.steps.first();
    let seconds = first.map_or(1, |step| step.end.micros_since(step.at) / 1_000_000);
    let numbers = report.steps.iter();
    let most = ceiling(numbers.flat_map(|step| [step.became_due.unwrap_or(0), step.stored]));
    let length = match seconds {
        s if s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    };
    let title = format!("Visits per {length}: stored (bars) and due (dashed)");
    scale(drawing, PANELS[0], &title, (0, most));
    bars(drawing, report, ("bar", PANELS[0], most), |step| {
        step.stored
    });
    let due = report.steps.iter().filter_map(|step| {
        let y = top + height - height * float(step.became_due?) / float(most);
        Some([(report.x(step.at), y), (report.x(step.end), y)])
    });
    drawing.line("due", due.flatten());
}

fn totals(drawing: &mut Drawing, report: &DistributionReport) {
    let (top, height) = PANELS[1];
    let first = report.steps.first();
    let least = first.map_or(0, |step| step.total - step.stored);
    let numbers = report.steps.iter();
    let most = numbers.flat_map(|step| [step.due.unwrap_or(0), step.total]);
    let most = most.max().unwrap_or(1).max(1);
    let title = "Cumulative visits: stored (solid) and due (dashed)";
    scale(drawing, PANELS[1], title, (least, most));
    let range = float(most - least.min(most - 1)).max(1.0);
    let y = |count: i64| top + height - height * float((count - least).max(0)) / range;
    let stored = report.steps.iter().map(|s| (report.x(s.end), y(s.total)));
    drawing.line("stored", [(LEFT, y(least))].into_iter().chain(stored));
    let due = report.steps.iter();
    let due = due.filter_map(|step| Some((report.x(step.end), y(step.due?))));
    drawing.line("due", due);
}

fn backlogs(drawing: &mut Drawing, report: &DistributionReport) {
    let backlog = |step: &ReportStep| step.backlog().unwrap_or(0);
    let most = ceiling(report.steps.iter().map(backlog));
    let title = "Backlog at the end of each step";
    scale(drawing, PANELS[2], title, (0, most));
    bars(drawing, report, ("backlog", PANELS[2], most), backlog);
    let (top, height) = PANELS[2];
    let first = report.steps.first().map(|step| step.at);
    let last = report.steps.last().map(|step| step.end);
    for (at, x, anchor) in [(first, LEFT, "start"), (last, WIDTH - RIGHT, "end")] {
        let text = at.map_or_else(String::new, moment);
        drawing.text((x, top + height + 18.0), "quiet", anchor, &text);
    }
}

fn foot(drawing: &mut Drawing, report: &DistributionReport, listed: usize) {
    let mut y = 630.0;
    if listed > 0 {
        let title = "Edits (dashed lines; pauses are shaded)";
        drawing.text((LEFT, y), "ink head", "start", title);
    }
    let skipped = report.edits.len() - listed;
    for (at, what, by) in report.edits.iter().skip(skipped) {
        y += 18.0;
        let by = by
            .as_ref()
            .map_or_else(String::new, |by| format!(", by {by}"));
        let line = format!("{}  {what}{by}", moment(*at));
        drawing.text((LEFT, y), "ink", "start", &line);
    }
    let made = format!(
        "These visits are synthetic and labelled with their distribution_id. Made by visit-pacer {} at {} UTC.",
        env!("CARGO_PKG_VERSION"),
        moment(report.made_at)
    );
    drawing.text((LEFT, y + 30.0), "quiet", "start", &made);
}

/// A page with the picture, and the steps as a table.
pub fn html(report: &DistributionReport) -> String {
    let known = |count: Option<i64>| count.map_or_else(|| "–".to_owned(), |n| n.to_string());
    let mut rows = String::new();
    for step in &report.steps {
        // Writing into a String cannot fail.
        let _written = writeln!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            moment(step.at),
            known(step.became_due),
            step.stored,
            known(step.due),
            step.total
        )
        .is_ok();
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}: visits due and stored</title><style>:root{{color-scheme:light dark}}body{{margin:24px auto;max-width:1000px;\
         font:14px/1.5 system-ui,sans-serif}}svg{{width:100%;height:auto}}table{{border-collapse:collapse}}\
         td,th{{padding:2px 16px 2px 0;text-align:right}}th:first-child,td:first-child{{text-align:left}}</style></head><body>\n{}\
         <h2>Figures</h2><table><thead><tr><th>From (UTC)</th><th>Became due</th><th>Stored</th><th>Due in all</th>\
         <th>Stored in all</th></tr></thead><tbody>\n{rows}</tbody></table></body></html>\n",
        escaped(&report.partner),
        svg(report)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(partner: &str) -> DistributionReport {
        let at = |second: i64| DbTime::from_micros(1_800_000_000_000_000 + second * 1_000_000);
        let step = |n: i64, stored: i64, total: i64| ReportStep {
            at: at(n),
            end: at(n + 1),
            became_due: Some(10),
            due: Some(10 * (n + 1)),
            stored,
            total,
        };
        DistributionReport {
            id: Uuid::from_u128(1),
            partner: partner.to_owned(),
            made_at: at(9),
            steps: vec![step(0, 10, 10), step(1, 4, 14), step(2, 16, 30)],
            edits: vec![(at(1), "paused".to_owned(), Some("postgres".to_owned()))],
            pauses: vec![(at(1), Some(at(2)))],
        }
    }

    #[test]
    fn the_figures_are_sums_and_the_largest_backlog() {
        let report = report("Casa Verde");
        assert_eq!((report.became_due(), report.stored()), (30, 30));
        assert_eq!(
            report.largest_backlog(),
            "largest backlog: 6 visits at 2027-01-15 08:00:02 UTC"
        );
    }

    #[test]
    fn a_name_is_text_and_nothing_else() {
        for text in [svg(&report("<script>&\"")), html(&report("<script>&\""))] {
            assert!(!text.contains("<script>"));
            assert!(text.contains("&lt;script&gt;&amp;&quot;"));
            assert!(text.contains("synthetic"));
            assert!(!text.contains("NaN") && !text.contains("inf"));
        }
    }
}
