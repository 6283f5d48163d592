//! Damaged rows: found, named, and never returned as data.

use retake::store::{
    Ask, ExecutionFilter, FeedPage, HistoryPage, NewOperation, Request, Since, StoreError, StoreExt,
};
use retake::testkit::postgres::PostgresSchema;

use super::*;

/// Columns that no checksum covers: what others change without knowing the rest of the row, and what the server makes.
const BARE: &[&str] = &[
    "executions.prunings",
    "executions.slack",
    "executions.slack_max",
    "executions.fence",
    "executions.owner",
    "executions.owner_id",
    "executions.lease_until",
    "checkpoints.xid",
];

/// Tables whose damage only a look at every record finds: nothing that is returned comes from them.
const BEHIND: &[&str] = &["keyframes", "gaps", "execution_workflows"];

const TABLES: &[(&str, &str)] = &[
    ("executions", "execution "),
    ("checkpoints", "checkpoint @"),
    ("deltas", "delta "),
    ("keyframes", "keyframe "),
    ("operations", "operation 1 of execution "),
    ("workflows", "workflow 00000000-"),
    ("execution_workflows", "workflow 00000000-"),
    ("requests", "request 00000000-"),
    ("gaps", "gap @1 of execution "),
];

/// Makes a store with a row in every table, and returns its execution.
async fn furnished(store: &PostgresStore) -> ExecutionId {
    let id = overwritten(store).await;
    let mut last = commit(id, 61, Delta::default());
    last.checkpoint.label = Some("good".into());
    last.checkpoint.operation = Some(NewOperation { who: "ada".into(), command: "checkpoint".into() });
    store.commit(last).await.unwrap();
    let operation = NewOperation { who: "ada".into(), command: "pause".into() };
    store.ask(id, Request { id: Uuid::from_u128(5), ask: Ask::Pause, operation }).await.unwrap();
    id
}

/// Makes an execution of 61 points, where a keyframe is worth its bytes and some deltas lie behind it.
async fn overwritten(store: &PostgresStore) -> ExecutionId {
    let id = begin(store, "talk").await;
    for head in 1..=60 {
        store
            .commit(commit(id, head, set("step", &format!("{head} {}", "otter ".repeat(200)))))
            .await
            .unwrap();
    }
    id
}

/// Waits for the keyframe, which is written beside the commits.
async fn framed(schema: &PostgresSchema) {
    while schema.run("SELECT count(*) FROM keyframes").await[0].as_deref() == Some("0") {
        tokio::task::yield_now().await;
    }
}

/// Calls all that reads. Returns what was said of damage.
async fn read_all(store: &PostgresStore, id: ExecutionId) -> Vec<String> {
    let mut said = Vec::new();
    let mut take = |result: Result<(), StoreError>| match result {
        Ok(()) => {}
        Err(error) => said.push(error.to_string()),
    };
    take(store.execution(id).await.map(drop));
    take(store.executions(&ExecutionFilter::default()).await.map(drop));
    take(store.history(id, HistoryPage::default()).await.map(drop));
    take(store.operations(id).await.map(drop));
    take(store.requests(id).await.map(drop));
    take(store.workflow(Uuid::from_u128(7)).await.map(drop));
    for seq in 55..=63 {
        take(store.state(id, seq).await.map(drop));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_value_in_any_column_of_any_table_is_found_and_named() {
    let schema = PostgresSchema::new();
    let store = schema.store().await;
    let id = furnished(&store).await;
    framed(&schema).await;
    // Of a delta that has a keyframe, reading needs only that.
    store.commit(commit(id, 62, set("last", "63"))).await.unwrap();
    store.prune(id, 20).await.unwrap();
    sound(&store).await;
    assert_eq!(read_all(&store, id).await, Vec::<String>::new());
    let mut looked_at = 0;
    for (table, name) in TABLES {
        let sql = format!(
            "SELECT column_name || ' ' || data_type FROM information_schema.columns \
             WHERE table_schema = '{}' AND table_name = '{table}' ORDER BY ordinal_position",
            schema.name()
        );
        for column in schema.run(&sql).await {
            let column = column.unwrap();
            let (column, kind) = column.split_once(' ').unwrap();
            if BARE.contains(&format!("{table}.{column}").as_str()) {
                continue;
            }
            looked_at += 1;
            let changed = match kind {
                "bytea" => format!(
                    "CASE WHEN octet_length({column}) > 0 THEN \
                    set_byte({column}, octet_length({column}) / 2, get_byte({column}, octet_length({column}) / 2) # 1) \
                    ELSE 'x'::bytea END"
                ),
                "bigint" => format!("coalesce({column} + 1000000, 1)"),
                "uuid" => format!("coalesce(('ff' || substr({column}::text, 3))::uuid, gen_random_uuid())"),
                "text" => format!("{column} || 'x'"),
                "boolean" => format!("NOT {column}"),
                other => panic!("{table}.{column} is {other}"),
            };
            // The newest row, of which most is read.
            let newest = format!("SELECT ctid FROM {table} ORDER BY {} DESC LIMIT 1", key(table));
            schema
                .run(&format!(
                    "CREATE TABLE kept AS SELECT * FROM {table}; SET session_replication_role = replica; \
                     UPDATE {table} SET {column} = {changed} WHERE ctid = ({newest})"
                ))
                .await;
            let problems = store.check().await.unwrap().problems;
            assert!(!problems.is_empty(), "{table}.{column}");
            if !["key", "id", "execution", "delta", "seq", "number", "first", "workflow"].contains(&column) {
                assert!(
                    problems.iter().any(|problem| problem.starts_with(name)),
                    "{table}.{column}: {problems:?}"
                );
            }
            // Of an execution that cannot be found, nothing is said, and nothing returned.
            let said = read_all(&schema.store().await, id).await;
            let is_lost = format!("{table}.{column}") == "requests.execution"
                || format!("{table}.{column}") == "workflows.id";
            if !BEHIND.contains(table) && !is_lost {
                assert!(said.iter().any(|said| said.contains(" is damaged: ")), "{table}.{column}: {said:?}");
            }
            schema
                .run(&format!(
                    "SET session_replication_role = replica; DELETE FROM {table}; \
                     INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept"
                ))
                .await;
        }
    }
    assert!(looked_at > 60, "{looked_at}");
    sound(&store).await;
}

fn key(table: &str) -> &'static str {
    match table {
        "checkpoints" => "seq",
        "keyframes" => "delta",
        "operations" => "number",
        "workflows" => "id",
        "execution_workflows" => "workflow",
        "gaps" => "first",
        _ => "key",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_gone_or_moved_are_found() {
    let schema = PostgresSchema::new();
    let store = schema.store().await;
    let id = furnished(&store).await;
    for (change, expected) in [
        ("DELETE FROM checkpoints WHERE seq = 62", format!("the head @62 of execution {id} is missing")),
        (
            "DELETE FROM checkpoints WHERE seq IN (7, 8)",
            format!("checkpoints @7 to @8 of execution {id} are missing, and were not all pruned"),
        ),
        ("DELETE FROM operations", format!("operations after 0 of execution {id} are missing")),
        ("DELETE FROM deltas WHERE base = (SELECT min(key) FROM deltas)", "delta ".to_owned()),
        ("DELETE FROM workflows", format!("of execution {id} is missing")),
        ("DELETE FROM execution_workflows", format!("execution {id} runs workflow 00000000-")),
        ("UPDATE requests SET execution = 0", "rows of requests name none of executions".to_owned()),
        ("DELETE FROM executions", "rows of checkpoints name none of executions".to_owned()),
    ] {
        let tables = "checkpoints, operations, deltas, workflows, execution_workflows, requests, executions";
        let each = |sql: &str| tables.split(", ").map(|table| sql.replace('@', table)).collect::<String>();
        schema.run(&each("CREATE TABLE kept_@ AS SELECT * FROM @; ")).await;
        schema.run(&format!("SET session_replication_role = replica; {change}")).await;
        let problems = store.check().await.unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains(&expected)), "{change}: {problems:?}");
        let back = each("DELETE FROM @; INSERT INTO @ SELECT * FROM kept_@; DROP TABLE kept_@; ");
        schema.run(&format!("SET session_replication_role = replica; {back}")).await;
    }
    sound(&store).await;
}

/// There is no repair on a server: what is damaged can at least be removed, so that the others can be listed again.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_execution_is_named_by_whoever_lists_all_and_can_be_removed() {
    let schema = PostgresSchema::new();
    let store = schema.store().await;
    let (damaged, other) = (begin(&store, "damaged").await, begin(&store, "other").await);
    schema.run("UPDATE executions SET head = head + 1 WHERE name = 'damaged'").await;
    let all = ExecutionFilter::default();
    let page = FeedPage { since: Since::Start, execution: None, limit: 10 };
    for error in [store.executions(&all).await.unwrap_err(), store.feed(page).await.unwrap_err()] {
        let StoreError::Corrupt { record, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*record, format!("execution {damaged}"));
    }
    assert_eq!(store.require(other).await.unwrap().name, "other");

    schema.run("UPDATE executions SET owner = 'me', lease_until = now() + interval '1 hour'").await;
    let error = store.delete(damaged).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "somebody advances it: {error:?}");
    schema.run("UPDATE executions SET owner = NULL, lease_until = NULL").await;
    assert_eq!(store.delete(damaged).await.unwrap(), 1);
    let left: Vec<_> = store.executions(&all).await.unwrap().iter().map(|execution| execution.id).collect();
    assert_eq!(left, [other]);
    sound(&store).await;
}

/// What lies behind a keyframe is the truth.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_keyframe_costs_time_and_nothing_else() {
    let schema = PostgresSchema::new();
    let store = schema.store().await;
    let id = overwritten(&store).await;
    framed(&schema).await;
    let mut states = Vec::new();
    for seq in 1..=61 {
        states.push(store.state(id, seq).await.unwrap());
    }
    schema.run("UPDATE keyframes SET body = 'x'").await;
    for (state, seq) in states.iter().zip(1..) {
        assert!(store.state(id, seq).await.unwrap() == *state, "@{seq}");
    }
}
