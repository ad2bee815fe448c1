//! Medians: what a benchmark says after several rounds.

/// The median; of an even number of values the mean of the middle two. `None` of nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Where a ratio lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Interval {
    /// From the logarithms of ratios that were measured apart: Student's t around their mean. `None` of fewer than two.
    pub(super) fn of_logarithms(logarithms: &[f64]) -> Option<Interval> {
        let count = logarithms.len();
        if count < 2 {
            return None;
        }
        let mean = logarithms.iter().sum::<f64>() / count as f64;
        let squares: f64 = logarithms.iter().map(|x| (x - mean).powi(2)).sum();
        let error = (squares / (count - 1) as f64 / count as f64).sqrt();
        let half = student(count - 1) * error;
        Some(Interval {
            low: (mean - half).exp(),
            high: (mean + half).exp(),
        })
    }
}

/// The 97.5 % quantile of Student's t with so many degrees of freedom, from the printed table.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 20] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    ];
    match freedom {
        0 => f64::INFINITY,
        1..=20 => TABLE[freedom - 1],
        21..=40 => 2.042,
        _ => 2.0,
    }
}

/// One transfer, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Bytes of the file, in 10⁹ a second.
    pub(super) throughput: f64,
    /// Seconds of processor time of the side that is measured, per 10⁹ bytes of the file.
    pub(super) cpu_seconds_per_gb: f64,
}

impl Sample {
    /// From a file of so many bytes that took so long.
    pub(super) fn new(bytes: u64, seconds: f64, cpu_seconds: f64) -> Sample {
        let gigabytes = bytes as f64 / 1e9;
        Sample {
            throughput: gigabytes / seconds,
            cpu_seconds_per_gb: cpu_seconds / gigabytes,
        }
    }
}

/// The rounds of one contender.
#[derive(Debug, Clone, Default)]
pub(super) struct Rounds(Vec<Sample>);

impl Rounds {
    /// Adds a round.
    pub(super) fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    /// Median GB/s.
    pub(super) fn throughput(&self) -> Option<f64> {
        median(&self.0.iter().map(|s| s.throughput).collect::<Vec<_>>())
    }

    /// Median CPU-seconds per GB.
    pub(super) fn cpu_seconds_per_gb(&self) -> Option<f64> {
        median(
            &self
                .0
                .iter()
                .map(|s| s.cpu_seconds_per_gb)
                .collect::<Vec<_>>(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(&[4.0, 1.0, 9.0, 6.0]), Some(5.0));
    }

    #[test]
    fn an_interval_holds_the_mean_and_narrows_with_more_runs() {
        assert_eq!(Interval::of_logarithms(&[0.3]), None);
        let three = Interval::of_logarithms(&[-0.1, 0.0, 0.1]).unwrap();
        // s = 0.1, s/√3 = 0.0577, t = 4.303.
        assert!((three.low.ln() + 0.2484).abs() < 1e-3 && (three.high.ln() - 0.2484).abs() < 1e-3);
        let six = Interval::of_logarithms(&[-0.1, 0.0, 0.1, -0.1, 0.0, 0.1]).unwrap();
        assert!(six.low > three.low && six.high < three.high);
    }

    #[test]
    fn a_sample_counts_decimal_gigabytes() {
        let sample = Sample::new(2_000_000_000, 0.5, 1.0);
        assert_eq!((sample.throughput, sample.cpu_seconds_per_gb), (4.0, 0.5));
    }

    #[test]
    fn medians_are_taken_for_each_figure_apart() {
        let mut rounds = Rounds::default();
        for (seconds, cpu) in [(1.0, 9.0), (2.0, 2.0), (4.0, 1.0)] {
            rounds.push(Sample::new(1_000_000_000, seconds, cpu));
        }
        assert_eq!(rounds.throughput(), Some(0.5));
        assert_eq!(rounds.cpu_seconds_per_gb(), Some(2.0));
    }
}
