//! What a person changes while it waits for a worker: it leaves the queue, until somebody resumes it.

use retake::engine::Edit;

use super::*;

/// What a person does to an execution that workers are to go on with, by name.
const DONE_BY_PEOPLE: [&str; 6] = ["rollback", "edit", "undo", "redo", "pause", "cancel"];

async fn do_to(engine: &Engine, id: retake::ExecutionId, what: &str) {
    let apply = |plan| engine.apply(plan, somebody());
    match what {
        "rollback" => apply(engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap()).await,
        "edit" => {
            let set = BTreeMap::from([("aside".to_owned(), json!("read by nobody"))]);
            apply(engine.plan_edit(id, &Edit { set, ..Edit::default() }).await.unwrap()).await
        }
        "undo" => engine.undo(id, Effects::Refuse, somebody()).await,
        "redo" => engine.redo(id, Effects::Refuse, somebody()).await,
        "pause" => engine.pause(id, somebody()).await,
        "cancel" => engine.cancel(id, somebody()).await,
        _ => panic!("nobody does {what}"),
    }
    .unwrap();
}

/// Tries that what a person does takes an execution out of the queue, also where one waits for its time.
async fn a_person_takes_it_out_of_the_queue(engine: Engine) {
    let queue = Arc::clone(engine.queue().unwrap());
    let later = Ticket { delay: Duration::from_secs(3_600), ..Ticket::default() };
    for what in DONE_BY_PEOPLE {
        let submission =
            engine.submit(Arc::new(mail()), Start::default(), later.clone(), None).await.unwrap();
        let Submission::Created { execution: id, .. } = submission else { panic!("it is the first") };
        engine.resume(id, Resume::default()).await.unwrap().drive().await.unwrap();
        if ["undo", "redo"].contains(&what) {
            do_to(&engine, id, "edit").await;
        }
        if what == "redo" {
            do_to(&engine, id, "undo").await;
        }
        queue.enqueue(id, later.clone()).await.unwrap();
        do_to(&engine, id, what).await;
        assert_eq!(queue.tickets(&[id]).await.unwrap(), [], "{what}");
        let state = queue.require(id).await.unwrap().state;
        let stands = if what == "cancel" { ExecutionState::Cancelled } else { ExecutionState::Paused };
        assert_eq!(state, stands, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_person_changes_while_it_waits_leaves_the_queue() {
    a_person_takes_it_out_of_the_queue(Office::new().engine()).await;
}

#[cfg(all(feature = "postgres", feature = "testkit"))]
#[tokio::test]
async fn what_a_person_changes_while_it_waits_leaves_the_queue_of_a_server() {
    let schema = retake::testkit::postgres::PostgresSchema::new();
    let engine = Engine::on_queue(Arc::new(schema.store().await));
    a_person_takes_it_out_of_the_queue(engine.with_registry(Journal::default().registry())).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_person_changed_goes_on_when_somebody_resumes_it_and_not_before() {
    let office = Office::new();
    let id = office.submit(mail()).await;
    office.work().await;
    assert_eq!(office.depth().await, (0, 0, 1, 0));
    let engine = office.engine();
    do_to(&engine, id, "edit").await;
    // As where whoever changed it died before it left the queue.
    office.store.enqueue(id, Ticket::default()).await.unwrap();
    assert_eq!(finished(&office.work().await), Vec::<&str>::new());
    assert_eq!(office.depth().await, (0, 0, 0, 0), "the approval that is open does not let it go on");
    let yes = Decision { approved: true, with: Value::Null };
    engine.approve(id, "ok", yes, somebody()).await.unwrap();
    assert_eq!(finished(&office.work().await), Vec::<&str>::new());
    engine.enqueue(id, Ticket::default(), Resume::default()).await.unwrap();
    assert_eq!(finished(&office.work().await), ["completed"]);
}
