//! Traces over OTLP, as HTTP with protobuf, set up by the environment variables of OpenTelemetry's specification.
//!
//! Spans are sent in the background. A collector that is slow or not there costs spans, and never time: what cannot be
//! kept is dropped, and the exit waits [`FLUSH_MAX`].

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{FutureExt, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use retake::engine::TraceContext;
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::output::Output;

/// How long the end of the command waits for the last spans to be sent.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// How long one batch may take, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const EXPORT_MAX: Duration = Duration::from_secs(10);

/// How much of a collector's answer is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What spans are sent by.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Returns what sends spans, where the environment asks for that. What it asks for in vain is said, and no reason not
    /// to work.
    pub(super) fn from_environment(output: &Output) -> Option<Self> {
        let traces = wanted().and_then(|is_wanted| if is_wanted { Self::new().map(Some) } else { Ok(None) });
        traces.unwrap_or_else(|why| {
            output.note(format!("traces are not exported: {why}"));
            None
        })
    }

    fn new() -> Result<Self, String> {
        let exporter = SpanExporter::builder().with_http().with_http_client(Client::new()?);
        let exporter = exporter.build().map_err(|error| error.to_string())?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource());
        Ok(Self { provider: provider.build() })
    }

    /// Returns what turns the library's spans into those that are sent.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        let scope = InstrumentationScope::builder("retake").with_version(env!("CARGO_PKG_VERSION")).build();
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer_with_scope(scope))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target("retake", LevelFilter::DEBUG))
    }

    /// Sends what has not been sent yet, for as long as [`FLUSH_MAX`].
    pub(super) async fn finish(self) {
        // It waits for a thread that waits for the runtime.
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_MAX));
        let _lost_or_late = tokio::time::timeout(2 * FLUSH_MAX, flushed).await;
    }
}

/// Tells whether the environment asks for traces.
fn wanted() -> Result<bool, String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|is_disabled| is_disabled.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let is_named = either("ENDPOINT").is_some();
    let is_wanted = match variable("OTEL_TRACES_EXPORTER").as_deref() {
        None => is_named,
        Some("otlp") => true,
        Some("none") => false,
        Some(other) => {
            return Err(format!("OTEL_TRACES_EXPORTER is `{other}`, and `otlp` and `none` are supported"));
        }
    };
    match either("PROTOCOL").as_deref() {
        Some(other) if is_wanted && other != "http/protobuf" => {
            Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`, and only `http/protobuf` is supported"))
        }
        Some(_) | None => Ok(is_wanted),
    }
}

/// Returns a variable of the exporter: of traces, or of all signals.
fn either(name: &str) -> Option<String> {
    variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
        .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

/// Returns a variable. One that is empty is as good as none.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns who sends the spans. What the environment says wins.
fn resource() -> Resource {
    let host = whoami::hostname().ok().map(|name| KeyValue::new("host.name", name));
    let ours = [
        KeyValue::new("service.name", "retake"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(ours.into_iter().chain(host))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Does work as a part of the trace that `TRACEPARENT` names, if there are traces and it names one.
pub(super) fn within_caller<F: Future>(is_traced: bool, work: F) -> impl Future<Output = F::Output> {
    let mut carrier = HashMap::new();
    if is_traced {
        for name in ["traceparent", "tracestate"] {
            carrier.extend(variable(&name.to_uppercase()).map(|value| (name.to_owned(), value)));
        }
    }
    work.with_context(TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier))
}

/// The span that a node's handler runs in.
#[derive(Debug)]
pub(super) struct CurrentSpan;

impl TraceContext for CurrentSpan {
    fn traceparent(&self) -> Option<String> {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut carrier);
        carrier.remove("traceparent")
    }
}

/// Sends batches on the command's runtime: the thread that gathers them has none.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
}

impl Client {
    fn new() -> Result<Self, String> {
        // Fails where a provider is installed already, which is then used.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let timeout = either("TIMEOUT").and_then(|timeout_ms| timeout_ms.parse().ok());
        let builder = reqwest::Client::builder()
            .user_agent(concat!("retake/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout.map_or(EXPORT_MAX, Duration::from_millis))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        // Reading the system's certificates takes time, and may fail where nobody needs them.
        let needs_certificates = either("ENDPOINT").is_some_and(|endpoint| endpoint.starts_with("https"));
        let builder = if needs_certificates { builder } else { builder.tls_certs_only([]) };
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { client, runtime: Handle::current() })
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = async move {
            let mut answer = client.execute(request.try_into()?).await?;
            let mut body = Vec::new();
            while let Some(bytes) = answer.chunk().await? {
                let room = ANSWER_BYTES_MAX.saturating_sub(body.len());
                body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if body.len() == ANSWER_BYTES_MAX {
                    break;
                }
            }
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = answer.status();
            *response.headers_mut() = std::mem::take(answer.headers_mut());
            Ok::<_, HttpError>(response)
        };
        self.runtime.spawn(sending).await?
    }
}
