//! Expressions, read and evaluated.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::execution::ExecutionId;

#[derive(Debug, Default)]
struct Values {
    values: BTreeMap<Subject, Value>,
    looks: Mutex<Vec<Subject>>,
}

impl Scope for Values {
    fn look(&self, subject: &Subject, field: Field) -> Option<Value> {
        self.looks.lock().unwrap().push(subject.clone());
        match field {
            Field::Output => self.values.get(subject).cloned(),
            Field::Status => self.values.contains_key(subject).then(|| json!("success")),
            Field::Error => Some(Value::Null),
        }
    }

    fn keys(&self, root: Root) -> Vec<String> {
        let name = |subject: &Subject| match (root, subject) {
            (Root::Inputs, Subject::Input(name))
            | (Root::Variables, Subject::Variable(name))
            | (Root::Nodes, Subject::Node(name)) => Some(name.clone()),
            _ => None,
        };
        self.values.keys().filter_map(name).collect()
    }

    fn execution_id(&self) -> ExecutionId {
        ExecutionId::nil()
    }

    fn execution_name(&self) -> String {
        "brave-otter".to_owned()
    }
}

fn values() -> Arc<Values> {
    let values = [
        (Subject::Input("topic".to_owned()), json!("otters")),
        (Subject::Variable("a".to_owned()), json!(1)),
        (Subject::Variable("b".to_owned()), json!([1, "two", null])),
        (Subject::Variable("big".to_owned()), json!({"u": u64::MAX, "i": i64::MIN, "f": 1.0})),
        (Subject::Variable("z".to_owned()), json!(null)),
        (Subject::Node("plan".to_owned()), json!({"steps": [1, 2]})),
        (Subject::Secret("KEY".to_owned()), json!("sesame")),
    ];
    Arc::new(Values { values: values.into_iter().collect(), looks: Mutex::default() })
}

fn evaluate(text: &str) -> Result<Value, ExpressionError> {
    let scope: Arc<dyn Scope> = values();
    Template::parse(text)?.evaluate(&scope)
}

fn value(text: &str) -> Value {
    evaluate(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn problem(text: &str) -> (String, Range<usize>) {
    match Template::parse(text) {
        Err(ExpressionError::Syntax { problem, help, at }) => {
            (format!("{problem}; {}", help.unwrap_or_default()), at)
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_text_that_is_one_expression_keeps_its_type() {
    assert_eq!(value("${{ vars.a }}"), json!(1));
    assert_eq!(value("${{vars.b}}"), json!([1, "two", null]));
    assert_eq!(value("${{ nodes.plan.output.steps[1] }}"), json!(2));
    assert_eq!(value("${{ nodes.plan.status == 'success' }}"), json!(true));
    assert_eq!(value("${{ {'x': {'y': vars.a}} }}"), json!({"x": {"y": 1}}));
    assert_eq!(value("${{ vars.b | length > 2 }}"), json!(true));
}

#[test]
fn integers_of_both_signs_and_floats_come_through_exactly() {
    assert_eq!(value("${{ vars.big }}"), json!({"u": u64::MAX, "i": i64::MIN, "f": 1.0}));
    assert_eq!(
        value("${{ [vars.big] }}").to_string(),
        r#"[{"u":18446744073709551615,"i":-9223372036854775808,"f":1.0}]"#
    );
    let error = evaluate("${{ vars.big.u + 1 }}").unwrap_err();
    assert!(error.to_string().contains("does not fit into 64 bits"), "{error}");
    assert!(evaluate("${{ 1e308 * 10 }}").unwrap_err().to_string().contains("JSON"));
}

#[test]
fn values_in_a_text_are_written_as_json_unless_they_are_text() {
    assert_eq!(
        value("about ${{ inputs.topic }}: ${{ vars.b }}, ${{ vars.z }}"),
        json!(r#"about otters: [1,"two",null], null"#)
    );
    assert_eq!(value("${{ vars.a }}\n"), json!("1\n"));
    assert_eq!(
        value("${{ execution.name }} ${{ execution['id'] }}"),
        json!(format!("brave-otter {}", ExecutionId::nil()))
    );
}

#[test]
fn what_a_shell_or_a_person_writes_is_left_alone() {
    for text in ["{% if x %}{# no #}{{ y }}", "echo $((1+1)) ${HOME} $$", "", "}}", "$ {{ x }}"] {
        let template = Template::parse(text).unwrap();
        assert!(template.is_literal());
        assert_eq!(value(text), json!(text));
    }
    assert_eq!(value("$${{ github.sha }} ${{ vars.a }}"), json!("${{ github.sha }} 1"));
}

#[test]
fn braces_in_quotes_do_not_end_an_expression() {
    assert_eq!(value(r#"${{ "}}" ~ '\'}}' }}!"#), json!("}}'}}!"));
}

#[test]
fn an_expression_that_is_not_closed_or_not_readable_is_refused_where_it_stands() {
    assert_eq!(problem("ab ${{ vars.a }").1, 3..6);
    assert_eq!(problem("é ${{ }}").1, 6..7);
    let (message, at) = problem("x ${{ vars.a + }}");
    assert!(message.starts_with("this is not an expression: unexpected end of input"), "{message}");
    assert!(at.start >= 5, "{at:?}");
}

#[test]
fn names_that_no_workflow_has_are_refused_with_a_suggestion() {
    for (text, message, at) in [
        ("${{ var.a }}", "unknown name `var`; did you mean `vars`?", 4..9),
        ("${{ vars.a | lenght }}", "unknown filter `lenght`; did you mean `length`?", 13..19),
        ("${{ vars.a is defned }}", "unknown test `defned`; did you mean `defined`?", 14..20),
        ("${{ rang(3) }}", "unknown function `rang`; did you mean `range`?", 4..8),
        ("${{ nodes.a.out }}", "a node has no `out`; there is `output`, `status`, `error`", 4..15),
        ("${{ execution.nam }}", "an execution has no `nam`; did you mean `name`?", 4..17),
        ("${{ secrets }}", "secrets are named one by one: `secrets.NAME`; ", 4..11),
        ("${{ secrets[vars.a] }}", "secrets are named one by one: `secrets.NAME`; ", 4..11),
    ] {
        assert_eq!(problem(text), (message.to_owned(), at), "{text}");
    }
}

#[test]
fn mentions_are_found_without_evaluating() {
    let template = Template::parse(
        "${{ inputs.a if vars['b'].c else nodes.d }} ${{ [secrets.E, vars[inputs.f], nodes.g.status] | map(attribute=vars.h) }}",
    )
    .unwrap();
    let found: Vec<_> = template.mentions().map(|mention| (mention.subject.clone(), mention.field)).collect();
    let output = Some(Field::Output);
    assert_eq!(
        found,
        [
            (Subject::Variable("b".to_owned()), output),
            (Subject::Input("a".to_owned()), output),
            (Subject::Node("d".to_owned()), None),
            (Subject::Secret("E".to_owned()), output),
            (Subject::Input("f".to_owned()), output),
            (Subject::Node("g".to_owned()), Some(Field::Status)),
            (Subject::Variable("h".to_owned()), output),
        ]
    );
}

#[test]
fn only_what_is_touched_is_looked_up() {
    let values = values();
    let scope: Arc<dyn Scope> = values.clone();
    let template = Template::parse("${{ vars.b if vars.a == 2 else inputs.topic }}").unwrap();
    assert_eq!(template.evaluate(&scope), Ok(json!("otters")));
    let looks = std::mem::take(&mut *values.looks.lock().unwrap());
    assert_eq!(looks, [Subject::Variable("a".to_owned()), Subject::Input("topic".to_owned())]);
    assert_eq!(Template::parse("${{ vars | length }}").unwrap().evaluate(&scope), Ok(json!(4)));
    assert!(values.looks.lock().unwrap().is_empty());
    let all = Template::parse("${{ dict(vars) }}").unwrap().evaluate(&scope).unwrap();
    assert_eq!(all["a"], json!(1));
    assert_eq!(values.looks.lock().unwrap().len(), 4);
}

#[test]
fn an_undefined_value_is_an_error_that_names_it_and_never_text() {
    for (text, name) in [
        ("${{ vars.nothing }}", "vars.nothing"),
        ("say ${{ vars.nothing }}", "vars.nothing"),
        ("${{ [vars.nothing] }}", "vars.nothing"),
        ("${{ vars.nothing.deeper }}", "vars.nothing"),
        ("${{ vars[inputs.topic] }}", "vars.otters"),
        ("${{ nodes.nobody.output }}", "nodes.nobody.output"),
        ("${{ vars.nothing and 1 }}", "vars.nothing"),
        ("${{ secrets.NOTHING }}", "secrets.NOTHING"),
    ] {
        match evaluate(text) {
            Err(ExpressionError::Undefined { name: found, .. }) => assert_eq!(found, name, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert_eq!(value("${{ vars.nothing | default('x') }}"), json!("x"));
    assert_eq!(value("${{ vars.nothing is defined }}"), json!(false));
    assert_eq!(value("${{ secrets.KEY }}"), json!("sesame"));
}

#[test]
fn an_expression_runs_out_of_fuel_instead_of_running_long() {
    let loops = "[range(100)|list|map('string')|list]".to_owned();
    let long = format!("${{{{ {} }}}}", vec![loops; 40].join(" ~ "));
    assert!(Template::parse(&long).is_err(), "too many words to be read at all");
    assert!(evaluate("${{ range(99999999) | list }}").is_err());
    assert!(evaluate("${{ 'x' * 9999999999 }}").is_err());
}

#[test]
fn deep_and_long_expressions_are_refused_before_they_exhaust_the_stack() {
    for (part, end) in [
        ("-", "1"),
        ("not ", "1"),
        ("(", "1"),
        ("[", "1"),
        ("vars.", "a"),
        ("1+", "1"),
        ("1 if 1 else ", "1"),
    ] {
        for count in [100, 10_000] {
            let text = format!("${{{{ {}{end} }}}}", part.repeat(count));
            drop(Template::parse(&text));
        }
        assert!(Template::parse(&format!("${{{{ {}{end} }}}}", part.repeat(10_000))).is_err());
    }
    let filters = format!("${{{{ 1{} }}}}", "|string".repeat(150));
    assert_eq!(value(&filters), json!("1"));
}

#[test]
fn a_condition_is_one_expression_with_or_without_braces() {
    let scope: Arc<dyn Scope> = values();
    for (text, holds) in [
        ("vars.a > 3", false),
        ("vars.a == 1", true),
        ("${{ vars.b }}", true),
        ("  ${{ vars.z }}\n", false),
        ("true", true),
        ("false", false),
        ("0.0", false),
        ("''", false),
        ("{}", false),
    ] {
        let condition = Template::condition(text).unwrap();
        assert_eq!(evaluate_condition(&condition, &scope), Ok(holds), "{text}");
    }
    for text in ["${{ vars.a }} > 3", "not ${{ vars.a }}", "", "${{ vars.a }}${{ vars.b }}", "$${{ x }}"] {
        assert!(Template::condition(text).is_err(), "{text}");
    }
}

#[test]
fn every_text_inside_a_value_is_evaluated() {
    let scope: Arc<dyn Scope> = values();
    let evaluated =
        evaluate_json(&json!({"k": ["${{ vars.a }}", {"t": "<${{ inputs.topic }}>"}, 7, null]}), &scope);
    assert_eq!(evaluated, Ok(json!({"k": [1, {"t": "<otters>"}, 7, null]})));
}

#[test]
fn quote_makes_one_word_for_a_shell() {
    assert_eq!(value(r#"${{ "it's; rm -rf /" | quote }}"#), json!(r"'it'\''s; rm -rf /'"));
}

#[test]
fn quote_takes_what_is_no_text_as_json() {
    assert_eq!(value(r#"${{ [1, "it's"] | quote }}"#), json!(r#"'[1,"it'\''s"]'"#));
    assert_eq!(value("${{ 7 | quote }}"), json!("'7'"));
    assert_eq!(value("${{ none | quote }}"), json!("'null'"));
}

#[test]
fn only_what_is_one_word_is_quoted() {
    for (text, unquoted) in [
        ("echo ${{ inputs.topic | quote }} ${{ vars.a | int }} ${{ execution.id }} ${{ 'a b' }}", vec![]),
        ("echo ${{ inputs.topic }} ${{ vars.a }}", vec!["inputs.topic", "vars.a"]),
        ("${{ vars.a ~ vars.a | quote }}", vec!["vars.a ~ vars.a | quote"]),
        ("${{ vars.a | quote | upper }}", vec!["vars.a | quote | upper"]),
        ("${{ vars.a | quote if vars.a else vars.a }}", vec!["vars.a | quote if vars.a else vars.a"]),
        ("${{ execution.name }}", vec!["execution.name"]),
    ] {
        let template = Template::parse(text).unwrap();
        assert_eq!(template.unquoted().collect::<Vec<_>>(), unquoted, "{text}");
    }
}
