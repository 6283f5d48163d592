//! That a claim costs what it claims, whatever else is in the tables: the server says how it looks for it, and at how many
//! pages.

use super::claiming::{CLAIM, PLAN, PROMOTE};
use crate::testkit::postgres::PostgresSchema;

const EXECUTIONS: &str = "
INSERT INTO executions (key, id, name, created_at, workflow, workflow_name, state, state_name, head, updated_at, spend, link,
    checksum, log_last, log_link, log_checksum, slack_max, fence)
SELECT n, gen_random_uuid(), ('e' || n)::bytea, n, gen_random_uuid(), 'w', '', 'completed', 5, n, '', '', '', 0, '', '', 0, 1
FROM generate_series(1, 20000) n;
";

/// As many tickets each that are delayed, held, and in a queue at its limit, all of them more urgent than those that are
/// due.
const OTHERS: &str = "
INSERT INTO tickets (execution, stand, lane, later_lane, queue, priority, requires, due)
SELECT n, CASE n % 3 WHEN 0 THEN 'delayed' WHEN 1 THEN 'held' ELSE 'ready' END, sha256(queue), sha256(queue), queue, 9, '{}',
    moment() + CASE n % 3 WHEN 0 THEN interval '1 hour' ELSE interval '-1 hour' END
FROM (SELECT n, CASE n % 3 WHEN 2 THEN 'full' ELSE 'free' END::bytea AS queue FROM generate_series(1, 12000) n) t;
INSERT INTO limits VALUES ('running', 'full', 2, NULL, moment(), 0);
UPDATE tickets SET stand = 'claimed', due = moment() + interval '1 hour', claimed_queue = queue, claimed_fence = 1
WHERE execution IN (2, 5);
";

/// Tickets that are due, in three lanes.
const DUE: &str = "
INSERT INTO tickets (execution, stand, lane, later_lane, queue, priority, requires, due)
SELECT n, 'ready', sha256(queue), sha256(queue), queue, 0, '{}', moment()
FROM (SELECT n, ('q' || n % 3)::bytea AS queue FROM generate_series(19901, 20000) n) t;
";

/// Returns how the server does what a claim of `most` tells it, statement by statement.
async fn explained(schema: &PostgresSchema, most: usize) -> [String; 2] {
    let sql = format!(
        "PREPARE promote (integer) AS {PROMOTE};
        PREPARE claim (bytea[], bytea[], bigint, bytea, uuid, bigint) AS {CLAIM};
        BEGIN; {PLAN};
        EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, COSTS OFF) EXECUTE promote (5);
        EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, COSTS OFF)
            EXECUTE claim ('{{}}', '{{}}', {most}, 'me', '00000000-0000-0000-0000-000000000001', 1000000);
        COMMIT"
    );
    let lines: Vec<String> = schema.run(&sql).await.into_iter().flatten().collect();
    let ends: Vec<usize> =
        (0..lines.len()).filter(|index| lines[*index].starts_with("Execution Time")).collect();
    assert_eq!(ends.len(), 2, "{lines:?}");
    [lines[1..ends[0]].join("\n"), lines[ends[0]..ends[1]].join("\n")]
}

/// Returns at how many pages a plan looked.
fn pages(plan: &str) -> u64 {
    let line = plan.lines().find(|line| line.trim_start().starts_with("Buffers:")).expect("a count of pages");
    line.split(&['=', ' ']).filter_map(|part| part.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn a_claim_costs_what_it_claims_whatever_else_is_in_the_tables() {
    let schema = PostgresSchema::new();
    schema.store().await;
    schema.run(EXECUTIONS).await;
    schema.run(DUE).await;
    let alone = explained(&schema, 8).await;
    schema.run("DELETE FROM tickets").await;
    schema.run(OTHERS).await;
    schema.run(DUE).await;
    let among = explained(&schema, 8).await;
    for (plan, alone) in among.iter().zip(&alone) {
        for table in ["tickets", "executions", "limits"] {
            assert!(!plan.contains(&format!("Seq Scan on {table}")), "{plan}");
        }
        let (pages, before) = (pages(plan), pages(alone));
        assert!(
            pages <= before * 2 + 60,
            "{pages} pages, and {before} where nothing else was there:\n{plan}"
        );
    }
    assert!(among[0].contains("tickets_timed"), "{}", among[0]);
    assert!(among[1].contains("tickets_ready"), "{}", among[1]);
}
