//! Histories that move from one store to another.

use std::time::Duration;

use uuid::Uuid;

use super::cases;
use super::trial::{
    Trial, WORKFLOW, append, assert_refused, head, history, image, operation, remove, seqs, set, step,
};
use crate::clock::Clock;
use crate::execution::{Cost, ExecutionId, ExecutionState, Spend};
use crate::store::{
    Cause, CheckpointRecord, Commit, Conflict, Delta, ExecutionFilter, History, KeptWorkflow, MemoryStore,
    NewWorkflow, Note, Origin, Request, Seq, Store, StoreError, StoreExt,
};

cases![
    a_history_comes_back_as_it_was_in_the_store_it_left,
    a_history_moves_to_another_store_and_back,
    a_fork_moves_without_its_origin,
    branches_whose_root_was_pruned_move_by_what_they_differ_in,
    exporting_twice_gives_the_same_and_changes_nothing,
    an_imported_execution_goes_on_like_any_other,
    what_is_taken_is_refused_and_nothing_is_left_behind,
    what_is_no_whole_history_is_refused_by_its_path,
    leases_and_requests_stay_behind,
];

const EDITED: Uuid = Uuid::from_u128(77);

/// Makes a history into one that no store ever had.
type Change = fn(&mut History);

/// Makes an execution with labels, a rollback, an undo, another workflow, compressed points, a point without changes, and
/// gaps where points were pruned. Its head is `@13`.
async fn furnish(trial: &Trial, store: &dyn Store) -> ExecutionId {
    let mut new = trial.execution("brave-otter");
    new.definition = b"nodes: []".to_vec();
    let id = new.id;
    let mut first = trial.checkpoint(set("step", "1"));
    first.created_at = trial.odd_instant();
    store.create(new, first).await.expect("created");
    let mut commits: Vec<Commit> =
        (1..7).map(|head| trial.on(id, head, set("step", &(head + 1).to_string()))).collect();
    commits[1].checkpoint.delta = set("log", &"a long line of otters ".repeat(60));
    commits[1].checkpoint.compress = true;
    commits[2].checkpoint.label = Some("good".to_owned());
    commits[3].checkpoint.delta = append("log", 22 * 60, &"and more of them ".repeat(60));
    commits[3].checkpoint.compress = true;
    commits[5].checkpoint.workflow =
        Some(NewWorkflow { id: EDITED, name: "edited".to_owned(), definition: b"nodes: [a]".to_vec() });
    // @8 goes back to @3, @9 takes that back, @10 changes nothing.
    let mut back = trial.on(id, 7, set("note", "once more"));
    back.checkpoint.parent = Some(3);
    back.checkpoint.cause = Cause::Rollback { to: 3 };
    back.checkpoint.operation = Some(operation("rollback"));
    commits.push(back);
    let mut undo = trial.on(id, 8, Delta::default());
    undo.checkpoint.parent = Some(7);
    undo.checkpoint.cause = Cause::Undo { operation: 1 };
    undo.checkpoint.operation = Some(operation("undo"));
    commits.push(undo);
    commits.push(trial.on(id, 9, Delta::default()));
    commits.push(trial.on(id, 10, remove("note")));
    let mut paid = trial.on(id, 11, set("paid", "yes"));
    paid.checkpoint.nodes = vec!["plan".to_owned(), "a \"b\"".to_owned()];
    paid.checkpoint.completed_node_count = 2;
    commits.push(paid);
    let mut last = trial.on(id, 12, append("log", 39 * 60, "!"));
    last.checkpoint.state = ExecutionState::Failed("it \u{1f9a6} broke".to_owned());
    last.checkpoint.spend = Spend {
        paid: Cost { known_usd: 0.1 + 0.2, priced: 1, unpriced: 2, tokens: u64::MAX >> 1, duration_ms: 4 },
        reused: Cost::default(),
    };
    commits.push(last);
    for commit in commits {
        trial.clock.advance(Duration::from_secs(1));
        store.commit(commit).await.expect("committed");
    }
    let cause = Cause::Prune { removed: 4 };
    let note = Note { at: trial.odd_instant(), cause, operation: operation("prune") };
    store.note(id, note).await.expect("noted");
    store.prune(id, 7).await.expect("pruned");
    assert_eq!(seqs(store, id).await, [13, 12, 11, 10, 9, 8, 7, 4]);
    id
}

/// Asserts that two stores say the same of an execution. How many bytes it takes is each store's own.
async fn assert_same(one: &dyn Store, other: &dyn Store, id: ExecutionId) {
    let told = async |store: &dyn Store| {
        let points = history(store, id).await.into_iter();
        let points: Vec<CheckpointRecord> =
            points.map(|record| CheckpointRecord { size_bytes: 0, compressed: false, ..record }).collect();
        let mut definitions = Vec::new();
        for workflow in points.iter().map(|record| record.workflow_id) {
            definitions.push(store.workflow(workflow).await.expect("a look"));
        }
        let operations = store.operations(id).await.expect("a log");
        (store.require(id).await.expect("the execution"), points, definitions, operations)
    };
    assert_eq!(told(one).await, told(other).await);
    for seq in seqs(one, id).await {
        let states =
            [one.state(id, seq).await, other.state(id, seq).await].map(|state| state.expect("a state"));
        assert_eq!(states[0], states[1], "the state of @{seq}");
    }
    for store in [one, other] {
        assert_eq!(store.check().await.expect("a report").problems, Vec::<String>::new());
    }
}

async fn export(store: &dyn Store, id: ExecutionId) -> History {
    let history = store.export(id).await.expect("a history");
    history.states().expect("what is exported can be imported");
    history
}

async fn a_history_comes_back_as_it_was_in_the_store_it_left(trial: Trial) {
    let id = furnish(&trial, &*trial.store().await).await;
    let before = export(&*trial.store().await, id).await;
    let elsewhere = MemoryStore::new();
    elsewhere.import(before.clone()).await.expect("imported");

    trial.store().await.delete(id).await.expect("deleted");
    trial.store().await.compact().await.expect("compacted");
    trial.store().await.import(before.clone()).await.expect("imported");
    assert_same(&*trial.store().await, &elsewhere, id).await;
    let after = export(&*trial.store().await, id).await;
    let compressed = |history: &History| -> Vec<Seq> {
        history.points.iter().filter(|point| point.record.compressed).map(|point| point.record.seq).collect()
    };
    assert_eq!(compressed(&after), compressed(&before));
    let said = |history: History| -> Vec<_> {
        history.points.into_iter().map(|point| (point.record.seq, point.base, point.delta)).collect()
    };
    assert_eq!(said(after), said(before));
}

async fn a_history_moves_to_another_store_and_back(trial: Trial) {
    let elsewhere = MemoryStore::new();
    let id = furnish(&trial, &elsewhere).await;
    let there = export(&elsewhere, id).await;
    trial.store().await.import(there).await.expect("imported");
    assert_same(&elsewhere, &*trial.store().await, id).await;

    let record = trial.store().await.require(id).await.expect("the execution");
    assert_eq!((record.head, record.workflow_id, &record.leased_by), (13, EDITED, &None));
    let filter = ExecutionFilter { address: Some("brave-otter".to_owned()), ..ExecutionFilter::default() };
    assert_eq!(trial.store().await.executions(&filter).await.expect("a list"), [record]);
    assert_refused!(trial.store().await.state(id, 5).await, StoreError::Pruned { seq: 5, .. });

    let back = MemoryStore::new();
    back.import(export(&*trial.store().await, id).await).await.expect("imported");
    assert_same(&elsewhere, &back, id).await;
}

async fn a_fork_moves_without_its_origin(trial: Trial) {
    let origin = trial.begin("origin").await;
    trial.advance(origin, 5).await;
    let mut new = trial.execution("fork");
    new.origin = Some(Origin { execution_id: origin, seq: 3 });
    let fork = new.id;
    trial.store().await.create(new.clone(), trial.checkpoint(Delta::default())).await.expect("forked");
    trial.store().await.commit(trial.on(fork, 1, append("step", 1, "+"))).await.expect("committed");
    let elsewhere = MemoryStore::new();
    elsewhere.import(export(&*trial.store().await, fork).await).await.expect("imported");
    assert_same(&*trial.store().await, &elsewhere, fork).await;
    assert_eq!(elsewhere.require(fork).await.expect("the fork").origin, new.origin);

    trial.store().await.delete(origin).await.expect("deleted");
    trial.store().await.prune(fork, 1).await.expect("pruned");
    let moved = export(&*trial.store().await, fork).await;
    trial.store().await.delete(fork).await.expect("deleted");
    trial.store().await.import(moved).await.expect("imported");
    assert_eq!(step(&*trial.store().await, fork, 2).await.expect("a state"), "3+");
    assert_eq!(history(&*trial.store().await, fork).await[0].parent, Some(1));
}

async fn branches_whose_root_was_pruned_move_by_what_they_differ_in(trial: Trial) {
    let id = trial.begin("a").await;
    let words = "otter ".repeat(2_000);
    trial.store().await.commit(trial.on(id, 1, set("log", &words))).await.expect("committed");
    for (head, delta) in [(2, append("log", words.len(), "one")), (3, append("log", words.len(), "two"))] {
        let mut branch = trial.on(id, head, delta);
        branch.checkpoint.parent = Some(2);
        trial.store().await.commit(branch).await.expect("committed");
    }
    trial.store().await.prune(id, 2).await.expect("pruned");
    let moved = export(&*trial.store().await, id).await;
    let sizes: Vec<usize> = moved.points.iter().map(|point| point.delta.encode().len()).collect();
    let bases: Vec<Option<Seq>> = moved.points.iter().map(|point| point.base).collect();
    assert_eq!(bases, [None, Some(3)]);
    assert!(sizes[0] > words.len() && sizes[1] < words.len() + 1_000, "{sizes:?}");
    trial.store().await.delete(id).await.expect("deleted");
    trial.store().await.import(moved).await.expect("imported");
    let state = trial.store().await.state(id, 4).await.expect("a state");
    let expected = image([&set("step", "1"), &set("log", &words), &append("log", words.len(), "two")]);
    assert_eq!(super::trial::text(&state, "log"), super::trial::text(&expected, "log"));
}

async fn exporting_twice_gives_the_same_and_changes_nothing(trial: Trial) {
    let id = furnish(&trial, &*trial.store().await).await;
    let report = trial.store().await.check().await.expect("a report");
    let once = export(&*trial.store().await, id).await;
    assert_eq!(export(&*trial.store().await, id).await, once);
    assert_eq!(trial.store().await.check().await.expect("a report"), report);
    let nobody = Uuid::from_u128(4);
    assert_refused!(trial.store().await.export(nobody).await, StoreError::NoExecution(id) if *id == nobody);
}

async fn an_imported_execution_goes_on_like_any_other(trial: Trial) {
    let elsewhere = MemoryStore::new();
    let id = furnish(&trial, &elsewhere).await;
    trial.store().await.import(export(&elsewhere, id).await).await.expect("imported");
    let store = trial.store().await;
    store.commit(trial.on(id, 13, set("step", "14"))).await.expect("committed");
    let mut back = trial.on(id, 14, Delta::default());
    back.checkpoint.parent = Some(8);
    back.checkpoint.operation = Some(operation("rollback"));
    store.commit(back).await.expect("a rollback");
    let operations = trial.store().await.operations(id).await.expect("a log");
    assert_eq!((operations[0].number, operations[0].before, operations[0].after), (4, 14, 15));
    let state = async |seq| trial.store().await.state(id, seq).await.expect("a state");
    assert_eq!(state(15).await, state(8).await);

    let mut fork = trial.execution("fork");
    fork.origin = Some(Origin { execution_id: id, seq: 9 });
    let fork_id = fork.id;
    store.create(fork, trial.checkpoint(Delta::default())).await.expect("forked");
    assert_eq!(trial.store().await.prune(id, 1).await.expect("pruned"), 8);
    trial.store().await.compact().await.expect("compacted");
    assert_eq!(seqs(&*trial.store().await, id).await, [15, 4]);
    trial.store().await.delete(id).await.expect("deleted");
    assert_eq!(step(&*trial.store().await, fork_id, 1).await.expect("a state"), "7");
    assert_eq!(trial.store().await.check().await.expect("a report").problems, Vec::<String>::new());
}

async fn what_is_taken_is_refused_and_nothing_is_left_behind(trial: Trial) {
    let id = furnish(&trial, &*trial.store().await).await;
    let report = trial.store().await.check().await.expect("a report");
    let whole = export(&*trial.store().await, id).await;
    assert_refused!(
        trial.store().await.import(whole.clone()).await,
        StoreError::Conflict(Conflict::IdTaken(taken)) if *taken == id
    );
    let other = Uuid::from_u128(9);
    let mut renumbered = whole.clone();
    renumbered.execution.id = other;
    renumbered.points.iter_mut().for_each(|point| point.record.execution_id = other);
    assert_refused!(
        trial.store().await.import(renumbered.clone()).await,
        StoreError::Conflict(Conflict::NameTaken(name)) if name == "brave-otter"
    );
    renumbered.execution.name = "another".to_owned();
    renumbered.workflows.push(KeptWorkflow { id: Uuid::from_u128(90), definition: b"new".to_vec() });
    let first_free = trial.clock.new_id();
    renumbered.points[0].record.id = first_free;
    let taken = whole.points[1].record.id;
    assert_refused!(
        trial.store().await.import(renumbered).await,
        StoreError::Conflict(Conflict::IdTaken(id)) if *id == taken
    );
    let store = trial.store().await;
    assert_eq!(store.execution(other).await.expect("a look"), None);
    assert_eq!(store.checkpoint(first_free).await.expect("a look"), None);
    assert_eq!(store.workflow(Uuid::from_u128(90)).await.expect("a look"), None);
    assert_eq!(store.check().await.expect("a report"), report);
    assert_eq!(export(&*store, id).await, whole);
}

async fn what_is_no_whole_history_is_refused_by_its_path(trial: Trial) {
    let elsewhere = MemoryStore::new();
    let id = furnish(&trial, &elsewhere).await;
    let whole = export(&elsewhere, id).await;
    let changes: [(&str, Change); 17] = [
        ("the points", |history| history.points.clear()),
        ("the head", |history| history.execution.head = 14),
        ("the head", |history| drop(history.points.pop())),
        ("the execution", |history| history.execution.state = ExecutionState::Completed),
        ("the execution", |history| history.execution.workflow_id = WORKFLOW),
        ("point @4", |history| history.points.swap(0, 1)),
        ("point @7", |history| history.points[1].base = Some(5)),
        ("point @7", |history| history.points[1].base = Some(8)),
        ("point @7", |history| history.points[1].record.parent = Some(7)),
        ("point @7", |history| history.points[1].record.execution_id = Uuid::from_u128(9)),
        ("point @7", |history| history.points[1].record.id = history.points[0].record.id),
        ("point @4", |history| drop(history.workflows.remove(1))),
        ("workflow 00000000-0000-0000-0000-00000000004d", |history| {
            history.workflows.push(history.workflows[0].clone());
        }),
        ("point @7", |history| history.points[1].delta = append("log", 3, "?")),
        ("operation 2", |history| history.operations.swap(0, 1)),
        ("operation 2", |history| drop(history.operations.remove(0))),
        ("operation 2", |history| history.operations[1].after = 14),
    ];
    for (expected, change) in changes {
        let mut odd = whole.clone();
        change(&mut odd);
        assert_refused!(
            trial.store().await.import(odd).await,
            StoreError::Unstorable { path, .. } if path == expected
        );
    }
    let store = trial.store().await;
    assert_eq!(store.execution(id).await.expect("a look"), None);
    assert_eq!(store.check().await.expect("a report"), Default::default());
    store.import(whole).await.expect("what was not changed is still taken");
}

async fn leases_and_requests_stay_behind(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    store.lease(id, Duration::from_secs(60)).await.expect("a lease");
    let second = {
        trial.pass(Duration::from_secs(61)).await;
        store.lease(id, Duration::from_secs(60)).await.expect("another lease")
    };
    let request =
        Request { id: trial.clock.new_id(), ask: crate::store::Ask::Pause, operation: operation("pause") };
    store.ask(id, request).await.expect("asked");
    let moved = export(&*store, id).await;
    assert_eq!((second.fence, moved.execution.leased_by.as_deref()), (2, None));
    store.release(&second).await.expect("released");
    store.delete(id).await.expect("deleted");
    trial.store().await.import(moved).await.expect("imported");
    let store = trial.store().await;
    assert_eq!(store.requests(id).await.expect("requests"), []);
    assert_eq!(head(&*store, id).await, 1);
    assert_eq!(store.lease(id, Duration::from_secs(60)).await.expect("a lease").fence, 1);
}
