//! Which node waits for which, in an order in which they can run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::ops::Range;

use crate::execution::{NodeId, node_id};

/// How many dependencies a workflow may have: a variable with a thousand writers and a thousand readers has a million.
pub const DEPENDENCIES_MAX: usize = 1_000_000;

/// The nodes of a workflow, numbered so that each comes after those it depends on; ties go by name.
///
/// A node depends on those it `needs`, on those whose results its expressions mention, and on those that write a
/// variable which its expressions mention.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<GraphNode>,
    by_name: HashMap<String, usize>,
    by_id: HashMap<NodeId, usize>,
}

#[derive(Debug, Clone)]
struct GraphNode {
    name: String,
    id: NodeId,
    dependencies: Vec<usize>,
    dependents: Vec<usize>,
    /// The dependencies whose status its own condition looks at.
    consulted: Vec<usize>,
}

impl Graph {
    /// Returns how many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Tells whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the index of every node: each after those it depends on.
    pub fn nodes(&self) -> Range<usize> {
        0..self.nodes.len()
    }

    /// Returns a node's name: its key in the file.
    ///
    /// # Panics
    /// As the others do, for an index that is not of this graph.
    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Returns a node's id, made from its name.
    pub fn id(&self, node: usize) -> NodeId {
        self.nodes[node].id
    }

    /// Returns the index of the node called `name`.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Returns the index of the node with this id.
    pub fn index_of_id(&self, id: &NodeId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// Returns the nodes that `node` waits for, in order.
    pub fn dependencies(&self, node: usize) -> &[usize] {
        &self.nodes[node].dependencies
    }

    /// Returns the nodes that wait for `node`, in order.
    pub fn dependents(&self, node: usize) -> &[usize] {
        &self.nodes[node].dependents
    }

    /// Tells whether the condition of `node` looks at the status of `dependency` (`nodes.X.status`): then it is not
    /// skipped because that one was skipped, and its condition decides.
    pub fn consults_status(&self, node: usize, dependency: usize) -> bool {
        self.nodes[node].consulted.contains(&dependency)
    }
}

/// What ties a node to others, by name. A name of no node ties nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    /// The nodes it names in `needs`.
    pub(super) needs: BTreeSet<String>,
    /// The nodes that its expressions mention.
    pub(super) mentions: BTreeSet<String>,
    /// The nodes whose status its condition looks at.
    pub(super) consults: BTreeSet<String>,
    /// The variables that its expressions mention.
    pub(super) reads: BTreeSet<String>,
    /// The variables that it writes.
    pub(super) writes: BTreeSet<String>,
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GraphError {
    /// Nodes wait for each other: each for the next one, and the last for the first.
    Cycle(Vec<(String, Because)>),
    /// More than [`DEPENDENCIES_MAX`].
    TooManyDependencies,
}

/// Why one node waits for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Because {
    Needs,
    Mentions,
    /// It reads this variable, which the other writes.
    Reads(String),
}

/// For each node, by its place in the order of names, those it waits for.
type Edges<'l> = Vec<BTreeMap<usize, Cause<'l>>>;

#[derive(Debug, Clone, Copy)]
enum Cause<'l> {
    Needs,
    Mentions,
    Reads(&'l str),
}

impl Graph {
    /// Puts the nodes in order.
    pub(super) fn new(links: &BTreeMap<String, Links>) -> Result<Self, GraphError> {
        let names: Vec<&str> = links.keys().map(String::as_str).collect();
        let edges = edges(links)?;
        let (order, waiting) = order(&edges);
        if order.len() < edges.len() {
            return Err(GraphError::Cycle(cycle(&edges, &waiting, &names)));
        }
        let mut index = vec![0; names.len()];
        for (at, &place) in order.iter().enumerate() {
            index[place] = at;
        }
        let mut graph = Self::default();
        for (at, &place) in order.iter().enumerate() {
            let name = names[place];
            let mut dependencies: Vec<usize> = edges[place].keys().map(|&place| index[place]).collect();
            dependencies.sort_unstable();
            for &dependency in &dependencies {
                graph.nodes[dependency].dependents.push(at);
            }
            let consulted = links[name].consults.iter().filter_map(|name| graph.index_of(name)).collect();
            let id = node_id(name);
            graph.by_name.insert(name.to_owned(), at);
            graph.by_id.insert(id, at);
            graph.nodes.push(GraphNode {
                name: name.to_owned(),
                id,
                dependencies,
                dependents: Vec::new(),
                consulted,
            });
        }
        Ok(graph)
    }
}

fn edges(links: &BTreeMap<String, Links>) -> Result<Edges<'_>, GraphError> {
    let places: HashMap<&str, usize> =
        links.keys().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let mut writers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, node) in links.values().enumerate() {
        for variable in &node.writes {
            writers.entry(variable).or_default().push(place);
        }
    }
    let mut count = 0;
    let mut edges = Vec::with_capacity(links.len());
    for (place, node) in links.values().enumerate() {
        let mut causes = BTreeMap::new();
        for variable in &node.reads {
            for &writer in writers.get(variable.as_str()).into_iter().flatten() {
                // A node that reads what it writes sees what was there before it.
                if writer != place {
                    causes.insert(writer, Cause::Reads(variable));
                }
            }
        }
        let mentioned = node.mentions.iter().map(|name| (name, Cause::Mentions));
        let needed = node.needs.iter().map(|name| (name, Cause::Needs));
        for (name, cause) in mentioned.chain(needed) {
            if let Some(&dependency) = places.get(name.as_str()) {
                causes.insert(dependency, cause);
            }
        }
        count += causes.len();
        if count > DEPENDENCIES_MAX {
            return Err(GraphError::TooManyDependencies);
        }
        edges.push(causes);
    }
    Ok(edges)
}

/// Returns the places in an order in which each comes after those it waits for, and for how many each still waits
/// (Kahn's algorithm). The order lacks those that wait for a cycle.
fn order(edges: &Edges<'_>) -> (Vec<usize>, Vec<usize>) {
    let mut dependents = vec![Vec::new(); edges.len()];
    let mut waiting: Vec<usize> = edges.iter().map(BTreeMap::len).collect();
    for (place, causes) in edges.iter().enumerate() {
        for &dependency in causes.keys() {
            dependents[dependency].push(place);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..edges.len()).filter(|&place| waiting[place] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(edges.len());
    while let Some(Reverse(place)) = ready.pop() {
        order.push(place);
        for &dependent in &dependents[place] {
            waiting[dependent] -= 1;
            if waiting[dependent] == 0 {
                ready.push(Reverse(dependent));
            }
        }
    }
    (order, waiting)
}

/// Returns one cycle among the nodes that still wait: each of them waits for another one.
fn cycle(edges: &Edges<'_>, waiting: &[usize], names: &[&str]) -> Vec<(String, Because)> {
    let next = |place: usize| edges[place].iter().find(|(dependency, _)| waiting[**dependency] > 0);
    let mut seen_at = HashMap::new();
    let mut walked = Vec::new();
    let mut place =
        waiting.iter().position(|&waiting| waiting > 0).expect("a graph without an order has a cycle");
    while !seen_at.contains_key(&place) {
        seen_at.insert(place, walked.len());
        let (&dependency, &cause) = next(place).expect("a node that waits, waits for one that waits");
        walked.push((place, cause));
        place = dependency;
    }
    let mut cycle = walked.split_off(seen_at[&place]);
    let first = (0..cycle.len()).min_by_key(|&at| cycle[at].0).unwrap_or(0);
    cycle.rotate_left(first);
    cycle
        .into_iter()
        .map(|(place, cause)| {
            let because = match cause {
                Cause::Needs => Because::Needs,
                Cause::Mentions => Because::Mentions,
                Cause::Reads(variable) => Because::Reads(variable.to_owned()),
            };
            (names[place].to_owned(), because)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needing(nodes: &[(&str, &[&str])]) -> BTreeMap<String, Links> {
        let needs = |needs: &[&str]| needs.iter().map(|need| (*need).to_owned()).collect();
        nodes
            .iter()
            .map(|(name, needed)| ((*name).to_owned(), Links { needs: needs(needed), ..Links::default() }))
            .collect()
    }

    fn order_of(graph: &Graph) -> Vec<&str> {
        graph.nodes().map(|node| graph.name(node)).collect()
    }

    #[test]
    fn nodes_come_after_those_they_need_and_ties_go_by_name() {
        let graph =
            Graph::new(&needing(&[("d", &["a"]), ("c", &[]), ("b", &["d", "c"]), ("a", &[])])).unwrap();
        assert_eq!(order_of(&graph), ["a", "c", "d", "b"]);
        assert_eq!(graph.dependencies(3), [1, 2]);
        assert_eq!(graph.dependents(0), [2]);
        assert_eq!(graph.id(0), node_id("a"));
    }

    #[test]
    fn a_cycle_is_found_behind_nodes_that_only_wait_for_it() {
        let links =
            needing(&[("a", &["b"]), ("b", &["y"]), ("x", &["y"]), ("y", &["z"]), ("z", &["x"]), ("n", &[])]);
        let Err(GraphError::Cycle(cycle)) = Graph::new(&links) else { panic!("there is a cycle") };
        let names: Vec<_> = cycle.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x", "y", "z"]);
    }

    proptest! {
        #[test]
        fn every_graph_has_an_order_or_a_real_cycle(edges in proptest::collection::btree_set((0..12_u8, 0..12_u8), 0..30)) {
            let name = |node: u8| format!("n{node:02}");
            let mut links: BTreeMap<String, Links> = (0..12).map(|node| (name(node), Links::default())).collect();
            for (from, to) in &edges {
                links.get_mut(&name(*from)).unwrap().needs.insert(name(*to));
            }
            match Graph::new(&links) {
                Ok(graph) => {
                    for node in graph.nodes() {
                        prop_assert!(graph.dependencies(node).iter().all(|dependency| *dependency < node));
                        let needed: BTreeSet<_> =
                            graph.dependencies(node).iter().map(|node| graph.name(*node).to_owned()).collect();
                        prop_assert_eq!(&needed, &links[graph.name(node)].needs);
                    }
                }
                Err(GraphError::Cycle(cycle)) => {
                    for (at, (name, _)) in cycle.iter().enumerate() {
                        let next = &cycle[(at + 1) % cycle.len()].0;
                        prop_assert!(links[name].needs.contains(next), "{} does not need {}", name, next);
                    }
                }
                Err(GraphError::TooManyDependencies) => prop_assert!(false, "30 edges are not too many"),
            }
        }
    }
}
