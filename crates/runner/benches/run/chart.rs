//! Draws the phases as a stacked bar chart. [`costs`](crate::costs) measures them.

use std::fmt::Write;

/// One bar: the phases in order, in seconds.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) parts: Vec<(&'static str, f64)>,
}

const COLOURS: [&str; 9] =
    ["#4e79a7", "#a0cbe8", "#f28e2b", "#ffbe7d", "#59a14f", "#8cd17d", "#bab0ac", "#e15759", "#ff9d9a"];
const WIDTH: f64 = 900.0;
const LEFT: f64 = 130.0;
const ROW: f64 = 30.0;

/// Returns an SVG with two panels: whole runs, and runs without the phase of the runtime.
pub(crate) fn stacked_bars(bars: &[Bar]) -> String {
    let panel = bars.len() as f64 * ROW + 50.0;
    let height = 2.0 * panel + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    draw(&mut svg, bars, 0.0, "The phases of a run (median)", |_| true);
    draw(&mut svg, bars, panel, "The same without the runtime", |phase| phase != "runc_run");
    let names = bars.first().map(|bar| bar.parts.iter().map(|(name, _)| *name)).into_iter().flatten();
    let (mut x, y) = (10.0, 2.0 * panel + 15.0);
    for (name, colour) in names.zip(COLOURS) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            x + 16.0,
            y + 10.0
        );
        x += 36.0 + 7.0 * name.len() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, bars: &[Bar], top: f64, title: &str, shown: impl Fn(&str) -> bool) {
    let total = |bar: &Bar| bar.parts.iter().filter(|(name, _)| shown(name)).map(|(_, time)| time).sum::<f64>();
    let longest = bars.iter().map(total).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LEFT - 90.0) / longest;
    let _ = writeln!(svg, "<text x=\"10\" y=\"{}\" font-size=\"14\" font-weight=\"bold\">{title}</text>", top + 20.0);
    for (index, bar) in bars.iter().enumerate() {
        let y = top + 32.0 + index as f64 * ROW;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, y + 15.0, bar.label);
        let mut x = LEFT;
        for ((name, time), colour) in bar.parts.iter().zip(COLOURS).filter(|((name, _), _)| shown(name)) {
            let width = time * scale;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"20\" fill=\"{colour}\"><title>{name}: {:.3} ms</title></rect>",
                time * 1e3
            );
            x += width;
        }
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\">{:.2} ms</text>", x + 6.0, y + 15.0, total(bar) * 1e3);
    }
}
