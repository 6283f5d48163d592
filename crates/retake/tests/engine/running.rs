//! What is run, what is recorded, and when it is saved.

use super::*;

#[tokio::test]
async fn a_run_gives_every_output_and_ends_completed() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!((outcome.nodes_run, outcome.nodes_reused), (4, 0));
    assert_eq!(journal.ran(), ["a", "b", "c", "d"]);
    assert_eq!(output(&engine, &outcome, "d").await, Some(json!(["a done dry", "a done"])));
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    assert_eq!(ctx.get_variable("last"), Some(&json!(["a done dry", "a done"])));
    assert!(ctx.completed_at.is_some());
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().leased_by, None);
}

#[tokio::test]
async fn every_read_of_a_node_is_recorded() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    let reads = &ctx.get_node_result(&node_id("b")).unwrap().reads;
    let subjects: Vec<&Subject> = reads.iter().map(|read| &read.subject).collect();
    assert_eq!(subjects, [&Subject::Node("a".into()), &Subject::Variable("tone".into())]);
    assert!(reads.iter().all(|read| read.hash == retake::engine::hash_now(&ctx, &read.subject)));
}

#[tokio::test]
async fn a_failed_run_resumes_at_the_failed_node() {
    let journal = Journal::default();
    let engine = engine(&journal);
    journal.fail(&["c"]);
    let outcome = run(&engine, diamond()).await;
    assert_eq!(outcome.state, ExecutionState::Failed("node `c` failed: told to fail".into()));
    assert_eq!(outcome.failures, [("c".to_owned(), "told to fail".to_owned())]);
    assert_eq!(journal.ran(), ["a", "b", "c"]);
    journal.fail(&[]);
    let again = resume(&engine, &outcome).await;
    assert_eq!(again.state, ExecutionState::Completed);
    assert_eq!(journal.ran(), ["c", "d"]);
    assert_eq!((again.nodes_run, again.nodes_reused), (2, 2));
    assert_eq!(again.execution, outcome.execution);
}

#[tokio::test]
async fn a_completed_run_resumes_to_nothing_and_writes_nothing() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    let again = resume(&engine, &outcome).await;
    assert_eq!(
        (again.state, again.head, again.nodes_run, again.nodes_reused),
        (outcome.state, outcome.head, 0, 4)
    );
    assert_eq!(journal.ran(), Vec::<String>::new());
}

#[tokio::test]
async fn every_n_nodes_are_counted_node_by_node_across_levels() {
    // Levels of 1, 4, 4, 4, 4 and 1 nodes.
    let engine = engine(&Journal::default());
    let mut builder = Workflow::builder("levels").checkpoints(every(CheckpointFrequency::EveryNNodes(4)));
    builder = builder.node("start", work());
    for level in 0..4 {
        for place in 0..4 {
            let before = if level == 0 { "start".to_owned() } else { format!("n{}_{place}", level - 1) };
            builder = builder.node(format!("n{level}_{place}"), work().needs([before]));
        }
    }
    let last = (0..4).map(|place| format!("n3_{place}"));
    let outcome = run(&engine, builder.node("stop", work().needs(last)).build().unwrap()).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "nodes", "nodes", "nodes", "nodes", "finish"]);
}

#[tokio::test]
async fn each_frequency_decides_when_a_run_is_saved() {
    for (frequency, expected) in [
        (CheckpointFrequency::Always, vec!["start", "nodes", "nodes", "nodes", "finish"]),
        (CheckpointFrequency::Manual, vec!["start", "finish"]),
        (CheckpointFrequency::EveryNNodes(3), vec!["start", "nodes", "finish"]),
        (CheckpointFrequency::TimeInterval(3_600), vec!["start", "finish"]),
        (CheckpointFrequency::BeforeNodeTypes(vec!["set".into()]), vec!["start", "finish"]),
        (
            CheckpointFrequency::BeforeNodeTypes(vec!["call".into()]),
            vec!["start", "before", "before", "before", "finish"],
        ),
    ] {
        let engine = engine(&Journal::default());
        let mut definition = diamond().definition().clone();
        definition.checkpoints = every(frequency.clone());
        let outcome = run(&engine, Workflow::from_definition(definition).unwrap()).await;
        assert_eq!(causes(&engine, &outcome).await, expected, "{frequency:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_saves_while_nodes_still_run() {
    let registry = Registry::new().with("slow", async |ctx: NodeContext| {
        tokio::time::sleep(Duration::from_secs(if ctx.node() == "a" { 1 } else { 5 })).await;
        Ok::<_, NodeError>(())
    });
    let clock = Arc::new(TokioClock::default());
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry).with_clock(clock);
    let workflow = Workflow::builder("slow")
        .checkpoints(every(CheckpointFrequency::TimeInterval(2)))
        .node("a", Node::call("slow"))
        .node("b", Node::call("slow"))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "interval", "finish"]);
    let at_interval = engine.store().context(outcome.execution, 2).await.unwrap();
    assert_eq!(at_interval.completed_nodes().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ran_long_is_saved_at_once() {
    let registry = Registry::new().with("slow", async |_| {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok::<_, NodeError>(())
    });
    let clock = Arc::new(TokioClock::default());
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry).with_clock(clock);
    let checkpoints =
        CheckpointConfig { auto_checkpoint_threshold_ms: Some(1_000), ..every(CheckpointFrequency::Manual) };
    let workflow = Workflow::builder("long")
        .checkpoints(checkpoints)
        .node("a", Node::call("slow"))
        .node("b", Node::call("slow").needs(["a"]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "long_node", "finish"]);
}

#[tokio::test]
async fn a_run_keeps_no_more_checkpoints_than_it_was_told() {
    let engine = engine(&Journal::default());
    let mut builder = Workflow::builder("chain")
        .checkpoints(CheckpointConfig { max_checkpoints: 3, ..always() })
        .node("n0", work());
    for n in 1..20 {
        builder = builder.node(format!("n{n}"), work().needs([format!("n{}", n - 1)]));
    }
    let outcome = run(&engine, builder.build().unwrap()).await;
    let history = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap();
    let seqs: Vec<u64> = history.iter().map(|point| point.seq).collect();
    assert_eq!(seqs, [outcome.head, outcome.head - 1, outcome.head - 2]);
}

#[tokio::test]
async fn a_false_condition_skips_the_node_and_what_depends_on_it() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let workflow = Workflow::builder("branches")
        .var("go", json!(false))
        .checkpoints(always())
        .node("yes", work().when("vars.go"))
        .node("after_yes", work().needs(["yes"]))
        .node("no", work().when("${{ not vars.go }}"))
        .node(
            "join",
            work().needs(["yes", "no"]).when("nodes.yes.status == 'success' or nodes.no.status == 'success'"),
        )
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!(journal.ran(), ["no", "join"]);
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    for node in ["yes", "after_yes"] {
        assert_eq!(ctx.get_node_result(&node_id(node)).unwrap().result, ExecutionResult::Skipped, "{node}");
    }
    assert_eq!(
        ctx.get_node_result(&node_id("yes")).unwrap().reads[0].subject,
        Subject::Variable("go".into())
    );
}

#[tokio::test]
async fn a_tolerated_failure_lets_the_run_go_on() {
    let journal = Journal::default();
    let engine = engine(&journal);
    journal.fail(&["a"]);
    let workflow = Workflow::builder("tolerant")
        .node("a", work().on_error(OnError::Continue))
        .node(
            "b",
            work().with(json!(["${{ nodes.a.status }}", "${{ nodes.a.output }}", "${{ nodes.a.error }}"])),
        )
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!(output(&engine, &outcome, "b").await, Some(json!(["failure", null, "told to fail"])));
}

#[tokio::test(start_paused = true)]
async fn a_node_is_tried_again_with_growing_waits_under_one_idempotency_key() {
    let tries: Arc<Mutex<Vec<(u32, String)>>> = Arc::default();
    let seen = Arc::clone(&tries);
    let registry = Registry::new().with("flaky", move |ctx: NodeContext| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().push((ctx.attempt(), ctx.idempotency_key().to_owned()));
            if ctx.attempt() < 3 { Err(NodeError::new("not yet")) } else { Ok(ctx.attempt()) }
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("flaky").node("a", Node::call("flaky").retry(5)).build().unwrap();
    let outcome = run(&engine, workflow).await;
    let tries = tries.lock().unwrap().clone();
    assert_eq!(tries.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(tries.iter().all(|(_, key)| *key == tries[0].1));
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    assert_eq!(ctx.get_node_result(&node_id("a")).unwrap().retry_count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_the_work_and_fails_the_node() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let registry = Registry::new().with("endless", move |_| {
        let guard = Dropped(Arc::clone(&count));
        async move {
            let _guard = guard;
            std::future::pending::<()>().await;
            Ok::<_, NodeError>(())
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let node = Node::call("endless").timeout(Duration::from_secs(3));
    let outcome = run(&engine, Workflow::builder("endless").node("a", node).build().unwrap()).await;
    assert_eq!(outcome.failures, [("a".to_owned(), "it took longer than its timeout of 3s".to_owned())]);
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_node_and_nothing_else() {
    let registry =
        Registry::new().with("panics", async |_| -> Result<(), NodeError> { panic!("at the disco") });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let outcome = run(&engine, Workflow::builder("p").node("a", Node::call("panics")).build().unwrap()).await;
    assert_eq!(outcome.failures, [("a".to_owned(), "its handler panicked: at the disco".to_owned())]);
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().state.name(), "failed");
}

/// A value that no stack is deep enough for to drop it.
fn bottomless() -> Value {
    (0..200_000).fold(json!(1), |inner, _| Value::Array(vec![inner]))
}

#[tokio::test]
async fn what_cannot_be_stored_fails_its_node_with_its_path() {
    let registry = Registry::new()
        .with("output", async |_| Ok::<_, NodeError>(bottomless()))
        .with("set", async |ctx: NodeContext| {
            ctx.set_variable("x", bottomless());
            ctx.set_variable("x", json!(1));
            Ok::<_, NodeError>(bottomless())
        })
        .with("append", async |ctx: NodeContext| {
            ctx.append("x", Value::Object([("a b".to_owned(), bottomless())].into_iter().collect()))?;
            Ok::<_, NodeError>(())
        })
        .with("measure", async |ctx: NodeContext| {
            ctx.measured("hops", bottomless());
            Ok::<_, NodeError>(())
        })
        .with("price", async |ctx: NodeContext| {
            ctx.spent(TokenUsage::new(1, 1), Some(f64::NAN));
            Ok::<_, NodeError>(())
        })
        .with("float", async |_| Ok::<_, NodeError>(BTreeMap::from([("y", [1.0, f64::INFINITY])])))
        .with("large", async |_| Ok::<_, NodeError>([u128::MAX]));
    for (closure, wanted) in [
        ("output", "nodes.a.output[0][0]"),
        ("set", "vars.x[0][0]"),
        ("append", "vars.x[\"a b\"][0][0]"),
        ("measure", "nodes.a.metrics.hops[0][0]"),
        ("price", "nodes.a.metrics.cost_usd: NaN is no number that JSON can hold"),
        ("float", "nodes.a.output.y[1]: inf is no number that JSON can hold"),
        ("large", "nodes.a.output[0]: 340282366920938463463374607431768211455 does not fit into 64 bits"),
    ] {
        let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry.clone());
        let workflow = Workflow::builder("w").node("a", Node::call(closure)).build().unwrap();
        let outcome = run(&engine, workflow).await;
        let (_, why) = &outcome.failures[0];
        assert!(why.starts_with(&format!("cannot store {wanted}")), "{closure}: {why}");
    }
}

#[tokio::test]
async fn an_external_node_is_marked_before_it_runs_and_is_not_blindly_run_again() {
    let entered = Arc::new(tokio::sync::Notify::new());
    let inside = Arc::clone(&entered);
    let keys: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&keys);
    let registry = Registry::new().with("send", move |ctx: NodeContext| {
        let (inside, seen) = (Arc::clone(&inside), Arc::clone(&seen));
        async move {
            seen.lock().unwrap().push(ctx.idempotency_key().to_owned());
            inside.notify_one();
            if seen.lock().unwrap().len() == 1 {
                std::future::pending::<()>().await;
            }
            Ok::<_, NodeError>("sent")
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let node = Node::call("send").effect(Effect::External);
    let workflow = Workflow::builder("mail")
        .checkpoints(every(CheckpointFrequency::Manual))
        .node("mail", node)
        .build()
        .unwrap();
    let run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    let id = run.execution_id();
    let driven = tokio::spawn(run.drive());
    entered.notified().await;
    // The process dies.
    driven.abort();
    assert!(driven.await.unwrap_err().is_cancelled());
    let marked = engine.store().history(id, HistoryPage::default()).await.unwrap();
    assert_eq!(marked[0].cause, Cause::Started { node: "mail".into() });
    wait_until_released(&engine, id).await;
    let refused = engine.resume(id, Resume::default()).await.unwrap_err();
    let key = keys.lock().unwrap()[0].clone();
    assert!(
        matches!(&refused, EngineError::Interrupted { nodes } if *nodes == [("mail".to_owned(), key.clone())]),
        "{refused}"
    );
    wait_until_released(&engine, id).await;
    let again = Resume { again: vec!["mail".into()], ..Resume::default() };
    let outcome = engine.resume(id, again).await.unwrap().drive().await.unwrap();
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!(*keys.lock().unwrap(), [key.clone(), key]);
}

#[tokio::test]
async fn secrets_are_found_nowhere_in_the_store() {
    let journal = Journal::default();
    let engine = engine(&journal).with_secrets(Arc::new(OneSecret));
    let workflow = Workflow::builder("secret")
        .checkpoints(always())
        .node("a", work().with(json!({"seen": "Bearer ${{ secrets.TOKEN }}"})).into("seen"))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(output(&engine, &outcome, "a").await, Some(json!({"seen": "Bearer ***"})));
    for seq in 1..=outcome.head {
        let image = engine.store().state(outcome.execution, seq).await.unwrap();
        assert!(!String::from_utf8_lossy(&image.to_delta().encode()).contains("canary"), "@{seq}");
    }
}

#[tokio::test]
async fn a_workflow_that_nobody_can_run_is_refused_before_anything_is_created() {
    let engine = Engine::new(Arc::new(MemoryStore::new()));
    let refused = engine.start(Arc::new(diamond()), Start::default()).await.unwrap_err();
    assert_eq!(refused.to_string(), "node `a` cannot run: this program has no handler for closure `work`");
    assert!(engine.store().executions(&retake::store::ExecutionFilter::default()).await.unwrap().is_empty());
}
