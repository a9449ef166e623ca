//! A histogram that the program can read: the one of `prometheus-client` can only be encoded.
//!
//! Invariant: each bucket has its own count; counts are cumulative only in the exposition.

use std::sync::{Arc, Mutex, PoisonError};

/// A histogram. Clones share the same buckets.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Arc<Mutex<HistogramCounts>>,
}

impl Histogram {
    /// With these rising upper bounds; larger values are counted too.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            counts: Arc::new(Mutex::new(HistogramCounts::new(bounds))),
        }
    }

    /// Adds a measurement.
    pub fn observe(&self, value: f64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.observe(value);
    }

    /// The counts so far.
    pub fn read(&self) -> HistogramCounts {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.clone()
    }
}

/// The counts of a histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramCounts {
    bounds: &'static [f64],
    within: Vec<u64>,
    beyond: u64,
    sum: f64,
}

impl HistogramCounts {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            within: vec![0; bounds.len()],
            beyond: 0,
            sum: 0.0,
        }
    }

    fn observe(&mut self, value: f64) {
        let buckets = self.bounds.iter().zip(&mut self.within);
        let bucket = buckets.into_iter().find(|(bound, _)| value <= **bound);
        *bucket.map_or(&mut self.beyond, |(_, count)| count) += 1;
        self.sum += value;
    }

    /// Each bucket's upper bound, `None` for the last, and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let within = self.bounds.iter().zip(&self.within);
        within
            .map(|(bound, count)| (Some(*bound), *count))
            .chain([(None, self.beyond)])
    }

    /// The number of measurements.
    pub fn total(&self) -> u64 {
        self.within.iter().sum::<u64>() + self.beyond
    }

    /// The sum of all measurements.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The counts since an earlier reading of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.within.iter().zip(&earlier.within);
        Self {
            bounds: self.bounds,
            within: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
            beyond: self.beyond.saturating_sub(earlier.beyond),
            sum: self.sum - earlier.sum,
        }
    }

    /// A quantile (0 to 1), interpolated within its bucket like `histogram_quantile`; `None` without measurements. Values beyond
    /// the last bound count as that bound.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let total = self.total();
        let rank = part * real(total);
        let (mut below, mut low) = (0, 0.0);
        for (bound, count) in self.bounds.iter().zip(&self.within) {
            if *count > 0 && real(below + count) >= rank {
                return Some(low + (bound - low) * (rank - real(below)) / real(*count));
            }
            below += count;
            low = *bound;
        }
        (total > 0).then_some(low)
    }
}

/// Exact up to 2^32 measurements, approximate beyond.
fn real(count: u64) -> f64 {
    u32::try_from(count).map_or_else(
        |_| f64::from(u32::MAX) * real(count / u64::from(u32::MAX)),
        f64::from,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(values: &[f64]) -> Histogram {
        let histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        for value in values {
            histogram.observe(*value);
        }
        histogram
    }

    #[test]
    fn each_measurement_falls_into_the_first_bucket_that_holds_it() {
        let counts = measured(&[0.5, 1.0, 1.5, 100.0]).read();
        let buckets: Vec<_> = counts.buckets().collect();
        let expected = [
            (Some(1.0), 2),
            (Some(2.0), 1),
            (Some(4.0), 0),
            (None::<f64>, 1),
        ];
        assert_eq!(buckets, expected);
        assert_eq!(counts.total(), 4);
        assert!((counts.sum() - 103.0).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_interpolated_and_values_beyond_the_last_bound_count_as_that_bound() {
        let near = |found: Option<f64>, wanted: f64| {
            assert!(
                found.is_some_and(|found| (found - wanted).abs() < 1e-9),
                "{found:?} instead of {wanted}"
            );
        };
        let counts = measured(&[1.5, 1.5, 3.0, 3.0]).read();
        near(counts.quantile(0.25), 1.5);
        near(counts.quantile(0.5), 2.0);
        near(counts.quantile(0.99), 3.96);
        near(measured(&[9.0]).read().quantile(0.5), 4.0);
        assert_eq!(measured(&[]).read().quantile(0.5), None);
    }

    #[test]
    fn counts_since_an_earlier_reading_exclude_it() {
        let histogram = measured(&[0.5, 3.0]);
        let earlier = histogram.read();
        histogram.observe(9.0);
        let since = histogram.read().since(&earlier);
        assert_eq!(since.total(), 1);
        assert_eq!(since.buckets().last(), Some((None, 1)));
    }
}
