//! Sums of money, which are decimals in everything that is shown.

use crate::execution::NodeMetrics;

/// Digits behind the point that a price can have: a tenth of a millionth of a cent.
const DECIMALS: usize = 10;

/// What several nodes cost together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sum {
    known: f64,
    bought: bool,
    unknown: bool,
}

impl Sum {
    /// Adds what a node cost. A node that used a model without a known price makes the sum unknown; one that bought
    /// nothing does not count.
    pub(crate) fn add(&mut self, metrics: Option<&NodeMetrics>) {
        let Some(metrics) = metrics else { return };
        match (metrics.cost_usd, &metrics.token_usage) {
            (Some(cost), _) => {
                self.known += cost;
                self.bought = true;
            }
            (None, Some(_)) => self.unknown = true,
            (None, None) => {}
        }
    }

    /// Returns US dollars as a decimal, or `None` where they are not known.
    pub(crate) fn usd(self) -> Option<String> {
        (self.bought && !self.unknown).then(|| usd(self.known))
    }
}

/// Returns US dollars as a decimal without needless zeros.
pub fn usd(amount: f64) -> String {
    let text = format!("{amount:.DECIMALS$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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
        let mut sum = Sum::default();
        assert_eq!(sum.usd(), None);
        sum.add(Some(&metrics(Some(0.1))));
        sum.add(Some(&metrics(Some(0.2))));
        sum.add(None);
        sum.add(Some(&NodeMetrics::default()));
        assert_eq!(sum.usd().as_deref(), Some("0.3"));
        assert_eq!(usd(0.0), "0");
    }

    #[test]
    fn one_unknown_price_makes_the_sum_unknown() {
        let mut sum = Sum::default();
        sum.add(Some(&metrics(Some(0.1))));
        sum.add(Some(&metrics(None)));
        assert_eq!(sum.usd(), None);
    }
}
