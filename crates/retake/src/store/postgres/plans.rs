//! That no statement of a run looks at more rows than it is about, however many there are.

use super::{asking, chain, commit, create, lease, query, queue, write};
use crate::testkit::postgres::PostgresSchema;

/// What the statements of a run are for.
const HOT: &[(&str, &str)] = &[
    ("a commit", write::PLAIN),
    ("a commit of an operation", write::FULL),
    ("the ground of a commit", commit::LOOK),
    ("a creation", create::INSERT),
    ("a submission", queue::SUBMIT),
    ("a state", chain::WAY),
    ("the state of a point", chain::WAY_FROM_POINT),
    ("an execution", query::BY_ID),
    ("executions that stand so", query::BY_STATE),
    ("forks", query::BY_ORIGIN),
    ("executions by name or id", query::BY_ADDRESS),
    ("a page of a history", query::POINTS),
    ("a point by its id", query::POINT_BY_ID),
    ("operations", query::OPERATIONS),
    ("requests", asking::LOOK),
    ("taking a lease", lease::TAKE),
    ("renewing a lease", lease::RENEW),
    ("giving a lease back", lease::RELEASE),
];

async fn plan(schema: &PostgresSchema, sql: &str) -> Vec<String> {
    let numbers = sql
        .split('$')
        .skip(1)
        .filter_map(|rest| rest.split(|digit: char| !digit.is_ascii_digit()).next()?.parse::<usize>().ok());
    let values = vec!["NULL"; numbers.max().unwrap_or(0)].join(", ");
    // As `connect` sets a session up.
    let sql = format!(
        "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan; PREPARE statement AS {sql}; \
         EXPLAIN EXECUTE statement ({values})"
    );
    schema.run(&sql).await.into_iter().flatten().collect()
}

#[tokio::test]
async fn hot_statements_find_their_rows_by_indexes() {
    let schema = PostgresSchema::new();
    drop(schema.store().await);
    for (name, sql) in HOT {
        let plan = plan(&schema, sql).await;
        let whole = plan.join("\n");
        assert!(!whole.contains("Seq Scan"), "{name}:\n{whole}");
        for (line, next) in plan.iter().zip(plan.iter().skip(1)) {
            if line.contains("Scan using") || line.contains("Bitmap Index Scan") {
                assert!(next.contains("Index Cond"), "{name}: {line}\n{whole}");
            }
        }
    }
}

#[tokio::test]
async fn the_newest_executions_come_from_an_index_in_their_order() {
    let schema = PostgresSchema::new();
    drop(schema.store().await);
    let plan = plan(&schema, query::NEWEST).await.join("\n");
    assert!(plan.contains("Index Scan Backward using executions_by_creation"), "{plan}");
    assert!(!plan.contains("Sort"), "{plan}");
}
