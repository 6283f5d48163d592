//! What a node waits for had given, as one hash: a result that was taken back stands again only where that is the same.

use std::collections::HashMap;

use crate::engine::context::seen_of_node;
use crate::execution::ExecutionContext;
use crate::store::hash;
use crate::workflow::Workflow;

/// The hashes of what nodes have given in one state, as far as they were asked for: many may wait for the same node.
pub(in crate::engine) type Given = HashMap<usize, String>;

/// Returns the hash of what the nodes that `node` waits for have given.
pub(in crate::engine) fn upstream(
    workflow: &Workflow,
    state: &ExecutionContext,
    node: usize,
    given: &mut Given,
) -> String {
    let graph = workflow.graph();
    let mut hasher = blake3::Hasher::new();
    for dependency in graph.dependencies(node) {
        let name = graph.name(*dependency);
        let hash = given.entry(*dependency).or_insert_with(|| hash(&seen_of_node(state, name)));
        hasher.update(name.as_bytes()).update(&[0]).update(hash.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
