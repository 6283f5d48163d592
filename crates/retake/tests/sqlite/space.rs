//! What histories take on disk, and what pruning gives back.

use retake::execution::ExecutionContext;
use retake::store::{self, Cause, Delta, Origin, Seq, SqliteStore, Store, StoreError, StoreExt};
use rusqlite::Connection;
use serde_json::json;
use uuid::Uuid;

use super::*;

#[tokio::test]
async fn a_checkpoint_larger_than_one_may_be_is_refused_and_changes_nothing() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "large").await;
    // Five pointers to the same bytes.
    let bytes = Bytes::from(vec![0; 60 << 20]);
    let changes = (0..5).map(|n| {
        let op = Op::Set { pieces: vec![Piece { codec: MESSAGE_PACK, bytes: bytes.clone() }], len: 0 };
        KeyChange { key: Key::Variable(format!("v{n}")), writer: None, op }
    });
    let error = store.commit(commit(id, 1, Delta::new(changes.collect()))).await.unwrap_err();
    let why = "cannot store the checkpoint: its change takes 314572800 bytes, and 268435456 is the most";
    assert_eq!(error.to_string(), why);
    assert_eq!(store.execution(id).await.unwrap().unwrap().head, 1);
}

#[tokio::test]
async fn a_thousand_appended_messages_take_little_more_than_themselves_and_are_read_from_near_the_point() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, ctx) = conversation(&store, 1_000, false).await;
    assert_eq!(store.context(id, 1_001).await.unwrap(), ctx);
    let log = file_len(&path.with_extension("db-wal"));
    assert!(log < 24 * 1024 * 1024, "the log has {log} bytes");
    drop(store);
    let final_state = store::encode("state", ctx.get_variable("messages").unwrap()).unwrap().len() as u64;
    assert!(final_state > 1_000_000);
    let file = file_len(&path);
    assert!(file * 10 <= final_state * 25, "{file} bytes for a state of {final_state}");

    let raw = Connection::open(&path).unwrap();
    let number = |sql: &str| raw.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let keyframes = number("SELECT count(*) FROM keyframes");
    assert!((4..=12).contains(&keyframes), "{keyframes} keyframes");
    let (weight, floor) = (number("SELECT weight FROM executions"), number("SELECT floor FROM executions"));
    assert!(weight <= floor && floor <= 1_100_000, "{weight} bytes behind a keyframe of {floor}");
}

#[tokio::test]
async fn compressed_checkpoints_are_smaller_and_say_so() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, ctx) = conversation(&store, 50, true).await;
    let history = store.history(id, store::HistoryPage { before: None, limit: Some(50) }).await.unwrap();
    assert!(history.iter().all(|record| record.compressed && record.size_bytes < 900), "{history:?}");
    assert_eq!(store.context(id, 51).await.unwrap(), ctx);
}

#[tokio::test]
async fn a_checkpoint_that_changes_nothing_takes_no_more_than_a_row() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 4).await;
    let mut rollback = commit(id, 4, Delta::default());
    rollback.checkpoint.parent = Some(2);
    rollback.checkpoint.cause = Cause::Rollback { to: 2 };
    let record = store.commit(rollback).await.unwrap();
    assert_eq!((record.seq, record.parent, record.size_bytes), (5, Some(2), 0));
    assert_eq!(step(&store.state(id, 5).await.unwrap()), "2");
    let fork = execution("fork", Some(Origin { execution_id: id, seq: 5 }));
    let fork_id = fork.id;
    assert_eq!(store.create(fork, checkpoint(Delta::default())).await.unwrap().size_bytes, 0);
    assert_eq!(step(&store.state(fork_id, 1).await.unwrap()), "2");
    let raw = Connection::open(&path).unwrap();
    let deltas: i64 = raw.query_row("SELECT count(*) FROM deltas", [], |row| row.get(0)).unwrap();
    assert_eq!(deltas, 6, "one for each point");
}

#[tokio::test]
async fn a_rollback_of_one_branch_shares_the_other_with_the_head_and_not_with_the_point_it_follows() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 3).await;
    store.commit(commit(id, 3, set("sibling", &"s".repeat(20_000)))).await.unwrap();
    advance(&store, id, 5, 6).await;
    let raw = Connection::open(&path).unwrap();
    let weight = || raw.query_row("SELECT weight FROM executions", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = weight();
    let mut rollback = commit(id, 6, set("step", "3"));
    (rollback.checkpoint.parent, rollback.checkpoint.base) = (Some(3), Some(6));
    let record = store.commit(rollback).await.unwrap();
    assert_eq!((record.seq, record.parent), (7, Some(3)));
    assert!(record.size_bytes < 100, "{} bytes", record.size_bytes);
    // The way to the next keyframe goes by the base.
    let added = weight() - before;
    assert!((64..200).contains(&added), "{added} more bytes to read behind a keyframe");
    let state = store.state(id, 7).await.unwrap();
    assert_eq!((step(&state), state.get(&Key::Variable("sibling".into())).is_some()), ("3".to_owned(), true));

    let mut older = commit(id, 7, set("step", "again"));
    older.checkpoint.base = Some(3);
    store.commit(older).await.unwrap();
    assert!(weight() < 1_000, "{} bytes to read, with a base below the large value", weight());
}

#[tokio::test]
async fn every_kept_point_reads_as_before_after_pruning_compacting_and_the_loss_of_its_origin() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, _) = conversation(&store, 200, false).await;
    let fork = execution("fork", Some(Origin { execution_id: id, seq: 90 }));
    let fork_id = fork.id;
    store.create(fork, checkpoint(Delta::default())).await.unwrap();
    let mut labelled = commit(id, 201, set("step", "202"));
    labelled.checkpoint.label = Some("good".into());
    labelled.checkpoint.parent = Some(50);
    store.commit(labelled).await.unwrap();
    advance(&store, id, 203, 230).await;

    let mut kept = Vec::new();
    for seq in [202, 226, 227, 228, 229, 230] {
        kept.push((id, seq, store.state(id, seq).await.unwrap()));
    }
    kept.push((fork_id, 1, store.state(fork_id, 1).await.unwrap()));
    assert_eq!(store.prune(id, 5).await.unwrap(), 224);
    same(&store, &kept).await;
    let error = store.state(id, 201).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Pruned { seq: 201, .. }), "{error}");
    let raw = Connection::open(&path).unwrap();
    let pages: u32 = raw.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let before = u64::from(pages) * 4_096;
    store.compact().await.unwrap();
    same(&store, &kept).await;
    assert!(file_len(&path) * 2 < before, "{} of {before} bytes", file_len(&path));

    assert_eq!(store.delete(id).await.unwrap(), 6);
    let of_fork = &kept[6..];
    same(&store, of_fork).await;
    store.compact().await.unwrap();
    same(&store, of_fork).await;
    let deltas: i64 = raw.query_row("SELECT count(*) FROM deltas", [], |row| row.get(0)).unwrap();
    assert_eq!(deltas, 2, "that of the fork, and an empty one whose key is not given again");
    advance(&store, fork_id, 2, 2).await;
    store.compact().await.unwrap();
    let keys: Vec<i64> = {
        let mut keys = raw.prepare("SELECT key FROM deltas ORDER BY key").unwrap();
        keys.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(keys.len(), 2, "it goes when there are newer ones");
    assert_eq!(keys[1], 232, "the 231 that there were, the fork's among them, and the new one");
}

#[tokio::test]
async fn a_fork_of_a_large_state_takes_next_to_nothing_and_neither_does_outliving_its_origin() {
    const LARGE: usize = 8 << 20;
    const FORK_MAX: u64 = 64 * 1024;
    let (_directory, path) = place();
    let mut store = SqliteStore::open(&path).unwrap();
    let mut draws = Draws(5);
    let noise: String =
        (0..LARGE).map(|_| char::from(b' ' + u8::try_from(draws.below(95)).unwrap())).collect();
    let new = execution("brave-otter", None);
    let origin = new.id;
    store.create(new, checkpoint(set("large", &noise))).await.unwrap();
    advance(&store, origin, 2, 6).await;
    // A store that closes makes the keyframes that are due, so that none of them comes late and uncounted.
    let size = async |store: &mut SqliteStore| {
        drop(std::mem::replace(store, SqliteStore::open(&path).unwrap()));
        store.compact().await.unwrap();
        file_len(&path)
    };
    let alone = size(&mut store).await;
    assert!(alone > LARGE as u64);

    let mut kept = Vec::new();
    let mut last = Origin { execution_id: origin, seq: 4 };
    for name in ["fork", "fork of the fork", "fork of that"] {
        let before = size(&mut store).await;
        let new = execution(name, Some(last));
        let id = new.id;
        let record = store.create(new, checkpoint(set("step", name))).await.unwrap();
        assert!(record.size_bytes < 100, "{} bytes", record.size_bytes);
        advance(&store, id, 2, 5).await;
        let added = size(&mut store).await - before;
        assert!(added <= FORK_MAX, "{name} added {added} bytes");
        kept.push((id, 1, store.state(id, 1).await.unwrap()));
        kept.push((id, 5, store.state(id, 5).await.unwrap()));
        last = Origin { execution_id: id, seq: 3 };
    }
    let shared = size(&mut store).await;

    assert_eq!(store.prune(origin, 1).await.unwrap(), 5);
    let pruned = size(&mut store).await;
    same(&store, &kept).await;
    assert_eq!(store.delete(origin).await.unwrap(), 1);
    let without_origin = size(&mut store).await;
    same(&store, &kept).await;
    let middle = kept[2].0;
    assert_eq!(store.delete(middle).await.unwrap(), 5);
    kept.retain(|(id, _, _)| *id != middle);
    let without_both = size(&mut store).await;
    same(&store, &kept).await;
    for (length, when) in [(pruned, "pruned"), (without_origin, "deleted"), (without_both, "deleted twice")] {
        assert!(length <= shared + FORK_MAX, "{length} bytes instead of {shared}, once {when}");
    }
    assert_eq!(store.delete(kept[0].0).await.unwrap(), 5);
    assert_eq!(store.delete(kept[2].0).await.unwrap(), 5);
    assert!(size(&mut store).await < 256 * 1024, "nobody needs the large state any more");
}

#[tokio::test]
async fn pruning_after_every_save_keeps_the_file_small_and_rarely_writes_the_state() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
    ctx.set_variable("large".into(), json!("x".repeat(200_000)));
    let mut new = execution("steady", None);
    new.id = ctx.execution_id;
    store.create(new, checkpoint(store::delta(None, &ctx, |_| None).unwrap())).await.unwrap();
    let id = ctx.execution_id;
    let raw = Connection::open(&path).unwrap();
    let body = || -> i64 {
        raw.query_row("SELECT coalesce(sum(key), 0) FROM deltas WHERE base IS NULL", [], |row| row.get(0))
            .unwrap()
    };
    let mut roots = std::collections::BTreeSet::new();
    for seq in 2..=600 {
        store
            .commit(commit(id, seq - 1, set("step", &format!("{seq} {}", "y".repeat(1_000)))))
            .await
            .unwrap();
        store.prune(id, 10).await.unwrap();
        roots.insert(body());
    }
    // 600 saves of 1 KB pay for a handful of states of 200 KB.
    assert!((3..=30).contains(&roots.len()), "the state was written {} times", roots.len());
    let rows: i64 = raw.query_row("SELECT count(*) FROM deltas", [], |row| row.get(0)).unwrap();
    assert!(rows < 300, "{rows} deltas for 10 points");
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_large_value_that_was_set_once_is_not_stored_again_in_keyframes_of_its_run_and_of_forks() {
    const LARGE: usize = 2 << 20;
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let mut draws = Draws(6);
    let noise: String =
        (0..LARGE).map(|_| char::from(b' ' + u8::try_from(draws.below(95)).unwrap())).collect();
    let origin = begin(&store, "brave-otter").await;
    store.commit(commit(origin, 1, set("large", &noise))).await.unwrap();
    advance(&store, origin, 3, 6).await;
    let fork = execution("fork", Some(Origin { execution_id: origin, seq: 4 }));
    let fork_id = fork.id;
    store.create(fork, checkpoint(set("step", "fork"))).await.unwrap();
    advance(&store, fork_id, 2, 4).await;
    let mut back = commit(origin, 6, set("step", "back"));
    back.checkpoint.parent = Some(3);
    store.commit(back).await.unwrap();
    // A store that closes makes the keyframes that are due.
    drop(store);
    let keyframes = || {
        let raw = Connection::open(&path).unwrap();
        raw.query_row("SELECT count(*) FROM keyframes", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(keyframes(), 0);
    assert!(file_len(&path) < LARGE as u64 * 9 / 8, "{} bytes", file_len(&path));

    // Once there is as much to read that has been written over, one is worth it.
    let store = SqliteStore::open(&path).unwrap();
    store.commit(commit(fork_id, 4, set("large", &noise))).await.unwrap();
    let state = store.state(fork_id, 5).await.unwrap();
    drop(store);
    assert_eq!(keyframes(), 1);
    assert!(SqliteStore::open(&path).unwrap().state(fork_id, 5).await.unwrap() == state);
}

/// Numbers that look drawn at random, and are the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test]
async fn large_random_histories_read_as_their_model_while_they_are_pruned_squashed_forked_and_reopened() {
    for seed in 0..4 {
        let (_directory, path) = place();
        let mut store = SqliteStore::open(&path).unwrap();
        let mut draws = Draws(seed);
        let first = begin(&store, "brave-otter").await;
        let mut heads = vec![(first, 1)];
        let mut kept = std::collections::BTreeMap::from([((first, 1), store.state(first, 1).await.unwrap())]);
        for n in 0..300 {
            let place = draws.below(heads.len() as u64);
            let (id, head) = heads[usize::try_from(place).unwrap()];
            let seqs: Vec<Seq> = kept.keys().filter(|(of, _)| *of == id).map(|(_, seq)| *seq).collect();
            let some = seqs[usize::try_from(draws.below(seqs.len() as u64)).unwrap()];
            match draws.below(20) {
                0 => {
                    let keep = usize::try_from(draws.below(8)).unwrap();
                    store.prune(id, keep).await.unwrap();
                    let left = store.history(id, store::HistoryPage::default()).await.unwrap();
                    kept.retain(|(of, seq), _| *of != id || left.iter().any(|record| record.seq == *seq));
                    assert_eq!(kept.keys().filter(|(of, _)| *of == id).count(), left.len());
                }
                1 if heads.len() < 4 => {
                    let new = execution(&format!("fork-{n}"), Some(Origin { execution_id: id, seq: some }));
                    heads.push((new.id, 1));
                    kept.insert((new.id, 1), kept[&(id, some)].clone());
                    store.create(new, checkpoint(Delta::default())).await.unwrap();
                }
                2 if heads.len() > 2 => {
                    heads.retain(|(of, _)| *of != id);
                    kept.retain(|(of, _), _| *of != id);
                    store.delete(id).await.unwrap();
                }
                3 => {
                    drop(store);
                    store = SqliteStore::open(&path).unwrap();
                }
                4 => store.compact().await.unwrap(),
                act => {
                    let text = format!("{n} {}", "z".repeat(usize::try_from(draws.below(9_000)).unwrap()));
                    let mut next = commit(id, head, set(&format!("v{}", draws.below(6)), &text));
                    let other = seqs[usize::try_from(draws.below(seqs.len() as u64)).unwrap()];
                    let parent = if act < 7 { some } else { head };
                    let base = if act % 3 == 0 { other } else { parent };
                    (next.checkpoint.parent, next.checkpoint.base) = (Some(parent), Some(base));
                    next.checkpoint.compress = draws.below(2) == 0;
                    next.checkpoint.label = (draws.below(12) == 0).then(|| format!("label-{n}"));
                    let mut image = kept[&(id, base)].clone();
                    image.apply("the model", &next.checkpoint.delta).unwrap();
                    store.commit(next).await.unwrap();
                    kept.insert((id, head + 1), image);
                    heads.iter_mut().find(|(of, _)| *of == id).unwrap().1 += 1;
                }
            }
            if n % 20 == 0 {
                let kept: Vec<_> = kept.iter().map(|((id, seq), image)| (*id, *seq, image.clone())).collect();
                same(&store, &kept).await;
            }
        }
    }
}
