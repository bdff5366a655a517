//! The latencies by percentile, drawn so that the slowest few have as much room as all others.

use std::{fs, path::Path};

use hdrhistogram::Histogram;
use plotters::{coord::combinators::IntoLogRange, prelude::*};

use super::report::with_unit;

/// Points of the curve for each halving of what is above it.
const POINTS: u32 = 20;
const PIXELS: (u32, u32) = (900, 500);

/// Draws a histogram of nanoseconds: to the right 1 / (1 - quantile) on a logarithmic scale, upwards
/// the latency.
pub(crate) fn draw(path: &Path, nanos: &Histogram<u64>, title: &str) -> anyhow::Result<()> {
    let curve = curve(nanos);
    let right = curve.last().map_or(10.0, |&(x, _)| x.max(10.0));
    let top = curve.iter().fold(1.0, |top: f64, &(_, y)| top.max(y)) * 1.05;

    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, PIXELS).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .margin_right(40)
            .x_label_area_size(45)
            .y_label_area_size(80)
            .build_cartesian_2d((1.0..right).log_scale(), 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 17))
            .x_desc("percentile")
            .x_label_formatter(&|&x| percentile(x))
            .y_desc("latency")
            .y_label_formatter(&|&micros| with_unit(micros))
            .draw()?;
        chart.draw_series(LineSeries::new(curve, BLUE.stroke_width(2)))?;
        area.present()?;
    }
    Ok(fs::write(path, svg)?)
}

/// Where the curve goes, in microseconds; it ends with the longest.
#[expect(clippy::cast_precision_loss, reason = "a drawing needs no 53 bits")]
fn curve(nanos: &Histogram<u64>) -> Vec<(f64, f64)> {
    let end = nanos.len() as f64;
    nanos
        .iter_quantiles(POINTS)
        .map(|step| {
            let x = 1.0 / (1.0 - step.quantile_iterated_to());
            (x.min(end), step.value_iterated_to() as f64 / 1e3)
        })
        .collect()
}

/// What a place on the x axis stands for, in as many digits as it takes.
fn percentile(x: f64) -> String {
    let decimals = (x.log10().round() - 2.0).max(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few digits, not below 0"
    )]
    let decimals = decimals as usize;
    format!("{:.decimals$} %", 100.0 * (1.0 - 1.0 / x))
}
