//! Addresses on the memory store, with a clock that is told the time.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::execution::ExecutionState;
use crate::store::{Cause, Commit, MemoryStore, NewCheckpoint, NewExecution};

/// A run `otter` with a point a minute: `@1`, `@2` (a), `@3` (b, labelled), `@4` (c), `@5` back to `@2`, `@6` (b).
struct Histories {
    store: MemoryStore,
    clock: ManualClock,
    otter: ExecutionId,
}

const OTTER: Uuid = Uuid::from_u128(0x0198_aaaa_0000_7000_8000_0000_0000_0001);
const BEAVER: Uuid = Uuid::from_u128(0x0198_aabb_0000_7000_8000_0000_0000_0002);

impl Histories {
    async fn new() -> Self {
        let histories = Self { store: MemoryStore::new(), clock: ManualClock::default(), otter: OTTER };
        histories.create(OTTER, "otter").await;
        histories.add(2, None, Some("a"), None).await;
        histories.add(3, None, Some("b"), Some("good draft ü")).await;
        histories.add(4, None, Some("c"), None).await;
        histories.add(5, Some(2), None, None).await;
        histories.add(6, None, Some("b"), None).await;
        histories
    }

    async fn create(&self, id: ExecutionId, name: &str) {
        let new = NewExecution {
            id,
            name: name.to_owned(),
            workflow_id: Uuid::from_u128(7),
            workflow_name: "animals".to_owned(),
            definition: Vec::new(),
            origin: None,
        };
        let first = self.checkpoint(None, None, None);
        self.store.create(new, first).await.unwrap();
    }

    async fn add(&self, seq: Seq, parent: Option<Seq>, node: Option<&str>, label: Option<&str>) {
        self.clock.advance(Duration::from_secs(60));
        let checkpoint = self.checkpoint(parent, node, label);
        let commit = Commit { execution_id: self.otter, expected_head: seq - 1, fence: None, checkpoint };
        assert_eq!(self.store.commit(commit).await.unwrap().seq, seq);
    }

    fn checkpoint(&self, parent: Option<Seq>, node: Option<&str>, label: Option<&str>) -> NewCheckpoint {
        NewCheckpoint {
            parent,
            nodes: node.map(str::to_owned).into_iter().collect(),
            label: label.map(str::to_owned),
            ..NewCheckpoint::new(self.clock.new_id(), self.clock.now(), ExecutionState::Paused, Cause::Manual)
        }
    }

    async fn find(&self, address: &str) -> Result<Seq, AddressError> {
        let resolved = resolve(&self.store, &self.clock, &address.parse()?).await?;
        assert_eq!(resolved.execution.id, self.otter);
        Ok(resolved.checkpoint.seq)
    }

    async fn refusal(&self, address: &str) -> String {
        self.find(address).await.expect_err(address).to_string()
    }
}

#[tokio::test]
async fn every_form_of_address_finds_its_point() {
    let histories = Histories::new().await;
    for (address, seq) in [
        ("otter", 6),
        ("otter@1", 1),
        ("otter@006", 6),
        ("otter@good draft ü", 3),
        ("otter@node:b", 6),
        ("otter@-0", 6),
        ("otter@{1m}", 5),
        ("otter@{1m 30s}", 4),
        ("otter@{5m}", 1),
    ] {
        assert_eq!(histories.find(address).await.unwrap(), seq, "{address}");
    }
}

#[tokio::test]
async fn steps_and_nodes_follow_the_time_line_and_not_the_numbers() {
    let histories = Histories::new().await;
    assert_eq!(histories.find("otter@-1").await.unwrap(), 5);
    assert_eq!(histories.find("otter@-2").await.unwrap(), 2);
    assert_eq!(histories.find("otter@-3").await.unwrap(), 1);
    assert_eq!(histories.find("otter@node:b").await.unwrap(), 6);
    assert_eq!(histories.find("otter@node:a").await.unwrap(), 2);
    assert_eq!(histories.refusal("otter@-4").await, "run `otter` has 3 points before its head, not 4");
    assert_eq!(
        histories.refusal("otter@node:c").await,
        "no point on the time line of run `otter` recorded node `c`"
    );
}

#[tokio::test]
async fn of_points_with_one_label_the_newest_is_meant() {
    let histories = Histories::new().await;
    histories.add(7, None, None, Some("good draft ü")).await;
    assert_eq!(histories.find("otter@good draft ü").await.unwrap(), 7);
    let Err(AddressError::NoLabel { known, .. }) = histories.find("otter@bad").await else {
        panic!("found a label that is not there")
    };
    assert_eq!(known, ["good draft ü"]);
}

#[tokio::test]
async fn points_that_are_not_there_are_told_from_those_that_are_gone() {
    let histories = Histories::new().await;
    for beyond in ["otter@0", "otter@7", "otter@18446744073709551615"] {
        let found = histories.find(beyond).await;
        assert!(matches!(found, Err(AddressError::Store(StoreError::NoPoint { head: 6, .. }))), "{found:?}");
    }
    assert_eq!(histories.store.prune(histories.otter, 2).await.unwrap(), 3);
    for gone in ["otter@2", "otter@-2", "otter@node:a", "otter@{5m}"] {
        let found = histories.find(gone).await;
        assert!(matches!(found, Err(AddressError::Store(StoreError::Pruned { .. }))), "{gone}: {found:?}");
    }
    // Labelled points stay.
    assert_eq!(histories.find("otter@good draft ü").await.unwrap(), 3);
    assert_eq!(
        histories.refusal("otter@{1h}").await,
        "run `otter` did not exist 1h ago: it began at 2026-01-01 00:00:00 UTC"
    );
    assert!(histories.refusal("otter@{300000000y}").await.starts_with("run `otter` did not exist"));
}

#[tokio::test]
async fn long_histories_are_read_page_by_page() {
    let histories = Histories::new().await;
    let last = 6 + 2 * PAGE as u64;
    for seq in 7..=last {
        histories.add(seq, None, None, None).await;
    }
    assert_eq!(histories.find("otter@good draft ü").await.unwrap(), 3);
    assert_eq!(histories.find("otter@node:a").await.unwrap(), 2);
    assert_eq!(histories.find(&format!("otter@-{}", last - 6)).await.unwrap(), 6);
    assert_eq!(histories.find(&format!("otter@-{}", last - 3)).await.unwrap(), 1);
}

#[tokio::test]
async fn runs_are_found_by_name_and_by_the_start_of_an_id() {
    let histories = Histories::new().await;
    histories.create(BEAVER, "0198aaaa").await;
    let named = async |run: &str| resolve_run(&histories.store, run).await.map(|found| found.name);
    assert_eq!(named("otter").await.unwrap(), "otter");
    // A name goes first, even where it is the start of another's id.
    assert_eq!(named("0198aaaa").await.unwrap(), "0198aaaa");
    for prefix in ["0198aaaa0", "0198aaaa-0000-7", "0198AAAA0", &OTTER.to_string()] {
        assert_eq!(named(prefix).await.unwrap(), "otter", "{prefix}");
    }
    assert_eq!(named("0198aab").await.unwrap(), "0198aaaa");
    assert_eq!(
        named("0198").await.unwrap_err().to_string(),
        "`0198` is the start of 2 ids: `0198aaaa`, `otter`"
    );
    assert!(matches!(named("OTTER").await, Err(AddressError::UnknownRun { .. })));
    let Err(AddressError::UnknownRun { near, .. }) = named("oter").await else { panic!("found `oter`") };
    assert_eq!(near.as_deref(), Some("otter"));
    assert_eq!(
        named("otter@3").await.unwrap_err().to_string(),
        "`otter@3` is not an address: only a run is wanted here, without a point"
    );
    assert!(matches!(named("").await, Err(AddressError::Syntax { .. })));
}

#[test]
fn what_is_not_an_address_is_named_with_what_is_wrong() {
    for (text, why) in [
        ("", "it names no run"),
        ("@3", "it names no run"),
        ("otter@", "nothing stands behind the `@`"),
        ("otter@99999999999999999999", "no history has 99999999999999999999 points"),
        ("otter@-", "steps before the head are written `@-1`"),
        ("otter@-x", "steps before the head are written `@-1`"),
        ("otter@{5m", "the `{` is never closed"),
        ("otter@node:", "a node's id belongs behind `node:`"),
        ("otter@ x", "` x` cannot be a label: it begins or ends with a space"),
    ] {
        let error = text.parse::<Address>().expect_err(text);
        assert_eq!(error.to_string(), format!("`{text}` is not an address: {why}"));
    }
    let error = "otter@{5}".parse::<Address>().unwrap_err().to_string();
    assert!(error.contains("`5` is not a duration"), "{error}");
}

#[test]
fn a_label_looks_like_no_other_address() {
    for label in ["", "12", "-1", "-x", "{5m}", "{", "node:a", " x", "x\n", "a\u{1b}[31m", &"x".repeat(201)] {
        assert!(check_label(label).is_err(), "{label:?}");
    }
    for label in ["v2", "ünder 水", "a@b", "12th", "3.5", "node", "it's \"done\"", "a b"] {
        assert_eq!(check_label(label), Ok(()), "{label:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_an_address_or_an_error(text in "\\PC*|[a-z]{0,3}@[-{}a-z0-9:@ ]{0,12}") {
        if let Ok(address) = text.parse::<Address>() {
            prop_assert_eq!(address.to_string().parse::<Address>().ok(), Some(address));
        }
    }

    #[test]
    fn every_label_is_an_address_of_that_label(label in "\\PC{1,20}") {
        if check_label(&label).is_ok() {
            let address: Address = format!("otter@{label}").parse().unwrap();
            prop_assert_eq!(address.point, Point::Label(label));
        }
    }
}
