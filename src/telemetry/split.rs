//! One metric split by its labels.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::table::Metric;

type Labels = Vec<(&'static str, String)>;

/// All series of one metric. Unlike the library's `Family`, which makes a series when it is first
/// asked for: here the set is fixed, so all are scraped from the start, in the table's order, and
/// finding one is an index.
#[derive(Debug, Clone)]
pub(super) struct Split<M> {
    series: Arc<[(Labels, M)]>,
}

impl<M> Split<M> {
    /// A series for each combination of the values of the metric's labels; the last label varies fastest.
    pub(super) fn new(metric: &Metric, make: impl Fn() -> M) -> Self {
        let mut all: Vec<Labels> = vec![Vec::new()];
        for label in metric.labels {
            all = all
                .iter()
                .flat_map(|labels| {
                    label.values.iter().map(|value| {
                        let mut labels = labels.clone();
                        labels.push((label.name, (*value).to_owned()));
                        labels
                    })
                })
                .collect();
        }
        Self { series: all.into_iter().map(|labels| (labels, make())).collect() }
    }

    /// One series under a value that only the process knows.
    pub(super) fn one(name: &'static str, value: &str, metric: M) -> Self {
        Self { series: Arc::new([(vec![(name, value.to_owned())], metric)]) }
    }

    /// The series at an index, which is an enumeration's member or made of two of them.
    pub(super) fn at(&self, index: usize) -> &M {
        &self.series[index].1
    }

    /// All series.
    pub(super) fn iter(&self) -> impl Iterator<Item = &M> {
        self.series.iter().map(|(_, metric)| metric)
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Split<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        self.series.iter().try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
