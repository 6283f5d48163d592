//! What nodes cost together: money, tokens and time.

use serde::{Deserialize, Serialize};

use super::NodeMetrics;

/// Digits behind the point that a price can have: a tenth of a millionth of a cent.
const DECIMALS: usize = 10;

/// What several nodes cost together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cost {
    /// US dollars, as far as prices are known.
    #[serde(default)]
    pub known_usd: f64,
    /// How many nodes had a price.
    #[serde(default)]
    pub priced: u64,
    /// How many nodes used a model without a known price.
    #[serde(default)]
    pub unpriced: u64,
    /// Tokens that models took and gave.
    #[serde(default)]
    pub tokens: u64,
    /// Milliseconds that the nodes took, one after the other.
    #[serde(default)]
    pub duration_ms: u64,
}

impl Cost {
    /// Adds what a node cost. One that bought nothing has no price, and does not make the sum unknown.
    pub fn add(&mut self, metrics: Option<&NodeMetrics>) {
        let Some(metrics) = metrics else { return };
        match (metrics.cost_usd, &metrics.token_usage) {
            (Some(cost), _) => {
                self.known_usd = finite_sum(self.known_usd, cost);
                self.priced += 1;
            }
            (None, Some(_)) => self.unpriced += 1,
            (None, None) => {}
        }
        let tokens = metrics.token_usage.as_ref().map_or(0, |usage| u64::from(usage.total_tokens));
        self.tokens = self.tokens.saturating_add(tokens);
        self.duration_ms = self.duration_ms.saturating_add(metrics.duration_ms.unwrap_or(0));
    }

    /// Returns both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            known_usd: finite_sum(self.known_usd, other.known_usd),
            priced: self.priced.saturating_add(other.priced),
            unpriced: self.unpriced.saturating_add(other.unpriced),
            tokens: self.tokens.saturating_add(other.tokens),
            duration_ms: self.duration_ms.saturating_add(other.duration_ms),
        }
    }

    /// Returns US dollars as a decimal, or `None` where one price is not known or nothing was bought.
    pub fn usd(self) -> Option<String> {
        (self.priced > 0 && self.unpriced == 0).then(|| usd(self.known_usd))
    }
}

/// Returns the sum of two amounts, or the largest there is where it is larger: JSON has no infinity.
pub(crate) fn finite_sum(one: f64, other: f64) -> f64 {
    (one + other).clamp(f64::MIN, f64::MAX)
}

/// Returns US dollars as a decimal without needless zeros.
pub fn usd(amount: f64) -> String {
    let text = format!("{amount:.DECIMALS$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What an execution has cost so far. It only grows: going back gives no money back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Spend {
    /// Everything that was paid to come here, also for results that were abandoned since. A fork begins with what its
    /// origin had paid by that point.
    #[serde(default)]
    pub paid: Cost,
    /// What was not paid again: the cost of the results that were there each time the execution went on, where a start
    /// from zero would have paid for them once more.
    #[serde(default)]
    pub reused: Cost,
}

impl Spend {
    /// Returns what it would have cost to start again from zero each time: paid and reused together.
    pub fn from_zero(self) -> Cost {
        self.paid.plus(self.reused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::TokenUsage;

    fn metrics(cost_usd: Option<f64>) -> NodeMetrics {
        NodeMetrics { cost_usd, token_usage: Some(TokenUsage::new(1, 1)), ..NodeMetrics::default() }
    }

    #[test]
    fn sums_are_decimals() {
        let mut sum = Cost::default();
        assert_eq!(sum.usd(), None);
        sum.add(Some(&metrics(Some(0.1))));
        sum.add(Some(&metrics(Some(0.2))));
        sum.add(None);
        sum.add(Some(&NodeMetrics { duration_ms: Some(7), ..NodeMetrics::default() }));
        assert_eq!(sum.usd().as_deref(), Some("0.3"));
        assert_eq!((sum.tokens, sum.duration_ms), (4, 7));
        assert_eq!(usd(0.0), "0");
    }

    #[test]
    fn a_sum_that_is_too_large_stays_a_number() {
        let mut sum = Cost::default();
        sum.add(Some(&metrics(Some(f64::MAX))));
        sum.add(Some(&metrics(Some(f64::MAX))));
        assert_eq!(sum.plus(sum).known_usd, f64::MAX);
    }

    #[test]
    fn one_unknown_price_makes_the_sum_unknown() {
        let mut sum = Cost::default();
        sum.add(Some(&metrics(Some(0.1))));
        let mut other = Cost::default();
        other.add(Some(&metrics(None)));
        assert_eq!(sum.usd().as_deref(), Some("0.1"));
        assert_eq!(sum.plus(other).usd(), None);
    }
}
