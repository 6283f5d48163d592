//! What an expression mentions, found without evaluating it, and the names that every expression may use.

use std::ops::Range;

use minijinja::machinery::{self, ast};
use minijinja::syntax::SyntaxConfig;

use super::evaluation::Field;
use super::{EXPRESSION_TOKENS_MAX, ExpressionError};
use crate::execution::Subject;
use crate::workflow::suggestion;

/// A name that stands literally in an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// What is named.
    pub subject: Subject,
    /// What of it, where the expression says: `nodes.plan` alone is all of it.
    pub field: Option<Field>,
    /// Where in the text it stands, in bytes.
    pub at: Range<usize>,
}

const ROOTS: [&str; 5] = ["inputs", "vars", "nodes", "secrets", "execution"];
const FUNCTIONS: [&str; 2] = ["range", "dict"];
#[rustfmt::skip]
const FILTERS: [&str; 49] = [
    "abs", "attr", "batch", "bool", "capitalize", "chain", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "lines", "list", "lower", "map",
    "max", "min", "pprint", "quote", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "slice", "sort", "split", "string", "sum", "title", "tojson", "trim", "unique", "upper", "zip",
];
#[rustfmt::skip]
const TESTS: [&str; 41] = [
    "!=", "<", "<=", "==", ">", ">=", "boolean", "defined", "divisibleby", "endingwith", "eq", "equalto", "escaped",
    "even", "false", "filter", "float", "ge", "greaterthan", "gt", "in", "int", "integer", "iterable", "le", "lessthan",
    "lower", "lt", "mapping", "ne", "none", "number", "odd", "safe", "sameas", "sequence", "startingwith", "string",
    "test", "true", "undefined",
];

/// The filter `quote`: the text as one word of a POSIX shell.
///
/// What is not text becomes JSON, as it does inside of a text.
pub(super) fn quote(value: &minijinja::Value) -> Result<String, minijinja::Error> {
    let text = super::evaluation::text_of(value)?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// The filters whose values are one harmless word, whatever they are given.
const ONE_WORD: [&str; 5] = ["quote", "int", "float", "length", "count"];

/// What an expression is, before it is evaluated.
pub(super) struct Found {
    pub(super) mentions: Vec<Mention>,
    /// What it is, if it is nothing but a name.
    pub(super) name: Option<(Subject, Field)>,
    /// Whether its value is one word for a shell, so that it cannot become a command.
    pub(super) is_one_word: bool,
}

/// Returns what `source` mentions, and what it is if it is nothing but a name. `offset` is where it stands in its
/// text.
pub(super) fn find(source: &str, offset: usize) -> Result<Found, ExpressionError> {
    let tokens = machinery::tokenize(source, true, SyntaxConfig::default());
    if tokens.take(EXPRESSION_TOKENS_MAX + 1).count() > EXPRESSION_TOKENS_MAX {
        return Err(ExpressionError::syntax(
            format!("an expression of more than {EXPRESSION_TOKENS_MAX} words is not readable: split it"),
            offset..offset + source.len(),
        ));
    }
    let expression = machinery::parse_expr(source).map_err(|error| syntax_error(&error, source, offset))?;
    let mut finder = Finder { source, offset, mentions: Vec::new() };
    finder.walk(&expression)?;
    let name = match finder.mentions.as_slice() {
        [Mention { subject, field: Some(field), .. }] if is_name(&expression) => {
            Some((subject.clone(), *field))
        }
        _ => None,
    };
    let is_one_word = is_one_word(&expression);
    Ok(Found { mentions: finder.mentions, name, is_one_word })
}

fn is_one_word(expression: &ast::Expr<'_>) -> bool {
    if let ast::Expr::Filter(filter) = expression {
        return ONE_WORD.contains(&filter.name);
    }
    matches!(expression, ast::Expr::Const(_))
        || path(expression).is_some_and(|path| path.names == ["execution", "id"])
}

pub(super) fn syntax_error(error: &minijinja::Error, source: &str, offset: usize) -> ExpressionError {
    let at =
        error.range().filter(|at| at.start <= at.end && at.end <= source.len()).unwrap_or(0..source.len());
    let problem = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    ExpressionError::syntax(
        format!("this is not an expression: {problem}"),
        offset + at.start..offset + at.end,
    )
}

/// Tells whether the expression is exactly `root.name`, or `nodes.name.field`.
fn is_name(expression: &ast::Expr<'_>) -> bool {
    let Some(path) = path(expression) else { return false };
    match path.names.as_slice() {
        ["nodes", _, _] => true,
        [root, _] => *root != "nodes",
        _ => false,
    }
}

/// `a.b["c"]`, as its names.
struct NamePath<'e> {
    names: Vec<&'e str>,
    start: usize,
}

/// Returns the names that an expression is, or `None` where a name is computed or the start is no variable.
fn path<'e>(expression: &'e ast::Expr<'e>) -> Option<NamePath<'e>> {
    let mut names = Vec::new();
    let mut at = expression;
    loop {
        match at {
            ast::Expr::Var(variable) => {
                names.push(variable.id);
                names.reverse();
                return Some(NamePath { names, start: variable.span().start_offset as usize });
            }
            ast::Expr::GetAttr(attribute) => {
                names.push(attribute.name);
                at = &attribute.expr;
            }
            ast::Expr::GetItem(item) => {
                let ast::Expr::Const(key) = &item.subscript_expr else { return None };
                names.push(key.value.as_str()?);
                at = &item.expr;
            }
            ast::Expr::Const(_)
            | ast::Expr::Slice(_)
            | ast::Expr::UnaryOp(_)
            | ast::Expr::BinOp(_)
            | ast::Expr::Compare(_)
            | ast::Expr::IfExpr(_)
            | ast::Expr::Filter(_)
            | ast::Expr::Test(_)
            | ast::Expr::Call(_)
            | ast::Expr::List(_)
            | ast::Expr::Tuple(_)
            | ast::Expr::Map(_) => return None,
        }
    }
}

struct Finder<'s> {
    source: &'s str,
    offset: usize,
    mentions: Vec<Mention>,
}

impl Finder<'_> {
    fn walk(&mut self, expression: &ast::Expr<'_>) -> Result<(), ExpressionError> {
        match expression {
            ast::Expr::Var(_) => self.mention(expression),
            ast::Expr::GetAttr(attribute) => match path(expression) {
                Some(_) => self.mention(expression),
                None => self.walk(&attribute.expr),
            },
            ast::Expr::GetItem(item) => match path(expression) {
                Some(_) => self.mention(expression),
                None => {
                    self.walk(&item.expr)?;
                    self.walk(&item.subscript_expr)
                }
            },
            ast::Expr::Const(_) => Ok(()),
            ast::Expr::Slice(slice) => {
                self.walk(&slice.expr)?;
                self.walk_all([&slice.start, &slice.stop, &slice.step].into_iter().flatten())
            }
            ast::Expr::UnaryOp(operation) => self.walk(&operation.expr),
            ast::Expr::BinOp(operation) => self.walk_all([&operation.left, &operation.right]),
            ast::Expr::Compare(compare) => {
                self.walk(&compare.expr)?;
                self.walk_all(compare.ops.iter().map(|operation| &operation.expr))
            }
            ast::Expr::IfExpr(choice) => {
                self.walk_all([&choice.test_expr, &choice.true_expr])?;
                self.walk_all(&choice.false_expr)
            }
            ast::Expr::Filter(filter) => {
                self.known("filter", filter.name, &FILTERS, filter.expr.as_ref(), expression)?;
                self.walk_all(&filter.expr)?;
                self.walk_arguments(&filter.args)
            }
            ast::Expr::Test(test) => {
                self.known("test", test.name, &TESTS, Some(&test.expr), expression)?;
                self.walk(&test.expr)?;
                self.walk_arguments(&test.args)
            }
            ast::Expr::Call(call) => {
                if let ast::Expr::Var(function) = &call.expr {
                    self.known("function", function.id, &FUNCTIONS, None, &call.expr)?;
                } else {
                    self.walk(&call.expr)?;
                }
                self.walk_arguments(&call.args)
            }
            ast::Expr::List(list) => self.walk_all(&list.items),
            ast::Expr::Tuple(tuple) => self.walk_all(&tuple.items),
            ast::Expr::Map(map) => self.walk_all(map.keys.iter().chain(&map.values)),
        }
    }

    fn walk_all<'e, 'a: 'e>(
        &mut self,
        expressions: impl IntoIterator<Item = &'e ast::Expr<'a>>,
    ) -> Result<(), ExpressionError> {
        expressions.into_iter().try_for_each(|expression| self.walk(expression))
    }

    fn walk_arguments(&mut self, arguments: &[ast::CallArg<'_>]) -> Result<(), ExpressionError> {
        arguments.iter().try_for_each(|argument| match argument {
            ast::CallArg::Pos(value)
            | ast::CallArg::Kwarg(_, value)
            | ast::CallArg::PosSplat(value)
            | ast::CallArg::KwargSplat(value) => self.walk(value),
        })
    }

    fn mention(&mut self, expression: &ast::Expr<'_>) -> Result<(), ExpressionError> {
        let NamePath { names, start } = path(expression).expect("the caller found a path");
        // The span of a longer path begins at its last part.
        let end = self.span(expression).end;
        let at = (self.offset + start).min(end)..end;
        let subject = match names.as_slice() {
            ["inputs", name, ..] => (Subject::Input((*name).to_owned()), Some(Field::Output)),
            ["vars", name, ..] => (Subject::Variable((*name).to_owned()), Some(Field::Output)),
            ["secrets", name, ..] => (Subject::Secret((*name).to_owned()), Some(Field::Output)),
            ["nodes", name, rest @ ..] => {
                let field = match rest.first() {
                    Some(field) => Some(Field::named(field).ok_or_else(|| {
                        unknown(&format!("a node has no `{field}`"), field, &Field::NAMES, at.clone())
                    })?),
                    None => None,
                };
                (Subject::Node((*name).to_owned()), field)
            }
            ["secrets"] => {
                return Err(ExpressionError::syntax("secrets are named one by one: `secrets.NAME`", at));
            }
            ["execution", "id" | "name"] | ["inputs" | "vars" | "nodes" | "execution"] => return Ok(()),
            ["execution", name, ..] => {
                return Err(unknown(&format!("an execution has no `{name}`"), name, &["id", "name"], at));
            }
            [root, ..] => return Err(unknown(&format!("unknown name `{root}`"), root, &ROOTS, at)),
            [] => return Ok(()),
        };
        self.mentions.push(Mention { subject: subject.0, field: subject.1, at });
        Ok(())
    }

    /// Refuses a word that does not exist. It stands after `before`.
    fn known(
        &self,
        what: &str,
        word: &str,
        words: &[&str],
        before: Option<&ast::Expr<'_>>,
        whole: &ast::Expr<'_>,
    ) -> Result<(), ExpressionError> {
        if words.contains(&word) {
            return Ok(());
        }
        let start = before.map_or(0, |before| before.span().end_offset as usize);
        let at = match self.source.get(start..).and_then(|rest| rest.find(word)) {
            Some(found) => self.offset + start + found..self.offset + start + found + word.len(),
            None => self.span(whole),
        };
        Err(unknown(&format!("unknown {what} `{word}`"), word, words, at))
    }

    fn span(&self, expression: &ast::Expr<'_>) -> Range<usize> {
        let span = expression.span();
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        if start <= end && end <= self.source.len() {
            self.offset + start..self.offset + end
        } else {
            self.offset..self.offset + self.source.len()
        }
    }
}

fn unknown(problem: &str, word: &str, words: &[&str], at: Range<usize>) -> ExpressionError {
    ExpressionError::Syntax {
        problem: problem.to_owned(),
        help: Some(suggestion::among(word, words.iter().copied())),
        at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::expression::ENVIRONMENT;

    #[test]
    fn every_filter_and_test_named_here_exists() {
        for (words, what) in [(&FILTERS[..], "filter"), (&TESTS[..], "test")] {
            let exists = ENVIRONMENT.compile_expression_owned(format!("word is {what}")).unwrap();
            for word in words {
                assert!(exists.eval(minijinja::context!(word => *word)).unwrap().is_true(), "{what} {word}");
            }
        }
    }
}
