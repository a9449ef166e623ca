//! Pictures as SVG text: shapes of CSS classes, without scripts. Pure; shared by `report` and `bench`.

use std::fmt::{Arguments, Write as _};

/// An SVG document while it is written.
pub struct Drawing(String);

impl Drawing {
    /// An empty picture of this size, with its description and its CSS.
    pub fn new((width, height): (f64, f64), title: &str, style: &str) -> Self {
        let mut drawing = Self(String::new());
        let title = escaped(title);
        drawing.put(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"><style>{style}</style>"#
        ));
        drawing.rect("paper", (0.0, 0.0), (width, height));
        drawing
    }

    /// Text at a point; `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        self.put(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// A rectangle from its upper left corner.
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        self.put(format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        ));
    }

    /// A line through these points.
    pub fn line(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let mut text = String::new();
        for (x, y) in points {
            // Writing into a String cannot fail.
            let _written = write!(text, "{x:.1},{y:.1} ").is_ok();
        }
        let points = text.trim_end();
        self.put(format_args!(
            r#"<polyline class="{class}" fill="none" points="{points}"/>"#
        ));
    }

    /// The document.
    pub fn finish(self) -> String {
        self.0 + "</svg>\n"
    }

    fn put(&mut self, element: Arguments<'_>) {
        let _written = writeln!(self.0, "{element}").is_ok();
    }
}

/// Text that is safe in an element and in an attribute.
pub fn escaped(text: &str) -> String {
    let text = text.replace(char::is_control, " ").replace('&', "&amp;");
    text.replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
