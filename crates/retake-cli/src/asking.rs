//! Waiting for what may have to be asked of whoever advances a run, and saying so where that takes long.

use std::pin::pin;
use std::time::Duration;

use retake::engine::EngineError;
use retake::store::ExecutionRecord;

use crate::app::App;
use crate::failure::Failure;
use crate::wording;

/// How long nobody wonders what is going on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Awaits something that is done to a run.
pub(crate) async fn done<T>(
    app: &App,
    run: &ExecutionRecord,
    doing: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, Failure> {
    let mut doing = pin!(doing);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut doing).await {
        return Ok(done?);
    }
    if !app.output.json {
        let name = wording::plain(&run.name);
        let holder = run.leased_by.as_deref().map_or_else(|| "another process".to_owned(), wording::plain);
        app.output.note(format!(
            "{holder} advances {name}, and is asked to do it: this waits for the nodes in flight, or for its lease to end if it has died"
        ));
    }
    Ok(doing.await?)
}
