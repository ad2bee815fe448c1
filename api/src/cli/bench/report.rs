//! What a benchmark prints: a table for people, or one line of JSON a metric.

use super::stats::Interval;
use serde::Serialize;
use std::fmt::Write;

/// One figure beside its peer's from the same run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Metric {
    bench: &'static str,
    metric: String,
    unit: &'static str,
    value: f64,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    /// Where the ratio lies with 95 % confidence; not every benchmark can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_low: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_high: Option<f64>,
}

impl Metric {
    /// A figure that stands alone.
    pub(super) fn alone(
        bench: &'static str,
        metric: impl Into<String>,
        unit: &'static str,
        value: f64,
    ) -> Metric {
        Metric {
            bench,
            metric: metric.into(),
            unit,
            value: rounded(value),
            peer: None,
            peer_value: None,
            ratio: None,
            ratio_low: None,
            ratio_high: None,
        }
    }

    /// With the interval that the ratio lies in.
    pub(super) fn between(self, interval: Option<Interval>) -> Metric {
        Metric {
            ratio_low: interval.map(|interval| rounded(interval.low)),
            ratio_high: interval.map(|interval| rounded(interval.high)),
            ..self
        }
    }

    /// A figure beside `peer`'s.
    pub(super) fn beside(
        bench: &'static str,
        metric: impl Into<String>,
        unit: &'static str,
        value: f64,
        peer: &'static str,
        peer_value: f64,
    ) -> Metric {
        Metric {
            peer: Some(peer),
            peer_value: Some(rounded(peer_value)),
            ratio: Some(rounded(value / peer_value)),
            ..Metric::alone(bench, metric, unit, value)
        }
    }
}

/// Four significant digits: more would only be noise.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// All figures of a run and what a reader must know beside them.
#[derive(Debug, Default)]
pub(super) struct Report {
    metrics: Vec<Metric>,
    notes: Vec<String>,
}

impl Report {
    /// Adds a figure.
    pub(super) fn metric(&mut self, metric: Metric) {
        self.metrics.push(metric);
    }

    /// Adds a line to be read below the table; not part of the JSON.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// One line of JSON a metric.
    pub(super) fn json(&self) -> String {
        self.metrics
            .iter()
            .map(|metric| {
                serde_json::to_string(metric)
                    .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
                    + "\n"
            })
            .collect()
    }

    /// A table and the notes.
    pub(super) fn table(&self) -> String {
        let heads = ["metric", "unit", "uktls", "peer", "peer's", "ratio"].map(String::from);
        let mut rows = vec![heads];
        for metric in &self.metrics {
            let optional = |value: Option<f64>| value.map(figure).unwrap_or_default();
            rows.push([
                metric.metric.clone(),
                metric.unit.into(),
                figure(metric.value),
                metric.peer.unwrap_or_default().into(),
                optional(metric.peer_value),
                match (metric.ratio, metric.ratio_low, metric.ratio_high) {
                    (Some(ratio), Some(low), Some(high)) => {
                        format!("{ratio:.2}x ({low:.2}-{high:.2})")
                    }
                    (Some(ratio), ..) => format!("{ratio:.2}x"),
                    (None, ..) => String::new(),
                },
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                // Words to the left, figures to the right.
                let _ = match column {
                    2 | 4 | 5 => write!(line, "{cell:>width$}  "),
                    _ => write!(line, "{cell:<width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(note);
            text.push('\n');
        }
        text
    }
}

/// A figure as a person reads it.
fn figure(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.metric(Metric::beside(
            "sendfile",
            "throughput",
            "GB/s",
            4.5,
            "nginx-openssl-loopback",
            1.5,
        ));
        report.metric(Metric::alone("sendfile", "limit_write", "GB/s", 7.912_34));
        report.note("a note");
        report
    }

    #[test]
    fn json_is_one_line_a_metric_with_null_where_there_is_no_peer() {
        assert_eq!(
            report().json(),
            concat!(
                r#"{"bench":"sendfile","metric":"throughput","unit":"GB/s","value":4.5,"peer":"nginx-openssl-loopback","peer_value":1.5,"ratio":3.0}"#,
                "\n",
                r#"{"bench":"sendfile","metric":"limit_write","unit":"GB/s","value":7.912,"peer":null,"peer_value":null,"ratio":null}"#,
                "\n",
            )
        );
    }

    #[test]
    fn the_table_lines_up_and_ends_with_the_notes() {
        assert_eq!(
            report().table(),
            "metric       unit  uktls  peer                    peer's  ratio\n\
             throughput   GB/s  4.500  nginx-openssl-loopback   1.500  3.00x\n\
             limit_write  GB/s  7.912\n\
             \n\
             a note\n"
        );
    }
}
