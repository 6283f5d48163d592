//! How often a store and its server talk: a round trip is what most calls cost where the server is another machine.

use uuid::Uuid;

use super::*;
use crate::execution::{ExecutionContext, ExecutionId};
use crate::store::{
    Cause, Claim, Commit, Delta, NewCheckpoint, NewExecution, Queue, Seq, Settlement, Submitted, Ticket,
    delta,
};

/// The calls that everything else is made of, on a store that knows its server.
struct Office {
    store: PostgresStore,
    between: Between,
    ids: u128,
    _schema: Schema,
}

impl Office {
    async fn new() -> Self {
        let schema = Schema::new();
        let between = Between::new(&schema).await;
        let store = PostgresStore::connect(&between.url).await.unwrap();
        Self { store, between, ids: 0, _schema: schema }
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn checkpoint(&mut self, text: &str) -> NewCheckpoint {
        let mut ctx = ExecutionContext::new(Uuid::nil());
        ctx.set_variable("text".into(), text.into());
        let delta: Delta = delta(None, &ctx, |_| None).unwrap();
        NewCheckpoint {
            delta,
            ..NewCheckpoint::new(self.id(), ctx.started_at, ctx.state.clone(), Cause::Start)
        }
    }

    async fn submit(&mut self, name: &str) -> ExecutionId {
        let new = NewExecution {
            id: self.id(),
            name: name.into(),
            workflow_id: Uuid::nil(),
            workflow_name: "article".into(),
            definition: b"{}".to_vec(),
            origin: None,
        };
        let (id, first) = (new.id, self.checkpoint(name));
        let key = Some(format!("key of {name}"));
        let submitted = self.store.submit(new, first, Ticket::default(), key).await.unwrap();
        assert!(matches!(submitted, Submitted::Created(_)), "{submitted:?}");
        id
    }

    async fn commit(&mut self, execution_id: ExecutionId, expected_head: Seq, fence: Option<u64>) {
        let checkpoint = self.checkpoint(&format!("after @{expected_head}"));
        self.store.commit(Commit { execution_id, expected_head, fence, checkpoint }).await.unwrap();
    }

    /// Returns how often the client spoke since the last time.
    fn trips(&self, before: &mut usize) -> usize {
        let now = self.between.trips();
        now - std::mem::replace(before, now)
    }
}

#[tokio::test]
async fn what_a_run_does_for_each_node_and_a_client_for_each_run_is_one_round_trip_each() {
    let mut office = Office::new().await;
    let worker = Uuid::from_u128(1 << 64);
    let claim =
        Claim { worker, queues: Vec::new(), able: Default::default(), most: 1, ttl: Duration::from_secs(60) };
    let (mut before, mut found) = (0, Vec::new());
    for name in ["first", "second"] {
        let id = office.submit(name).await;
        let submitting = office.trips(&mut before);
        let claimed = office.store.claim(&claim).await.unwrap();
        let claiming = office.trips(&mut before);
        assert_eq!(claimed[0].lease.execution_id, id);
        let fence = Some(claimed[0].lease.fence);
        office.commit(id, 1, fence).await;
        office.trips(&mut before);
        office.commit(id, 2, fence).await;
        let committing = office.trips(&mut before);
        office.store.renew(&claimed[0].lease).await.unwrap();
        let renewing = office.trips(&mut before);
        office.store.state(id, 2).await.unwrap();
        let reading = office.trips(&mut before);
        office.store.settle(&claimed[0].lease, Settlement::Done).await.unwrap();
        let settling = office.trips(&mut before);
        found.push([submitting, claiming, committing, renewing, reading, settling]);
    }
    // The first of each prepared its statement, and took numbers for what was to come.
    assert!(found[0].iter().sum::<usize>() > 6, "{found:?}");
    assert_eq!(found[1], [1; 6]);
}
