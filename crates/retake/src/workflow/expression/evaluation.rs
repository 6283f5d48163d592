//! Evaluates an expression against a [`Scope`], which sees each look.

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::ErrorKind;
use minijinja::value::{Enumerator, Object, ValueKind};
use serde_json::{Number, Value};

use super::ExpressionError;
use crate::execution::{ExecutionId, Subject};

/// How deeply lists and objects may lie in each other in the value of an expression.
const DEPTH_MAX: usize = 128;

/// What expressions see. Whoever implements it records what was looked at.
pub trait Scope: Send + Sync + std::fmt::Debug {
    /// Returns what an expression sees of `subject`, or `None` where there is no such thing.
    ///
    /// The output of a node that has not succeeded is null. `field` is [`Field::Output`] for everything but a node.
    fn look(&self, subject: &Subject, field: Field) -> Option<Value>;

    /// Returns every name of one kind, for an expression that goes through all of them.
    fn keys(&self, root: Root) -> Vec<String>;

    /// Returns `execution.id`.
    fn execution_id(&self) -> ExecutionId;

    /// Returns `execution.name`.
    fn execution_name(&self) -> String;
}

/// What of a node an expression looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// What it gave. Of an input, a variable or a secret: its value.
    Output,
    /// `success`, `failure`, `skipped` or `pending`.
    Status,
    /// Why it failed, or null.
    Error,
}

/// The names that expressions can go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Root {
    /// `inputs`
    Inputs,
    /// `vars`
    Variables,
    /// `nodes`
    Nodes,
    /// `secrets`, which show no names: they are given one by one.
    Secrets,
}

impl Field {
    pub(super) const NAMES: [&'static str; 3] = ["output", "status", "error"];

    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "output" => Some(Self::Output),
            "status" => Some(Self::Status),
            "error" => Some(Self::Error),
            _ => None,
        }
    }
}

impl Root {
    fn word(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Variables => "vars",
            Self::Nodes => "nodes",
            Self::Secrets => "secrets",
        }
    }
}

pub(super) fn evaluate(
    source: &str,
    body: &minijinja::Expression<'static, 'static>,
    scope: &Arc<dyn Scope>,
) -> Result<Value, ExpressionError> {
    let look = Arc::new(Look { scope: scope.clone(), missing: Mutex::new(None) });
    let undefined = |look: &Look| ExpressionError::Undefined {
        expression: source.to_owned(),
        name: look.missing().unwrap_or_else(|| source.to_owned()),
    };
    let value = body.eval(minijinja::Value::from_object(Names(look.clone()))).map_err(|error| {
        let kind = error.kind();
        if kind == ErrorKind::UndefinedError {
            undefined(&look)
        } else if kind == ErrorKind::OutOfFuel {
            ExpressionError::OutOfFuel { expression: source.to_owned() }
        } else {
            let problem = error.detail().map_or_else(|| kind.to_string(), str::to_owned);
            ExpressionError::Failed { expression: source.to_owned(), problem }
        }
    })?;
    into_json(&value, 0).map_err(|problem| match problem {
        NotJson::Undefined => undefined(&look),
        NotJson::Other(problem) => ExpressionError::Failed { expression: source.to_owned(), problem },
    })
}

/// One evaluation: what it sees, and the last name that it looked for in vain.
#[derive(Debug)]
struct Look {
    scope: Arc<dyn Scope>,
    missing: Mutex<Option<String>>,
}

impl Look {
    fn at(&self, subject: &Subject, field: Field, name: impl FnOnce() -> String) -> Option<minijinja::Value> {
        match self.scope.look(subject, field) {
            Some(value) => Some(from_json(value)),
            None => {
                *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(name());
                None
            }
        }
    }

    fn missing(&self) -> Option<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The first names: `inputs`, `vars`, `nodes`, `secrets`, `execution`.
#[derive(Debug)]
struct Names(Arc<Look>);

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        let root = match key.as_str()? {
            "inputs" => Root::Inputs,
            "vars" => Root::Variables,
            "nodes" => Root::Nodes,
            "secrets" => Root::Secrets,
            "execution" => {
                let id = self.0.scope.execution_id().to_string();
                let name = self.0.scope.execution_name();
                return Some(minijinja::Value::from_pairs([("id", id), ("name", name)]));
            }
            _ => return None,
        };
        Some(minijinja::Value::from_object(Members { look: self.0.clone(), root }))
    }
}

/// What stands behind one first name.
#[derive(Debug)]
struct Members {
    look: Arc<Look>,
    root: Root,
}

impl Object for Members {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        let name = key.as_str()?.to_owned();
        let subject = match self.root {
            Root::Inputs => Subject::Input(name.clone()),
            Root::Variables => Subject::Variable(name.clone()),
            Root::Secrets => Subject::Secret(name.clone()),
            Root::Nodes => {
                return Some(minijinja::Value::from_object(NodeFields { look: self.look.clone(), name }));
            }
        };
        self.look.at(&subject, Field::Output, || format!("{}.{name}", self.root.word()))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names = match self.root {
            Root::Inputs | Root::Variables | Root::Nodes => self.look.scope.keys(self.root),
            Root::Secrets => Vec::new(),
        };
        Enumerator::Values(names.into_iter().map(minijinja::Value::from).collect())
    }
}

/// One node: its output, status and error.
#[derive(Debug)]
struct NodeFields {
    look: Arc<Look>,
    name: String,
}

impl Object for NodeFields {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        let word = key.as_str()?;
        let field = Field::named(word)?;
        self.look.at(&Subject::Node(self.name.clone()), field, || format!("nodes.{}.{word}", self.name))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&Field::NAMES)
    }
}

/// Returns the same value for the expression language, integers as integers of either sign.
fn from_json(value: Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(truth) => truth.into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => integer.into(),
            (None, Some(integer)) => integer.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.into(),
        Value::Array(items) => items.into_iter().map(from_json).collect::<Vec<_>>().into(),
        Value::Object(entries) => {
            minijinja::Value::from_pairs(entries.into_iter().map(|(key, value)| (key, from_json(value))))
        }
    }
}

/// Returns a value as it stands inside of a text.
pub(super) fn text_of(value: &minijinja::Value) -> Result<String, minijinja::Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    into_json(value, 0).map(|value| value.to_string()).map_err(|problem| match problem {
        NotJson::Undefined => ErrorKind::UndefinedError.into(),
        NotJson::Other(problem) => minijinja::Error::new(ErrorKind::InvalidOperation, problem),
    })
}

enum NotJson {
    Undefined,
    Other(String),
}

fn into_json(value: &minijinja::Value, depth: usize) -> Result<Value, NotJson> {
    if depth > DEPTH_MAX {
        return Err(NotJson::Other(format!("its value is nested more than {DEPTH_MAX} deep")));
    }
    match value.kind() {
        ValueKind::Undefined => Err(NotJson::Undefined),
        ValueKind::None => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number => into_number(value),
        ValueKind::String => Ok(Value::String(value.as_str().unwrap_or_default().to_owned())),
        ValueKind::Seq | ValueKind::Iterable => items(value)?
            .map(|item| into_json(&item, depth + 1))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
        ValueKind::Map => items(value)?
            .map(|key| {
                let name =
                    key.as_str().ok_or_else(|| NotJson::Other("an object's keys are text".to_owned()))?;
                let entry = value.get_item(&key).map_err(|error| NotJson::Other(error.to_string()))?;
                Ok((name.to_owned(), into_json(&entry, depth + 1)?))
            })
            .collect::<Result<serde_json::Map<_, _>, _>>()
            .map(Value::Object),
        kind @ (ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _) => {
            Err(NotJson::Other(format!("its value is of the type {kind}, which JSON has not")))
        }
    }
}

fn items(value: &minijinja::Value) -> Result<impl Iterator<Item = minijinja::Value>, NotJson> {
    value.try_iter().map_err(|error| NotJson::Other(error.to_string()))
}

fn into_number(value: &minijinja::Value) -> Result<Value, NotJson> {
    if value.is_integer() {
        let signed = i64::try_from(value.clone()).map(Number::from);
        let unsigned = || u64::try_from(value.clone()).map(Number::from);
        return signed
            .or_else(|_| unsigned())
            .map(Value::Number)
            .map_err(|_| NotJson::Other(format!("{value} does not fit into 64 bits")));
    }
    f64::try_from(value.clone())
        .ok()
        .and_then(Number::from_f64)
        .map(Value::Number)
        .ok_or_else(|| NotJson::Other(format!("{value} is no number that JSON can hold")))
}
