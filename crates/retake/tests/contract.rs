//! The names and behaviours that code written for the contract of `execution`, `checkpoint` and `rollback` relies on,
//! used as an outside user uses them.
#![expect(clippy::disallowed_methods, reason = "an outside user reads clocks and makes ids of their own")]

use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use retake::checkpoint::{
    CheckpointConfig, CheckpointError, CheckpointFrequency, CheckpointId, CheckpointMetadata,
    CheckpointStorage, InMemoryCheckpointStorage,
};
use retake::execution::{
    ExecutionCheckpoint, ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, NodeExecutionResult,
    NodeId, NodeMetrics, TokenUsage, WorkflowId,
};
use retake::rollback::{
    ExecutionSnapshot, RollbackManager, RollbackResult, RollbackSummary, SnapshotMetadata,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use uuid::Uuid;

fn success(value: serde_json::Value) -> NodeExecutionResult {
    NodeExecutionResult::new().complete(ExecutionResult::Success(value))
}

fn context() -> ExecutionContext {
    let mut ctx = ExecutionContext::new(Uuid::new_v4());
    ctx.set_variable("key1".to_string(), json!("value1"));
    ctx.set_variable("key2".to_string(), json!(42));
    ctx
}

fn storage() -> Box<dyn CheckpointStorage> {
    Box::new(InMemoryCheckpointStorage::new())
}

#[test]
fn every_type_is_plain_data() {
    fn plain<T: Debug + Clone + Serialize + DeserializeOwned + Send + Sync + 'static>() {}
    plain::<(ExecutionContext, ExecutionState, NodeExecutionResult, ExecutionResult)>();
    plain::<(NodeMetrics, TokenUsage, ExecutionCheckpoint)>();
    plain::<(ExecutionId, WorkflowId, NodeId, CheckpointId)>();
    plain::<(CheckpointConfig, CheckpointFrequency, CheckpointMetadata, CheckpointError)>();
    plain::<InMemoryCheckpointStorage>();
    plain::<(ExecutionSnapshot, SnapshotMetadata, RollbackManager, RollbackResult, RollbackSummary)>();
}

#[cfg(feature = "openapi")]
#[test]
fn every_type_has_a_schema() {
    fn named<T: utoipa::ToSchema>(expected: &str) {
        assert_eq!(T::name(), expected);
    }
    named::<ExecutionContext>("ExecutionContext");
    named::<ExecutionCheckpoint>("ExecutionCheckpoint");
    named::<CheckpointConfig>("CheckpointConfig");
    named::<CheckpointFrequency>("CheckpointFrequency");
    named::<CheckpointMetadata>("CheckpointMetadata");
    named::<CheckpointError>("CheckpointError");
    named::<InMemoryCheckpointStorage>("InMemoryCheckpointStorage");
    named::<ExecutionSnapshot>("ExecutionSnapshot");
    named::<SnapshotMetadata>("SnapshotMetadata");
    named::<RollbackManager>("RollbackManager");
    named::<RollbackResult>("RollbackResult");
    named::<RollbackSummary>("RollbackSummary");
}

#[test]
fn the_names_are_also_at_the_root() {
    let ctx: retake::ExecutionContext = context();
    let storage: Arc<dyn retake::CheckpointStorage> = Arc::new(retake::InMemoryCheckpointStorage::default());
    let id: retake::CheckpointId =
        storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint()).unwrap();
    assert!(storage.load_checkpoint(id).unwrap().is_some());
    assert_eq!(retake::RollbackManager::default().summary().max_snapshots, 10);
}

mod execution {
    use super::*;

    #[test]
    fn a_new_context_is_running_and_empty() {
        let workflow_id: WorkflowId = Uuid::new_v4();
        let ctx = ExecutionContext::new(workflow_id);
        assert_eq!(
            (ctx.workflow_id, &ctx.state, ctx.completed_at),
            (workflow_id, &ExecutionState::Running, None)
        );
        assert_eq!((ctx.variables.len(), ctx.node_results.len()), (0, 0));
        assert_ne!(ctx.execution_id, ExecutionContext::new(workflow_id).execution_id);
        assert!(ctx.started_at <= Utc::now());
    }

    #[test]
    fn the_maps_are_used_like_any_map() {
        let mut ctx = context();
        assert!(ctx.variables.contains_key("key1"));
        assert_eq!(ctx.variables.get("key2"), Some(&json!(42)));
        assert_eq!(ctx.variables.insert("key1".to_string(), json!(null)), Some(json!("value1")));
        assert_eq!(ctx.variables.remove("key1"), Some(json!(null)));
        let names: Vec<&String> = ctx.variables.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["key2"]);
        ctx.variables = vec![("a".to_string(), json!({"b": [1]}))].into_iter().collect();
        assert_eq!(ctx.variables["a"]["b"][0], json!(1));
        ctx.variables = Default::default();
        assert!(ctx.variables.is_empty());

        let node: NodeId = Uuid::new_v4();
        ctx.node_results.insert(node, success(json!("x")));
        assert_eq!(
            ctx.node_results.get(&node).map(|n| n.result.clone()),
            Some(ExecutionResult::Success(json!("x")))
        );
        assert!(ctx.node_results.remove(&node).is_some());
        for (_, record) in &ctx.node_results {
            assert_eq!(record.retry_count, 0);
        }
    }

    #[test]
    fn a_copy_of_a_large_map_is_its_own() {
        let mut ctx = ExecutionContext::new(Uuid::new_v4());
        for i in 0..10_000 {
            ctx.set_variable(format!("key{i}"), json!(i));
        }
        let copy = ctx.variables.clone();
        ctx.set_variable("key0".to_string(), json!("changed"));
        assert_eq!((copy.get("key0"), copy.len()), (Some(&json!(0)), 10_000));
    }

    #[test]
    fn pause_resume_cancel_and_complete() {
        let mut ctx = context();
        assert!(!ctx.can_resume());
        ctx.pause();
        assert_eq!(ctx.state, ExecutionState::Paused);
        assert!(ctx.can_resume());
        ctx.resume();
        assert_eq!(ctx.state, ExecutionState::Running);
        let mut cancelled = ctx.clone();
        cancelled.cancel();
        assert_eq!(cancelled.state, ExecutionState::Cancelled);
        ctx.mark_completed();
        assert_eq!(ctx.state, ExecutionState::Completed);
        assert!(ctx.completed_at.is_some());
    }

    #[test]
    fn a_node_result_carries_its_metrics() {
        let mut custom_metrics = NodeMetrics::default();
        custom_metrics.custom.insert("cache".to_string(), json!("hit"));
        custom_metrics.cost_usd = Some(0.25);
        let record = NodeExecutionResult::new()
            .with_metrics(custom_metrics)
            .with_token_usage(TokenUsage::new(10, 5))
            .complete(ExecutionResult::Skipped);
        let metrics = record.metrics.expect("it was given metrics");
        assert_eq!(metrics.token_usage.map(|usage| usage.total_tokens), Some(15));
        assert_eq!((metrics.cost_usd, &metrics.custom["cache"]), (Some(0.25), &json!("hit")));
        assert!(metrics.duration_ms.is_some() && record.completed_at.is_some());
    }

    #[test]
    fn a_resumed_execution_has_every_output_and_is_the_same_execution() {
        let mut ctx = context();
        let (done, failed) = (Uuid::new_v4(), Uuid::new_v4());
        ctx.record_node_result(done, success(json!({"text": "plan"})));
        ctx.record_node_result(
            failed,
            NodeExecutionResult::new().complete(ExecutionResult::Failure("boom".to_string())),
        );
        ctx.pause();
        let checkpoint = ctx.create_checkpoint();
        assert_eq!(checkpoint.completed_nodes, vec![done]);
        assert_eq!((checkpoint.execution_id, checkpoint.workflow_id), (ctx.execution_id, ctx.workflow_id));

        let mut resumed = ExecutionContext::resume_from_checkpoint(checkpoint, ctx.workflow_id);
        assert_eq!(resumed, ctx);
        assert_eq!(
            resumed.get_node_result(&done).and_then(|record| record.output()),
            Some(&json!({"text": "plan"}))
        );
        resumed.resume();
        assert_eq!(resumed.state, ExecutionState::Running);
    }

    #[test]
    fn a_checkpoint_of_one_workflow_does_not_resume_another() {
        let mut ctx = context();
        ctx.pause();
        let resumed = ExecutionContext::resume_from_checkpoint(ctx.create_checkpoint(), Uuid::new_v4());
        assert!(!resumed.can_resume());
        assert!(matches!(resumed.state, ExecutionState::Failed(_)));
    }
}

mod checkpoint {
    use super::*;

    #[test]
    fn the_default_configuration() {
        let config = CheckpointConfig::default();
        assert!(config.enabled && !config.compress);
        assert_eq!(config.frequency, CheckpointFrequency::EveryNNodes(5));
        assert_eq!((config.max_checkpoints, config.auto_checkpoint_threshold_ms), (10, Some(60_000)));
    }

    #[test]
    fn the_frequencies_compare() {
        assert_eq!(CheckpointFrequency::EveryNNodes(10), CheckpointFrequency::EveryNNodes(10));
        assert_ne!(CheckpointFrequency::TimeInterval(60), CheckpointFrequency::Manual);
        assert_ne!(
            CheckpointFrequency::BeforeNodeTypes(vec!["llm".to_string()]),
            CheckpointFrequency::Always
        );
    }

    #[test]
    fn what_is_saved_is_loaded_whole() {
        let (storage, mut ctx) = (storage(), context());
        ctx.record_node_result(Uuid::new_v4(), success(json!([1, 2])));
        let checkpoint = ctx.create_checkpoint();
        let id = storage.save_checkpoint(ctx.execution_id, &checkpoint).unwrap();
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(storage.load_checkpoint(id).unwrap(), Some(checkpoint.clone()));
        assert_eq!(storage.load_latest_checkpoint(ctx.execution_id).unwrap(), Some(checkpoint));
    }

    #[test]
    fn what_was_never_saved_is_none_and_no_error() {
        let storage = storage();
        assert!(storage.load_checkpoint(Uuid::new_v4()).unwrap().is_none());
        assert!(storage.load_latest_checkpoint(Uuid::new_v4()).unwrap().is_none());
        assert!(storage.list_checkpoints(Uuid::new_v4()).unwrap().is_empty());
        assert_eq!(storage.prune_checkpoints(Uuid::new_v4(), 3).unwrap(), 0);
        assert_eq!(storage.delete_checkpoints(Uuid::new_v4()).unwrap(), 0);
    }

    #[test]
    fn the_latest_is_the_last_saved_whatever_the_clock_said() {
        let (storage, mut ctx) = (storage(), context());
        let now = Utc::now();
        let stamps = [now, now, now - TimeDelta::hours(1)];
        let mut ids = Vec::new();
        for (step, timestamp) in stamps.into_iter().enumerate() {
            ctx.set_variable("step".to_string(), json!(step));
            let mut checkpoint = ctx.create_checkpoint();
            checkpoint.timestamp = timestamp;
            ids.insert(0, storage.save_checkpoint(ctx.execution_id, &checkpoint).unwrap());
            let latest = storage.load_latest_checkpoint(ctx.execution_id).unwrap().unwrap();
            assert_eq!(latest.variables.get("step"), Some(&json!(step)));
        }
        let listed: Vec<_> =
            storage.list_checkpoints(ctx.execution_id).unwrap().into_iter().map(|m| m.id).collect();
        assert_eq!(listed, ids);
        assert!(listed.is_sorted_by(|newer, older| newer > older));
    }

    #[test]
    fn the_metadata_names_the_real_workflow() {
        let (storage, mut ctx) = (storage(), context());
        ctx.record_node_result(Uuid::new_v4(), success(json!(1)));
        ctx.record_node_result(Uuid::new_v4(), NodeExecutionResult::new());
        let checkpoint = ctx.create_checkpoint();
        let id = storage.save_checkpoint(ctx.execution_id, &checkpoint).unwrap();
        let metadata: CheckpointMetadata = storage.list_checkpoints(ctx.execution_id).unwrap().pop().unwrap();
        assert_eq!((metadata.id, metadata.execution_id), (id, ctx.execution_id));
        assert_eq!(metadata.workflow_id, ctx.workflow_id);
        assert_eq!((metadata.created_at, metadata.completed_node_count), (checkpoint.timestamp, 1));
        assert_eq!(metadata.size_bytes, serde_json::to_vec(&checkpoint).unwrap().len());
        assert!(!metadata.compressed);
    }

    #[test]
    fn pruning_and_deleting_touch_one_execution() {
        let (storage, one, other) = (storage(), context(), context());
        for ctx in [&one, &other, &one, &one] {
            storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint()).unwrap();
        }
        let newest = storage.list_checkpoints(one.execution_id).unwrap()[0].id;
        assert_eq!(storage.prune_checkpoints(one.execution_id, 1).unwrap(), 2);
        assert_eq!(storage.list_checkpoints(one.execution_id).unwrap()[0].id, newest);
        assert_eq!(storage.delete_checkpoints(one.execution_id).unwrap(), 1);
        assert!(storage.load_checkpoint(newest).unwrap().is_none());
        assert_eq!(storage.list_checkpoints(other.execution_id).unwrap().len(), 1);
    }

    #[test]
    fn an_error_keeps_its_source() {
        let error = CheckpointError::StorageError("the disk is full".to_string().into());
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("the disk is full"));
        assert!(!error.to_string().contains("the disk is full"));
        let id: CheckpointId = Uuid::new_v4();
        let boxed: Box<dyn Error + Send + Sync> = Box::new(CheckpointError::NotFound(id));
        assert!(boxed.to_string().contains(&id.to_string()));
        for error in [
            CheckpointError::SerializationError("a".into()),
            CheckpointError::DecompressionError("b".into()),
            CheckpointError::InvalidData("c".into()),
        ] {
            assert!(error.source().is_some());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_storage_can_be_called_inside_a_runtime() {
        let storage: Arc<dyn CheckpointStorage> = Arc::new(InMemoryCheckpointStorage::new());
        let ctx = context();
        let id = storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint()).unwrap();
        let shared = Arc::clone(&storage);
        let found = tokio::spawn(async move { shared.load_checkpoint(id) }).await.unwrap().unwrap();
        assert_eq!(found.map(|checkpoint| checkpoint.execution_id), Some(ctx.execution_id));
    }

    #[tokio::test]
    async fn a_storage_can_be_called_inside_a_runtime_of_one_thread() {
        let (storage, ctx) = (storage(), context());
        storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint()).unwrap();
        assert!(storage.load_latest_checkpoint(ctx.execution_id).unwrap().is_some());
    }

    #[test]
    fn saves_of_many_threads_are_all_kept_and_each_ones_order_is_its_own() {
        const THREADS: usize = 8;
        const SAVES: usize = 50;
        let (storage, ctx) = (storage(), context());
        let by_thread: Vec<Vec<CheckpointId>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let save = || storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint());
                        (0..SAVES).map(|_| save().expect("memory takes it")).collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
        });
        let mut listed: Vec<_> =
            storage.list_checkpoints(ctx.execution_id).unwrap().into_iter().map(|m| m.id).collect();
        listed.reverse();
        assert_eq!(listed.len(), THREADS * SAVES);
        assert!(listed.is_sorted());
        for ids in by_thread {
            let own: Vec<_> = listed.iter().filter(|id| ids.contains(id)).copied().collect();
            assert_eq!(own, ids);
        }
    }
}

mod rollback {
    use super::*;

    #[test]
    fn a_snapshot_holds_the_context_and_what_is_said_of_it() {
        let mut ctx = context();
        ctx.record_node_result(Uuid::new_v4(), success(json!(1)));
        let node: NodeId = Uuid::new_v4();
        let snapshot = ExecutionSnapshot::from_context(&ctx)
            .with_label("Before LLM call")
            .with_trigger_node(node)
            .with_reason("expensive")
            .as_auto();
        assert_eq!(snapshot.label, Some("Before LLM call".to_string()));
        assert_eq!(snapshot.trigger_node, Some(node));
        assert_eq!(snapshot.metadata.reason, Some("expensive".to_string()));
        assert!(snapshot.metadata.is_auto);
        assert_eq!((snapshot.metadata.created_by.as_ref(), snapshot.metadata.custom.len()), (None, 0));
        assert_eq!((snapshot.completed_node_count(), snapshot.variable_count()), (1, 2));
        assert_eq!((&snapshot.state, snapshot.variables.len()), (&ExecutionState::Running, 2));
        assert_eq!(snapshot.node_results.len(), 1);
        let fresh = ExecutionSnapshot::from_context(&ctx);
        assert!(fresh.label.is_none() && fresh.trigger_node.is_none() && fresh.id != snapshot.id);
        assert!(!SnapshotMetadata::default().is_auto);
    }

    #[test]
    fn applying_a_snapshot_restores_also_that_the_run_had_not_ended() {
        let mut ctx = context();
        let snapshot = ExecutionSnapshot::from_context(&ctx);
        ctx.set_variable("key3".to_string(), json!("new"));
        ctx.mark_completed();
        snapshot.apply_to(&mut ctx);
        assert_eq!((ctx.variables.len(), &ctx.state, ctx.completed_at), (2, &ExecutionState::Running, None));
    }

    #[test]
    fn the_oldest_falls_out_past_the_maximum() {
        let mut manager = RollbackManager::new(3);
        let mut ctx = context();
        let ids: Vec<Uuid> = (0..5)
            .map(|i| {
                ctx.set_variable(format!("iter_{i}"), json!(i));
                manager.create_snapshot(&ctx)
            })
            .collect();
        assert_eq!(manager.snapshot_count(), 3);
        let listed: Vec<Uuid> = manager.list_snapshots().iter().map(|s| s.id).collect();
        assert_eq!(listed, [ids[4], ids[3], ids[2]]);
        assert!(manager.get_snapshot(ids[1]).is_none());
        assert_eq!(manager.latest_snapshot().map(|s| s.id), Some(ids[4]));
    }

    #[test]
    fn rollback_goes_to_the_newest() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        manager.push_snapshot(ExecutionSnapshot::from_context(&ctx));
        ctx.set_variable("new_key".to_string(), json!("new_value"));
        ctx.state = ExecutionState::Failed("error".to_string());
        let result = manager.rollback(&mut ctx);
        assert!(result.success && result.error.is_none());
        assert_eq!(result.applied_snapshot_id, manager.latest_snapshot().map(|s| s.id));
        assert!(!ctx.variables.contains_key("new_key"));
        assert_eq!(ctx.state, ExecutionState::Running);
    }

    #[test]
    fn rollback_n_counts_from_the_newest() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        for i in 0..5 {
            ctx.set_variable(format!("step_{i}"), json!(i));
            manager.create_snapshot(&ctx);
        }
        ctx.set_variable("step_5".to_string(), json!(5));
        let result = manager.rollback_n(&mut ctx, 3);
        assert_eq!((result.success, result.variables_changed), (true, 3));
        assert!(ctx.variables.contains_key("step_2") && !ctx.variables.contains_key("step_3"));
    }

    #[test]
    fn going_nowhere_is_a_failure_that_says_so() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        assert!(manager.rollback(&mut ctx).error.is_some());
        manager.create_snapshot(&ctx);
        for result in [
            manager.rollback_n(&mut ctx, 0),
            manager.rollback_n(&mut ctx, 2),
            manager.rollback_to(&mut ctx, Uuid::new_v4()),
        ] {
            assert!(!result.success && result.error.is_some() && result.applied_snapshot_id.is_none());
        }
    }

    #[test]
    fn one_step_after_going_back_does_not_jump_forward() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        let ids: Vec<Uuid> = (0..4)
            .map(|i| {
                ctx.set_variable("step".to_string(), json!(i));
                manager.create_snapshot(&ctx)
            })
            .collect();
        assert!(manager.rollback_to(&mut ctx, ids[1]).success);
        assert_eq!(manager.rollback_n(&mut ctx, 1).applied_snapshot_id, Some(ids[1]));
        assert_eq!(manager.rollback_n(&mut ctx, 2).applied_snapshot_id, Some(ids[0]));
        assert_eq!(manager.list_snapshots().len(), 4);
        assert!(manager.rollback_to(&mut ctx, ids[3]).success);
        assert_eq!(ctx.get_variable("step"), Some(&json!(3)));
    }

    #[test]
    fn the_counts_are_exact() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = ExecutionContext::new(Uuid::new_v4());
        let (gone, stays, comes) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        for name in ["same", "changed", "removed"] {
            ctx.set_variable(name.to_string(), json!(1));
        }
        ctx.record_node_result(stays, success(json!(1)));
        ctx.record_node_result(comes, success(json!(1)));
        manager.create_snapshot(&ctx);
        ctx.set_variable("same".to_string(), json!(1));
        ctx.set_variable("changed".to_string(), json!(2));
        ctx.set_variable("added".to_string(), json!(1));
        ctx.variables.remove("removed");
        ctx.node_results.remove(&comes);
        ctx.record_node_result(gone, success(json!(2)));
        let result = manager.rollback(&mut ctx);
        assert_eq!((result.variables_changed, result.nodes_removed), (3, 1));
        assert!(ctx.node_results.contains_key(&comes) && !ctx.node_results.contains_key(&gone));
    }

    #[test]
    fn a_snapshot_is_made_before_every_nth_node() {
        let mut manager = RollbackManager::new(10).with_auto_snapshot(2);
        let ctx = context();
        let nodes: Vec<NodeId> = (0..4).map(|_| Uuid::new_v4()).collect();
        let made: Vec<Option<Uuid>> = nodes.iter().map(|node| manager.on_node_execute(&ctx, *node)).collect();
        assert_eq!(made.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, true]);
        let snapshot = manager.get_snapshot(made[3].unwrap()).unwrap();
        assert_eq!((snapshot.trigger_node, snapshot.metadata.is_auto), (Some(nodes[3]), true));
        assert_eq!(manager.summary().nodes_processed, 4);
    }

    #[test]
    fn an_interval_of_zero_makes_none() {
        let mut manager = RollbackManager::new(10).with_auto_snapshot(0);
        let ctx = context();
        assert!((0..20).all(|_| manager.on_node_execute(&ctx, Uuid::new_v4()).is_none()));
        let summary = manager.summary();
        assert_eq!((summary.auto_snapshot_enabled, summary.auto_snapshot_interval), (false, 0));
    }

    #[test]
    fn the_id_of_a_new_snapshot_always_leads_to_it() {
        let mut manager = RollbackManager::new(0).with_auto_snapshot(1);
        let mut ctx = context();
        let id = manager.create_labeled_snapshot(&ctx, "only");
        assert_eq!(manager.get_snapshot(id).and_then(|s| s.label.clone()), Some("only".to_string()));
        let id = manager.on_node_execute(&ctx, Uuid::new_v4()).unwrap();
        assert!(manager.rollback_to(&mut ctx, id).success);
        assert_eq!((manager.snapshot_count(), manager.summary().max_snapshots), (1, 1));
    }

    #[test]
    fn pruning_removes_what_is_older_than_a_moment() {
        let mut manager = RollbackManager::new(10);
        let ctx = context();
        let cutoff: DateTime<Utc> = Utc::now();
        let mut old = ExecutionSnapshot::from_context(&ctx);
        old.created_at = cutoff - TimeDelta::seconds(1);
        manager.push_snapshot(old);
        manager.create_snapshot(&ctx);
        manager.create_snapshot(&ctx);
        assert_eq!(manager.prune_before(cutoff), 1);
        assert_eq!(manager.snapshot_count(), 2);
    }

    #[test]
    fn the_summary_tells_what_is_held() {
        let mut manager = RollbackManager::new(5).with_auto_snapshot(3);
        assert_eq!(manager.summary().oldest_snapshot, None);
        let ctx = context();
        let (oldest, newest) = (manager.create_snapshot(&ctx), manager.create_snapshot(&ctx));
        let summary: RollbackSummary = manager.summary();
        assert_eq!((summary.total_snapshots, summary.max_snapshots), (2, 5));
        assert_eq!((summary.auto_snapshot_enabled, summary.auto_snapshot_interval), (true, 3));
        assert_eq!(summary.oldest_snapshot, manager.get_snapshot(oldest).map(|s| s.created_at));
        assert_eq!(summary.newest_snapshot, manager.get_snapshot(newest).map(|s| s.created_at));
    }

    #[test]
    fn clearing_forgets_snapshots_rollbacks_and_the_node_counter() {
        let mut manager = RollbackManager::default().with_auto_snapshot(2);
        let mut ctx = context();
        manager.create_snapshot(&ctx);
        manager.rollback(&mut ctx);
        manager.on_node_execute(&ctx, Uuid::new_v4());
        manager.clear();
        assert_eq!((manager.snapshot_count(), manager.summary().nodes_processed), (0, 0));
        assert!(!manager.undo_rollback(&mut ctx).success);
        assert!(manager.on_node_execute(&ctx, Uuid::new_v4()).is_none());
    }

    #[test]
    fn a_result_can_be_made_by_hand() {
        let id = Uuid::new_v4();
        let result = RollbackResult::success(id, 3, 2);
        assert_eq!((result.success, result.applied_snapshot_id, result.error), (true, Some(id), None));
        assert_eq!((result.nodes_removed, result.variables_changed), (3, 2));
        assert!(result.rolled_back_at <= Utc::now());
        let result = RollbackResult::failure("No snapshots available");
        assert_eq!(result.error, Some("No snapshots available".to_string()));
    }

    #[test]
    fn a_manager_can_be_moved_to_another_thread() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        let id = manager.create_snapshot(&ctx);
        let done = std::thread::spawn(move || manager.rollback_to(&mut ctx, id).success).join();
        assert!(done.expect("the thread ends well"));
    }
}
