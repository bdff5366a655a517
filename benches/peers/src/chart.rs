//! Bars: one per peer, as long as the median, with a line from the smallest to the largest value. And
//! lines over what grows.

use std::path::Path;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::report::Spread;

const WIDTH: u32 = 760;
const ROW: u32 = 34;
const TOP: u32 = 56;
const LEFT: i32 = 150;
const RIGHT: i32 = 110;

/// A bar, and whether it is ours.
#[derive(Clone, Debug)]
pub struct Bar {
    pub name: String,
    pub spread: Spread,
    pub is_ours: bool,
}

/// Draws the bars. Everything is placed by hand: a chart this plain needs no axes.
pub fn draw(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> anyhow::Result<()> {
    let height = TOP + ROW * bars.len() as u32 + 16;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    // The library writes sizes into the file divided by 1.24.
    let text = |size: i32, color: RGBColor, across, down| {
        ("sans-serif", f64::from(size) * 1.24).into_font().color(&color).pos(Pos::new(across, down))
    };
    let grey = RGBColor(0x55, 0x5b, 0x66);
    area.draw(&Text::new(title, (16, 12), text(17, BLACK, HPos::Left, VPos::Top)))?;
    area.draw(&Text::new(unit, (16, 34), text(13, grey, HPos::Left, VPos::Top)))?;

    let most = bars.iter().map(|bar| bar.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
    let at = |value: f64| LEFT + (value.max(0.0) / most * room).round() as i32;
    for (row, bar) in bars.iter().enumerate() {
        let top = TOP as i32 + ROW as i32 * row as i32 + 6;
        let (bottom, middle) = (top + ROW as i32 - 12, top + (ROW as i32 - 12) / 2);
        let color =
            if bar.is_ours { RGBColor(0x1f, 0x6f, 0xb4) } else { RGBColor(0xb4, 0xbd, 0xca) };
        let Spread { min, median, max } = bar.spread;
        area.draw(&Rectangle::new([(LEFT, top), (at(median), bottom)], color.filled()))?;
        let line = RGBColor(0x22, 0x26, 0x2d).stroke_width(1);
        area.draw(&PathElement::new([(at(min), middle), (at(max), middle)], line))?;
        for end in [at(min), at(max)] {
            area.draw(&PathElement::new([(end, middle - 4), (end, middle + 4)], line))?;
        }
        let name = text(14, BLACK, HPos::Right, VPos::Center);
        area.draw(&Text::new(bar.name.as_str(), (LEFT - 10, middle), name))?;
        let value = text(13, grey, HPos::Left, VPos::Center);
        area.draw(&Text::new(short(median), (at(max.max(median)) + 8, middle), value))?;
    }
    Ok(area.present()?)
}

fn short(value: f64) -> String {
    match value.abs() {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

/// The values of a peer over what grows.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub is_ours: bool,
}

/// Draws lines over two logarithmic axes.
pub fn draw_lines(path: &Path, title: &str, unit: &str, lines: &[Line]) -> anyhow::Result<()> {
    let area = SVGBackend::new(path, (WIDTH, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    let all = || lines.iter().flat_map(|line| &line.points);
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN_POSITIVE), |(min, max), value| {
            (min.min(value), max.max(value))
        })
    };
    let across = ends(&mut all().map(|point| point.0));
    let up = ends(&mut all().map(|point| point.1));
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (across.0..across.1).log_scale(),
            (up.0 / 1.5..up.1 * 1.5).log_scale(),
        )?;
    chart.configure_mesh().x_desc(unit).y_desc("server CPU, µs a message").draw()?;
    for (index, line) in lines.iter().enumerate() {
        let color = match index {
            _ if line.is_ours => RGBColor(0x1f, 0x6f, 0xb4),
            0 => RGBColor(0x6b, 0x72, 0x80),
            _ => RGBColor(0xd9, 0x8e, 0x2b),
        };
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(0xd0, 0xd5, 0xdc))
        .draw()?;
    Ok(area.present()?)
}
