//! Measurements in the text format of Prometheus, under the names that OpenTelemetry's rules of translation give them.

use std::fmt::Write;

use retake::telemetry::{Instrument, InstrumentKind};

use super::meters::{Meters, Sums};

/// What the text is, for `Content-Type`.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns everything that was measured.
pub(super) fn text(meters: &Meters) -> String {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    header(&mut text, "target_info", "Who tells this.", "gauge");
    line(&mut text, "target_info", &labels(&[("service.name", "retake"), ("service.version", version)]), "1");
    for (instrument, series) in meters.read() {
        let name = name(instrument);
        let (description, kind) = (instrument.description, instrument.kind);
        match kind {
            InstrumentKind::Counter => header(&mut text, &name, description, "counter"),
            InstrumentKind::Gauge => header(&mut text, &name, description, "gauge"),
            InstrumentKind::Histogram => header(&mut text, &name, description, "histogram"),
        }
        for (attributes, sums) in series {
            let attributes: Vec<(&str, &str)> =
                attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            match kind {
                InstrumentKind::Counter | InstrumentKind::Gauge => {
                    line(&mut text, &name, &labels(&attributes), &sums.sum.to_string());
                }
                InstrumentKind::Histogram => histogram(&mut text, instrument, &name, &attributes, &sums),
            }
        }
    }
    text
}

/// Returns the name that an instrument has in Prometheus: with `_` for what is no letter or digit, its unit, and `_total`
/// for what only grows.
pub(super) fn name(instrument: &Instrument) -> String {
    let mut name = plain(instrument.name);
    name.push_str(match instrument.unit {
        "s" => "_seconds",
        // A unit in braces says what is counted, and is left out.
        _ => "",
    });
    if instrument.kind == InstrumentKind::Counter {
        name.push_str("_total");
    }
    name
}

fn plain(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

fn histogram(
    text: &mut String,
    instrument: &Instrument,
    name: &str,
    attributes: &[(&str, &str)],
    sums: &Sums,
) {
    let bounds = instrument.bounds.iter().map(ToString::to_string).zip(sums.up_to.iter().copied());
    for (bound, count) in bounds.chain([("+Inf".to_owned(), sums.count)]) {
        let with_bound = [attributes, &[("le", bound.as_str())]].concat();
        line(text, &format!("{name}_bucket"), &labels(&with_bound), &count.to_string());
    }
    let labels = labels(attributes);
    line(text, &format!("{name}_sum"), &labels, &sums.sum.to_string());
    line(text, &format!("{name}_count"), &labels, &sums.count.to_string());
}

fn header(text: &mut String, name: &str, description: &str, kind: &str) {
    // Writing to a text does not fail.
    let _written = writeln!(text, "# HELP {name} {description}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: &str) {
    let _written = writeln!(text, "{name}{labels} {value}");
}

fn labels(attributes: &[(&str, &str)]) -> String {
    let label = |(name, value): &(&str, &str)| {
        let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        format!("{}=\"{value}\"", plain(name))
    };
    match attributes {
        [] => String::new(),
        some => format!("{{{}}}", some.iter().map(label).collect::<Vec<_>>().join(",")),
    }
}

#[cfg(test)]
mod tests {
    use metrics::{Key, Label, Level, Metadata, Recorder};

    use super::*;

    #[test]
    fn measurements_are_written_as_prometheus_reads_them() {
        let meters = Meters::default();
        let metadata = Metadata::new("retake", Level::INFO, None);
        let key = |name: &'static str, label: &'static str, value: &'static str| {
            Key::from_parts(name, vec![Label::new(label, value)])
        };
        meters
            .register_counter(&key("retake.nodes", "retake.node.kind", "a\"b\\c\nd"), &metadata)
            .increment(2);
        let batch = key("retake.commit.batch.size", "db.system.name", "sqlite");
        meters.register_histogram(&batch, &metadata).record(3.0);
        meters.register_histogram(&batch, &metadata).record(1000.0);
        meters.register_gauge(&Key::from_name("retake.execution.active"), &metadata).set(1.0);
        let text = text(&meters);
        for line in [
            "# TYPE retake_nodes_total counter",
            r#"retake_nodes_total{retake_node_kind="a\"b\\c\nd"} 2"#,
            "# TYPE retake_commit_batch_size histogram",
            r#"retake_commit_batch_size_bucket{db_system_name="sqlite",le="2"} 0"#,
            r#"retake_commit_batch_size_bucket{db_system_name="sqlite",le="4"} 1"#,
            r#"retake_commit_batch_size_bucket{db_system_name="sqlite",le="+Inf"} 2"#,
            r#"retake_commit_batch_size_sum{db_system_name="sqlite"} 1003"#,
            r#"retake_commit_batch_size_count{db_system_name="sqlite"} 2"#,
            "retake_execution_active 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
