//! The examples run: what they assert is tested here.

#[path = "../examples/bring_your_own_engine.rs"]
mod bring_your_own_engine;

#[cfg(feature = "engine")]
#[path = "../examples/research_agent.rs"]
mod research_agent;

#[test]
fn bring_your_own_engine_holds_what_it_tells() {
    bring_your_own_engine::main().unwrap();
}

#[cfg(feature = "engine")]
#[test]
fn research_agent_holds_what_it_tells() {
    research_agent::main().unwrap();
}
