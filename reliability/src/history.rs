//! What the children commit, as both they and those who look for it afterwards know it.

use std::collections::BTreeMap;

use retake::execution::ExecutionContext;
use retake::store::Seq;
use serde_json::{Value, json};

/// How many executions a child advances at the same time, so that their commits share transactions.
pub(crate) const EXECUTIONS: u64 = 6;

/// How many notes a state has. Each commit writes one of them.
const NOTES: Seq = 12;

/// Returns the name of an execution.
pub(crate) fn name(execution: u64) -> String {
    format!("run{execution}")
}

/// Makes the state of a point from the state of the point before it.
pub(crate) fn step(ctx: &mut ExecutionContext, execution: u64, seq: Seq) {
    for (name, value) in changes(execution, seq) {
        ctx.set_variable(name, value);
    }
}

/// Tells whether a state is that of a point, wholly.
pub(crate) fn is_state(ctx: &ExecutionContext, execution: u64, seq: Seq) -> bool {
    let from = seq.saturating_sub(NOTES - 1).max(1);
    let expected: BTreeMap<String, Value> = (from..=seq).flat_map(|seq| changes(execution, seq)).collect();
    let found = ctx.variables.iter().map(|(name, value)| (name.clone(), value.clone()));
    found.eq(expected)
}

fn changes(execution: u64, seq: Seq) -> [(String, Value); 2] {
    let text = format!("{execution} said {seq}; ").repeat(20);
    [("step".to_owned(), json!(seq)), (format!("note{:02}", seq % NOTES), json!(text))]
}
