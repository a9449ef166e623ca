//! The picture: SVG without scripts, light or dark as the reader's system is; and a page around it with the figures.
//!
//! Pure: figures in, text out.

use std::fmt::Write as _;

use uuid::Uuid;

use super::moment;
use crate::domain::time::DbTime;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
/// The three panels, from top to bottom: what happens in each step, all of it added up, how far behind.
const PANELS: [(f64, f64); 3] = [(120.0, 150.0), (314.0, 150.0), (508.0, 70.0)];
const HEIGHT: f64 = 664.0;
/// Edits that are written out below the picture.
const EDITS_MAX: usize = 40;

const STYLE: &str = "
  .paper{fill:#fff} .ink{fill:#11181c} .quiet{fill:#5b666d} .line{stroke:#dfe3e6} .pause{fill:#8a5a00;opacity:.12}
  .bar{fill:#12774b;opacity:.45} .asked{fill:none;stroke:#11181c;stroke-width:1.5;stroke-dasharray:5 3}
  .stored{fill:none;stroke:#12774b;stroke-width:2} .lag{fill:#b42318;opacity:.75} .edit{stroke:#8a5a00;stroke-dasharray:3 3}
  text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif} .title{font-size:18px;font-weight:600} .head{font-weight:600}
  @media (prefers-color-scheme:dark){.paper{fill:#141617} .ink{fill:#edf1f2} .quiet{fill:#a3adb3} .line{stroke:#303538}
  .bar{fill:#3ecf8e} .asked{stroke:#edf1f2} .stored{stroke:#3ecf8e} .lag{fill:#ff8a80} .edit{stroke:#f0b949} .pause{fill:#f0b949}}";

/// One step of the time.
pub struct Step {
    /// When it began.
    pub at: DbTime,
    /// When it ended.
    pub end: DbTime,
    /// Visits that became due in it; `None` where the pace is not known.
    pub asked: Option<i64>,
    /// Visits that were due at its end.
    pub due: Option<i64>,
    /// Visits that are dated in it.
    pub stored: i64,
}

/// What is reported.
pub struct Said {
    /// The row.
    pub id: Uuid,
    /// Who it is for.
    pub partner: String,
    /// When the report was made.
    pub made_at: DbTime,
    /// In order, without gaps.
    pub steps: Vec<Step>,
    /// Their length, in microseconds.
    pub step_us: i64,
    /// Visits that were there before the first step.
    pub stored_before: i64,
    /// When, what, by whom.
    pub edits: Vec<(DbTime, String, Option<String>)>,
    /// From and to.
    pub pauses: Vec<(DbTime, Option<DbTime>)>,
}

/// What it comes to.
pub struct Figures {
    /// Visits that became due.
    pub asked: i64,
    /// Visits that are dated in the time.
    pub stored: i64,
    /// How far behind it was at the end of the worst step, and when that was.
    pub worst_lag: Option<(i64, DbTime)>,
}

/// See the module.
pub struct Report {
    said: Said,
    /// Visits that are stored by the end of each step.
    sums: Vec<i64>,
    /// What it comes to.
    pub figures: Figures,
}

impl Report {
    /// Counts.
    pub fn new(said: Said) -> Self {
        let mut sum = said.stored_before;
        let sums: Vec<i64> = said
            .steps
            .iter()
            .map(|step| {
                sum += step.stored;
                sum
            })
            .collect();
        let lags = said.steps.iter().zip(&sums);
        let lags = lags.filter_map(|(step, sum)| Some(((step.due? - sum).max(0), step.end)));
        let figures = Figures {
            asked: said.steps.iter().filter_map(|step| step.asked).sum(),
            stored: said.steps.iter().map(|step| step.stored).sum(),
            worst_lag: lags.max_by_key(|(lag, at)| (*lag, std::cmp::Reverse(*at))),
        };
        Self {
            said,
            sums,
            figures,
        }
    }

    fn span(&self) -> (f64, f64) {
        let first = self
            .said
            .steps
            .first()
            .map_or(0, |step| step.at.as_micros());
        let last = self
            .said
            .steps
            .last()
            .map_or(1, |step| step.end.as_micros());
        (float(first), float(last).max(float(first) + 1.0))
    }

    fn x(&self, at: DbTime) -> f64 {
        let (first, last) = self.span();
        let part = ((float(at.as_micros()) - first) / (last - first)).clamp(0.0, 1.0);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }
}

/// Exact enough for a picture.
fn float(number: i64) -> f64 {
    let (high, low) = (number.div_euclid(1 << 31), number.rem_euclid(1 << 31));
    let part = |n: i64| i32::try_from(n).map_or_else(|_| f64::from(i32::MAX), f64::from);
    part(high) * 2_147_483_648.0 + part(low)
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A round number at or above this one.
fn ceiling(most: i64) -> i64 {
    const TENS: u32 = 15;
    let candidates = (0..TENS).flat_map(|power| [1, 2, 5].map(|n| n * 10_i64.pow(power)));
    candidates.into_iter().find(|n| *n >= most).unwrap_or(most)
}

struct Canvas(String);

impl Canvas {
    /// Writing into a String cannot fail.
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        let _written = writeln!(self.0, "{text}").is_ok();
    }

    fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: &str, words: &str) {
        let words = escaped(words);
        self.put(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{words}</text>"#
        ));
    }
}

/// The picture alone.
pub fn svg(report: &Report) -> String {
    let mut canvas = Canvas(String::new());
    let said = &report.said;
    let written = said.edits.len().min(EDITS_MAX);
    let edits_height = 18.0 * float(i64::try_from(written).unwrap_or(0)) + 30.0;
    let height = HEIGHT + edits_height;
    let title = escaped(&format!("{}: visits asked for and stored", said.partner));
    canvas.put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}"><style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{height}"/>"#
    ));
    head(&mut canvas, report);
    for (top, height) in PANELS {
        marks(&mut canvas, report, top, height);
    }
    steps(&mut canvas, report);
    sums(&mut canvas, report);
    lags(&mut canvas, report);
    foot(&mut canvas, report, written);
    canvas.0.push_str("</svg>\n");
    canvas.0
}

fn head(canvas: &mut Canvas, report: &Report) {
    let said = &report.said;
    canvas.text((LEFT, 34.0), "ink title", "start", &said.partner);
    let span = said.steps.first().zip(said.steps.last());
    let span = span.map_or_else(String::new, |(first, last)| {
        format!("{} to {} UTC", moment(first.at), moment(last.end))
    });
    canvas.text(
        (LEFT, 54.0),
        "quiet",
        "start",
        &format!("distribution {} · {span}", said.id),
    );
    let line = format!(
        "{} visits fell due, {} are stored; {}",
        report.figures.asked,
        report.figures.stored,
        report.lag_in_words()
    );
    canvas.text((LEFT, 74.0), "ink head", "start", &line);
}

/// Pauses as bands, edits as lines.
fn marks(canvas: &mut Canvas, report: &Report, top: f64, height: f64) {
    let (first, last) = report.span();
    let with_timeout = |at: DbTime| (first..=last).contains(&float(at.as_micros()));
    for (from, to) in &report.said.pauses {
        let left = report.x(*from);
        let right = to.map_or(WIDTH - RIGHT, |to| report.x(to));
        let width = (right - left).max(0.0);
        canvas.put(format_args!(
            r#"<rect class="pause" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"/>"#
        ));
    }
    for (at, ..) in report
        .said
        .edits
        .iter()
        .filter(|(at, ..)| with_timeout(*at))
    {
        let (x, bottom) = (report.x(*at), top + height);
        canvas.put(format_args!(
            r#"<line class="edit" x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}"/>"#
        ));
    }
    let (right, bottom) = (WIDTH - RIGHT, top + height);
    canvas.put(format_args!(
        r#"<line class="line" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>"#
    ));
}

/// A panel's title, and the number at its top.
fn scale(canvas: &mut Canvas, (top, height): (f64, f64), title: &str, (least, most): (i64, i64)) {
    canvas.text((LEFT, top - 8.0), "ink head", "start", title);
    canvas.text((LEFT - 8.0, top + 10.0), "quiet", "end", &most.to_string());
    canvas.text(
        (LEFT - 8.0, top + height),
        "quiet",
        "end",
        &least.to_string(),
    );
}

fn steps(canvas: &mut Canvas, report: &Report) {
    let (top, height) = PANELS[0];
    let seconds = report.said.step_us / 1_000_000;
    let all = report.said.steps.iter();
    let most = ceiling(
        all.flat_map(|s| [s.asked.unwrap_or(0), s.stored])
            .max()
            .unwrap_or(1)
            .max(1),
    );
    let length = match seconds {
        s if s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    };
    let title = format!("Each {length}: stored (bars) and asked for (dashed)");
    scale(canvas, PANELS[0], &title, (0, most));
    let y = |count: i64| top + height - height * float(count) / float(most);
    let mut path = String::new();
    for step in &report.said.steps {
        let (left, right) = (report.x(step.at), report.x(step.end));
        let width = (right - left - 0.6).max(0.4);
        let (above, tall) = (y(step.stored), top + height - y(step.stored));
        canvas.put(format_args!(
            r#"<rect class="bar" x="{left:.1}" y="{above:.1}" width="{width:.1}" height="{tall:.1}"/>"#
        ));
        if let Some(asked) = step.asked {
            let at = y(asked);
            let to = if path.is_empty() { 'M' } else { 'L' };
            let _written = write!(path, "{to}{left:.1} {at:.1}L{right:.1} {at:.1}").is_ok();
        }
    }
    canvas.put(format_args!(r#"<path class="asked" d="{path}"/>"#));
}

fn sums(canvas: &mut Canvas, report: &Report) {
    let (top, height) = PANELS[1];
    let dues = report.said.steps.iter().filter_map(|step| step.due);
    let most = dues
        .chain(report.sums.iter().copied())
        .max()
        .unwrap_or(1)
        .max(1);
    let least = report.said.stored_before;
    let title = "Added up: stored (solid) and asked for (dashed)";
    scale(canvas, PANELS[1], title, (least, most));
    let range = float(most - least.min(most - 1)).max(1.0);
    let y = |count: i64| top + height - height * float((count - least).max(0)) / range;
    let (mut stored, mut asked) = (format!("M{LEFT:.1} {:.1}", y(least)), String::new());
    for (step, sum) in report.said.steps.iter().zip(&report.sums) {
        let x = report.x(step.end);
        let _written = write!(stored, "L{x:.1} {:.1}", y(*sum)).is_ok();
        if let Some(due) = step.due {
            let to = if asked.is_empty() { 'M' } else { 'L' };
            let _written = write!(asked, "{to}{x:.1} {:.1}", y(due)).is_ok();
        }
    }
    canvas.put(format_args!(
        r#"<path class="stored" d="{stored}"/><path class="asked" d="{asked}"/>"#
    ));
}

fn lags(canvas: &mut Canvas, report: &Report) {
    let (top, height) = PANELS[2];
    let lag = |step: &Step, sum: i64| step.due.map_or(0, |due| (due - sum).max(0));
    let both = || report.said.steps.iter().zip(&report.sums);
    let most = ceiling(
        both()
            .map(|(step, sum)| lag(step, *sum))
            .max()
            .unwrap_or(1)
            .max(1),
    );
    scale(canvas, PANELS[2], "Behind, at the end of each", (0, most));
    for (step, sum) in both() {
        let (left, right) = (report.x(step.at), report.x(step.end));
        let tall = height * float(lag(step, *sum)) / float(most);
        let (width, above) = ((right - left - 0.6).max(0.4), top + height - tall);
        canvas.put(format_args!(
            r#"<rect class="lag" x="{left:.1}" y="{above:.1}" width="{width:.1}" height="{tall:.1}"/>"#
        ));
    }
    let bottom = top + height + 18.0;
    let first = report.said.steps.first().map(|step| step.at);
    let last = report.said.steps.last().map(|step| step.end);
    for (at, x, anchor) in [(first, LEFT, "start"), (last, WIDTH - RIGHT, "end")] {
        if let Some(at) = at {
            canvas.text((x, bottom), "quiet", anchor, &moment(at));
        }
    }
}

fn foot(canvas: &mut Canvas, report: &Report, written: usize) {
    let mut y = 630.0;
    if written > 0 {
        canvas.text(
            (LEFT, y),
            "ink head",
            "start",
            "Edits (dashed lines; pauses are shaded)",
        );
    }
    for (at, what, by) in report.said.edits.iter().rev().take(written).rev() {
        y += 18.0;
        let by = by
            .as_deref()
            .map_or_else(String::new, |by| format!(", by {by}"));
        canvas.text(
            (LEFT, y),
            "ink",
            "start",
            &format!("{}  {what}{by}", moment(*at)),
        );
    }
    y += 30.0;
    let made = format!(
        "These visits are synthetic and labelled with their distribution_id. Made by visit-pacer {} at {} UTC.",
        env!("CARGO_PKG_VERSION"),
        moment(report.said.made_at)
    );
    canvas.text((LEFT, y), "quiet", "start", &made);
}

/// A page with the picture, and the steps as a table.
pub fn html(report: &Report) -> String {
    let mut page = Canvas(String::new());
    let partner = escaped(&report.said.partner);
    page.put(format_args!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{partner}: visits asked for and stored</title><style>:root{{color-scheme:light dark}}body{{margin:24px auto;\
         max-width:1000px;font:14px/1.5 system-ui,sans-serif}}svg{{width:100%;height:auto}}table{{border-collapse:collapse}}\
         td,th{{padding:2px 16px 2px 0;text-align:right}}th:first-child,td:first-child{{text-align:left}}</style></head><body>"
    ));
    page.0.push_str(&svg(report));
    page.put(format_args!(
        "<h2>The figures</h2><table><thead><tr><th>From (UTC)</th><th>Asked</th><th>Stored</th><th>Due by its end</th><th>Stored by its \
         end</th></tr></thead><tbody>"
    ));
    let known = |count: Option<i64>| count.map_or_else(|| "–".to_owned(), |n| n.to_string());
    for (step, sum) in report.said.steps.iter().zip(&report.sums) {
        page.put(format_args!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{sum}</td></tr>",
            moment(step.at),
            known(step.asked),
            step.stored,
            known(step.due)
        ));
    }
    page.put(format_args!("</tbody></table></body></html>"));
    page.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(partner: &str) -> Report {
        let at = |second: i64| DbTime::from_micros(1_800_000_000_000_000 + second * 1_000_000);
        let step = |n: i64, stored: i64| Step {
            at: at(n),
            end: at(n + 1),
            asked: Some(10),
            due: Some(10 * (n + 1)),
            stored,
        };
        Report::new(Said {
            id: Uuid::from_u128(1),
            partner: partner.to_owned(),
            made_at: at(9),
            steps: vec![step(0, 10), step(1, 4), step(2, 16)],
            step_us: 1_000_000,
            stored_before: 0,
            edits: vec![(at(1), "paused".to_owned(), Some("postgres".to_owned()))],
            pauses: vec![(at(1), Some(at(2)))],
        })
    }

    #[test]
    fn its_figures_are_sums_and_the_worst_moment() {
        let figures = report("Casa Verde").figures;
        assert_eq!((figures.asked, figures.stored), (30, 30));
        let (lag, at) = figures.worst_lag.unwrap();
        assert_eq!((lag, moment(at).as_str()), (6, "2027-01-15 08:00:02"));
    }

    #[test]
    fn what_people_wrote_is_text_and_nothing_else() {
        for text in [svg(&report("<script>&\"")), html(&report("<script>&\""))] {
            assert!(!text.contains("<script>"));
            assert!(text.contains("&lt;script&gt;&amp;&quot;"));
            assert!(text.contains("synthetic"));
            assert!(!text.contains("NaN") && !text.contains("inf"));
        }
    }
}
