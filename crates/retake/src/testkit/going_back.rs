//! Points that follow another one than the head, or start from the state of another one than they follow.

use super::cases;
use super::trial::{Trial, append, assert_refused, history, image, seqs, set, step, text};
use crate::execution::ExecutionId;
use crate::store::{Commit, Delta, Image, Origin, Seq, StoreError};

cases![
    a_commit_on_an_older_parent_goes_back_and_appends,
    a_parent_that_is_not_there_is_refused,
    a_delta_starts_from_its_base_and_its_point_stands_after_its_parent,
    a_base_that_is_not_there_is_refused,
    states_stay_whichever_of_parent_and_base_goes_first,
];

async fn a_commit_on_an_older_parent_goes_back_and_appends(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 4).await;
    let mut back = trial.on(id, 4, Delta::default());
    back.checkpoint.parent = Some(2);
    let record = trial.store().await.commit(back).await.expect("a rollback");
    assert_eq!((record.seq, record.parent), (5, Some(2)));
    let mut partly = trial.on(id, 5, set("other", "kept"));
    partly.checkpoint.parent = Some(3);
    trial.store().await.commit(partly).await.expect("another rollback");
    trial.store().await.commit(trial.on(id, 6, append("step", 1, "+"))).await.expect("on the head again");

    let store = trial.store().await;
    assert_eq!(seqs(&*store, id).await, [7, 6, 5, 4, 3, 2, 1]);
    let parents: Vec<_> = history(&*store, id).await.iter().map(|record| record.parent).collect();
    assert_eq!(parents, [Some(6), Some(3), Some(2), Some(3), Some(2), Some(1), None]);
    let mut steps = Vec::new();
    for seq in 1..=7 {
        steps.push(step(&*store, id, seq).await.expect("a state"));
    }
    assert_eq!(steps, ["1", "2", "3", "4", "2", "3", "3+"]);
    assert_eq!(text(&store.state(id, 7).await.expect("a state"), "other").as_deref(), Some("kept"));
    assert_eq!(text(&store.state(id, 5).await.expect("a state"), "other"), None);
}

async fn a_parent_that_is_not_there_is_refused(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 4).await;
    let store = trial.store().await;
    assert_eq!(store.prune(id, 2).await.expect("pruned"), 2);
    let with_parent = |parent| {
        let mut commit = trial.on(id, 4, Delta::default());
        commit.checkpoint.parent = Some(parent);
        commit
    };
    for beyond in [0, 5] {
        let refused = store.commit(with_parent(beyond)).await;
        assert_refused!(refused, StoreError::NoPoint { seq, head: 4, .. } if *seq == beyond);
    }
    let refused = store.commit(with_parent(2)).await;
    assert_refused!(refused, StoreError::Pruned { execution, seq: 2 } if *execution == id);
    assert_eq!(seqs(&*store, id).await, [4, 3]);
    let mut first = trial.checkpoint(set("step", "1"));
    first.parent = Some(1);
    let refused = store.create(trial.execution("b"), first).await;
    assert_refused!(refused, StoreError::NoPoint { seq: 1, head: 0, .. });
}

/// Returns a commit on `head` that follows one point, and starts from the state of another.
fn across(trial: &Trial, id: ExecutionId, head: Seq, parent: Option<Seq>, base: Seq, delta: Delta) -> Commit {
    let mut commit = trial.on(id, head, delta);
    (commit.checkpoint.parent, commit.checkpoint.base) = (parent, Some(base));
    commit
}

async fn a_delta_starts_from_its_base_and_its_point_stands_after_its_parent(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 5).await;
    trial.store().await.commit(trial.on(id, 5, set("sibling", "kept"))).await.expect("committed");
    trial.advance(id, 8).await;
    // Back to @5 with the head's other branch, at the price of one variable.
    let back = across(&trial, id, 8, Some(5), 8, set("step", "5"));
    let record = trial.store().await.commit(back).await.expect("a rollback of one branch");
    assert_eq!((record.seq, record.parent), (9, Some(5)));
    trial.store().await.commit(trial.on(id, 9, append("step", 1, "+"))).await.expect("on the head again");
    let older = across(&trial, id, 10, None, 2, append("step", 1, " again"));
    trial.store().await.commit(older).await.expect("on the head, with an older state");
    let same = across(&trial, id, 11, Some(3), 10, Delta::default());
    trial.store().await.commit(same).await.expect("the state of @10 after @3");

    let store = trial.store().await;
    let parents: Vec<_> = history(&*store, id).await.iter().map(|record| record.parent).collect();
    assert_eq!(parents[..4], [Some(3), Some(10), Some(9), Some(5)]);
    let mut found = Vec::new();
    for seq in 8..=12 {
        let state = store.state(id, seq).await.expect("a state");
        found.push((text(&state, "step").expect("a step"), text(&state, "sibling")));
    }
    let kept = || Some("kept".to_owned());
    let expected = [("8", kept()), ("5", kept()), ("5+", kept()), ("2 again", None), ("5+", kept())];
    assert_eq!(found, expected.map(|(step, sibling)| (step.to_owned(), sibling)));
    assert_eq!(store.check().await.expect("a report").problems, Vec::<String>::new());
}

async fn a_base_that_is_not_there_is_refused(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 4).await;
    let store = trial.store().await;
    assert_eq!(store.prune(id, 2).await.expect("pruned"), 2);
    for parent in [None, Some(3)] {
        for beyond in [0, 5, Seq::MAX] {
            let refused = store.commit(across(&trial, id, 4, parent, beyond, Delta::default())).await;
            assert_refused!(refused, StoreError::NoPoint { seq, head: 4, .. } if *seq == beyond);
        }
        let refused = store.commit(across(&trial, id, 4, parent, 2, Delta::default())).await;
        assert_refused!(refused, StoreError::Pruned { execution, seq: 2 } if *execution == id);
    }
    let refused = store.commit(across(&trial, id, 4, Some(2), 4, Delta::default())).await;
    assert_refused!(refused, StoreError::Pruned { seq: 2, .. });
    let refused = store.commit(across(&trial, id, 4, Some(9), 4, Delta::default())).await;
    assert_refused!(refused, StoreError::NoPoint { seq: 9, .. });
    assert_eq!(seqs(&*store, id).await, [4, 3]);
    let mut first = trial.checkpoint(set("step", "1"));
    first.base = Some(1);
    let refused = store.create(trial.execution("b"), first).await;
    assert_refused!(refused, StoreError::NoPoint { seq: 1, head: 0, .. });
}

async fn states_stay_whichever_of_parent_and_base_goes_first(trial: Trial) {
    for (parent, base) in [(2, 4), (4, 2)] {
        for labelled in [None, Some(parent), Some(base)] {
            for compacting in [true, false] {
                let case = format!("after @{parent}, from @{base}, {labelled:?} labelled, {compacting}");
                lose_points_one_by_one(&trial, parent, base, labelled, compacting, &case).await;
            }
        }
    }
    assert_eq!(trial.store().await.check().await.expect("a report").problems, Vec::<String>::new());
}

/// Prunes a history with a point that follows `parent` and starts from `base`, one point at a time.
async fn lose_points_one_by_one(
    trial: &Trial,
    parent: Seq,
    base: Seq,
    labelled: Option<Seq>,
    compacting: bool,
    case: &str,
) {
    const ACROSS: Seq = 7;
    const LAST: Seq = 9;
    let id = trial.begin(case).await;
    let mut states: Vec<Image> = vec![image([&set("step", "1")])];
    for seq in 2..=LAST {
        let (from, text) = (if seq == ACROSS { base } else { seq - 1 }, format!(" {seq}"));
        let mut state = states[usize::try_from(from - 1).expect("a small number")].clone();
        let length = text_len(&state);
        let delta = append("step", length, &text);
        state.apply("the model", &delta).expect("a delta that fits");
        states.push(state);
        let mut commit = trial.on(id, seq - 1, delta);
        if seq == ACROSS {
            (commit.checkpoint.parent, commit.checkpoint.base) = (Some(parent), Some(base));
        }
        commit.checkpoint.label = (labelled == Some(seq)).then(|| "kept".to_owned());
        trial.store().await.commit(commit).await.expect("committed");
    }
    let store = trial.store().await;
    for keep in (1..9).rev() {
        store.prune(id, keep).await.expect("pruned");
        if compacting {
            store.compact().await.expect("compacted");
        }
        for seq in seqs(&*store, id).await {
            let expected = &states[usize::try_from(seq - 1).expect("a small number")];
            let found = store.state(id, seq).await.expect("a state");
            assert_eq!(&found, expected, "@{seq}, {keep} kept, {case}");
        }
    }
    let mut fork = trial.execution(&format!("fork of {case}"));
    let fork_id = fork.id;
    fork.origin = Some(Origin { execution_id: id, seq: LAST });
    store.create(fork, trial.checkpoint(Delta::default())).await.expect("forked");
    store.delete(id).await.expect("deleted");
    assert_eq!(&store.state(fork_id, 1).await.expect("a state"), states.last().expect("a state"), "{case}");
}

fn text_len(state: &Image) -> usize {
    text(state, "step").expect("every state has a step").len()
}
