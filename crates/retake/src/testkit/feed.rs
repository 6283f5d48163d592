//! The feed of what became durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::cases;
use super::trial::{Trial, assert_refused, history, set};
use crate::execution::ExecutionId;
use crate::store::{
    Delta, Feed, FeedPage, FeedPoint, Origin, Position, Seq, Since, Store, StoreError, StoreExt,
};

cases![
    points_come_in_the_order_in_which_they_were_committed,
    a_reader_goes_on_from_every_position_in_pages_of_any_size,
    what_is_new_begins_behind_all_that_is_there,
    readers_beside_writers_see_every_point_once,
    points_that_were_pruned_are_not_there_and_can_be_gone_on_from,
    what_comes_after_an_execution_was_deleted_is_not_taken_for_seen,
    an_execution_that_comes_back_is_seen_again,
    a_position_of_another_store_is_refused,
    an_empty_store_has_a_feed_that_can_be_followed,
];

const ALL: FeedPage = FeedPage { since: Since::Start, execution: None, limit: 7 };

/// How often points that were committed are looked for: where others write, a store may show them a moment later.
const LOOKS_MAX: usize = 10_000;

async fn page(store: &dyn Store, page: FeedPage) -> Feed {
    store.feed(page).await.expect("a page of the feed")
}

/// Reads so many points, and asserts that there are no more.
pub(super) async fn read(store: &dyn Store, mut asked: FeedPage, count: usize) -> (Vec<FeedPoint>, Position) {
    let mut points = Vec::new();
    for _ in 0..LOOKS_MAX {
        let Feed { points: found, next } = page(store, asked).await;
        assert!(found.len() <= asked.limit.max(1), "{} points on a page of {}", found.len(), asked.limit);
        let is_end = found.is_empty();
        points.extend(found);
        asked.since = Since::After(next.to_string().parse().expect("a position is read as it was written"));
        if is_end && points.len() >= count {
            assert_eq!(points.len(), count, "{:?}", places(&points));
            return (points, next);
        }
        tokio::task::yield_now().await;
    }
    panic!("{count} points were committed, and only these are there: {:?}", places(&points));
}

pub(super) fn places(points: &[FeedPoint]) -> Vec<(ExecutionId, Seq)> {
    points.iter().map(|point| (point.record.execution_id, point.record.seq)).collect()
}

fn after(position: Position) -> FeedPage {
    FeedPage { since: Since::After(position), ..ALL }
}

/// Commits points of two executions and of a fork, some of which change nothing. Returns them in that order.
async fn furnish(trial: &Trial) -> Vec<(ExecutionId, Seq)> {
    let (a, b) = (trial.begin("a").await, trial.begin("b").await);
    let mut made = vec![(a, 1), (b, 1)];
    for seq in 2..5 {
        trial.advance(b, seq).await;
        trial.advance(a, seq).await;
        made.extend([(b, seq), (a, seq)]);
    }
    let store = trial.store().await;
    let mut back = trial.on(a, 4, Delta::default());
    back.checkpoint.parent = Some(2);
    store.commit(back).await.expect("a rollback");
    store.commit(trial.on(b, 4, Delta::default())).await.expect("a point that changes nothing");
    let mut fork = trial.execution("fork");
    fork.origin = Some(Origin { execution_id: a, seq: 3 });
    made.extend([(a, 5), (b, 5), (fork.id, 1)]);
    store.create(fork, trial.checkpoint(Delta::default())).await.expect("a fork");
    trial.advance(a, 6).await;
    made.push((a, 6));
    made
}

async fn points_come_in_the_order_in_which_they_were_committed(trial: Trial) {
    let made = furnish(&trial).await;
    let store = trial.store().await;
    let (points, _) = read(&*store, ALL, made.len()).await;
    assert_eq!(places(&points), made);
    for id in [made[0].0, made[1].0] {
        let of_one: Vec<_> = made.iter().filter(|(of, _)| *of == id).copied().collect();
        let (found, _) = read(&*store, FeedPage { execution: Some(id), ..ALL }, of_one.len()).await;
        assert_eq!(places(&found), of_one);
        let mut records = history(&*store, id).await;
        records.reverse();
        assert_eq!(found.iter().map(|point| point.record.clone()).collect::<Vec<_>>(), records);
        let same = points.iter().filter(|point| point.record.execution_id == id);
        assert!(same.eq(&found), "the feed of one execution is a part of that of all");
        assert_eq!(found[0].name, store.require(id).await.expect("a look").name);
    }
    let nobody = FeedPage { execution: Some(Uuid::from_u128(4)), ..ALL };
    assert_eq!(page(&*store, nobody).await.points, []);
}

async fn a_reader_goes_on_from_every_position_in_pages_of_any_size(trial: Trial) {
    let made = furnish(&trial).await;
    let store = trial.store().await;
    let (points, _) = read(&*store, ALL, made.len()).await;
    for limit in [0, 1, 3, made.len(), usize::MAX] {
        for (index, point) in points.iter().enumerate() {
            let asked = FeedPage { limit, ..after(point.position) };
            let (rest, _) = read(&*store, asked, made.len() - index - 1).await;
            assert_eq!(rest, points[index + 1..], "behind {index}, {limit} a page");
        }
    }
    // Also where the reader goes over to the points of one execution, or comes from those.
    for (index, point) in points.iter().enumerate() {
        for id in [made[0].0, made[1].0] {
            let newer: Vec<_> =
                points[index + 1..].iter().filter(|point| point.record.execution_id == id).cloned().collect();
            let asked = FeedPage { execution: Some(id), limit: 2, ..after(point.position) };
            assert_eq!(read(&*store, asked, newer.len()).await.0, newer, "behind {index}");
        }
    }
}

async fn what_is_new_begins_behind_all_that_is_there(trial: Trial) {
    let made = furnish(&trial).await;
    let store = trial.store().await;
    read(&*store, ALL, made.len()).await;
    let Feed { points, next } = page(&*store, FeedPage { since: Since::Now, ..ALL }).await;
    assert_eq!(points, []);
    assert_eq!(page(&*store, after(next)).await.points, []);
    let id = made[0].0;
    trial.advance(id, 8).await;
    for execution in [None, Some(id)] {
        let asked = FeedPage { execution, ..after(next) };
        assert_eq!(places(&read(&*trial.store().await, asked, 2).await.0), [(id, 7), (id, 8)]);
    }
    let other = FeedPage { execution: Some(made[1].0), ..after(next) };
    assert_eq!(page(&*trial.store().await, other).await.points, []);
}

const WRITERS: usize = 6;
const STEPS: Seq = 25;

async fn readers_beside_writers_see_every_point_once(trial: Trial) {
    let trial = Arc::new(trial);
    let store = trial.store().await;
    let is_done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = [1, 4, 1_000]
        .map(|limit| {
            let (store, is_done) = (Arc::clone(&store), Arc::clone(&is_done));
            tokio::spawn(async move {
                let mut points = Vec::new();
                let mut asked = FeedPage { limit, ..ALL };
                while !is_done.load(Ordering::SeqCst) {
                    let Feed { points: found, next } = page(&*store, asked).await;
                    points.extend(found);
                    asked.since = Since::After(next);
                    tokio::task::yield_now().await;
                }
                let rest = WRITERS * usize::try_from(STEPS).expect("a small number") - points.len();
                points.extend(read(&*store, asked, rest).await.0);
                points
            })
        })
        .into();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let trial = Arc::clone(&trial);
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let id = trial.begin(&format!("writer {writer}")).await;
                for head in 1..STEPS {
                    let delta = if head % 3 == 0 { Delta::default() } else { set("step", &head.to_string()) };
                    store.commit(trial.on(id, head, delta)).await.expect("committed");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    is_done.store(true, Ordering::SeqCst);
    let mut seen = Vec::new();
    for reader in readers {
        seen.push(reader.await.expect("a reader"));
    }
    let (points, _) = read(&*store, ALL, WRITERS * usize::try_from(STEPS).expect("a small number")).await;
    let mut heads: BTreeMap<ExecutionId, Seq> = BTreeMap::new();
    for (id, seq) in places(&points) {
        let head = heads.entry(id).or_default();
        assert_eq!(seq, *head + 1, "points of one execution come one after the other");
        *head = seq;
    }
    for found in seen {
        assert_eq!(places(&found), places(&points), "whoever reads along sees what stands there later");
    }
}

async fn points_that_were_pruned_are_not_there_and_can_be_gone_on_from(trial: Trial) {
    let made = furnish(&trial).await;
    let (points, _) = read(&*trial.store().await, ALL, made.len()).await;
    let id = made[0].0;
    trial.store().await.prune(id, 2).await.expect("pruned");
    trial.store().await.compact().await.expect("compacted");
    let store = trial.store().await;
    let stays = |point: &FeedPoint| point.record.execution_id != id || point.record.seq > 4;
    let left: Vec<_> = points.iter().filter(|point| stays(point)).cloned().collect();
    assert_eq!(read(&*store, ALL, left.len()).await.0, left);
    for (index, point) in points.iter().enumerate() {
        for execution in [None, Some(id)] {
            let is_wanted = |point: &FeedPoint| execution.is_none_or(|id| id == point.record.execution_id);
            let newer: Vec<_> = points[index + 1..]
                .iter()
                .filter(|point| stays(point) && is_wanted(point))
                .cloned()
                .collect();
            let asked = FeedPage { execution, ..after(point.position) };
            assert_eq!(read(&*store, asked, newer.len()).await.0, newer, "behind {index}");
        }
    }
}

async fn what_comes_after_an_execution_was_deleted_is_not_taken_for_seen(trial: Trial) {
    let stays = trial.begin("stays").await;
    let mut position = None;
    // The newest point of the store goes each time, with all of its execution, and once with all there is.
    for round in 0..4 {
        let id = trial.begin("goes").await;
        trial.advance(id, 3).await;
        let since = position.map_or(Since::Start, Since::After);
        let expected = if round == 0 { 4 } else { 3 };
        let (points, last) = read(&*trial.store().await, FeedPage { since, ..ALL }, expected).await;
        assert_eq!(places(&points)[expected - 3..], [(id, 1), (id, 2), (id, 3)]);
        trial.store().await.delete(id).await.expect("deleted");
        if round == 2 {
            trial.store().await.delete(stays).await.expect("deleted");
        }
        if round % 2 == 1 {
            trial.store().await.compact().await.expect("compacted");
        }
        assert_eq!(page(&*trial.store().await, after(last)).await.points, []);
        position = Some(last);
    }
    let store = trial.store().await;
    assert_eq!(page(&*store, ALL).await.points, []);
    assert_eq!(store.check().await.expect("a report").problems, Vec::<String>::new());
}

async fn an_execution_that_comes_back_is_seen_again(trial: Trial) {
    let made = furnish(&trial).await;
    let (points, last) = read(&*trial.store().await, ALL, made.len()).await;
    let id = made[0].0;
    trial.store().await.prune(id, 4).await.expect("pruned");
    let moved = trial.store().await.export(id).await.expect("a history");
    trial.store().await.delete(id).await.expect("deleted");
    trial.store().await.import(moved).await.expect("imported");
    let back = [(id, 3), (id, 4), (id, 5), (id, 6)];
    for execution in [None, Some(id)] {
        let store = trial.store().await;
        let asked = FeedPage { execution, ..after(last) };
        assert_eq!(places(&read(&*store, asked, 4).await.0), back);
        // What a reader had seen of it before does not keep it from seeing it now.
        for (index, point) in points.iter().enumerate().filter(|(_, point)| point.record.execution_id == id) {
            let others = points[index + 1..].iter().filter(|point| point.record.execution_id != id).count();
            let rest = if execution.is_none() { others } else { 0 };
            let asked = FeedPage { execution, ..after(point.position) };
            assert_eq!(places(&read(&*store, asked, rest + 4).await.0)[rest..], back, "behind {index}");
        }
    }
    let (all, _) = read(&*trial.store().await, ALL, made.len() - 2).await;
    assert_eq!(places(&all)[made.len() - 6..], back, "it came last");
}

async fn a_position_of_another_store_is_refused(trial: Trial) {
    let made = furnish(&trial).await;
    let store = trial.store().await;
    let (points, last) = read(&*store, ALL, made.len()).await;
    let [first, second] = [points[0].position, points[1].position];
    let later = Position { place: last.place + 1_000_000_000, ..last };
    let ahead = Position { point: None, ..later };
    let swapped = Position { point: second.point, ..first };
    let unknown = Position { point: Some((Uuid::from_u128(4), 1)), ..second };
    let other_point = Position { point: Some((made[0].0, 2)), ..second };
    for position in [later, ahead, swapped, unknown, other_point] {
        for execution in [None, Some(made[0].0)] {
            let asked = FeedPage { execution, ..after(position) };
            assert_refused!(
                store.feed(asked).await,
                StoreError::ForeignPosition { position: refused, .. } if *refused == position
            );
        }
    }
}

async fn an_empty_store_has_a_feed_that_can_be_followed(trial: Trial) {
    let store = trial.store().await;
    let mut positions = Vec::new();
    for since in [Since::Start, Since::Now] {
        let Feed { points, next } = page(&*store, FeedPage { since, ..ALL }).await;
        assert_eq!(points, []);
        assert_eq!(page(&*store, after(next)).await, Feed { points: Vec::new(), next });
        positions.push(next);
    }
    let id = trial.begin("a").await;
    for position in positions {
        assert_eq!(places(&read(&*trial.store().await, after(position), 1).await.0), [(id, 1)]);
    }
}
