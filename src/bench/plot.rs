//! The measured delays as a chart: for each program the share of visits that were stored within a time of their moment, on a
//! logarithmic scale.

use super::figures::Samples;
use crate::svg::Drawing;

const WIDTH: f64 = 890.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 280.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 56.0;
/// The scale, in milliseconds: a tenth to a hundred seconds.
const FROM: f64 = 0.1;
const DECADES: f64 = 6.0;
/// Points of a curve.
const POINTS: usize = 200;
/// Colours that colour-blind readers can tell apart (Okabe and Ito), each with its own dashes.
const STYLE: &str = "
  .paper{fill:#fff} text{font:13px sans-serif;fill:#222} text.title{font-size:15px} text.axis{fill:#555} .grid{stroke:#ddd}
  .line0{stroke:#0072b2} .line1{stroke:#d55e00;stroke-dasharray:6 3} .line2{stroke:#009e73;stroke-dasharray:2 2}
  .line3{stroke:#cc79a7;stroke-dasharray:8 3 2 3} .line4{stroke:#56b4e9;stroke-dasharray:10 4} .line5{stroke:#777;stroke-dasharray:3 5}
  .line0,.line1,.line2,.line3,.line4,.line5{stroke-width:2}";
const CLASSES: [&str; 6] = ["line0", "line1", "line2", "line3", "line4", "line5"];

/// The chart of these curves.
pub fn svg(curves: &[(String, Samples)]) -> String {
    let title = "Delay of commits: the share of visits stored within a time of their moment";
    let mut drawing = Drawing::new((WIDTH, HEIGHT), title, STYLE);
    let title = "Visits stored within … of their moment";
    drawing.text((LEFT, 26.0), "title", "start", title);
    axes(&mut drawing);
    let mut at = TOP + 12.0;
    for ((name, delays), class) in curves.iter().zip(CLASSES.iter().cycle()) {
        drawing.line(class, steps(delays).map(|(part, ms)| (x(ms), y(part))));
        let from = WIDTH - RIGHT + 16.0;
        drawing.line(class, [(from, at), (from + 28.0, at)]);
        drawing.text((from + 36.0, at + 4.0), "", "start", name);
        at += 24.0;
    }
    drawing.finish()
}

fn axes(drawing: &mut Drawing) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut ms = FROM;
    for label in ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"] {
        drawing.line("grid", [(x(ms), TOP), (x(ms), bottom)]);
        drawing.text((x(ms), bottom + 20.0), "axis", "middle", label);
        ms *= 10.0;
    }
    for percent in [0_u8, 25, 50, 75, 100] {
        let at = y(f64::from(percent) / 100.0);
        drawing.line("grid", [(LEFT, at), (right, at)]);
        drawing.text(
            (LEFT - 8.0, at + 4.0),
            "axis",
            "end",
            &format!("{percent} %"),
        );
    }
}

/// Points of a curve: the share of the samples that are not larger.
fn steps(delays: &Samples) -> impl Iterator<Item = (f64, f64)> + '_ {
    let count = delays.len();
    let every = count.div_ceil(POINTS).max(1);
    let whole = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    delays.all().enumerate().filter_map(move |(place, ms)| {
        let wanted = place % every == 0 || place + 1 == count;
        let part = f64::from(u32::try_from(place + 1).unwrap_or(u32::MAX)) / whole;
        wanted.then_some((part, ms))
    })
}

fn x(ms: f64) -> f64 {
    let part = (ms.max(FROM) / FROM).log10().clamp(0.0, DECADES) / DECADES;
    LEFT + part * (WIDTH - LEFT - RIGHT)
}

fn y(part: f64) -> f64 {
    HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_reaches_the_whole_at_its_largest_sample() {
        let svg = svg(&[("a < b".to_owned(), Samples::of(vec![1_000, 10_000]))]);
        let (x1, x10, top, half) = (x(1.0), x(10.0), y(1.0), y(0.5));
        assert!(
            svg.contains(&format!("{x1:.1},{half:.1} {x10:.1},{top:.1}\"")),
            "{svg}"
        );
        assert!(svg.contains("a &lt; b"));
    }
}
