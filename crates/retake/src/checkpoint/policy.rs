//! Whether a checkpoint is due. Pure: it is told what happened and when, and neither reads a clock nor saves anything.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CheckpointConfig, CheckpointFrequency, ConfigError};

/// Follows one run and says when a checkpoint is due.
///
/// What is due stays due until [`saved`](Self::saved) is called. Times are a clock's elapsed time, which never steps
/// back ([`Clock::elapsed`](crate::clock::Clock::elapsed)).
///
/// ```
/// use retake::checkpoint::{CheckpointConfig, CheckpointFrequency, CheckpointPolicy, Due};
/// use std::time::Duration;
///
/// let frequency = CheckpointFrequency::EveryNNodes(2);
/// let mut policy = CheckpointPolicy::new(CheckpointConfig { frequency, ..CheckpointConfig::default() })?;
/// let (ran, now) = (Duration::from_millis(5), Duration::from_secs(1));
/// assert_eq!(policy.node_finished(ran, now), None);
/// assert_eq!(policy.node_finished(ran, now), Some(Due::Nodes));
/// policy.saved(now);
/// assert_eq!(policy.node_finished(ran, now), None);
/// # Ok::<(), retake::checkpoint::ConfigError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CheckpointPolicy {
    config: CheckpointConfig,
    nodes_since: usize,
    /// Where the running interval began.
    since: Duration,
}

/// Why a checkpoint is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Due {
    /// Enough nodes have finished.
    Nodes,
    /// Enough time has passed.
    Interval,
    /// A node of a kind that wants one before it is about to start.
    Before,
    /// A node ran longer than the threshold.
    LongNode,
}

impl CheckpointPolicy {
    /// Returns the policy of a run that is about to start.
    ///
    /// An interval counts from the last [`saved`](Self::saved), and before the first from the clock's own start; call
    /// it once the start of the run is recorded.
    ///
    /// # Errors
    /// A [`ConfigError`] for what no run can follow.
    pub fn new(config: CheckpointConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { config, nodes_since: 0, since: Duration::ZERO })
    }

    /// Returns the configuration that is followed.
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// Counts a node that finished after running for `ran`, and says whether a checkpoint is now due.
    ///
    /// Called for each node as it finishes, not at the end of a level of the graph.
    pub fn node_finished(&mut self, ran: Duration, now: Duration) -> Option<Due> {
        if !self.config.enabled {
            return None;
        }
        self.nodes_since = self.nodes_since.saturating_add(1);
        if self.is_long(ran) {
            return Some(Due::LongNode);
        }
        match &self.config.frequency {
            CheckpointFrequency::EveryNNodes(nodes) => (self.nodes_since >= *nodes).then_some(Due::Nodes),
            CheckpointFrequency::Always => Some(Due::Nodes),
            CheckpointFrequency::TimeInterval(_) => self.is_past_deadline(now).then_some(Due::Interval),
            CheckpointFrequency::BeforeNodeTypes(_) | CheckpointFrequency::Manual => None,
        }
    }

    /// Says whether a checkpoint is due before a node of the given kind starts: only where something is `unsaved`.
    pub fn before_node(&mut self, kind: &str, unsaved: bool) -> Option<Due> {
        if !self.config.enabled || !unsaved {
            return None;
        }
        match &self.config.frequency {
            CheckpointFrequency::BeforeNodeTypes(kinds) => {
                kinds.iter().any(|wanted| wanted == kind).then_some(Due::Before)
            }
            CheckpointFrequency::EveryNNodes(_)
            | CheckpointFrequency::TimeInterval(_)
            | CheckpointFrequency::Manual
            | CheckpointFrequency::Always => None,
        }
    }

    /// Returns when [`tick`](Self::tick) wants to be called next; `None` where no interval is followed.
    pub fn deadline(&self) -> Option<Duration> {
        if !self.config.enabled {
            return None;
        }
        match &self.config.frequency {
            CheckpointFrequency::TimeInterval(seconds) => {
                Some(self.since.saturating_add(Duration::from_secs(*seconds)))
            }
            CheckpointFrequency::EveryNNodes(_)
            | CheckpointFrequency::BeforeNodeTypes(_)
            | CheckpointFrequency::Manual
            | CheckpointFrequency::Always => None,
        }
    }

    /// Says whether the time has come for a checkpoint.
    ///
    /// Where it has and nothing is `unsaved`, a new interval begins: the [`deadline`](Self::deadline) always moves on,
    /// and what changes later still waits no longer than one interval.
    pub fn tick(&mut self, now: Duration, unsaved: bool) -> Option<Due> {
        if !self.is_past_deadline(now) {
            return None;
        }
        if unsaved {
            return Some(Due::Interval);
        }
        self.since = now;
        None
    }

    /// Begins to count anew, after any save: one that was due, or one that a person asked for.
    ///
    /// Called where the state to be saved is taken. A node that finishes while it is being written counts towards the
    /// next checkpoint.
    pub fn saved(&mut self, now: Duration) {
        self.nodes_since = 0;
        self.since = now;
    }

    fn is_long(&self, ran: Duration) -> bool {
        self.config.auto_checkpoint_threshold_ms.is_some_and(|ms| ran > Duration::from_millis(ms))
    }

    fn is_past_deadline(&self, now: Duration) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn config(frequency: CheckpointFrequency) -> CheckpointConfig {
        CheckpointConfig { frequency, ..CheckpointConfig::default() }
    }

    fn policy(frequency: CheckpointFrequency) -> CheckpointPolicy {
        CheckpointPolicy::new(config(frequency)).unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Runs a graph of the given level sizes and returns after how many nodes a checkpoint was made.
    fn run_levels(policy: &mut CheckpointPolicy, levels: &[usize]) -> Vec<usize> {
        let mut made = Vec::new();
        for node in 1..=levels.iter().sum() {
            if policy.node_finished(SHORT, at(0)).is_some() {
                made.push(node);
                policy.saved(at(0));
            }
        }
        made
    }

    #[test]
    fn every_fourth_node_is_counted_across_the_levels_of_the_graph() {
        let levels = [1, 4, 4, 4, 4, 1];
        assert_eq!(run_levels(&mut policy(CheckpointFrequency::EveryNNodes(4)), &levels), [4, 8, 12, 16]);
    }

    #[test]
    fn always_means_after_every_node_and_so_does_every_single_node() {
        assert_eq!(run_levels(&mut policy(CheckpointFrequency::Always), &[2, 1]), [1, 2, 3]);
        assert_eq!(run_levels(&mut policy(CheckpointFrequency::EveryNNodes(1)), &[2, 1]), [1, 2, 3]);
    }

    #[test]
    fn a_checkpoint_stays_due_until_it_is_saved() {
        let mut policy = policy(CheckpointFrequency::EveryNNodes(2));
        assert_eq!(policy.node_finished(SHORT, at(0)), None);
        assert_eq!(policy.node_finished(SHORT, at(0)), Some(Due::Nodes));
        assert_eq!(policy.node_finished(SHORT, at(0)), Some(Due::Nodes));
        policy.saved(at(0));
        assert_eq!(policy.node_finished(SHORT, at(0)), None);
    }

    #[test]
    fn a_save_that_somebody_asked_for_begins_the_count_anew() {
        let mut policy = policy(CheckpointFrequency::EveryNNodes(2));
        assert_eq!(policy.node_finished(SHORT, at(0)), None);
        policy.saved(at(0));
        assert_eq!(policy.node_finished(SHORT, at(0)), None);
        assert_eq!(policy.node_finished(SHORT, at(0)), Some(Due::Nodes));
    }

    #[test]
    fn an_interval_counts_from_the_last_save() {
        let mut policy = policy(CheckpointFrequency::TimeInterval(30));
        policy.saved(at(100));
        assert_eq!(policy.deadline(), Some(at(130)));
        assert_eq!(policy.node_finished(SHORT, at(129)), None);
        assert_eq!(policy.tick(at(129), true), None);
        assert_eq!(policy.node_finished(SHORT, at(130)), Some(Due::Interval));
        assert_eq!(policy.tick(at(130), true), Some(Due::Interval));
        policy.saved(at(131));
        assert_eq!(policy.tick(at(132), true), None);
        assert_eq!(policy.deadline(), Some(at(161)));
    }

    #[test]
    fn an_interval_in_which_nothing_changed_makes_no_checkpoint_and_the_next_begins() {
        let mut policy = policy(CheckpointFrequency::TimeInterval(30));
        assert_eq!(policy.tick(at(40), false), None);
        assert_eq!(policy.deadline(), Some(at(70)));
        assert_eq!(policy.tick(at(69), true), None);
        assert_eq!(policy.tick(at(70), true), Some(Due::Interval));
    }

    #[test]
    fn only_an_interval_has_a_deadline() {
        for frequency in [
            CheckpointFrequency::EveryNNodes(1),
            CheckpointFrequency::BeforeNodeTypes(vec!["llm".into()]),
            CheckpointFrequency::Manual,
            CheckpointFrequency::Always,
        ] {
            let mut policy = policy(frequency);
            assert_eq!(policy.deadline(), None);
            assert_eq!(policy.tick(at(1_000_000), true), None);
        }
    }

    #[test]
    fn a_checkpoint_is_due_before_a_named_kind_only_where_something_is_unsaved() {
        let mut policy = policy(CheckpointFrequency::BeforeNodeTypes(vec!["llm".into(), "http".into()]));
        assert_eq!(policy.before_node("llm", true), Some(Due::Before));
        assert_eq!(policy.before_node("http", true), Some(Due::Before));
        assert_eq!(policy.before_node("llm", false), None);
        assert_eq!(policy.before_node("set", true), None);
        assert_eq!(policy.node_finished(SHORT, at(0)), None);
    }

    #[test]
    fn only_before_node_types_asks_before_a_node() {
        for frequency in [
            CheckpointFrequency::EveryNNodes(1),
            CheckpointFrequency::TimeInterval(1),
            CheckpointFrequency::Manual,
            CheckpointFrequency::Always,
        ] {
            assert_eq!(policy(frequency).before_node("llm", true), None);
        }
    }

    #[test]
    fn manual_makes_none_by_itself() {
        assert_eq!(run_levels(&mut policy(CheckpointFrequency::Manual), &[100]), [0; 0]);
    }

    #[test]
    fn a_node_that_ran_longer_than_the_threshold_is_saved_at_once_whatever_the_frequency() {
        let threshold = Duration::from_millis(60_000);
        for frequency in [
            CheckpointFrequency::EveryNNodes(5),
            CheckpointFrequency::TimeInterval(1_000),
            CheckpointFrequency::BeforeNodeTypes(vec!["llm".into()]),
            CheckpointFrequency::Manual,
            CheckpointFrequency::Always,
        ] {
            let mut policy = policy(frequency);
            assert_ne!(policy.node_finished(threshold, at(60)), Some(Due::LongNode));
            assert_eq!(policy.node_finished(threshold + SHORT, at(60)), Some(Due::LongNode));
        }
    }

    #[test]
    fn without_a_threshold_no_node_is_long() {
        let config = CheckpointConfig {
            auto_checkpoint_threshold_ms: None,
            ..config(CheckpointFrequency::EveryNNodes(5))
        };
        let mut policy = CheckpointPolicy::new(config).unwrap();
        assert_eq!(policy.node_finished(Duration::MAX, at(0)), None);
    }

    #[test]
    fn a_policy_that_is_not_enabled_never_wants_anything() {
        for frequency in [
            CheckpointFrequency::EveryNNodes(1),
            CheckpointFrequency::TimeInterval(1),
            CheckpointFrequency::BeforeNodeTypes(vec!["llm".into()]),
            CheckpointFrequency::Manual,
            CheckpointFrequency::Always,
        ] {
            let config = CheckpointConfig { enabled: false, ..config(frequency) };
            let mut policy = CheckpointPolicy::new(config).unwrap();
            assert_eq!(policy.node_finished(Duration::MAX, at(1_000)), None);
            assert_eq!(policy.before_node("llm", true), None);
            assert_eq!(policy.tick(at(1_000), true), None);
            assert_eq!(policy.deadline(), None);
        }
    }

    #[test]
    fn what_no_run_can_follow_is_refused() {
        let refused = |frequency| CheckpointPolicy::new(config(frequency)).err();
        assert_eq!(refused(CheckpointFrequency::EveryNNodes(0)), Some(ConfigError::EveryZeroNodes));
        assert_eq!(refused(CheckpointFrequency::TimeInterval(0)), Some(ConfigError::EveryZeroSeconds));
    }
}
