//! Listing executions and histories.

use std::time::Duration;

use super::cases;
use super::trial::{Trial, head, history, seqs, set, step};
use crate::clock::Clock;
use crate::execution::{ExecutionId, ExecutionState};
use crate::store::{Delta, ExecutionFilter, HistoryPage, Origin, Seq, Store};

cases![
    executions_are_listed_newest_first,
    executions_are_found_by_state_name_and_id,
    forks_are_found_by_their_origin,
    a_history_is_read_in_pages,
    order_is_that_of_commits_though_the_clock_steps_back,
    a_thousand_points_can_be_paged_through_and_read,
];

async fn list(store: &dyn Store, filter: ExecutionFilter) -> Vec<ExecutionId> {
    store.executions(&filter).await.expect("a list").into_iter().map(|record| record.id).collect()
}

async fn page(store: &dyn Store, id: ExecutionId, before: Option<Seq>, limit: Option<usize>) -> Vec<Seq> {
    let page = store.history(id, HistoryPage { before, limit }).await.expect("a page");
    page.into_iter().map(|record| record.seq).collect()
}

async fn executions_are_listed_newest_first(trial: Trial) {
    let (one, two) = (trial.begin("one").await, trial.begin("two").await);
    trial.clock.advance(Duration::from_secs(1));
    let late = trial.begin("late").await;
    trial.clock.step_back(Duration::from_secs(60));
    let early = trial.begin("early").await;
    trial.advance(one, 3).await;

    let store = trial.store().await;
    assert_eq!(list(&*store, ExecutionFilter::default()).await, [late, two, one, early]);
    let limited = |limit| ExecutionFilter { limit: Some(limit), ..ExecutionFilter::default() };
    assert_eq!(list(&*store, limited(2)).await, [late, two]);
    assert!(list(&*store, limited(0)).await.is_empty());
    assert_eq!(list(&*store, limited(usize::MAX)).await.len(), 4);
}

async fn executions_are_found_by_state_name_and_id(trial: Trial) {
    let (one, two) = (trial.begin("brave-otter").await, trial.begin("100%").await);
    let mut commit = trial.on(one, 1, set("step", "2"));
    commit.checkpoint.state = ExecutionState::Failed("why".to_owned());
    trial.store().await.commit(commit).await.expect("committed");

    let store = trial.store().await;
    let by_state = |state: &str| ExecutionFilter { state: Some(state.to_owned()), ..Default::default() };
    assert_eq!(list(&*store, by_state("failed")).await, [one]);
    assert_eq!(list(&*store, by_state("running")).await, [two]);
    assert!(list(&*store, by_state("paused")).await.is_empty());

    let by_address =
        |address: &str| ExecutionFilter { address: Some(address.to_owned()), ..Default::default() };
    let (hyphenated, simple) = (two.hyphenated().to_string(), two.simple().to_string());
    for address in [hyphenated.as_str(), simple.as_str(), "100%"] {
        assert_eq!(list(&*store, by_address(address)).await, [two], "{address}");
    }
    let shared = one.simple().to_string().chars().zip(simple.chars()).take_while(|(a, b)| a == b).count();
    assert!(shared >= 9, "ids of one case begin alike");
    for address in [&simple[..shared], &hyphenated[..10], &simple[..1]] {
        assert_eq!(list(&*store, by_address(address)).await, [two, one], "{address}");
    }
    for address in ["brave", "otter", "%", "_", "100_", "zz"] {
        assert!(list(&*store, by_address(address)).await.is_empty(), "{address}");
    }
    let failed_two = ExecutionFilter { address: Some(simple), ..by_state("failed") };
    assert!(list(&*store, failed_two).await.is_empty());
}

async fn forks_are_found_by_their_origin(trial: Trial) {
    let (one, two) = (trial.begin("one").await, trial.begin("two").await);
    trial.advance(one, 3).await;
    let fork = async |name: &str, execution_id, seq| {
        let mut new = trial.execution(name);
        new.origin = Some(Origin { execution_id, seq });
        let id = new.id;
        trial.store().await.create(new, trial.checkpoint(Delta::default())).await.expect("forked");
        id
    };
    let early = fork("early", one, 1).await;
    trial.clock.advance(Duration::from_secs(1));
    let late = fork("late", one, 3).await;
    let of_two = fork("of two", two, 1).await;
    let of_early = fork("of early", early, 1).await;
    let mut done = trial.on(late, 1, Delta::default());
    done.checkpoint.state = ExecutionState::Completed;
    trial.store().await.commit(done).await.expect("committed");

    let store = trial.store().await;
    let of = |origin| ExecutionFilter { origin: Some(origin), ..ExecutionFilter::default() };
    assert_eq!(list(&*store, of(one)).await, [late, early]);
    assert_eq!(list(&*store, of(two)).await, [of_two]);
    assert_eq!(list(&*store, of(early)).await, [of_early]);
    assert!(list(&*store, of(late)).await.is_empty());
    assert!(list(&*store, of(trial.clock.new_id())).await.is_empty());
    assert_eq!(list(&*store, ExecutionFilter { limit: Some(1), ..of(one) }).await, [late]);
    let completed = ExecutionFilter { state: Some("completed".to_owned()), ..of(one) };
    assert_eq!(list(&*store, completed).await, [late]);
    for (address, found) in
        [("late", vec![late]), ("early", vec![early]), ("of two", vec![]), ("one", vec![])]
    {
        let named = ExecutionFilter { address: Some(address.to_owned()), ..of(one) };
        assert_eq!(list(&*store, named).await, found, "{address}");
    }
    store.delete(one).await.expect("deleted");
    store.delete(late).await.expect("deleted");
    assert_eq!(list(&*trial.store().await, of(one)).await, [early], "though their origin has gone");
}

async fn a_history_is_read_in_pages(trial: Trial) {
    let (id, other) = (trial.begin("a").await, trial.begin("b").await);
    trial.advance(id, 6).await;
    trial.advance(other, 2).await;
    let store = trial.store().await;
    assert_eq!(page(&*store, id, None, None).await, [6, 5, 4, 3, 2, 1]);
    assert_eq!(page(&*store, id, None, Some(2)).await, [6, 5]);
    assert_eq!(page(&*store, id, Some(5), Some(2)).await, [4, 3]);
    assert_eq!(page(&*store, id, Some(3), Some(9)).await, [2, 1]);
    assert!(page(&*store, id, Some(1), None).await.is_empty());
    assert!(page(&*store, id, Some(0), None).await.is_empty());
    assert!(page(&*store, id, None, Some(0)).await.is_empty());
    assert_eq!(page(&*store, id, Some(Seq::MAX), Some(usize::MAX)).await, [6, 5, 4, 3, 2, 1]);
    store.prune(id, 4).await.expect("pruned");
    assert_eq!(page(&*trial.store().await, id, Some(5), Some(3)).await, [4, 3]);
}

async fn order_is_that_of_commits_though_the_clock_steps_back(trial: Trial) {
    let id = trial.begin("a").await;
    let mut stamps = vec![trial.clock.now()];
    for (back_s, head) in [0, 0, 3_600, 7_200, 0].into_iter().zip(1..) {
        trial.clock.step_back(Duration::from_secs(back_s));
        let mut commit = trial.on(id, head, set("step", &(head + 1).to_string()));
        // Ids too go the other way.
        commit.checkpoint.id = uuid::Uuid::from_u128(1_000 - u128::from(head));
        trial.store().await.commit(commit).await.expect("committed");
        stamps.insert(0, trial.clock.now());
    }
    let store = trial.store().await;
    assert_eq!(seqs(&*store, id).await, [6, 5, 4, 3, 2, 1]);
    assert_eq!(history(&*store, id).await.iter().map(|r| r.created_at).collect::<Vec<_>>(), stamps);
    assert_eq!(head(&*store, id).await, 6);
    assert_eq!(step(&*store, id, 6).await.expect("the head"), "6");
    assert_eq!(store.prune(id, 2).await.expect("pruned"), 4);
    assert_eq!(seqs(&*store, id).await, [6, 5]);
}

async fn a_thousand_points_can_be_paged_through_and_read(trial: Trial) {
    const POINTS: Seq = 1_000;
    let id = trial.begin("a").await;
    trial.advance(id, POINTS).await;
    let store = trial.store().await;
    let mut found = Vec::new();
    while let Some(next) = found.last().map_or(Some(POINTS + 1), |last| (*last > 1).then_some(*last)) {
        let page = page(&*store, id, Some(next), Some(64)).await;
        assert!(page.len() == 64 || page.last() == Some(&1), "a page of {} before @{next}", page.len());
        found.extend(page);
    }
    assert_eq!(found, (1..=POINTS).rev().collect::<Vec<_>>());
    for seq in [1, 2, 499, 500, 501, 999, POINTS] {
        assert_eq!(step(&*store, id, seq).await.expect("a state"), seq.to_string());
    }
}
