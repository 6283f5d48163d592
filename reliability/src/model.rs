//! Every order in which workers, an operator, messages and the database can meet, searched by `stateright`: lease, fence,
//! commit, claim and settlement are safe in all of them, and with any one protection taken away they are not.

mod database;
mod protocol;

use std::collections::BTreeSet;

use stateright::{Checker, CheckerBuilder, Expectation, HasDiscoveries, Model};

use self::database::Without;
use self::protocol::{
    NO_DOUBLE, NO_LOSS, NO_MISTAKE, NO_ORPHAN, NO_REPEAT, NO_STALE_WRITE, Outsider, Protocol, Step,
};
use crate::report::Report;
use crate::{Effort, Outcome, Settings};

/// More states than a search may meet: one that meets more is a mistake in the model.
const STATES_MAX: usize = 20_000_000;

/// Three workers take two nodes from each other.
const CROWD: Protocol = Protocol {
    without: Without::Nothing,
    workers: 3,
    steps: &[Step::Work, Step::Work],
    leases_max: 3,
    retries_max: 1,
    outsider: Outsider::Absent,
};

/// Two workers, and somebody who labels the head without a lease.
const LABELLED: Protocol = Protocol { workers: 2, leases_max: 2, outsider: Outsider::Labels, ..CROWD };

/// Two workers, and an operator who decides an approval between two nodes.
const APPROVED: Protocol =
    Protocol { workers: 2, steps: &[Step::Work, Step::Approval, Step::Work], retries_max: 0, ..CROWD };

/// What each protection is for: what goes wrong without it.
const CONTROLS: &[(&str, Protocol, Without, &[&str])] = &[
    ("without fences", CROWD, Without::Fences, &[NO_STALE_WRITE, NO_REPEAT]),
    ("without the comparison of the head", LABELLED, Without::HeadComparison, &[NO_LOSS]),
    ("without either", CROWD, Without::Both, &[NO_STALE_WRITE, NO_DOUBLE]),
    ("without fences of settlements", APPROVED, Without::FencesOfSettlements, &[NO_ORPHAN]),
    ("answered before it is durable", CROWD, Without::Durability, &[NO_LOSS]),
    ("without ids of commits", CROWD, Without::CommitIds, &[NO_MISTAKE]),
];

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    let more = u8::from(settings.effort == Effort::Long);
    for (name, protocol) in [
        ("three workers", CROWD),
        ("two workers and an outsider", LABELLED),
        ("two workers and an operator", APPROVED),
    ] {
        let leases_max = protocol.leases_max + more;
        let (figure, held) = search(Protocol { leases_max, ..protocol });
        report.promise(name, figure, held);
    }
    for (name, protocol, without, broken) in CONTROLS {
        let (figure, failed) = refute(Protocol { without: *without, ..protocol.clone() }, broken);
        report.control(*name, figure, failed);
    }
    Ok(report)
}

/// Searches every state. Returns a figure, and whether all is as it must be in each, and all that must be possible is.
fn search(protocol: Protocol) -> (String, bool) {
    let properties = protocol.properties();
    let checker = begin(protocol).spawn_bfs().join();
    let found = checker.discoveries();
    let wrong = properties.iter().find(|property| match property.expectation {
        Expectation::Always | Expectation::Eventually => found.contains_key(property.name),
        Expectation::Sometimes => !found.contains_key(property.name),
    });
    let states = checker.unique_state_count();
    let mut figure =
        format!("{states} states, up to {} steps deep, in each of which all holds", checker.max_depth());
    if let Some(wrong) = wrong {
        let path = found.get(wrong.name).map(|path| path.clone().into_actions());
        figure = format!("{states} states; wrong: {}, by {path:?}", wrong.name);
    }
    (figure, wrong.is_none() && states < STATES_MAX)
}

/// Searches for a way in which each of these promises breaks. Returns a figure, and whether all do.
fn refute(protocol: Protocol, broken: &[&'static str]) -> (String, bool) {
    let all = HasDiscoveries::AllOf(broken.iter().copied().collect::<BTreeSet<_>>());
    let checker = begin(protocol).finish_when(all).spawn_bfs().join();
    let found = checker.discoveries();
    let told = broken.iter().map(|name| match found.get(name) {
        Some(path) => format!("\"{name}\" breaks after {} steps", path.clone().into_actions().len()),
        None => format!("\"{name}\" holds"),
    });
    (told.collect::<Vec<_>>().join(", "), broken.iter().all(|name| found.contains_key(name)))
}

fn begin(protocol: Protocol) -> CheckerBuilder<Protocol> {
    protocol.checker().target_state_count(STATES_MAX)
}
