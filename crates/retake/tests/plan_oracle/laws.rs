//! What holds for every plan.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError};

use crate::flow::{self, Flow, NUMBERS, VARIABLES};
use crate::trial::{Change, Redefinition, Trial};

/// How many cases there are unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 2_000;

/// What the cases are drawn from unless `PROPTEST_CASES` or `PROPTEST_RNG_SEED` says otherwise: a run of all tests tries
/// the same ones everywhere, and a search for new ones is long and drawn anew.
const SEED: u64 = 1_936_203;

pub(crate) fn config(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let is_set = |name| std::env::var_os(name).is_some();
    let rng_seed = match is_set("PROPTEST_CASES") || is_set("PROPTEST_RNG_SEED") {
        true => config.rng_seed,
        false => RngSeed::Fixed(SEED),
    };
    let cases = if is_set("PROPTEST_CASES") { config.cases } else { cases };
    ProptestConfig { cases, rng_seed, ..config }
}

fn set() -> impl Strategy<Value = std::collections::BTreeMap<usize, u64>> {
    prop::collection::btree_map(0..VARIABLES, 0..4u64, 0..3)
}

fn redefinition() -> impl Strategy<Value = Redefinition> {
    prop_oneof![
        any::<u8>().prop_map(|place| Redefinition::Remove(place.into())),
        (any::<u8>(), flow::step()).prop_map(|(place, step)| Redefinition::Replace(place.into(), step)),
        (any::<u8>(), flow::step()).prop_map(|(place, step)| Redefinition::Add(place.into(), step)),
        (0..NUMBERS, 0..4u64).prop_map(|(index, number)| Redefinition::Default(index, number)),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let output = prop::option::of((any::<u8>().prop_map(usize::from), 0..4u64));
    let target = || any::<u8>().prop_map(usize::from);
    prop_oneof![
        3 => (set(), output).prop_map(|(set, output)| Change::Edit { set, output }),
        3 => (target(), prop::bool::weighted(0.2), prop::option::weighted(0.3, (0..VARIABLES, 0..4u64)))
            .prop_map(|(target, is_linear, set)| Change::Rollback { target, is_linear, set }),
        1 => (target(), set()).prop_map(|(target, set)| Change::Fork { target, set }),
        2 => prop::collection::vec(redefinition(), 1..4).prop_map(Change::Redefine),
    ]
}

fn changes() -> impl Strategy<Value = Vec<(Change, bool)>> {
    prop::collection::vec((change(), prop::bool::weighted(0.75)), 1..4)
}

fn try_out(flow: Flow, changes: &[(Change, bool)]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut trial = Trial::start(flow).await?;
        for (at, (change, resumes)) in changes.iter().enumerate() {
            let is_last = at + 1 == changes.len();
            if !trial.change(change, *resumes || is_last).await? {
                break;
            }
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn what_a_plan_keeps_and_what_runs_again_is_what_a_run_of_the_changed_workflow_gives(
        flow in flow::flow(),
        changes in changes(),
    ) {
        try_out(flow, &changes)?;
    }
}
