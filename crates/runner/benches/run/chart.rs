//! Draws the phases as a stacked bar chart, and the build steps as lines. [`costs`](crate::costs)
//! and [`steps`](crate::steps) measure them.

use std::fmt::Write;

/// One bar: the phases in order, in seconds.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) parts: Vec<(&'static str, f64)>,
}

/// One line of a chart: the numbers of layers, and a rate per second for each.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(usize, f64)>,
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

/// Returns an SVG with one line per program: build steps per second over the number of layers. Both
/// axes are logarithmic.
pub(crate) fn lines(lines: &[Line]) -> String {
    const HEIGHT: f64 = 420.0;
    const RIGHT: f64 = 720.0;
    let points = || lines.iter().flat_map(|line| &line.points);
    let most_layers = points().map(|(layers, _)| *layers as f64).fold(2.0, f64::max);
    let decades =
        |rates: &dyn Fn(f64, f64) -> f64, first: f64| points().map(|(_, rate)| rate.log10()).fold(first, rates);
    let (lowest, highest) = (decades(&f64::min, f64::MAX).floor(), decades(&f64::max, f64::MIN).ceil());
    let x = |layers: usize| 70.0 + (layers as f64).ln() / most_layers.ln() * (RIGHT - 70.0);
    let y = |rate: f64| HEIGHT - 50.0 - (rate.log10() - lowest) / (highest - lowest).max(1.0) * (HEIGHT - 100.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"14\" font-weight=\"bold\">Build steps per second, over the number of layers</text>\n"
    );
    for decade in lowest as i32..=highest as i32 {
        for step in if decade < highest as i32 { [1.0, 2.0, 5.0].as_slice() } else { &[1.0] } {
            let rate = step * 10_f64.powi(decade);
            let at = y(rate);
            let _ = writeln!(
                svg,
                "<line x1=\"70\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"62\" y=\"{:.1}\" text-anchor=\"end\">{rate}</text>",
                at + 4.0
            );
        }
    }
    let mut numbers: Vec<_> = points().map(|(layers, _)| *layers).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for layers in numbers {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{layers}</text>",
            x(layers),
            HEIGHT - 28.0
        );
    }
    // The labels at the ends of the lines must not overlap.
    let mut ends: Vec<_> =
        lines.iter().zip(COLOURS.iter().cycle()).filter(|(line, _)| !line.points.is_empty()).collect();
    ends.sort_by(|(one, _), (other, _)| last(other).total_cmp(&last(one)));
    let mut label = f64::MIN;
    for (line, colour) in ends {
        let path: Vec<_> =
            line.points.iter().map(|(layers, rate)| format!("{:.1},{:.1}", x(*layers), y(*rate))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (layers, rate) in &line.points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}, {layers} layers: {rate:.1} per second</title></circle>",
                x(*layers),
                y(*rate),
                line.name
            );
        }
        label = (y(last(line)) + 4.0).max(label + 15.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{label:.1}\" fill=\"{colour}\">{}</text>", RIGHT + 12.0, line.name);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Returns the rate over the most layers.
fn last(line: &Line) -> f64 {
    line.points.last().map_or(0.0, |(_, rate)| *rate)
}
