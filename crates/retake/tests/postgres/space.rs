//! How much room a history takes.

use retake::store::StoreExt;
use retake::testkit::postgres::PostgresSchema;

use super::*;

/// Bytes of all tables with their indexes, and of what lies beside them. Without the rows that commits write anew in place:
/// how many versions of them a vacuum leaves is for others to say who look at the same server.
async fn bytes(schema: &PostgresSchema) -> u64 {
    schema.run("VACUUM (ANALYZE)").await;
    let sql = format!(
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n \
         ON n.oid = c.relnamespace WHERE n.nspname = '{}' AND c.relkind = 'r' AND c.relname <> 'executions'",
        schema.name()
    );
    schema.run(&sql).await[0].as_deref().unwrap().parse().unwrap()
}

/// A thousand appends of a kilobyte take less than twice the state that they lead to, indexes and all.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_of_appends_takes_little_more_than_its_last_state() {
    let schema = PostgresSchema::new();
    let store = schema.store().await;
    let empty = bytes(&schema).await;
    let (id, ctx) = conversation(&store, 1_000, false).await;
    let state = serde_json::to_vec(&ctx.get_variable("messages").unwrap()).unwrap().len() as u64;
    assert_eq!(store.context(id, 1_001).await.unwrap(), ctx);
    let took = bytes(&schema).await - empty;
    assert!(took < 2 * state, "{took} bytes for a state of {state}");
}
