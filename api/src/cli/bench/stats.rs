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
