//! Lateness as a picture that stands by itself: for each program the share of visits that were stored within so many
//! milliseconds of their moment, on a logarithmic scale.

use std::fmt::Write as _;

use super::figures::Spread;

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
/// Colours that differ for the colour-blind too (Okabe and Ito), each with a dash of its own.
const STROKES: [(&str, &str); 6] = [
    ("#0072b2", ""),
    ("#d55e00", "6 3"),
    ("#009e73", "2 2"),
    ("#cc79a7", "8 3 2 3"),
    ("#56b4e9", "10 4"),
    ("#777777", "3 5"),
];

/// The picture of these curves.
pub fn svg(curves: &[(String, Spread)]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <title>Lateness of commits: the share of visits stored within a time of their moment</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"15\" fill=\"#222222\">Visits stored within … of their moment</text>\n"
    );
    axes(&mut svg);
    for (place, ((name, late), (colour, dash))) in
        curves.iter().zip(STROKES.iter().cycle()).enumerate()
    {
        let mut path = String::new();
        for (part, ms) in steps(late) {
            let pen = if path.is_empty() { 'M' } else { 'L' };
            let _infallible = write!(path, "{pen}{:.1} {:.1} ", x(ms), y(part));
        }
        let _infallible = writeln!(
            svg,
            "<path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
            path.trim_end()
        );
        let at = TOP + 12.0 + 24.0 * f64::from(u32::try_from(place).unwrap_or(0));
        let from = WIDTH - RIGHT + 16.0;
        let _infallible = writeln!(
            svg,
            "<path d=\"M{from} {at:.0}h28\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"#222222\">{}</text>",
            from + 36.0,
            at + 4.0,
            escaped(name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String) {
    for (decade, label) in ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]
        .iter()
        .enumerate()
    {
        let at = x(FROM * 10_f64.powi(i32::try_from(decade).unwrap_or(0)));
        let _infallible = writeln!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{:.0}\" stroke=\"#dddddd\"/><text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555555\">{label}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 20.0
        );
    }
    for percent in [0_u8, 25, 50, 75, 100] {
        let at = y(f64::from(percent) / 100.0);
        let _infallible = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.0}\" stroke=\"#dddddd\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{percent} %</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
    }
}

/// The share of the figures that are not above one, for some of them.
fn steps(late: &Spread) -> impl Iterator<Item = (f64, f64)> + '_ {
    let count = late.len();
    let every = count.div_ceil(POINTS).max(1);
    let whole = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    late.all().enumerate().filter_map(move |(place, ms)| {
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

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_rises_to_the_whole_at_its_largest_figure() {
        let svg = svg(&[("a < b".to_owned(), Spread::of(vec![1_000, 10_000]))]);
        let (x1, x10, top, half) = (x(1.0), x(10.0), y(1.0), y(0.5));
        assert!(
            svg.contains(&format!("M{x1:.1} {half:.1} L{x10:.1} {top:.1}\"")),
            "{svg}"
        );
        assert!(svg.contains("a &lt; b"));
    }
}
