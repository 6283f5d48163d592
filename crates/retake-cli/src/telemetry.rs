//! What the command tells of its work beside its output: a log on stderr, traces over OTLP, metrics for Prometheus.
//!
//! All of it is silent unless it is asked for, and none of it makes a run fail. What is told is the library's: names,
//! numbers and kinds.

#[cfg(feature = "telemetry")]
mod endpoint;
#[cfg(feature = "telemetry")]
mod exposition;
#[cfg(feature = "telemetry")]
mod meters;
#[cfg(feature = "telemetry")]
mod traces;

use std::sync::Arc;

use retake::engine::TraceContext;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::arguments::Arguments;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// Whose records are shown in the log. Other crates speak of addresses and headers, which may hold secrets.
const LOGGED: [&str; 2] = ["retake", "opentelemetry"];

/// What tells of the command's work.
#[derive(Debug)]
pub(crate) struct Telemetry {
    #[cfg(feature = "telemetry")]
    traces: Option<traces::Traces>,
}

impl Telemetry {
    /// Begins to tell what the command line and the environment ask for. Needs the runtime.
    pub(crate) async fn start(arguments: &Arguments, output: &Output) -> Result<Self, Failure> {
        let log = arguments.log.as_deref().filter(|filter| !filter.is_empty()).map(log).transpose()?;
        #[cfg(feature = "telemetry")]
        {
            if let Some(address) = arguments.metrics.as_deref().filter(|address| !address.is_empty()) {
                endpoint::open(address, output).await?;
            }
            let traces = traces::Traces::from_environment(output);
            let spans = traces.as_ref().map(traces::Traces::layer);
            if log.is_some() || spans.is_some() {
                // Fails where something listens already, which is then left to it.
                let _listened_to = tracing_subscriber::registry().with(spans).with(log).try_init();
            }
            Ok(Self { traces })
        }
        #[cfg(not(feature = "telemetry"))]
        {
            let _silent = output;
            if arguments.metrics.as_deref().is_some_and(|address| !address.is_empty()) {
                let message = "this retake was built without metrics";
                return Err(Failure::new(Code::Usage, message).hint(
                    "`cargo install --path crates/retake-cli --features telemetry` builds one with them",
                ));
            }
            if log.is_some() {
                let _listened_to = tracing_subscriber::registry().with(log).try_init();
            }
            Ok(Self {})
        }
    }

    /// Does the command's work as a part of the trace that whoever started the command says it belongs to.
    #[cfg(feature = "telemetry")]
    pub(crate) fn within<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        traces::within_caller(self.traces.is_some(), work)
    }

    /// Does the command's work.
    #[cfg(not(feature = "telemetry"))]
    pub(crate) fn within<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        work
    }

    /// Returns what knows the trace that a node belongs to, where there are traces.
    pub(crate) fn trace_context(&self) -> Option<Arc<dyn TraceContext>> {
        #[cfg(feature = "telemetry")]
        if self.traces.is_some() {
            return Some(Arc::new(traces::CurrentSpan));
        }
        None
    }

    /// Tells what has not been told yet, unless that takes too long.
    pub(crate) async fn finish(self) {
        #[cfg(feature = "telemetry")]
        if let Some(traces) = self.traces {
            traces.finish().await;
        }
    }
}

/// Returns a log on stderr of what passes the filter.
fn log<S>(filter: &str) -> Result<impl Layer<S> + use<S>, Failure>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let targets: Targets = filter.parse().map_err(|error| {
        Failure::caused(Code::Usage, format!("`{filter}` is no filter of the log"), &error)
            .hint("write a level (`error`, `warn`, `info`, `debug`, `trace`), or `retake::store=debug,info`")
    })?;
    let is_shown = move |metadata: &tracing::Metadata<'_>| {
        let target = metadata.target();
        LOGGED.iter().any(|ours| target.starts_with(ours)) && targets.would_enable(target, metadata.level())
    };
    Ok(tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .with_filter(filter_fn(is_shown)))
}
