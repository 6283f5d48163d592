//! What the tokens of a model cost: told by the node, or listed. Decimals throughout; an unknown price stays unknown.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rust_decimal::Decimal;
use serde::Deserialize;

use crate::engine::NodeError;
use crate::execution::{ExactError, TokenUsage, parse_exact};
use crate::workflow::Price;

/// US dollars for a million tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rates {
    input: Decimal,
    output: Decimal,
    cached_input: Decimal,
}

/// What models cost: US dollars for a million tokens, by model.
///
/// As a file it is JSON:
///
/// ```
/// use retake::engine::kinds::Prices;
///
/// let ours = Prices::parse(
///     r#"{"as_of": "2026-11", "models": {"our-model": {"input": "0.50", "output": "1.50", "cached_input": "0.05"}}}"#,
/// )?;
/// let prices = Prices::listed().clone().overridden_by(ours);
/// # Ok::<(), retake::engine::kinds::PricesError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// The month that the prices are of.
    as_of: String,
    /// Where they were found.
    #[serde(default, rename = "source")]
    _source: Option<String>,
    models: BTreeMap<String, Price>,
    /// The models whose prices are of another month.
    #[serde(skip)]
    newer: BTreeMap<String, String>,
}

/// A list of prices that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PricesError {
    /// It is not JSON of the right shape.
    #[error(
        "a list of prices is JSON such as {{\"as_of\": \"2026-01\", \"models\": {{\"MODEL\": {{\"input\": \"2.50\", \"output\": \"10.00\"}}}}}}"
    )]
    Shape(#[source] serde_json::Error),
    /// It would not be taken as it is: a model stands in it twice, for example.
    #[error("the list of prices is JSON that cannot be taken as it is")]
    Inexact(#[source] ExactError),
    /// A price is not one.
    #[error("the price of model `{model}` cannot be used")]
    Price {
        /// The model.
        model: String,
        /// Why.
        #[source]
        source: NodeError,
    },
}

static LISTED: LazyLock<Prices> = LazyLock::new(|| {
    Prices::parse(include_str!("../../../data/prices.json"))
        .expect("the list is part of the build, and tested")
});

impl Prices {
    /// Returns the prices of common models that this version knows; [`as_of`](Self::as_of) says how old they are.
    pub fn listed() -> &'static Self {
        &LISTED
    }

    /// Reads a list.
    ///
    /// # Errors
    /// [`PricesError`] that names the model whose price is none.
    pub fn parse(text: &str) -> Result<Self, PricesError> {
        let list = match parse_exact(text) {
            Err(ExactError::NotJson(source)) => return Err(PricesError::Shape(source)),
            list => list.map_err(PricesError::Inexact)?,
        };
        let prices: Self = serde_json::from_value(list).map_err(PricesError::Shape)?;
        for (model, price) in &prices.models {
            Rates::new(price).map_err(|source| PricesError::Price { model: model.clone(), source })?;
        }
        Ok(prices)
    }

    /// Returns this list with the prices of another in place of its own, for the models that the other has.
    pub fn overridden_by(mut self, other: Self) -> Self {
        let as_of = |model: &String| (model.clone(), other.as_of.clone());
        self.newer.extend(other.models.keys().map(as_of));
        self.models.extend(other.models);
        self
    }

    /// Returns the month that the price of a model is of, or the list's where it has none.
    pub fn as_of(&self, model: &str) -> &str {
        let newer = self.newer.get(model).or_else(|| self.newer.get(undated(model)?));
        newer.map_or(&self.as_of, String::as_str)
    }

    /// Returns the rates of a model. A dated version (`MODEL-2024-08-06`, `MODEL-20240806`) costs what its model costs,
    /// unless it is listed itself.
    pub(super) fn rates(&self, model: &str) -> Option<Rates> {
        let price = self.models.get(model).or_else(|| self.models.get(undated(model)?))?;
        Rates::new(price).ok()
    }
}

fn undated(model: &str) -> Option<&str> {
    ["-0000-00-00", "-00000000"].into_iter().find_map(|form| {
        let (name, date) = model.split_at_checked(model.len().checked_sub(form.len())?)?;
        let fits = |(byte, form): (u8, u8)| if form == b'0' { byte.is_ascii_digit() } else { byte == form };
        date.bytes().zip(form.bytes()).all(fits).then_some(name)
    })
}

impl Rates {
    /// Reads the rates that a node or the list tells.
    pub(super) fn new(price: &Price) -> Result<Self, NodeError> {
        let input = rate(&price.input)?;
        let cached_input = price.cached_input.as_deref().map_or(Ok(input), rate)?;
        Ok(Self { input, output: rate(&price.output)?, cached_input })
    }

    /// Returns what tokens cost in US dollars, or `None` where that is more than a decimal can hold.
    pub(super) fn cost_usd(&self, usage: &TokenUsage) -> Option<Decimal> {
        let cached = usage.cached_tokens.unwrap_or(0).min(usage.input_tokens);
        let parts = [
            (self.input, usage.input_tokens - cached),
            (self.cached_input, cached),
            (self.output, usage.output_tokens),
        ];
        let mut sum = Decimal::ZERO;
        for (rate, tokens) in parts {
            sum = sum.checked_add(rate.checked_mul(tokens.into())?)?;
        }
        sum.checked_div(Decimal::from(1_000_000))
    }
}

fn rate(text: &str) -> Result<Decimal, NodeError> {
    match Decimal::from_str_exact(text) {
        Ok(rate) if !rate.is_sign_negative() => Ok(rate),
        Ok(_) | Err(_) => Err(NodeError::permanent(format!(
            "`{text}` is no price: write US dollars for a million tokens, such as \"2.50\""
        ))),
    }
}

/// Returns the float nearest to a decimal: written out shortest, it gives the decimal back.
pub(super) fn nearest(cost_usd: Decimal) -> Option<f64> {
    cost_usd.to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(input: &str, output: &str, cached_input: Option<&str>) -> Price {
        Price {
            input: input.to_owned(),
            output: output.to_owned(),
            cached_input: cached_input.map(str::to_owned),
        }
    }

    #[test]
    fn every_listed_price_can_be_read() {
        let prices = Prices::parse(include_str!("../../../data/prices.json")).unwrap();
        assert!(prices.models.len() > 5);
        assert_eq!(prices.as_of("gpt-4o"), "2025-12");
    }

    #[test]
    fn prices_of_ones_own_take_the_place_of_those_that_are_listed() {
        let ours = r#"{"as_of": "2026-11", "models": {"gpt-4o": {"input": "1", "output": "2"}}}"#;
        let prices = Prices::listed().clone().overridden_by(Prices::parse(ours).unwrap());
        assert_eq!(prices.rates("gpt-4o"), Rates::new(&price("1", "2", None)).ok());
        assert_eq!(prices.rates("gpt-4o-mini"), Prices::listed().rates("gpt-4o-mini"));
        assert_eq!((prices.as_of("gpt-4o-2024-08-06"), prices.as_of("gpt-4o-mini")), ("2026-11", "2025-12"));
    }

    #[test]
    fn a_list_that_is_none_says_which_model_is_wrong() {
        let wrong = r#"{"as_of": "2026-11", "models": {"ours": {"input": "cheap", "output": "2"}}}"#;
        let error = Prices::parse(wrong).unwrap_err();
        assert_eq!(error.to_string(), "the price of model `ours` cannot be used");
        assert!(matches!(Prices::parse("[]"), Err(PricesError::Shape(_))));
        assert!(matches!(Prices::parse(r#"{"as_of": "x", "model": {}}"#), Err(PricesError::Shape(_))));
    }

    #[test]
    fn a_model_that_is_listed_twice_is_refused_and_neither_price_taken() {
        let twice = r#"{"as_of": "x", "models": {"ours": {"input": "1", "output": "2"}, "ours": {"input": "3", "output": "4"}}}"#;
        let Err(PricesError::Inexact(why)) = Prices::parse(twice) else { panic!("it was taken") };
        assert_eq!(why.to_string(), "`models.ours` stands there twice: give it one value");
    }

    #[test]
    fn cost_is_exact_and_cached_tokens_have_their_own_rate() {
        let usage = TokenUsage { cached_tokens: Some(1_000), ..TokenUsage::new(3_000, 7) };
        let cost =
            |price: &Price| Rates::new(price).unwrap().cost_usd(&usage).unwrap().normalize().to_string();
        assert_eq!(cost(&price("0.1", "0.7", Some("0.025"))), "0.0002299");
        assert_eq!(cost(&price("0.1", "0.7", None)), "0.0003049");
        assert_eq!(cost(&price("0", "0", None)), "0");
    }

    #[test]
    fn the_largest_price_of_the_most_tokens_does_not_overflow() {
        let rates = Rates::new(&price("999999999.999999999", "999999999.999999999", None)).unwrap();
        let usage = TokenUsage::new(u32::MAX, u32::MAX);
        assert_eq!(rates.cost_usd(&usage).unwrap().trunc().to_string(), "8589934589999");
    }

    #[test]
    fn what_is_no_price_is_refused_by_name() {
        for text in ["", "free", "-1", "1e3", "NaN"] {
            let error = Rates::new(&price(text, "1", None)).unwrap_err();
            assert!(error.message().starts_with(&format!("`{text}` is no price")), "{error}");
            assert!(!error.is_retryable());
        }
    }

    #[test]
    fn a_dated_version_costs_what_its_model_costs_and_an_unknown_model_has_no_price() {
        let listed = |model: &str| Prices::listed().rates(model);
        assert_eq!(listed("gpt-4o-2024-08-06"), listed("gpt-4o"));
        assert_ne!(listed("gpt-4o-2024-05-13"), listed("gpt-4o"));
        assert_eq!(listed("claude-haiku-4-5-20251001"), listed("claude-haiku-4-5"));
        assert!(listed("gpt-4o-mini").is_some());
        for unknown in ["gpt-4o-audio", "gpt-4o-mini-1234", "-2024-08-06", "", "llama"] {
            assert_eq!(listed(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_float_of_a_cost_is_written_as_the_cost() {
        let cost = Decimal::from_str_exact("0.0002299").unwrap();
        assert_eq!(nearest(cost).unwrap().to_string(), "0.0002299");
    }
}
