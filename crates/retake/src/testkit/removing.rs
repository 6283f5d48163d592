//! Pruning, deleting, and a store's look at itself.

use super::cases;
use super::trial::{Trial, append, assert_refused, head, history, image, operation, seqs, set, step};
use crate::store::{Cause, Delta, Origin, Report, StoreError};

cases![
    pruning_keeps_the_newest_and_what_has_a_label,
    pruning_to_nothing_keeps_the_head,
    states_that_stay_read_as_before_when_others_go,
    pruning_leaves_the_operation_log_whole,
    an_execution_goes_on_after_it_was_pruned,
    a_deleted_execution_is_gone_and_its_name_is_free,
    a_fork_stays_whole_when_its_origin_goes,
    a_sound_store_has_no_problems_and_counts_what_it_holds,
    compacting_keeps_all_that_is_there,
];

async fn pruning_keeps_the_newest_and_what_has_a_label(trial: Trial) {
    let (id, other) = (trial.begin("a").await, trial.begin("b").await);
    trial.advance(other, 4).await;
    for head in 1..8 {
        let mut commit = trial.on(id, head, set("step", &(head + 1).to_string()));
        // The same label twice is no reason to refuse: a label is a name to find points by.
        commit.checkpoint.label = [2, 3].contains(&head).then(|| "keep".to_owned());
        trial.store().await.commit(commit).await.expect("committed");
    }
    let gone = history(&*trial.store().await, id).await[7].id;
    assert_eq!(trial.store().await.prune(id, 3).await.expect("pruned"), 3);
    let store = trial.store().await;
    assert_eq!(seqs(&*store, id).await, [8, 7, 6, 4, 3]);
    assert_eq!(store.prune(id, 3).await.expect("pruned"), 0, "the second time there is nothing to do");
    assert_eq!(store.checkpoint(gone).await.expect("a look"), None);
    for seq in [1, 2, 5] {
        assert_refused!(
            store.state(id, seq).await,
            StoreError::Pruned { execution, seq: pruned } if *execution == id && *pruned == seq
        );
    }
    for seq in [3, 4, 6, 7, 8] {
        assert_eq!(step(&*store, id, seq).await.expect("a state"), seq.to_string());
    }
    assert_eq!(seqs(&*store, other).await, [4, 3, 2, 1]);
    assert_eq!(store.prune(id, usize::MAX).await.expect("pruned"), 0);
}

async fn pruning_to_nothing_keeps_the_head(trial: Trial) {
    let id = trial.begin("a").await;
    assert_eq!(trial.store().await.prune(id, 0).await.expect("pruned"), 0);
    trial.advance(id, 3).await;
    assert_eq!(trial.store().await.prune(id, 0).await.expect("pruned"), 2);
    let store = trial.store().await;
    assert_eq!(seqs(&*store, id).await, [3]);
    assert_eq!(history(&*store, id).await[0].parent, Some(2), "it is still known what preceded it");
    assert_eq!(step(&*store, id, 3).await.expect("the head"), "3");
}

async fn states_that_stay_read_as_before_when_others_go(trial: Trial) {
    let id = trial.begin("a").await;
    let mut deltas = vec![set("step", "1"), set("log", "")];
    let mut length = 0;
    for round in 0..30 {
        let words = format!("line {round} {}\n", "word ".repeat(round * 7));
        deltas.push(append("log", length, &words));
        length += words.len();
    }
    let last = deltas.len() as u64;
    for (delta, head) in deltas[1..].iter().zip(1..) {
        let mut commit = trial.on(id, head, delta.clone());
        commit.checkpoint.label = (head % 10 == 0).then(|| format!("at {head}"));
        trial.store().await.commit(commit).await.expect("committed");
    }
    let mut back = trial.on(id, last, set("back", "yes"));
    back.checkpoint.parent = Some(6);
    trial.store().await.commit(back).await.expect("a rollback");
    for keep in [12, 5, 1] {
        trial.store().await.prune(id, keep).await.expect("pruned");
        let store = trial.store().await;
        for seq in seqs(&*store, id).await {
            let expected = match usize::try_from(seq).expect("a small number") {
                seq if seq <= deltas.len() => image(&deltas[..seq]),
                _ => image(deltas[..6].iter().chain([&set("back", "yes")])),
            };
            assert_eq!(store.state(id, seq).await.expect("a state"), expected, "@{seq}, {keep} kept");
        }
    }
    assert_eq!(seqs(&*trial.store().await, id).await, [last + 1, 31, 21, 11]);
}

async fn pruning_leaves_the_operation_log_whole(trial: Trial) {
    let id = trial.begin("a").await;
    for head in 1..4 {
        let mut commit = trial.on(id, head, set("step", "x"));
        commit.checkpoint.operation = Some(operation("edit"));
        commit.checkpoint.cause = Cause::Edit;
        trial.store().await.commit(commit).await.expect("committed");
    }
    let before = trial.store().await.operations(id).await.expect("a log");
    assert_eq!(before.iter().map(|entry| entry.number).collect::<Vec<_>>(), [3, 2, 1]);
    trial.store().await.prune(id, 1).await.expect("pruned");
    trial.store().await.compact().await.expect("compacted");
    assert_eq!(trial.store().await.operations(id).await.expect("a log"), before);
}

async fn an_execution_goes_on_after_it_was_pruned(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 5).await;
    trial.store().await.prune(id, 1).await.expect("pruned");
    trial.store().await.commit(trial.on(id, 5, append("step", 1, "+"))).await.expect("committed");
    trial.advance(id, 8).await;
    let store = trial.store().await;
    assert_eq!(seqs(&*store, id).await, [8, 7, 6, 5]);
    assert_eq!(step(&*store, id, 6).await.expect("a state"), "5+");
    assert_eq!(head(&*store, id).await, 8);
}

async fn a_deleted_execution_is_gone_and_its_name_is_free(trial: Trial) {
    let (id, other) = (trial.begin("a").await, trial.begin("b").await);
    trial.advance(id, 4).await;
    let mut commit = trial.on(id, 4, set("step", "5"));
    commit.checkpoint.label = Some("keep".to_owned());
    commit.checkpoint.operation = Some(operation("edit"));
    let checkpoint_id = commit.checkpoint.id;
    trial.store().await.commit(commit).await.expect("committed");
    trial.store().await.prune(id, 2).await.expect("pruned");

    assert_eq!(trial.store().await.delete(id).await.expect("deleted"), 2);
    let store = trial.store().await;
    assert_eq!(store.delete(id).await.expect("deleted"), 0);
    assert_eq!(store.execution(id).await.expect("a look"), None);
    assert_eq!(store.checkpoint(checkpoint_id).await.expect("a look"), None);
    assert_eq!(history(&*store, id).await, []);
    assert_eq!(store.operations(id).await.expect("a log"), []);
    assert_refused!(store.state(id, 5).await, StoreError::NoExecution(gone) if *gone == id);
    assert_eq!(seqs(&*store, other).await, [1]);

    let mut again = trial.execution("a");
    again.id = id;
    store.create(again, trial.checkpoint(set("step", "anew"))).await.expect("name and id are free");
    let store = trial.store().await;
    assert_eq!(step(&*store, id, 1).await.expect("a state"), "anew");
    assert_eq!(seqs(&*store, id).await, [1]);
    assert_eq!(store.operations(id).await.expect("a log"), []);
}

async fn a_fork_stays_whole_when_its_origin_goes(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 5).await;
    let mut forks = Vec::new();
    for (name, seq) in [("early", 2), ("late", 5)] {
        let mut new = trial.execution(name);
        new.origin = Some(Origin { execution_id: id, seq });
        forks.push((new.id, seq));
        trial.store().await.create(new, trial.checkpoint(Delta::default())).await.expect("forked");
    }
    let mut grandchild = trial.execution("grandchild");
    grandchild.origin = Some(Origin { execution_id: forks[0].0, seq: 1 });
    forks.push((grandchild.id, 2));
    trial.store().await.create(grandchild, trial.checkpoint(Delta::default())).await.expect("forked");

    trial.store().await.prune(id, 1).await.expect("pruned");
    trial.store().await.compact().await.expect("compacted");
    trial.store().await.delete(id).await.expect("deleted");
    trial.store().await.compact().await.expect("compacted");
    for (fork, seq) in forks {
        let store = trial.store().await;
        assert_eq!(step(&*store, fork, 1).await.expect("a state"), seq.to_string());
        store.commit(trial.on(fork, 1, append("step", 1, "+"))).await.expect("committed");
        assert_eq!(step(&*trial.store().await, fork, 2).await.expect("a state"), format!("{seq}+"));
    }
    assert_eq!(trial.store().await.check().await.expect("a report").problems, Vec::<String>::new());
}

async fn a_sound_store_has_no_problems_and_counts_what_it_holds(trial: Trial) {
    assert_eq!(trial.store().await.check().await.expect("a report").problems, Vec::<String>::new());
    let (one, two) = (trial.begin("a").await, trial.begin("b").await);
    trial.advance(one, 4).await;
    trial.advance(two, 6).await;
    let mut back = trial.on(two, 6, Delta::default());
    back.checkpoint.parent = Some(2);
    trial.store().await.commit(back).await.expect("a rollback");
    trial.store().await.prune(two, 3).await.expect("pruned");
    let Report { executions, checkpoints, bytes, problems } =
        trial.store().await.check().await.expect("a report");
    assert_eq!((executions, checkpoints, problems), (2, 7, Vec::new()));
    assert!(bytes > 0);
}

async fn compacting_keeps_all_that_is_there(trial: Trial) {
    let (one, two) = (trial.begin("a").await, trial.begin("b").await);
    trial.advance(one, 40).await;
    trial.advance(two, 3).await;
    let store = trial.store().await;
    store.prune(one, 5).await.expect("pruned");
    let before = (history(&*store, one).await, history(&*store, two).await);
    store.compact().await.expect("compacted");
    let store = trial.store().await;
    assert_eq!((history(&*store, one).await, history(&*store, two).await), before);
    for seq in 36..=40 {
        assert_eq!(step(&*store, one, seq).await.expect("a state"), seq.to_string());
    }
    trial.advance(two, 5).await;
    assert_eq!(step(&*trial.store().await, two, 5).await.expect("a state"), "5");
}
