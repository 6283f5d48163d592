//! The examples run: what they assert is tested here.

#[path = "../examples/bring_your_own_engine.rs"]
mod bring_your_own_engine;

#[test]
fn bring_your_own_engine_holds_what_it_tells() {
    bring_your_own_engine::main().unwrap();
}
