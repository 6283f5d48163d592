//! The node kinds that reach outside the process: commands, HTTP requests and language models.
//!
//! Each does one attempt and ends its work when its future is dropped. Retries, timeouts and recording are the engine's.

mod client;
mod http;
mod llm;
mod network;
mod price;
mod run;
#[cfg(test)]
mod stand_in;

pub use http::HttpHandler;
pub use llm::{LlmDefaults, LlmHandler};
pub use network::{AddressKind, Network, NetworkError, NetworkRefusal, Resolver, SystemResolver};
pub use price::{Prices, PricesError};
pub use run::RunHandler;

use serde_json::Value;

use super::NodeError;
use crate::execution::{ExactError, parse_exact};
use crate::workflow::NodeKind;

/// Most bytes of output that a node takes in: of a command's stdout, or of a body. More belongs in a file.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Returns what a text from outside is as an output: the value if it is JSON, else the text.
///
/// JSON that would not be kept exactly is an error: as a text it would be another output than the one that was meant.
fn output_of(text: &str, source: &str) -> Result<Option<Value>, NodeError> {
    match parse_exact(text) {
        Ok(value) => Ok(Some(value)),
        Err(ExactError::NotJson(_)) => Ok(None),
        Err(
            why @ (ExactError::Number { .. }
            | ExactError::Duplicate { .. }
            | ExactError::TooDeep { .. }
            | ExactError::Text { .. }),
        ) => Err(NodeError::permanent(format!("{source} is JSON that cannot be taken as it is: {why}"))),
    }
}

/// Returns the error of a handler that was registered for a kind that is not its own.
fn not_for(handler: &str, kind: &NodeKind) -> NodeError {
    let kind = kind.name();
    NodeError::permanent(format!("the handler of `{handler}` nodes is registered for `{kind}` nodes"))
}

/// Returns the beginning of a text, cut where a character ends. Mask secrets before cutting.
fn beginning(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}
