//! Expressions: `${{ … }}` inside the texts of a workflow.
//!
//! A text is split here, not by the template engine: block tags and comments would collide with shell scripts, which
//! contain `{%` and `{#`. What stands between the braces is one Jinja expression. `$${{` is a literal `${{`.

mod evaluation;
mod mention;

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

pub use evaluation::{Field, Root, Scope};
pub use mention::Mention;

use crate::execution::Subject;
use mention::Found;

/// What one expression may spend: about this many steps.
pub const FUEL: u64 = 100_000;

/// How many words and signs one expression may have. Bounds the recursion over it.
pub const EXPRESSION_TOKENS_MAX: usize = 400;

const OPEN: &str = "${{";
const ESCAPED: &str = "$${{";

/// A text that may hold expressions, ready to be evaluated.
#[derive(Debug, Clone)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Expression(Arc<Compiled>),
}

#[derive(Debug)]
struct Compiled {
    source: String,
    body: minijinja::Expression<'static, 'static>,
    /// What the expression is, where it is nothing but a name: then its value needs no translation.
    name: Option<(Subject, Field)>,
    mentions: Vec<Mention>,
    is_one_word: bool,
}

/// An expression that cannot be read, or that has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionError {
    /// It cannot be read.
    #[error("{problem}")]
    Syntax {
        /// What is wrong.
        problem: String,
        /// What to write instead.
        help: Option<String>,
        /// Where in the text it is wrong, in bytes.
        at: Range<usize>,
    },
    /// It looks at something that is not there.
    #[error(
        "`{expression}` has no value: `{name}` is not there; write `{name} | default(…)` if that is fine"
    )]
    Undefined {
        /// The expression.
        expression: String,
        /// What is not there.
        name: String,
    },
    /// It spent all that one expression may spend.
    #[error("`{expression}` takes too long: an expression may take {FUEL} steps; do this in a node")]
    OutOfFuel {
        /// The expression.
        expression: String,
    },
    /// It failed.
    #[error("`{expression}` failed: {problem}")]
    Failed {
        /// The expression.
        expression: String,
        /// Why.
        problem: String,
    },
}

impl ExpressionError {
    fn syntax(problem: impl Into<String>, at: Range<usize>) -> Self {
        Self::Syntax { problem: problem.into(), help: None, at }
    }
}

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.remove_global("debug");
    environment.remove_global("namespace");
    environment.add_filter("quote", mention::quote);
    environment
});

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// [`ExpressionError::Syntax`] for an expression that is not closed or cannot be read, or that uses a filter,
    /// test, function or first name that does not exist. Whether the names after `inputs`, `vars` and `nodes` exist
    /// is the workflow's business.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find(OPEN) {
            let open = at + found;
            if open > at && text[..open].ends_with('$') {
                literal.push_str(&text[at..open - 1]);
                literal.push_str(OPEN);
                at = open + OPEN.len();
                continue;
            }
            literal.push_str(&text[at..open]);
            let start = open + OPEN.len();
            let end = start
                + closing(&text[start..]).ok_or_else(|| ExpressionError::Syntax {
                    problem: format!("`{OPEN}` is not closed"),
                    help: Some(format!(
                        "end the expression with `}}}}`, or write `{ESCAPED}` for a literal `{OPEN}`"
                    )),
                    at: open..start,
                })?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Expression(Arc::new(Compiled::new(text, start..end)?)));
            at = end + 2;
        }
        literal.push_str(&text[at..]);
        if !literal.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces })
    }

    /// Reads a condition: one expression, with or without `${{ }}` around it.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and where there is text beside the expression: such a text is never empty, so that
    /// the condition would always hold.
    pub fn condition(text: &str) -> Result<Self, ExpressionError> {
        if !text.contains(OPEN) {
            let compiled = Compiled::new(text, 0..text.len())?;
            return Ok(Self { pieces: vec![Piece::Expression(Arc::new(compiled))] });
        }
        let mut template = Self::parse(text)?;
        template.pieces.retain(|piece| match piece {
            Piece::Text(text) => !text.trim().is_empty(),
            Piece::Expression(_) => true,
        });
        match template.pieces.as_slice() {
            [Piece::Expression(_)] => Ok(template),
            _ => Err(ExpressionError::Syntax {
                problem: "a condition is one expression, with nothing beside it".to_owned(),
                help: Some("put all of it between `${{` and `}}`".to_owned()),
                at: 0..text.len(),
            }),
        }
    }

    /// Tells whether there is no expression in it.
    pub fn is_literal(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    /// Returns every name that it mentions literally. Names that it computes (`vars[name]`) are not known before it
    /// is evaluated.
    pub fn mentions(&self) -> impl Iterator<Item = &Mention> {
        self.pieces.iter().flat_map(|piece| match piece {
            Piece::Text(_) => [].iter(),
            Piece::Expression(compiled) => compiled.mentions.iter(),
        })
    }

    /// Returns the value. A text that is one expression and nothing else keeps the expression's type; otherwise the
    /// values are put into the text, those that are not text as JSON (`null` too).
    ///
    /// Only what the evaluation really touches is looked up in `scope`.
    ///
    /// # Errors
    /// Anything undefined, out of fuel or failed; never a literal `${{`.
    pub fn evaluate(&self, scope: &Arc<dyn Scope>) -> Result<Value, ExpressionError> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] => Ok(Value::String(text.clone())),
            [Piece::Expression(compiled)] => compiled.evaluate(scope),
            pieces => {
                let mut whole = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => whole.push_str(text),
                        Piece::Expression(compiled) => whole.push_str(&into_text(compiled.evaluate(scope)?)),
                    }
                }
                Ok(Value::String(whole))
            }
        }
    }

    /// Returns the expressions whose values a shell would read as more than one word: those that end neither with the
    /// filter `quote` nor with one that gives a number.
    pub fn unquoted(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Expression(compiled) if !compiled.is_one_word => Some(compiled.source.as_str()),
            Piece::Expression(_) | Piece::Text(_) => None,
        })
    }

    /// Returns the value as text; one that is not text becomes JSON.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_text(&self, scope: &Arc<dyn Scope>) -> Result<String, ExpressionError> {
        self.evaluate(scope).map(into_text)
    }

    /// Tells whether the condition holds: null, `false`, 0, and an empty text, list or object do not.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn holds(&self, scope: &Arc<dyn Scope>) -> Result<bool, ExpressionError> {
        Ok(match self.evaluate(scope)? {
            Value::Null => false,
            Value::Bool(truth) => truth,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(entries) => !entries.is_empty(),
        })
    }
}

impl Compiled {
    /// Compiles what stands at `at` in `text`.
    fn new(text: &str, at: Range<usize>) -> Result<Self, ExpressionError> {
        let source = &text[at.clone()];
        if source.trim().is_empty() {
            return Err(ExpressionError::syntax("an expression is missing", at));
        }
        let Found { mentions, name, is_one_word } = mention::find(source, at.start)?;
        let body = ENVIRONMENT
            .compile_expression_owned(source.to_owned())
            .map_err(|error| mention::syntax_error(&error, source, at.start))?;
        Ok(Self { source: source.trim().to_owned(), body, name, mentions, is_one_word })
    }

    fn evaluate(&self, scope: &Arc<dyn Scope>) -> Result<Value, ExpressionError> {
        match &self.name {
            Some((subject, field)) => scope.look(subject, *field).ok_or_else(|| ExpressionError::Undefined {
                expression: self.source.clone(),
                name: self.source.clone(),
            }),
            None => evaluation::evaluate(&self.source, &self.body, scope),
        }
    }
}

/// Evaluates every text inside a JSON value; keys stay as they are.
///
/// # Errors
/// As [`Template::parse`] and [`Template::evaluate`].
pub fn evaluate_json(value: &Value, scope: &Arc<dyn Scope>) -> Result<Value, ExpressionError> {
    Ok(match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        Value::String(text) if !text.contains(OPEN) => value.clone(),
        Value::String(text) => Template::parse(text)?.evaluate(scope)?,
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| evaluate_json(item, scope)).collect::<Result<_, _>>()?)
        }
        Value::Object(entries) => Value::Object(
            entries
                .iter()
                .map(|(key, value)| Ok((key.clone(), evaluate_json(value, scope)?)))
                .collect::<Result<_, ExpressionError>>()?,
        ),
    })
}

/// Tells whether a condition holds, as [`Template::holds`].
///
/// # Errors
/// As [`Template::evaluate`].
pub fn evaluate_condition(condition: &Template, scope: &Arc<dyn Scope>) -> Result<bool, ExpressionError> {
    condition.holds(scope)
}

fn into_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// Returns where the `}}` stands that ends an expression: not one in quotes, nor one that closes a map.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut depth = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(open) => {
                if byte == b'\\' {
                    at += 1;
                } else if byte == open {
                    quote = None;
                }
            }
            None => match byte {
                b'"' | b'\'' => quote = Some(byte),
                b'{' => depth += 1,
                b'}' if depth > 0 => depth -= 1,
                b'}' if bytes.get(at + 1) == Some(&b'}') => return Some(at),
                _ => {}
            },
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests;
