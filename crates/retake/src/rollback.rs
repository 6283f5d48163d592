//! Snapshots in memory, and going back to them: for those who bring their own engine.
//!
//! Nothing here outlives the process, and nothing waits: a snapshot and a rollback copy a few pointers, however large
//! the state. Rolling back takes *state* back; what nodes did to the outside world stays done.
//!
//! ```
//! use retake::execution::ExecutionContext;
//! use retake::rollback::{RollbackManager, Selection};
//! use serde_json::json;
//!
//! let mut ctx = ExecutionContext::new(uuid::Uuid::new_v4());
//! let mut manager = RollbackManager::new(10);
//! ctx.set_variable("draft".into(), json!("first"));
//! let id = manager.create_labeled_snapshot(&ctx, "before the rewrite");
//!
//! ctx.set_variable("draft".into(), json!("worse"));
//! ctx.set_variable("cost".into(), json!(3));
//! let result = manager.rollback_to(&mut ctx, id);
//! assert_eq!((result.success, result.variables_changed), (true, 2));
//! assert_eq!(ctx.get_variable("draft"), Some(&json!("first")));
//!
//! manager.undo_rollback(&mut ctx);
//! assert_eq!(ctx.get_variable("draft"), Some(&json!("worse")));
//!
//! manager.rollback_selected(&mut ctx, id, &Selection::default().with_variables(["draft"]));
//! assert_eq!(ctx.get_variable("draft"), Some(&json!("first")));
//! assert_eq!(ctx.get_variable("cost"), Some(&json!(3)));
//! ```

mod manager;
mod result;
mod selection;
mod snapshot;
mod timeline;

pub use manager::RollbackManager;
pub use result::{RollbackResult, RollbackSummary};
pub use selection::{Pick, Selection};
pub use snapshot::{ExecutionSnapshot, SnapshotMetadata};
