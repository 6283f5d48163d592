//! The workflows that executions run: their definitions, how they change, and how long they stay.

use uuid::Uuid;

use super::cases;
use super::trial::{Trial, WORKFLOW, assert_refused, history, seqs, set, step};
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::{Conflict, Delta, NewExecution, NewWorkflow, Origin, Seq, Store, StoreError, StoreExt};

cases![
    a_definition_is_kept_for_its_workflow,
    a_checkpoint_changes_the_workflow_and_older_points_keep_theirs,
    a_workflow_that_a_point_comes_back_to_needs_no_definition,
    a_refused_commit_leaves_no_workflow_behind,
    the_first_checkpoint_may_name_another_workflow,
    a_definition_stays_as_long_as_an_execution_that_ever_ran_it,
    a_fork_runs_its_own_workflow_in_whatever_order_executions_go,
];

const EDITED: WorkflowId = Uuid::from_u128(77);
const FORKED: WorkflowId = Uuid::from_u128(78);

/// Returns a workflow whose definition and name tell its id.
fn workflow(id: WorkflowId) -> NewWorkflow {
    NewWorkflow { id, name: format!("article {id}"), definition: id.as_bytes().to_vec() }
}

fn running(trial: &Trial, name: &str, id: WorkflowId) -> NewExecution {
    let NewWorkflow { id: workflow_id, name: workflow_name, definition } = workflow(id);
    NewExecution { workflow_id, workflow_name, definition, ..trial.execution(name) }
}

/// Creates an execution of [`WORKFLOW`] that runs [`EDITED`] from `@4` on, and has five points.
async fn edited(trial: &Trial, name: &str) -> ExecutionId {
    let new = running(trial, name, WORKFLOW);
    let id = new.id;
    let store = trial.store().await;
    store.create(new, trial.checkpoint(set("step", "1"))).await.expect("created");
    trial.advance(id, 3).await;
    let mut edit = trial.on(id, 3, set("step", "4"));
    edit.checkpoint.workflow = Some(workflow(EDITED));
    let record = store.commit(edit).await.expect("committed");
    assert_eq!((record.seq, record.workflow_id), (4, EDITED));
    trial.advance(id, 5).await;
    id
}

/// Asserts which of the three workflows' definitions are there, after those that nobody needs have gone.
async fn assert_kept(trial: &Trial, expected: &[WorkflowId], why: &str) {
    trial.store().await.compact().await.expect("compacted");
    let store = trial.store().await;
    for id in [WORKFLOW, EDITED, FORKED] {
        let definition = expected.contains(&id).then(|| workflow(id).definition);
        assert_eq!(store.workflow(id).await.expect("a look"), definition, "workflow {id}, {why}");
    }
    assert_eq!(store.check().await.expect("a report").problems, Vec::<String>::new(), "{why}");
}

async fn runs(store: &dyn Store, id: ExecutionId) -> (WorkflowId, String) {
    let record = store.require(id).await.expect("the execution");
    (record.workflow_id, record.workflow_name)
}

async fn workflows(store: &dyn Store, id: ExecutionId) -> Vec<WorkflowId> {
    history(store, id).await.iter().map(|record| record.workflow_id).collect()
}

async fn a_definition_is_kept_for_its_workflow(trial: Trial) {
    let without = trial.execution("a");
    let mut with = trial.execution("b");
    with.definition = b"nodes: \x00\xff".to_vec();
    let mut again = trial.execution("c");
    again.definition = with.definition.clone();
    let mut other = trial.execution("d");
    other.workflow_id = Uuid::from_u128(77);
    other.definition = b"another".to_vec();
    for new in [without, with.clone(), again, other] {
        trial.store().await.create(new, trial.checkpoint(set("step", "1"))).await.expect("created");
    }
    let store = trial.store().await;
    assert_eq!(store.workflow(WORKFLOW).await.expect("a look"), Some(with.definition));
    assert_eq!(store.workflow(Uuid::from_u128(77)).await.expect("a look"), Some(b"another".to_vec()));
    assert_eq!(store.workflow(Uuid::from_u128(78)).await.expect("a look"), None);
}

async fn a_checkpoint_changes_the_workflow_and_older_points_keep_theirs(trial: Trial) {
    let (id, other) = (edited(&trial, "a").await, trial.begin("b").await);
    let store = trial.store().await;
    assert_eq!(runs(&*store, id).await, (EDITED, workflow(EDITED).name));
    assert_eq!(runs(&*store, other).await, (WORKFLOW, "article".to_owned()));
    assert_eq!(workflows(&*store, id).await, [EDITED, EDITED, WORKFLOW, WORKFLOW, WORKFLOW]);
    for record in history(&*store, id).await {
        assert_eq!(store.checkpoint(record.id).await.expect("a look"), Some(record));
    }
    assert_eq!(step(&*store, id, 4).await.expect("a state"), "4");
    let listed = store.executions(&Default::default()).await.expect("a list");
    assert_eq!(listed.iter().map(|record| record.workflow_id).collect::<Vec<_>>(), [WORKFLOW, EDITED]);
    assert_kept(&trial, &[WORKFLOW, EDITED], "both have run").await;
}

async fn a_workflow_that_a_point_comes_back_to_needs_no_definition(trial: Trial) {
    let id = edited(&trial, "a").await;
    let mut back = trial.on(id, 5, Delta::default());
    back.checkpoint.parent = Some(2);
    let before = NewWorkflow { id: WORKFLOW, name: "renamed".to_owned(), definition: Vec::new() };
    back.checkpoint.workflow = Some(before);
    trial.store().await.commit(back).await.expect("a rollback");
    trial.advance(id, 7).await;
    let store = trial.store().await;
    assert_eq!(runs(&*store, id).await, (WORKFLOW, "renamed".to_owned()));
    assert_eq!(workflows(&*store, id).await[..4], [WORKFLOW, WORKFLOW, EDITED, EDITED]);
    // A workflow that came without a definition has the first that anybody brings.
    let bare = NewWorkflow { definition: Vec::new(), ..workflow(FORKED) };
    for (workflow, head) in [(bare, 7), (workflow(FORKED), 8), (workflow(EDITED), 9)] {
        let mut edit = trial.on(id, head, Delta::default());
        edit.checkpoint.workflow = Some(workflow);
        trial.store().await.commit(edit).await.expect("committed");
    }
    assert_eq!(runs(&*trial.store().await, id).await, (EDITED, workflow(EDITED).name));
    assert_kept(&trial, &[WORKFLOW, EDITED, FORKED], "all have run").await;
}

async fn a_refused_commit_leaves_no_workflow_behind(trial: Trial) {
    let id = edited(&trial, "a").await;
    let store = trial.store().await;
    let taken = history(&*store, id).await[0].id;
    let mut late = trial.on(id, 4, Delta::default());
    let mut twice = trial.on(id, 5, Delta::default());
    twice.checkpoint.id = taken;
    for commit in [&mut late, &mut twice] {
        commit.checkpoint.workflow = Some(workflow(FORKED));
    }
    let refused = store.commit(late).await;
    assert_refused!(refused, StoreError::Conflict(Conflict::HeadMoved { found: 5, .. }));
    assert_refused!(store.commit(twice).await, StoreError::Conflict(Conflict::IdTaken(id)) if *id == taken);
    let refused = store.create(running(&trial, "a", FORKED), trial.checkpoint(Delta::default())).await;
    assert_refused!(refused, StoreError::Conflict(Conflict::NameTaken(_)));
    let store = trial.store().await;
    assert_eq!(store.workflow(FORKED).await.expect("a look"), None);
    assert_eq!(runs(&*store, id).await, (EDITED, workflow(EDITED).name));
    assert_eq!(seqs(&*store, id).await, [5, 4, 3, 2, 1]);
}

async fn the_first_checkpoint_may_name_another_workflow(trial: Trial) {
    let new = running(&trial, "a", WORKFLOW);
    let id = new.id;
    let mut first = trial.checkpoint(set("step", "1"));
    first.workflow = Some(workflow(EDITED));
    let record = trial.store().await.create(new, first).await.expect("created");
    assert_eq!(record.workflow_id, EDITED);
    let store = trial.store().await;
    assert_eq!(runs(&*store, id).await, (EDITED, workflow(EDITED).name));
    assert_eq!(history(&*store, id).await, [record]);
    assert_kept(&trial, &[WORKFLOW, EDITED], "both were named").await;
}

async fn a_definition_stays_as_long_as_an_execution_that_ever_ran_it(trial: Trial) {
    let id = edited(&trial, "a").await;
    let other = running(&trial, "b", EDITED);
    let other_id = other.id;
    trial.store().await.create(other, trial.checkpoint(set("step", "1"))).await.expect("created");

    trial.store().await.prune(id, 1).await.expect("pruned");
    assert_kept(&trial, &[WORKFLOW, EDITED], "though the points of the first have been pruned").await;
    trial.store().await.delete(id).await.expect("deleted");
    assert_kept(&trial, &[EDITED], "nobody ran the first but the one that has been deleted").await;
    trial.store().await.delete(other_id).await.expect("deleted");
    assert_kept(&trial, &[], "nobody is left").await;
    edited(&trial, "a").await;
    assert_kept(&trial, &[WORKFLOW, EDITED], "they have come back").await;
}

async fn a_fork_runs_its_own_workflow_in_whatever_order_executions_go(trial: Trial) {
    // What each one ever ran: the origin, a fork of its older point, one of its head, and one under another definition.
    let ran: [&[WorkflowId]; 4] = [&[WORKFLOW, EDITED], &[WORKFLOW], &[EDITED], &[FORKED]];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let id = edited(&trial, "origin").await;
        let mut ids = vec![id];
        let forks: [(Seq, WorkflowId); 3] = [(2, WORKFLOW), (5, EDITED), (2, FORKED)];
        for (seq, workflow_id) in forks {
            let mut new = running(&trial, &format!("fork @{seq} {workflow_id}"), workflow_id);
            new.origin = Some(Origin { execution_id: id, seq });
            if workflow_id != FORKED {
                // The store has it already.
                new.definition.clear();
            }
            ids.push(new.id);
            let first = trial.checkpoint(Delta::default());
            let record = trial.store().await.create(new, first).await.expect("forked");
            assert_eq!(record.workflow_id, workflow_id);
        }
        let store = trial.store().await;
        assert_eq!(runs(&*store, id).await.0, EDITED, "a fork leaves its origin alone");
        assert_eq!(runs(&*store, ids[1]).await, (WORKFLOW, workflow(WORKFLOW).name));
        assert_eq!(workflows(&*store, ids[3]).await, [FORKED]);
        let mut left: Vec<usize> = order.to_vec();
        for gone in order {
            trial.store().await.delete(ids[gone]).await.expect("deleted");
            left.retain(|index| *index != gone);
            let needed: Vec<WorkflowId> = left.iter().flat_map(|index| ran[*index]).copied().collect();
            assert_kept(&trial, &needed, &format!("{left:?} are left of {order:?}")).await;
        }
    }
}
