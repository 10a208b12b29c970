//! Plots as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
/// Room for the axis on the left, and for labels above and below.
const LEFT: f64 = 64.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 48.0;
/// Of the series, told apart also by who sees no red and green.
const COLORS: [&str; 2] = ["#1d5fd1", "#b9c2d0"];

/// Bars in groups: of each group its label and the values of both series.
pub(crate) fn bars(title: &str, series: [&str; 2], groups: &[(String, [f64; 2])]) -> String {
    let highest = groups.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max).max(1e-9);
    let scale = (HEIGHT - TOP - BOTTOM) / highest;
    let (each, floor) = ((WIDTH - LEFT) / groups.len().max(1) as f64, HEIGHT - BOTTOM);
    let mut svg = frame(title, series);
    for step in 0..=4 {
        let value = highest * f64::from(step) / 4.0;
        let y = floor - value * scale;
        let _ = write!(svg, r##"<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1}" y2="{y:.1}" stroke="#e4e7ec"/>"##);
        let _ =
            write!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 8.0, y + 4.0, short(value));
    }
    for (number, (label, values)) in groups.iter().enumerate() {
        let x = LEFT + each * number as f64;
        for (at, (value, color)) in values.iter().zip(COLORS).enumerate() {
            let (width, height) = (each * 0.32, value * scale);
            let left = x + each * 0.16 + at as f64 * (width + 4.0);
            let _ = write!(
                svg,
                r#"<rect x="{left:.1}" y="{:.1}" width="{width:.1}" height="{height:.1}" fill="{color}"/>"#,
                floor - height
            );
            let _ = write!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                left + width / 2.0,
                floor - height - 4.0,
                short(*value)
            );
        }
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            x + each / 2.0,
            floor + 18.0
        );
    }
    svg + "</svg>\n"
}

/// A line through the values of each series; the places are as far apart as each other, whatever their labels say.
pub(crate) fn lines(title: &str, series: [&str; 2], places: &[(String, [f64; 2])]) -> String {
    let highest = places.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max).max(1e-9) * 1.15;
    let (each, floor) = ((WIDTH - LEFT) / places.len().max(1) as f64, HEIGHT - BOTTOM);
    let (x, y) = (
        |place: usize| LEFT + each * (place as f64 + 0.5),
        |value: f64| floor - value * (HEIGHT - TOP - BOTTOM) / highest,
    );
    let mut svg = frame(title, series);
    for step in 0..=4 {
        let value = highest * f64::from(step) / 4.0;
        let at = y(value);
        let _ = write!(svg, r##"<line x1="{LEFT}" x2="{WIDTH}" y1="{at:.1}" y2="{at:.1}" stroke="#e4e7ec"/>"##);
        let _ =
            write!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 8.0, at + 4.0, short(value));
    }
    for (at, color) in COLORS.into_iter().enumerate().filter(|(at, _)| !series[*at].is_empty()) {
        let points: Vec<_> =
            places.iter().enumerate().map(|(place, (_, values))| (x(place), y(values[at]), values[at])).collect();
        let line: String = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1} ")).collect();
        let _ = write!(svg, r#"<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>"#);
        for (x, y, value) in points {
            let _ = write!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{color}"/>"#);
            let _ = write!(svg, r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#, y - 8.0, short(value));
        }
    }
    for (place, (label, _)) in places.iter().enumerate() {
        let _ = write!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, x(place), floor + 18.0);
    }
    svg + "</svg>\n"
}

fn frame(title: &str, series: [&str; 2]) -> String {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="11" fill="#1c1f26"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/><text x="{LEFT}" y="20" font-size="14" font-weight="600">{title}</text>"##
    );
    for (at, (name, color)) in series.iter().zip(COLORS).enumerate().filter(|(_, (name, _))| !name.is_empty()) {
        let x = WIDTH - 240.0 + at as f64 * 120.0;
        let _ = write!(svg, r#"<rect x="{x}" y="11" width="10" height="10" fill="{color}"/>"#);
        let _ = write!(svg, r#"<text x="{}" y="20">{name}</text>"#, x + 16.0);
    }
    svg
}

/// Three digits, as people say them.
fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        value if value >= 1000.0 => format!("{:.1}k", value / 1000.0),
        value if value >= 10.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}
