//! The times of one subject, and the figures that the tables show. [`markdown`](crate::markdown)
//! formats the tables.

use std::time::{Duration, Instant};

use anyhow::Result;

/// The times of one subject, by round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(pub(crate) Vec<Duration>);

impl Sample {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Calls `work` and adds its time.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        self.push(start.elapsed());
        Ok(result)
    }

    pub(crate) fn median(&self) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
    }

    pub(crate) fn minimum(&self) -> f64 {
        self.0.iter().min().map_or(f64::NAN, Duration::as_secs_f64)
    }

    /// Formats the median and the minimum: `12.30 ms (10.10)`.
    pub(crate) fn milliseconds(&self) -> String {
        format!("{:.2} ms ({:.2})", self.median() * 1e3, self.minimum() * 1e3)
    }

    /// Formats the ratio to the median and the minimum of `other`: `1.05 (1.03)`.
    pub(crate) fn ratio(&self, other: &Self) -> String {
        format!("{:.2} ({:.2})", self.median() / other.median(), self.minimum() / other.minimum())
    }

    /// Formats the difference to `other` as a ratio to `whole`: `0.10 (0.12)`.
    pub(crate) fn difference(&self, other: &Self, whole: &Self) -> String {
        let of = |time: fn(&Self) -> f64| (time(self) - time(other)) / time(whole);
        format!("{:.2} ({:.2})", of(Self::median), of(Self::minimum))
    }
}
