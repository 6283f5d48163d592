//! What a node waits for had given, as one hash: a result that was taken back stands again only where that is the same.

use crate::engine::context::seen_of_node;
use crate::execution::ExecutionContext;
use crate::store::hash;
use crate::workflow::Workflow;

/// Returns the hash of what the nodes that `node` waits for have given.
pub(in crate::engine) fn upstream(workflow: &Workflow, state: &ExecutionContext, node: usize) -> String {
    let graph = workflow.graph();
    let mut hasher = blake3::Hasher::new();
    for dependency in graph.dependencies(node) {
        let name = graph.name(*dependency);
        hasher.update(name.as_bytes()).update(&[0]).update(hash(&seen_of_node(state, name)).as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
