//! What every `CheckpointStorage` must do.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::checkpoint::{CheckpointError, CheckpointId, CheckpointStorage};
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::execution::{
    ExecutionCheckpoint, ExecutionContext, ExecutionId, ExecutionResult, NodeExecutionResult, NodeId,
};

/// How many threads save at once.
const THREADS: usize = 16;

type Check = fn(&dyn CheckpointStorage);

const CHECKS: &[Check] = &[
    what_was_saved_comes_back_whole,
    the_latest_is_the_last_saved_whatever_the_clock_says,
    the_list_is_newest_first_and_tells_the_truth,
    every_checkpoint_is_listed_with_the_workflow_that_it_was_saved_under,
    what_was_never_saved_is_simply_not_there,
    pruning_keeps_the_newest,
    pruning_to_nothing_leaves_nothing,
    a_deleted_history_is_gone_and_can_be_begun_anew,
    the_same_checkpoint_twice_is_kept_twice,
    a_state_that_is_handed_on_keeps_its_own_execution,
    states_that_go_back_and_forth_come_back,
    a_value_that_cannot_be_saved_leaves_the_history_as_it_was,
    every_save_of_many_threads_is_kept,
    it_can_be_called_inside_an_async_runtime,
];

/// Tries a storage, which may hold other executions' checkpoints, and leaves some behind.
///
/// # Panics
/// Where the storage does something else than [`CheckpointStorage`] says.
pub fn checkpoint_storage(storage: &dyn CheckpointStorage) {
    for check in CHECKS {
        check(storage);
    }
}

/// Returns a context with something in every place, of an execution that no other check uses.
fn context() -> ExecutionContext {
    let mut ctx = ExecutionContext::new(SystemClock::default().new_id());
    ctx.inputs.insert("topic".to_owned(), json!("otters"));
    ctx.generation = 3;
    ctx.set_variable("a \"b\"\0.c \u{1f9a6}".to_owned(), json!({"deep": [1, 2.5, null, {"k": "v"}]}));
    ctx.append("messages", json!("first")).expect("a list");
    record(&mut ctx, 1, ExecutionResult::Success(json!({"text": "plan"})));
    record(&mut ctx, 2, ExecutionResult::Failure("boom".to_owned()));
    record(&mut ctx, 3, ExecutionResult::Skipped);
    ctx
}

fn record(ctx: &mut ExecutionContext, node: u128, result: ExecutionResult) {
    ctx.record_node_result(NodeId::from_u128(node), NodeExecutionResult::new().complete(result));
}

fn save(storage: &dyn CheckpointStorage, id: ExecutionId, checkpoint: &ExecutionCheckpoint) -> CheckpointId {
    storage.save_checkpoint(id, checkpoint).expect("saved")
}

/// Saves `count` checkpoints whose `step` counts from 1, and returns their ids, oldest first.
fn save_steps(storage: &dyn CheckpointStorage, ctx: &mut ExecutionContext, count: u64) -> Vec<CheckpointId> {
    let mut ids = Vec::new();
    for step in 1..=count {
        ctx.set_variable("step".to_owned(), json!(step));
        ids.push(save(storage, ctx.execution_id, &ctx.create_checkpoint()));
    }
    ids
}

fn latest(storage: &dyn CheckpointStorage, id: ExecutionId) -> Option<ExecutionCheckpoint> {
    storage.load_latest_checkpoint(id).expect("a look")
}

fn listed(storage: &dyn CheckpointStorage, id: ExecutionId) -> Vec<CheckpointId> {
    storage.list_checkpoints(id).expect("a list").into_iter().map(|metadata| metadata.id).collect()
}

fn what_was_saved_comes_back_whole(storage: &dyn CheckpointStorage) {
    let mut ctx = context();
    let first = ctx.create_checkpoint();
    let first_id = save(storage, ctx.execution_id, &first);
    ctx.append("messages", json!({"second": true})).expect("a list");
    ctx.variables.remove("a \"b\"\0.c \u{1f9a6}");
    record(&mut ctx, 2, ExecutionResult::Success(json!("better")));
    ctx.mark_completed();
    let second = ctx.create_checkpoint();
    let second_id = save(storage, ctx.execution_id, &second);
    assert_eq!(storage.load_checkpoint(first_id).expect("a look"), Some(first));
    assert_eq!(storage.load_checkpoint(second_id).expect("a look").as_ref(), Some(&second));
    assert_eq!(latest(storage, ctx.execution_id), Some(second.clone()));
    assert_eq!(ExecutionContext::resume_from_checkpoint(second, ctx.workflow_id), ctx);
}

fn the_latest_is_the_last_saved_whatever_the_clock_says(storage: &dyn CheckpointStorage) {
    let (mut ctx, clock) = (context(), ManualClock::default());
    let mut ids = Vec::new();
    for back_s in [0, 0, 3_600] {
        clock.step_back(Duration::from_secs(back_s));
        ctx.set_variable("step".to_owned(), json!(ids.len()));
        let checkpoint = ctx.checkpoint_at(clock.now());
        ids.insert(0, save(storage, ctx.execution_id, &checkpoint));
        assert_eq!(latest(storage, ctx.execution_id), Some(checkpoint));
    }
    assert_eq!(listed(storage, ctx.execution_id), ids);
    assert!(ids.iter().all(|id| id.get_version_num() == 7), "{ids:?}");
}

fn the_list_is_newest_first_and_tells_the_truth(storage: &dyn CheckpointStorage) {
    let mut ctx = context();
    let mut expected = Vec::new();
    for node in 10..13 {
        let checkpoint = ctx.create_checkpoint();
        let id = save(storage, ctx.execution_id, &checkpoint);
        let count = checkpoint.completed_nodes.len();
        expected.insert(0, (id, ctx.execution_id, ctx.workflow_id, checkpoint.timestamp, count));
        record(&mut ctx, node, ExecutionResult::Skipped);
    }
    let list = storage.list_checkpoints(ctx.execution_id).expect("a list");
    let found: Vec<_> = list
        .iter()
        .map(|m| (m.id, m.execution_id, m.workflow_id, m.created_at, m.completed_node_count))
        .collect();
    assert_eq!(found, expected);
    assert!(list.iter().all(|metadata| metadata.size_bytes > 0), "{list:?}");
}

fn every_checkpoint_is_listed_with_the_workflow_that_it_was_saved_under(storage: &dyn CheckpointStorage) {
    let mut ctx = context();
    let mut workflows = Vec::new();
    for _ in 0..3 {
        save(storage, ctx.execution_id, &ctx.create_checkpoint());
        workflows.insert(0, ctx.workflow_id);
        ctx.workflow_id = SystemClock::default().new_id();
    }
    let listed = storage.list_checkpoints(ctx.execution_id).expect("a list");
    assert_eq!(listed.iter().map(|metadata| metadata.workflow_id).collect::<Vec<_>>(), workflows);
}

fn what_was_never_saved_is_simply_not_there(storage: &dyn CheckpointStorage) {
    let nobody = SystemClock::default().new_id();
    assert_eq!(latest(storage, nobody), None);
    assert_eq!(storage.load_checkpoint(nobody).expect("a look"), None);
    assert!(listed(storage, nobody).is_empty());
    assert_eq!(storage.prune_checkpoints(nobody, 1).expect("nothing to prune"), 0);
    assert_eq!(storage.prune_checkpoints(nobody, 0).expect("nothing to prune"), 0);
    assert_eq!(storage.delete_checkpoints(nobody).expect("nothing to delete"), 0);
}

fn pruning_keeps_the_newest(storage: &dyn CheckpointStorage) {
    let (mut ctx, mut other) = (context(), context());
    let ids = save_steps(storage, &mut ctx, 6);
    let others = save_steps(storage, &mut other, 3);
    assert_eq!(storage.prune_checkpoints(ctx.execution_id, 9).expect("pruned"), 0);
    assert_eq!(storage.prune_checkpoints(ctx.execution_id, 2).expect("pruned"), 4);
    assert_eq!(storage.prune_checkpoints(ctx.execution_id, 2).expect("pruned"), 0);
    assert_eq!(listed(storage, ctx.execution_id), [ids[5], ids[4]]);
    assert_eq!(storage.load_checkpoint(ids[3]).expect("a look"), None);
    for (id, step) in [(ids[4], 5), (ids[5], 6)] {
        let kept = storage.load_checkpoint(id).expect("a look").expect("it is kept");
        assert_eq!(kept.variables["step"], json!(step));
    }
    assert_eq!(listed(storage, other.execution_id), [others[2], others[1], others[0]]);
    save_steps(storage, &mut ctx, 1);
    assert_eq!(listed(storage, ctx.execution_id).len(), 3);
}

fn pruning_to_nothing_leaves_nothing(storage: &dyn CheckpointStorage) {
    let mut ctx = context();
    save_steps(storage, &mut ctx, 3);
    assert_eq!(storage.prune_checkpoints(ctx.execution_id, 0).expect("pruned"), 3);
    assert_eq!(latest(storage, ctx.execution_id), None);
}

fn a_deleted_history_is_gone_and_can_be_begun_anew(storage: &dyn CheckpointStorage) {
    let (mut ctx, mut other) = (context(), context());
    let ids = save_steps(storage, &mut ctx, 3);
    save_steps(storage, &mut other, 2);
    assert_eq!(storage.delete_checkpoints(ctx.execution_id).expect("deleted"), 3);
    assert_eq!(storage.delete_checkpoints(ctx.execution_id).expect("deleted"), 0);
    assert_eq!(latest(storage, ctx.execution_id), None);
    assert_eq!(storage.load_checkpoint(ids[0]).expect("a look"), None);
    assert_eq!(listed(storage, other.execution_id).len(), 2);
    let again = save_steps(storage, &mut ctx, 1);
    assert_eq!(listed(storage, ctx.execution_id), again);
    assert_eq!(latest(storage, ctx.execution_id).map(ExecutionContext::from), Some(ctx));
}

fn the_same_checkpoint_twice_is_kept_twice(storage: &dyn CheckpointStorage) {
    let checkpoint = context().create_checkpoint();
    let id = checkpoint.execution_id;
    let (one, two) = (save(storage, id, &checkpoint), save(storage, id, &checkpoint));
    assert_eq!(listed(storage, id), [two, one]);
    assert_eq!(storage.load_checkpoint(one).expect("a look"), Some(checkpoint.clone()));
    assert_eq!(storage.load_checkpoint(two).expect("a look"), Some(checkpoint));
}

fn a_state_that_is_handed_on_keeps_its_own_execution(storage: &dyn CheckpointStorage) {
    let (first, second) = (context().create_checkpoint(), context().create_checkpoint());
    let heir = SystemClock::default().new_id();
    let own = ExecutionCheckpoint { execution_id: heir, ..second.clone() };
    let saved = [first, second, own].map(|checkpoint| (save(storage, heir, &checkpoint), checkpoint));
    for (id, checkpoint) in &saved {
        assert_eq!(storage.load_checkpoint(*id).expect("a look").as_ref(), Some(checkpoint));
    }
    assert_eq!(latest(storage, saved[0].1.execution_id), None);
    let list = storage.list_checkpoints(heir).expect("a list");
    assert_eq!(list.iter().map(|m| m.execution_id).collect::<Vec<_>>(), [heir; 3]);
}

fn states_that_go_back_and_forth_come_back(storage: &dyn CheckpointStorage) {
    let mut ctx = context();
    let start = ctx.clone();
    let mut saved = Vec::new();
    for step in 0..60 {
        ctx.append("messages", json!({"step": step, "text": "x".repeat(200)})).expect("a list");
        if step % 20 == 19 {
            ctx = start.clone();
        }
        let checkpoint = ctx.create_checkpoint();
        saved.push((save(storage, ctx.execution_id, &checkpoint), checkpoint));
    }
    for (id, checkpoint) in saved {
        assert_eq!(storage.load_checkpoint(id).expect("a look"), Some(checkpoint));
    }
}

fn a_value_that_cannot_be_saved_leaves_the_history_as_it_was(storage: &dyn CheckpointStorage) {
    let mut ctx = context();
    let ids = save_steps(storage, &mut ctx, 1);
    let sound = ctx.clone();
    ctx.set_variable("deep".to_owned(), (0..200).fold(json!(1), |inner, _| json!([inner])));
    let checkpoint = ctx.create_checkpoint();
    match storage.save_checkpoint(ctx.execution_id, &checkpoint) {
        // A storage may keep more than others can.
        Ok(id) => assert_eq!(storage.load_checkpoint(id).expect("a look"), Some(checkpoint)),
        Err(error) => {
            assert!(matches!(error, CheckpointError::SerializationError(_)), "{error:?}");
            assert_eq!(listed(storage, ctx.execution_id), ids);
            save(storage, ctx.execution_id, &sound.create_checkpoint());
            assert_eq!(latest(storage, ctx.execution_id).map(ExecutionContext::from), Some(sound));
        }
    }
}

fn every_save_of_many_threads_is_kept(storage: &dyn CheckpointStorage) {
    const SAVES: usize = 10;
    let shared = context();
    let own: Vec<_> = (0..THREADS).map(|_| context()).collect();
    std::thread::scope(|scope| {
        for (thread, own) in own.iter().enumerate() {
            let (mut shared, mut own) = (shared.clone(), own.clone());
            scope.spawn(move || {
                for step in 0..SAVES {
                    shared.set_variable("step".to_owned(), json!([thread, step]));
                    save(storage, shared.execution_id, &shared.create_checkpoint());
                    own.set_variable("step".to_owned(), json!(step));
                    save(storage, own.execution_id, &own.create_checkpoint());
                }
            });
        }
    });
    let steps: BTreeSet<String> = listed(storage, shared.execution_id)
        .into_iter()
        .map(|id| {
            storage.load_checkpoint(id).expect("a look").expect("it is kept").variables["step"].to_string()
        })
        .collect();
    assert_eq!(steps.len(), THREADS * SAVES);
    for ctx in own {
        let checkpoint = latest(storage, ctx.execution_id).expect("it was saved");
        assert_eq!(checkpoint.variables["step"], json!(SAVES - 1));
        assert_eq!(listed(storage, ctx.execution_id).len(), SAVES);
    }
}

fn it_can_be_called_inside_an_async_runtime(storage: &dyn CheckpointStorage) {
    // A thread of its own, so that this check can be run inside a runtime too.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let mut ctx = context();
                save_steps(storage, &mut ctx, 3);
                assert_eq!(latest(storage, ctx.execution_id).map(ExecutionContext::from), Some(ctx));
            });
        });
    });
}
