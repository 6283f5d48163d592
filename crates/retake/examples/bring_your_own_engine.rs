//! An agent with a loop of its own, in plain Rust: no engine and no runtime, only state, checkpoints and snapshots.
//!
//! It makes a checkpoint after each step, dies, goes on from the newest checkpoint, takes a wrong turn, goes back to a
//! snapshot, then goes back in one variable alone, and takes that back. What it says, it asserts.
//!
//! ```sh
//! cargo run --example bring_your_own_engine -p retake
//! ```

#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use retake::checkpoint::CheckpointStorage;
use retake::execution::{ExecutionContext, ExecutionId, ExecutionResult, NodeExecutionResult, node_id};
use retake::rollback::{RollbackManager, Selection};
use retake::store::{BlockingStore, SqliteStore};
use serde_json::json;
use uuid::{Uuid, uuid};

/// The agent's work, drawn once: a checkpoint of something else is refused.
const WORKFLOW: Uuid = uuid!("0d9c1f0a-6f0e-4d55-8a35-6d2c2f6a7e10");

/// What the agent does, one after the other. Each step leaves a variable of its own name.
const STEPS: [&str; 3] = ["plan", "search", "draft"];

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

pub(crate) fn main() -> Fallible {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("agent.db");
    let mut model = Model::default();

    let execution = first_process(&file, &mut model)?;
    let ctx = second_process(&file, execution, &mut model)?;
    change_of_mind(&file, ctx, &mut model)
}

/// Begins the work, and dies in its last step: the model has answered, and nothing of that was saved.
fn first_process(file: &Path, model: &mut Model) -> Fallible<ExecutionId> {
    let storage = open(file)?;
    let mut ctx = ExecutionContext::new(WORKFLOW);
    let ending = advance(&mut ctx, &storage, model, Some("draft"))?;

    assert_eq!(ending, Ending::Died);
    assert_eq!(model.calls, calls([("plan", 1), ("search", 1), ("draft", 1)]));
    println!("the first process plans and searches, and dies while it drafts");
    // Everything in memory goes here; the file stays, and whoever knows the id finds the rest.
    Ok(ctx.execution_id)
}

/// Goes on where the newest checkpoint says.
fn second_process(file: &Path, execution: ExecutionId, model: &mut Model) -> Fallible<ExecutionContext> {
    let storage = open(file)?;
    let checkpoint = storage.load_latest_checkpoint(execution)?.ok_or("nothing was saved")?;
    let mut ctx = ExecutionContext::try_resume_from_checkpoint(checkpoint, WORKFLOW)?;

    assert_eq!(ctx.completed_nodes().count(), 2);
    assert_eq!(ctx.get_variable("search"), Some(&json!("otters line their dens with grass")));
    println!("the second process finds 2 steps done");

    let ending = advance(&mut ctx, &storage, model, None)?;
    assert_eq!(ending, Ending::Done);
    // What was acknowledged did not run again; the step that nobody had acknowledged did.
    assert_eq!(model.calls, calls([("plan", 1), ("search", 1), ("draft", 2)]));
    assert_eq!(storage.list_checkpoints(execution)?.len(), STEPS.len());
    println!("  and runs only the draft: {}", ctx.variables["draft"]);
    Ok(ctx)
}

/// Tries other wordings: snapshots are in memory and cost next to nothing, so there is one before each attempt.
fn change_of_mind(file: &Path, mut ctx: ExecutionContext, model: &mut Model) -> Fallible {
    let mut manager = RollbackManager::new(10);
    manager.create_labeled_snapshot(&ctx, "first draft");
    let first_draft = ctx.clone();

    rewrite(&mut ctx, model, "florid")?;
    assert_eq!(ctx.get_variable("draft"), Some(&json!("(florid) Otters line their dens with grass.")));
    println!("a wrong turn: {}", ctx.variables["draft"]);

    let result = manager.rollback_to_label(&mut ctx, "first draft");
    assert!(result.success, "{:?}", result.error);
    // `draft`, `messages` and `spent` have their old values, and `tone` is gone.
    assert_eq!(result.variables_changed, 4);
    assert_eq!(ctx, first_draft);
    println!("back to the snapshot `first draft`: {}", ctx.variables["draft"]);

    rewrite(&mut ctx, model, "dry")?;
    let snapshot = manager.find_by_label("first draft").ok_or("the snapshot fell out")?.id;
    let the_draft = Selection::default().with_variables(["draft"]);
    let result = manager.rollback_selected(&mut ctx, snapshot, &the_draft);
    assert_eq!((result.success, result.variables_changed), (true, 1));
    assert_eq!(ctx.variables["draft"], first_draft.variables["draft"]);
    assert_eq!(ctx.variables["tone"], json!("dry"));
    assert_eq!(ctx.variables["spent"], json!(4));
    println!("only `draft` goes back: {}, tone {}", ctx.variables["draft"], ctx.variables["tone"]);

    let result = manager.undo_rollback(&mut ctx);
    assert!(result.success, "{:?}", result.error);
    assert_eq!(ctx.variables["draft"], json!("(dry) Otters line their dens with grass."));
    println!("and that is taken back: {}", ctx.variables["draft"]);

    // A rollback took back what the execution knows, and not what the model was paid for.
    assert_eq!(model.calls, calls([("plan", 1), ("search", 1), ("draft", 2), ("rewrite", 2)]));

    ctx.mark_completed();
    let storage = open(file)?;
    storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint())?;
    let history = storage.list_checkpoints(ctx.execution_id)?;
    let counts: Vec<usize> = history.iter().map(|point| point.completed_node_count).collect();
    assert_eq!(counts, [3, 3, 2, 1]);
    let oldest = storage.load_checkpoint(history[3].id)?.ok_or("it was pruned")?;
    assert_eq!(oldest.variables.get("search"), None);
    println!("what is left is saved; its history has {} checkpoints", history.len());
    Ok(())
}

/// How the loop ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Done,
    Died,
}

/// The loop: every step that has no result yet, and a checkpoint after each. Returning early is the crash.
fn advance(
    ctx: &mut ExecutionContext,
    storage: &dyn CheckpointStorage,
    model: &mut Model,
    dies_in: Option<&str>,
) -> Fallible<Ending> {
    for step in STEPS {
        if ctx.get_node_result(&node_id(step)).is_some_and(|record| record.result.is_completed()) {
            continue;
        }
        let record = NodeExecutionResult::new();
        let answer = model.ask(step);
        ctx.set_variable(step.to_owned(), json!(answer));
        note(ctx, answer)?;
        ctx.record_node_result(node_id(step), record.complete(ExecutionResult::Success(json!(answer))));
        if dies_in == Some(step) {
            return Ok(Ending::Died);
        }
        // Once this returns, the step is durable and never runs again.
        storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint())?;
    }
    Ok(Ending::Done)
}

fn rewrite(ctx: &mut ExecutionContext, model: &mut Model, tone: &str) -> Fallible {
    let draft = format!("({tone}) {}", model.ask("rewrite"));
    ctx.set_variable("tone".to_owned(), json!(tone));
    ctx.set_variable("draft".to_owned(), json!(draft));
    note(ctx, &draft)
}

/// Keeps what the model said, and that it was paid for. An append is saved as what it adds, however long the list.
fn note(ctx: &mut ExecutionContext, answer: &str) -> Fallible {
    ctx.append("messages", json!({"role": "assistant", "content": answer}))?;
    let spent = ctx.get_variable("spent").and_then(|spent| spent.as_u64()).unwrap_or_default();
    ctx.set_variable("spent".to_owned(), json!(spent + 1));
    Ok(())
}

fn open(file: &Path) -> Fallible<BlockingStore> {
    Ok(BlockingStore::new(Arc::new(SqliteStore::open(file)?))?)
}

/// Stands in for a language model. It counts its calls outside of all state: what was paid stays paid.
#[derive(Debug, Default)]
struct Model {
    calls: BTreeMap<String, u32>,
}

impl Model {
    fn ask(&mut self, question: &str) -> &'static str {
        *self.calls.entry(question.to_owned()).or_default() += 1;
        match question {
            "plan" => "read about dens",
            "search" => "otters line their dens with grass",
            _ => "Otters line their dens with grass.",
        }
    }
}

fn calls<const COUNT: usize>(calls: [(&str, u32); COUNT]) -> BTreeMap<String, u32> {
    calls.into_iter().map(|(question, count)| (question.to_owned(), count)).collect()
}
