//! Creating, committing and forking.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::cases;
use super::trial::{
    Trial, WORKFLOW, append, assert_refused, head, history, image, operation, remove, seqs, set, set_change,
    step, text,
};
use crate::clock::Clock;
use crate::execution::{Cost, ExecutionContext, ExecutionState, NodeExecutionResult, NodeId, Spend};
use crate::store::{
    self, Cause, CheckpointRecord, Commit, Conflict, Delta, ExecutionRecord, Image, Key, KeyChange,
    NewCheckpoint, Note, Op, OperationRecord, Origin, Piece, StoreError, StoreExt,
};

/// How many tasks write at once.
const WRITERS: u64 = 64;

cases![
    a_created_execution_comes_back_with_its_first_point,
    a_checkpoint_comes_back_with_everything_it_was_given,
    every_cause_and_state_comes_back,
    a_context_comes_back_at_every_point,
    a_name_and_an_id_belong_to_one_execution,
    a_refused_creation_leaves_nothing_behind,
    a_commit_on_an_old_head_is_refused_and_changes_nothing,
    a_checkpoint_id_belongs_to_one_point,
    what_is_not_there_is_said_to_be_not_there,
    an_append_comes_back_as_one_value,
    a_removed_key_is_gone_and_can_be_set_again,
    an_empty_delta_is_a_point_with_the_same_state,
    a_delta_that_does_not_fit_its_base_is_refused_or_reported,
    odd_names_and_keys_and_large_values_come_back,
    opaque_bytes_of_any_codec_come_back,
    a_fork_shares_its_origins_state_and_goes_its_own_way,
    a_fork_of_what_is_not_there_is_refused,
    operations_are_numbered_and_say_where_the_head_was,
    an_operation_without_a_checkpoint_stands_in_the_log_and_moves_no_head,
    what_an_execution_has_cost_stands_in_its_record,
    many_executions_can_be_advanced_at_once,
    of_many_commits_on_one_head_exactly_one_wins,
    of_many_creations_under_one_name_exactly_one_wins,
];

async fn a_created_execution_comes_back_with_its_first_point(trial: Trial) {
    let mut new = trial.execution("brave-otter");
    new.definition = b"nodes: []".to_vec();
    let id = new.id;
    let mut first = trial.checkpoint(set("step", "1"));
    first.created_at = trial.odd_instant();
    let (checkpoint_id, created_at) = (first.id, first.created_at);
    let record = trial.store().await.create(new, first).await.expect("created");
    assert_eq!((record.seq, record.id, record.parent), (1, checkpoint_id, None));

    let store = trial.store().await;
    let expected = ExecutionRecord {
        id,
        name: "brave-otter".to_owned(),
        workflow_id: WORKFLOW,
        workflow_name: "article".to_owned(),
        state: ExecutionState::Running,
        head: 1,
        created_at,
        updated_at: created_at,
        spend: Spend::default(),
        origin: None,
        leased_by: None,
    };
    assert_eq!(store.execution(id).await.expect("a look"), Some(expected));
    assert_eq!(store.checkpoint(checkpoint_id).await.expect("a look"), Some(record));
    assert_eq!(step(&*store, id, 1).await.expect("the first state"), "1");
}

async fn a_checkpoint_comes_back_with_everything_it_was_given(trial: Trial) {
    let id = trial.begin("a").await;
    let new = NewCheckpoint {
        created_at: trial.odd_instant(),
        state: ExecutionState::Failed("node `draft` gave up: \u{1f9a6}".to_owned()),
        cause: Cause::Nodes,
        nodes: vec!["plan".to_owned(), "a \"b\"".to_owned()],
        label: Some("before the edit".to_owned()),
        completed_node_count: 7,
        ..trial.checkpoint(set("step", "2"))
    };
    let commit = Commit { execution_id: id, expected_head: 1, fence: None, checkpoint: new.clone() };
    let given = trial.store().await.commit(commit).await.expect("committed");
    let expected = CheckpointRecord {
        execution_id: id,
        workflow_id: WORKFLOW,
        seq: 2,
        id: new.id,
        parent: Some(1),
        created_at: new.created_at,
        cause: new.cause,
        nodes: new.nodes,
        label: new.label,
        state: new.state.clone(),
        completed_node_count: 7,
        spend: new.spend,
        size_bytes: given.size_bytes,
        compressed: given.compressed,
    };
    assert_eq!(given, expected);
    assert!(given.size_bytes > 0);
    let store = trial.store().await;
    assert_eq!(store.checkpoint(new.id).await.expect("a look"), Some(expected.clone()));
    assert_eq!(history(&*store, id).await[0], expected);
    let execution = store.require(id).await.expect("the execution");
    assert_eq!((execution.head, execution.state, execution.updated_at), (2, new.state, new.created_at));
}

async fn every_cause_and_state_comes_back(trial: Trial) {
    let node = || "a node".to_owned();
    let origin = Origin { execution_id: Uuid::from_u128(4), seq: 9 };
    let causes = [
        Cause::Start,
        Cause::Nodes,
        Cause::Interval,
        Cause::Before { node: node() },
        Cause::LongNode { node: node() },
        Cause::Started { node: node() },
        Cause::Retry { node: node() },
        Cause::Manual,
        Cause::Save,
        Cause::Pause,
        Cause::Resume,
        Cause::Finish,
        Cause::Cancel,
        Cause::Approve { node: node(), approved: true },
        Cause::Rollback { to: 1 },
        Cause::Undo { operation: 2 },
        Cause::Redo { operation: 3 },
        Cause::Edit,
        Cause::Fork { origin },
        Cause::Repair { from: 7, lost: vec![5, 6, 7] },
    ];
    let states = [
        ExecutionState::Running,
        ExecutionState::Completed,
        ExecutionState::Failed("why".to_owned()),
        ExecutionState::Cancelled,
        ExecutionState::Paused,
    ];
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let mut expected = Vec::new();
    for ((cause, state), head) in causes.into_iter().zip(states.into_iter().cycle()).zip(1..) {
        let mut commit = trial.on(id, head, Delta::default());
        commit.checkpoint.cause = cause.clone();
        commit.checkpoint.state = state.clone();
        store.commit(commit).await.expect("committed");
        expected.insert(0, (cause, state));
    }
    let mut found: Vec<_> =
        history(&*trial.store().await, id).await.into_iter().map(|r| (r.cause, r.state)).collect();
    found.pop();
    assert_eq!(found, expected);
}

async fn a_context_comes_back_at_every_point(trial: Trial) {
    let new = trial.execution("a");
    let mut ctx = ExecutionContext::with_id(new.id, WORKFLOW, trial.odd_instant());
    ctx.inputs.insert("topic".to_owned(), json!("otters"));
    let delta = |before: Option<&ExecutionContext>, after: &ExecutionContext| {
        store::delta(before, after, |_| None).expect("a storable state")
    };
    trial.store().await.create(new, trial.checkpoint(delta(None, &ctx))).await.expect("created");
    let mut states = vec![ctx.clone()];
    for round in 0..5_u128 {
        ctx.append("messages", json!({"round": 5, "text": "é".repeat(40)})).expect("a list");
        ctx.set_variable("round".to_owned(), json!({"n": 0.1, "large": u64::MAX}));
        let node = NodeExecutionResult::started(trial.clock.now())
            .completed(crate::ExecutionResult::Success(json!([null, round.to_string()])), trial.clock.now());
        ctx.record_node_result(NodeId::from_u128(round), node);
        let commit = trial.on(ctx.execution_id, states.len() as u64, delta(states.last(), &ctx));
        trial.store().await.commit(commit).await.expect("committed");
        states.push(ctx.clone());
    }
    let store = trial.store().await;
    for (state, seq) in states.iter().zip(1..) {
        assert_eq!(&store.context(ctx.execution_id, seq).await.expect("a context"), state, "@{seq}");
    }
}

async fn a_name_and_an_id_belong_to_one_execution(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let same_name = trial.execution("a");
    let refused = store.create(same_name, trial.checkpoint(set("step", "1"))).await;
    assert_refused!(refused, StoreError::Conflict(Conflict::NameTaken(name)) if name == "a");
    let mut same_id = trial.execution("b");
    same_id.id = id;
    let refused = store.create(same_id, trial.checkpoint(set("step", "1"))).await;
    assert_refused!(refused, StoreError::Conflict(Conflict::IdTaken(taken)) if *taken == id);
    assert_eq!(store.executions(&Default::default()).await.expect("a list").len(), 1);
}

async fn a_refused_creation_leaves_nothing_behind(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let taken = history(&*store, id).await[0].id;
    let new = trial.execution("b");
    let mut first = trial.checkpoint(set("step", "1"));
    first.id = taken;
    assert_refused!(
        store.create(new.clone(), first).await,
        StoreError::Conflict(Conflict::IdTaken(id)) if *id == taken
    );
    assert_eq!(store.execution(new.id).await.expect("a look"), None);
    store.create(new, trial.checkpoint(set("step", "1"))).await.expect("the name and id are still free");
}

async fn a_commit_on_an_old_head_is_refused_and_changes_nothing(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 3).await;
    let store = trial.store().await;
    let before = (store.execution(id).await.expect("a look"), history(&*store, id).await);
    for expected_head in [0, 1, 2, 4] {
        let mut commit = trial.on(id, expected_head, set("step", "lost"));
        commit.checkpoint.operation = Some(operation("lost"));
        let checkpoint_id = commit.checkpoint.id;
        assert_refused!(
            store.commit(commit).await,
            StoreError::Conflict(Conflict::HeadMoved { execution, expected, found: 3 })
                if *execution == id && *expected == expected_head
        );
        assert_eq!(store.checkpoint(checkpoint_id).await.expect("a look"), None);
    }
    let store = trial.store().await;
    assert_eq!((store.execution(id).await.expect("a look"), history(&*store, id).await), before);
    assert_eq!(store.operations(id).await.expect("a log"), []);
    assert_eq!(step(&*store, id, 3).await.expect("the head"), "3");
}

async fn a_checkpoint_id_belongs_to_one_point(trial: Trial) {
    let (one, other) = (trial.begin("a").await, trial.begin("b").await);
    let store = trial.store().await;
    let taken = history(&*store, one).await[0].id;
    for execution_id in [one, other] {
        let mut commit = trial.on(execution_id, 1, set("step", "2"));
        commit.checkpoint.id = taken;
        let refused = store.commit(commit).await;
        assert_refused!(refused, StoreError::Conflict(Conflict::IdTaken(id)) if *id == taken);
        assert_eq!(head(&*store, execution_id).await, 1);
    }
    assert_eq!(store.checkpoint(taken).await.expect("a look").map(|r| r.execution_id), Some(one));
}

async fn what_is_not_there_is_said_to_be_not_there(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let nobody = trial.clock.new_id();
    assert_eq!(store.execution(nobody).await.expect("a look"), None);
    assert_eq!(store.checkpoint(nobody).await.expect("a look"), None);
    assert_eq!(store.workflow(nobody).await.expect("a look"), None);
    assert_eq!(history(&*store, nobody).await, []);
    assert_eq!(store.operations(nobody).await.expect("a log"), []);
    assert_eq!(store.prune(nobody, 1).await.expect("nothing to prune"), 0);
    assert_eq!(store.delete(nobody).await.expect("nothing to delete"), 0);
    assert!(!store.withdraw(nobody, nobody).await.expect("nothing to withdraw"));
    assert_refused!(store.state(nobody, 1).await, StoreError::NoExecution(unknown) if *unknown == nobody);
    let refused = store.commit(trial.on(nobody, 1, set("step", "2"))).await;
    assert_refused!(refused, StoreError::NoExecution(unknown) if *unknown == nobody);
    for beyond in [0, 2, u64::MAX] {
        assert_refused!(
            store.state(id, beyond).await,
            StoreError::NoPoint { execution, seq, head: 1 } if *execution == id && *seq == beyond
        );
    }
}

async fn an_append_comes_back_as_one_value(trial: Trial) {
    let id = trial.begin("a").await;
    let mut deltas = vec![set("step", "1")];
    let mut length = 0;
    for word in ["one ", "two ", "", "three ", "\u{1f9a6}"] {
        let delta = if length == 0 { set("log", word) } else { append("log", length, word) };
        length += word.len();
        let commit = trial.on(id, deltas.len() as u64, delta.clone());
        trial.store().await.commit(commit).await.expect("committed");
        deltas.push(delta);
    }
    let store = trial.store().await;
    for seq in 1..=deltas.len() {
        let state = store.state(id, seq as u64).await.expect("a state");
        assert_eq!(state, image(&deltas[..seq]), "@{seq}");
    }
    let state = store.state(id, deltas.len() as u64).await.expect("a state");
    assert_eq!(text(&state, "log").as_deref(), Some("one two three \u{1f9a6}"));
}

async fn a_removed_key_is_gone_and_can_be_set_again(trial: Trial) {
    let id = trial.begin("a").await;
    let deltas = [set("step", "1"), set("x", "old"), remove("x"), set("x", "new"), append("x", 3, "er")];
    let store = trial.store().await;
    for (delta, head) in deltas[1..].iter().zip(1..) {
        store.commit(trial.on(id, head, delta.clone())).await.expect("committed");
    }
    let store = trial.store().await;
    let mut found = Vec::new();
    for seq in 2..=5 {
        found.push(text(&store.state(id, seq).await.expect("a state"), "x"));
    }
    assert_eq!(found, [Some("old".to_owned()), None, Some("new".to_owned()), Some("newer".to_owned())]);
}

async fn an_empty_delta_is_a_point_with_the_same_state(trial: Trial) {
    let id = trial.begin("a").await;
    let record = trial.store().await.commit(trial.on(id, 1, Delta::default())).await.expect("committed");
    assert_eq!((record.seq, record.parent), (2, Some(1)));
    let store = trial.store().await;
    assert_eq!(store.state(id, 2).await.expect("a state"), store.state(id, 1).await.expect("a state"));

    let nothing = trial.execution("nothing");
    let nothing_id = nothing.id;
    store.create(nothing, trial.checkpoint(Delta::default())).await.expect("created with an empty state");
    assert_eq!(trial.store().await.state(nothing_id, 1).await.expect("a state"), Image::default());
}

/// A store need not know the base's state when it commits, but it must never give back a wrong one.
async fn a_delta_that_does_not_fit_its_base_is_refused_or_reported(trial: Trial) {
    let id = trial.begin("a").await;
    let committed = trial.store().await.commit(trial.on(id, 1, append("step", 40, "late"))).await;
    let store = trial.store().await;
    if let Err(error) = committed {
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert_eq!(head(&*store, id).await, 1);
    } else {
        assert_refused!(store.state(id, 2).await, StoreError::Corrupt { .. });
    }
    assert_eq!(step(&*store, id, 1).await.expect("the state before"), "1");
}

async fn odd_names_and_keys_and_large_values_come_back(trial: Trial) {
    let megabyte = "0123456789abcdef".repeat(65_536);
    let names = ["", "a \"b\" 'c' `d`", "x.y[0].z", "nul \0 nul", "\u{1f9a6}\u{301}", "%_\\*", "line\nbreak"];
    for name in names.into_iter().chain([megabyte.as_str()]) {
        let mut new = trial.execution(name);
        new.workflow_name = name.to_owned();
        let id = new.id;
        let changes = Delta::new(vec![
            set_change(name, "odd"),
            set_change("large", &megabyte),
            KeyChange { key: Key::Input(name.to_owned()), ..set_change("", name) },
        ]);
        let mut first = trial.checkpoint(changes.clone());
        first.label = Some(name.to_owned());
        first.state = ExecutionState::Failed(name.to_owned());
        first.operation = Some(operation(name));
        let written = trial.store().await.create(new, first).await.expect("created");
        let store = trial.store().await;
        let shown: String = name.chars().take(20).collect();
        assert_eq!(store.require(id).await.expect("the execution").name, name, "{shown:?}");
        assert_eq!(history(&*store, id).await, [written], "{shown:?}");
        assert_eq!(store.operations(id).await.expect("a log")[0].command, name, "{shown:?}");
        assert!(store.state(id, 1).await.expect("a state") == image([&changes]), "{shown:?}");
    }
}

async fn opaque_bytes_of_any_codec_come_back(trial: Trial) {
    let id = trial.begin("a").await;
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let pieces = [0_u8, 1, 200, 255].map(|codec| Piece { codec, bytes: every_byte.clone().into() });
    let writer = Some(NodeId::from_u128(3));
    let changes = [
        (Key::Header, Op::Set { pieces: vec![], len: 0 }),
        (Key::Node(NodeId::max()), Op::Set { pieces: pieces.to_vec(), len: u64::MAX >> 1 }),
        (Key::Node(NodeId::nil()), Op::Set { pieces: pieces[..1].to_vec(), len: 1 }),
    ];
    let delta = Delta::new(changes.map(|(key, op)| KeyChange { key, writer, op }).to_vec());
    trial.store().await.commit(trial.on(id, 1, delta.clone())).await.expect("committed");
    let found = trial.store().await.state(id, 2).await.expect("a state");
    assert_eq!(found, image([&set("step", "1"), &delta]));
}

async fn a_fork_shares_its_origins_state_and_goes_its_own_way(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 3).await;
    let mut new = trial.execution("b");
    let (fork, origin) = (new.id, Origin { execution_id: id, seq: 2 });
    new.origin = Some(origin);
    let mut first = trial.checkpoint(set("forked", "yes"));
    first.cause = Cause::Fork { origin };
    let record = trial.store().await.create(new, first).await.expect("forked");
    assert_eq!((record.seq, record.parent), (1, None));
    trial.store().await.commit(trial.on(fork, 1, append("step", 1, "b"))).await.expect("on the fork");
    trial.store().await.commit(trial.on(id, 3, set("step", "4"))).await.expect("on the origin");

    let store = trial.store().await;
    assert_eq!(store.require(fork).await.expect("the fork").origin, Some(origin));
    let deltas = [set("step", "2"), set("forked", "yes"), append("step", 1, "b")];
    assert_eq!(store.state(fork, 1).await.expect("a state"), image(&deltas[..2]));
    assert_eq!(store.state(fork, 2).await.expect("a state"), image(&deltas));
    assert_eq!(step(&*store, id, 4).await.expect("a state"), "4");
    assert_eq!((seqs(&*store, fork).await, seqs(&*store, id).await), (vec![2, 1], vec![4, 3, 2, 1]));
}

async fn a_fork_of_what_is_not_there_is_refused(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 3).await;
    let store = trial.store().await;
    store.prune(id, 1).await.expect("pruned");
    let nobody = trial.clock.new_id();
    let mut results = Vec::new();
    for origin in [(nobody, 1), (id, 0), (id, 4), (id, 1)] {
        let mut new = trial.execution("fork");
        new.origin = Some(Origin { execution_id: origin.0, seq: origin.1 });
        results.push(store.create(new, trial.checkpoint(Delta::default())).await);
    }
    assert_refused!(&results[0], StoreError::NoExecution(unknown) if *unknown == nobody);
    assert_refused!(&results[1], StoreError::NoPoint { seq: 0, head: 3, .. });
    assert_refused!(&results[2], StoreError::NoPoint { seq: 4, head: 3, .. });
    assert_refused!(&results[3], StoreError::Pruned { seq: 1, .. });
    assert_eq!(store.executions(&Default::default()).await.expect("a list").len(), 1);
}

async fn operations_are_numbered_and_say_where_the_head_was(trial: Trial) {
    let (id, other) = (trial.begin("a").await, trial.begin("b").await);
    trial.advance(id, 3).await;
    let commands = [(3, Cause::Rollback { to: 1 }, "rollback @1"), (4, Cause::Undo { operation: 1 }, "undo")];
    for (head, cause, command) in &commands {
        let mut commit = trial.on(id, *head, set("step", "x"));
        commit.checkpoint.created_at = trial.odd_instant();
        commit.checkpoint.cause = cause.clone();
        commit.checkpoint.operation = Some(operation(command));
        trial.store().await.commit(commit).await.expect("committed");
    }
    let mut commit = trial.on(other, 1, set("step", "x"));
    commit.checkpoint.operation = Some(operation("edit"));
    trial.store().await.commit(commit).await.expect("committed");

    let store = trial.store().await;
    let log = store.operations(id).await.expect("a log");
    let expected = |number, (head, cause, command): &(u64, Cause, &str)| OperationRecord {
        number,
        at: trial.odd_instant(),
        who: "ann".to_owned(),
        command: (*command).to_owned(),
        cause: cause.clone(),
        before: *head,
        after: head + 1,
    };
    assert_eq!(log, [expected(2, &commands[1]), expected(1, &commands[0])]);
    assert_eq!(store.operations(other).await.expect("a log")[0].number, 1);
}

async fn an_operation_without_a_checkpoint_stands_in_the_log_and_moves_no_head(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 3).await;
    let note = |cause| Note { at: trial.odd_instant(), cause, operation: operation("prune") };
    let store = trial.store().await;
    let lease = store.lease(id, std::time::Duration::from_secs(30)).await.expect("a lease");
    let first = store.note(id, note(Cause::Prune { removed: 2 })).await.expect("noted");
    let second = store.note(id, note(Cause::Prune { removed: 1 })).await.expect("noted");
    store.release(&lease).await.expect("released");
    assert_eq!((first.number, first.before, first.after), (1, 3, 3));
    assert_eq!((second.number, &second.cause), (2, &Cause::Prune { removed: 1 }));
    assert_eq!(trial.store().await.operations(id).await.expect("a log"), [second, first]);
    assert_eq!(trial.store().await.require(id).await.expect("a record").head, 3);
    let nobody = Uuid::from_u128(404);
    assert_refused!(&store.note(nobody, note(Cause::Prune { removed: 1 })).await, StoreError::NoExecution(_));
}

async fn what_an_execution_has_cost_stands_in_its_record(trial: Trial) {
    let id = trial.begin("a").await;
    let paid = Cost { known_usd: 0.1 + 0.2, priced: 2, unpriced: 1, tokens: 70, duration_ms: 9 };
    let spend = Spend { paid, reused: Cost { known_usd: 1e-9, priced: 1, ..Cost::default() } };
    let mut commit = trial.on(id, 1, set("step", "2"));
    commit.checkpoint.spend = spend;
    trial.store().await.commit(commit).await.expect("committed");
    assert_eq!(trial.store().await.require(id).await.expect("a record").spend, spend);
    let listed = trial.store().await.executions(&Default::default()).await.expect("a list");
    assert_eq!(listed[0].spend, spend);
    assert_eq!(history(&*trial.store().await, id).await[0].spend, spend);
}

async fn many_executions_can_be_advanced_at_once(trial: Trial) {
    const STEPS: u64 = 5;
    let trial = Arc::new(trial);
    let store = trial.store().await;
    let mut ids = Vec::new();
    for writer in 0..WRITERS {
        ids.push(trial.begin(&format!("run {writer}")).await);
    }
    let writers: Vec<_> = ids
        .iter()
        .map(|&id| {
            let (trial, store) = (Arc::clone(&trial), Arc::clone(&store));
            tokio::spawn(async move {
                for head in 1..STEPS {
                    let delta = set("step", &format!("{id} {}", head + 1));
                    store.commit(trial.on(id, head, delta)).await.expect("committed");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    let store = trial.store().await;
    for id in ids {
        assert_eq!(head(&*store, id).await, STEPS);
        for seq in 2..=STEPS {
            assert_eq!(step(&*store, id, seq).await.expect("a state"), format!("{id} {seq}"));
        }
    }
    assert_eq!(store.check().await.expect("a report").problems, Vec::<String>::new());
}

async fn of_many_commits_on_one_head_exactly_one_wins(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    for head in 1..4 {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut commit = trial.on(id, head, set("step", &writer.to_string()));
                commit.checkpoint.label = Some(writer.to_string());
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.commit(commit).await })
            })
            .collect();
        let mut won = Vec::new();
        for writer in writers {
            match writer.await.expect("a writer") {
                Ok(record) => won.push(record),
                Err(error) => assert!(
                    matches!(&error, StoreError::Conflict(Conflict::HeadMoved { expected, found, .. })
                        if *expected == head && *found == head + 1),
                    "{error:?}"
                ),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(won[0].seq, head + 1);
        let found = step(&*store, id, head + 1).await.expect("the winner's state");
        assert_eq!(won[0].label, Some(found));
    }
    assert_eq!(seqs(&*trial.store().await, id).await, [4, 3, 2, 1]);
}

async fn of_many_creations_under_one_name_exactly_one_wins(trial: Trial) {
    let store = trial.store().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (new, first) = (trial.execution("a"), trial.checkpoint(set("step", "1")));
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.create(new, first).await })
        })
        .collect();
    let mut won = BTreeSet::new();
    for writer in writers {
        match writer.await.expect("a writer") {
            Ok(record) => assert!(won.insert(record.execution_id)),
            Err(error) => {
                assert!(matches!(&error, StoreError::Conflict(Conflict::NameTaken(_))), "{error:?}");
            }
        }
    }
    let listed = trial.store().await.executions(&Default::default()).await.expect("a list");
    assert_eq!(listed.iter().map(|record| record.id).collect::<BTreeSet<_>>(), won);
    assert_eq!(won.len(), 1);
}
