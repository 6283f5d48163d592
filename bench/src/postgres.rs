//! The store of many machines, beside what `pgbench` makes of the same server.
//!
//! These parts need a PostgreSQL of their own on this machine, whose address is in [`server::VARIABLE`]:
//! `cargo xtask bench postgres` starts one with the settings that a new cluster has.

mod claiming;
mod growing;
mod load;
mod peer;
mod saving;
mod server;
mod workers;

use std::sync::Arc;

use retake::store::{PostgresStore, Store};
use tokio::runtime::Runtime;

pub(crate) use self::claiming::rows as claiming;
pub(crate) use self::growing::rows as growing;
pub(crate) use self::saving::rows as saving;
use self::server::Schema;
pub(crate) use self::workers::{WORK, rows as workers, work};
use crate::Outcome;

/// Opens the store in a schema, and makes it there.
fn open(runtime: &Runtime, schema: &Schema<'_>) -> Outcome<Arc<dyn Store>> {
    Ok(Arc::new(runtime.block_on(PostgresStore::connect(&schema.url()))?))
}
