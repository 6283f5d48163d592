//! Many writers, many processes, and processes that die.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retake::store::{self, Commit, Conflict, Seq, SqliteStore, Store, StoreError, StoreExt};
use uuid::Uuid;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_at_the_same_time_share_a_transaction_and_one_refusal_disturbs_nobody() {
    const WRITERS: usize = 64;
    const COMMITS: u64 = 8;
    let (_directory, path) = place();
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let mut ids = Vec::new();
    for n in 0..WRITERS {
        ids.push(begin(&store, &format!("otter-{n}")).await);
    }
    let before = store.stats();
    let writers: Vec<_> = ids
        .iter()
        .map(|id| {
            let (store, id) = (store.clone(), *id);
            tokio::spawn(async move {
                for seq in 2..=COMMITS + 1 {
                    let refused = store.commit(commit(id, seq + 7, set("step", "lost"))).await.unwrap_err();
                    assert!(matches!(refused, StoreError::Conflict(Conflict::HeadMoved { .. })), "{refused}");
                    store.commit(commit(id, seq - 1, set("step", &seq.to_string()))).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let after = store.stats();
    let (writes, transactions) = (after.writes - before.writes, after.transactions - before.transactions);
    assert_eq!(writes, 2 * WRITERS as u64 * COMMITS);
    assert!(transactions * 4 < writes, "{writes} writes took {transactions} transactions");
    for id in ids {
        assert_eq!(step(&store.state(id, COMMITS + 1).await.unwrap()), (COMMITS + 1).to_string());
    }
}

#[tokio::test]
async fn two_stores_on_one_file_see_each_others_commits_and_leases() {
    let (_directory, path) = place();
    let [ours, theirs] = [(); 2].map(|()| SqliteStore::open(&path).unwrap());
    let id = begin(&ours, "brave-otter").await;
    advance(&theirs, id, 2, 2).await;
    let error = ours.commit(commit(id, 1, set("step", "late"))).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Conflict(Conflict::HeadMoved { expected: 1, found: 2, .. })),
        "{error}"
    );

    let lease = ours.lease(id, Duration::from_secs(600)).await.unwrap();
    for store in [&ours, &theirs] {
        let error = store.lease(id, Duration::from_secs(600)).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Leased { .. })), "{error}");
        let error = store.commit(commit(id, 2, set("step", "3"))).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Leased { .. })), "{error}");
        let owner = store.require(id).await.unwrap().leased_by.unwrap();
        assert!(owner.starts_with(&format!("process {}", std::process::id())), "{owner}");
    }
    drop(ours);
    assert_eq!(theirs.require(id).await.unwrap().leased_by, None);
    let next = theirs.lease(id, Duration::from_secs(600)).await.unwrap();
    assert_eq!(next.fence, lease.fence + 1);
    let stale = Commit { fence: Some(lease.fence), ..commit(id, 2, set("step", "3")) };
    let error = theirs.commit(stale).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Fenced { .. })), "{error}");
}

/// Runs in a process of its own, which is then killed: see the test below.
#[tokio::test]
async fn hold_a_lease_until_killed() {
    let Ok(path) = std::env::var("RETAKE_TEST_LEASE") else { return };
    let store = SqliteStore::open(path).unwrap();
    let id = begin(&store, "held").await;
    store.lease(id, Duration::from_secs(600)).await.unwrap();
    std::io::Write::write_all(&mut std::io::stderr(), format!("held {id}\n").as_bytes()).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_lease_of_a_killed_process_can_be_taken_at_once() {
    let (directory, path) = place();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["processes::hold_a_lease_until_killed", "--exact", "--nocapture"])
        .env("RETAKE_TEST_LEASE", &path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let held = lines.map(Result::unwrap).find(|line| line.starts_with("held ")).unwrap();
    let id: Uuid = held["held ".len()..].parse().unwrap();

    let store = SqliteStore::open(&path).unwrap();
    let owner = store.require(id).await.unwrap().leased_by.unwrap();
    assert!(owner.starts_with(&format!("process {}", child.id())), "{owner}");
    assert!(store.lease(id, Duration::from_secs(1)).await.is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.require(id).await.unwrap().leased_by, None);
    assert_eq!(store.lease(id, Duration::from_secs(1)).await.unwrap().fence, 2);
    drop(store);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["retake.db"]);
}

/// Commits until it is killed or refused, and says what was acknowledged: see the tests below.
#[tokio::test]
async fn commit_until_killed() {
    let Ok(path) = std::env::var("RETAKE_TEST_COMMITS") else { return };
    let say = |line: String| std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    let store = SqliteStore::open(path).unwrap();
    let filter = store::ExecutionFilter::default();
    let (id, head) = match store.executions(&filter).await.unwrap().first() {
        Some(record) => (record.id, record.head),
        None => (begin(&store, "killed").await, 1),
    };
    for seq in head + 1.. {
        let delta = set("step", &format!("{seq} {}", "x".repeat(2_000)));
        match store.commit(commit(id, seq - 1, delta)).await {
            Ok(_) => say(format!("acknowledged {seq}\n")),
            Err(error) => {
                say(format!("refused {} {error}\n", matches!(error, StoreError::Full { .. })));
                break;
            }
        }
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

fn committer(command: &mut std::process::Command, path: &Path) -> std::process::Child {
    command
        .env("RETAKE_TEST_COMMITS", path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

fn lines(child: &mut std::process::Child) -> impl Iterator<Item = String> + use<> {
    std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap())).map(Result::unwrap)
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_there_and_the_store_is_sound() {
    let (_directory, path) = place();
    let mut head = 1;
    for round in 0..10 {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let command = command.args(["processes::commit_until_killed", "--exact", "--nocapture"]);
        let mut child = committer(command, &path);
        let mut lines = lines(&mut child);
        let mut acknowledged = |line: String| {
            if let Some(seq) = line.strip_prefix("acknowledged ") {
                head = seq.parse().unwrap();
            }
        };
        (&mut lines).take(3 + round * 7).for_each(&mut acknowledged);
        child.kill().unwrap();
        lines.for_each(acknowledged);
        child.wait().unwrap();

        let store = SqliteStore::open(&path).unwrap();
        let record = store.executions(&store::ExecutionFilter::default()).await.unwrap().remove(0);
        assert!((head..=head + 1).contains(&record.head), "{head} acknowledged, {} there", record.head);
        assert!(step(&store.state(record.id, head).await.unwrap()).starts_with(&format!("{head} ")));
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_reached_its_size_limit_is_full_and_everything_acknowledged_stays_readable() {
    let (_directory, path) = place();
    drop(SqliteStore::open(&path).unwrap());
    // In blocks of 512 or 1,024 bytes. The signal is what the command-line program ignores as well.
    let script =
        "trap '' XFSZ; ulimit -f 1024; exec \"$0\" processes::commit_until_killed --exact --nocapture";
    let mut command = std::process::Command::new("sh");
    let command = command.args(["-c", script]).arg(std::env::current_exe().unwrap());
    let mut child = committer(command, &path);
    let said: Vec<String> = lines(&mut child).collect();
    let refused = said.iter().find(|line| line.starts_with("refused ")).unwrap();
    assert!(refused.starts_with("refused true ") && refused.ends_with(" is full"), "{refused}");
    assert!(child.wait().unwrap().success(), "{said:?}");
    let acknowledged: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("acknowledged ")).collect();
    let head: Seq = acknowledged.last().unwrap().parse().unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let record = store.executions(&store::ExecutionFilter::default()).await.unwrap().remove(0);
    assert_eq!(record.head, head);
    assert!(step(&store.state(record.id, head).await.unwrap()).starts_with(&format!("{head} ")));
    assert_eq!(store.commit(commit(record.id, head, set("step", "more"))).await.unwrap().seq, head + 1);
}
