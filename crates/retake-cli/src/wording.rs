//! How times, sizes, values and states are put for a person. Pure: nothing here prints.

use chrono::{DateTime, Utc};
use owo_colors::Style;
use retake::execution::{ExecutionState, Spend};
use retake::store::{Cause, ExecutionRecord, TicketRecord, TicketStand};
use serde_json::{Value, json};

use crate::barrier::Barriers;

/// How many characters of a value stand on a line.
pub(crate) const VALUE_CHARS_MAX: usize = 60;

/// Returns how long ago something was, in its largest unit.
pub(crate) fn age(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    let seconds = (now - then).num_seconds();
    match seconds {
        ..5 => "just now".to_owned(),
        5..60 => format!("{seconds}s ago"),
        60..3_600 => format!("{}m ago", seconds / 60),
        3_600..86_400 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Returns how long it is until a moment, in its largest units.
pub(crate) fn until(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    let seconds = (then - now).num_seconds();
    match seconds {
        ..1 => "now".to_owned(),
        1..60 => format!("in {seconds}s"),
        60..3_600 => format!("in {}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("in {}h {:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("in {}d {:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Returns a moment for a person, to the second.
pub(crate) fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Returns a duration with about three digits.
pub(crate) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{seconds}.{}s", milliseconds % 1_000 / 100),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

/// Returns a number of bytes with a decimal unit.
pub(crate) fn bytes(count: u64) -> String {
    let mut unit = 1;
    for name in ["B", "kB", "MB", "GB"] {
        if count < unit * 1_000 {
            return match unit {
                1 => format!("{count} B"),
                _ => format!("{}.{} {name}", count / unit, count % unit * 10 / unit),
            };
        }
        unit *= 1_000;
    }
    format!("{}.{} TB", count / unit, count % unit * 10 / unit)
}

/// Returns a count with its noun.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Returns US dollars for a person.
pub(crate) fn money(usd: Option<&str>) -> String {
    usd.map_or_else(|| "unknown".to_owned(), |usd| format!("${usd}"))
}

/// Returns what a run has cost so far for a person, or `None` where nothing was bought.
pub(crate) fn spend(spend: &Spend) -> Option<String> {
    if (spend.paid.priced, spend.paid.unpriced) == (0, 0) {
        return None;
    }
    let spent = format!("spent {}", money(spend.paid.usd().as_deref()));
    if (spend.reused.priced, spend.reused.unpriced) == (0, 0) {
        return Some(spent);
    }
    let [reused, from_zero] = [spend.reused, spend.from_zero()].map(|cost| money(cost.usd().as_deref()));
    Some(format!("{spent}, reused {reused}, from zero {from_zero}"))
}

/// Returns the keys that tell a script what a run has cost so far: US dollars as decimals, null where a price is not
/// known.
pub(crate) fn spend_keys(spend: &Spend) -> [(&'static str, Value); 5] {
    [
        ("spent_usd", json!(spend.paid.usd())),
        ("reused_usd", json!(spend.reused.usd())),
        ("from_zero_usd", json!(spend.from_zero().usd())),
        ("tokens_spent", json!(spend.paid.tokens)),
        ("tokens_reused", json!(spend.reused.tokens)),
    ]
}

/// Returns a value as JSON on one line, and only its start where it is long.
pub(crate) fn value(value: &Value) -> String {
    shortened(&value.to_string(), VALUE_CHARS_MAX)
}

/// Returns a text that leaves the terminal and the line alone, and only its start where it is long.
pub(crate) fn shortened(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(chars_max).collect();
    let plain = plain(&start);
    if chars.next().is_some() { format!("{plain}…") } else { plain }
}

/// Returns a text in which what steers a terminal, or shows it as something else, stands as escapes.
pub(crate) fn plain(text: &str) -> String {
    let escaped = |c: char| match misleads(c) {
        true => c.escape_default().collect::<String>(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Tells whether a character steers a terminal, or lets a text look like another: control characters, those that turn
/// the direction of writing or end a line, and those that cannot be seen. Joiners, which some scripts need, are fine.
pub(crate) fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides and isolates of direction.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Separators of lines and paragraphs.
            | '\u{2028}' | '\u{2029}'
            // What cannot be seen.
            | '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Returns a document with what would [mislead](misleads) written as JSON writes it: the same document.
pub(crate) fn plain_json(text: String) -> String {
    // Indentation alone has such characters outside of texts.
    let is_escaped = |c: char| misleads(c) && c != '\n';
    if !text.contains(is_escaped) {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| plain.push_str(&format!("\\u{unit:04x}")));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Returns why a checkpoint was made.
pub(crate) fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Before { node } => format!("before {node}"),
        Cause::LongNode { node } => format!("long node {node}"),
        Cause::Started { node } => format!("started {node}"),
        Cause::Retry { node } => format!("retry of {node}"),
        Cause::Approve { node, approved } if *approved => format!("approved {node}"),
        Cause::Approve { node, .. } => format!("rejected {node}"),
        Cause::Rollback { to } => format!("rollback to @{to}"),
        Cause::Undo { operation } => format!("undo of operation {operation}"),
        Cause::Redo { operation } => format!("redo of operation {operation}"),
        Cause::Prune { removed } => format!("pruned {}", count(*removed, "checkpoint")),
        Cause::Repair { from, .. } => format!("repair of @{from}"),
        Cause::Compensate { node } => format!("compensate {node}"),
        Cause::Fork { origin } => format!("fork at @{}", origin.seq),
        Cause::Start
        | Cause::Nodes
        | Cause::Interval
        | Cause::Manual
        | Cause::Save
        | Cause::Pause
        | Cause::Resume
        | Cause::Finish
        | Cause::Cancel
        | Cause::Edit
        | _ => cause.kind().to_owned(),
    }
}

/// Returns how a run stands. One that nobody advances although it should be running is stalled: its process has died,
/// unless it waits in a queue.
pub(crate) fn standing(run: &ExecutionRecord, ticket: Option<&TicketRecord>) -> &'static str {
    match run.state {
        ExecutionState::Running if run.leased_by.is_none() => match ticket.map(|ticket| ticket.stands) {
            None => "stalled",
            Some(TicketStand::Due) => "queued",
            Some(TicketStand::Delayed) => "waiting",
            Some(TicketStand::Held) => "held",
            Some(TicketStand::Claimed) => "running",
            Some(TicketStand::Stuck) => "stuck",
        },
        ExecutionState::Running
        | ExecutionState::Completed
        | ExecutionState::Failed(_)
        | ExecutionState::Cancelled
        | ExecutionState::Paused => run.state.name(),
    }
}

/// Returns what a run waits for in its queue, and until when; nothing where it does not wait.
pub(crate) fn waits_for(
    now: DateTime<Utc>,
    run: &ExecutionRecord,
    ticket: Option<&TicketRecord>,
    barriers: &Barriers,
) -> Option<String> {
    let ticket = ticket?;
    Some(match (ticket.stands, ticket.due_at) {
        (TicketStand::Delayed, Some(at)) => format!("until {} ({})", moment(at), until(now, at)),
        (TicketStand::Due, _) if let Some(barrier) = barriers.before(run, ticket) => plain(&barrier),
        (TicketStand::Due | TicketStand::Delayed, _) => "for a worker".to_owned(),
        (TicketStand::Held, _) => "for somebody".to_owned(),
        (TicketStand::Stuck, _) => "for somebody: the workers that took it died".to_owned(),
        (TicketStand::Claimed, _) => plain(&barriers.behind(now, run)?),
    })
}

/// Returns the colour of a run's or a node's status.
pub(crate) fn colour(status: &str) -> Style {
    let style = Style::new();
    match status {
        "completed" | "success" | "done" => style.green(),
        "running" | "queued" | "waiting" | "open" => style.blue(),
        "failed" | "failure" | "stuck" | "lost" => style.red(),
        "stalled" | "paused" | "held" | "started" => style.yellow(),
        _ => style.dimmed(),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;

    #[test]
    fn ages_and_durations_have_one_unit_or_two() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        for (seconds, text) in
            [(-9, "just now"), (59, "59s ago"), (60, "1m ago"), (7_300, "2h ago"), (200_000, "2d ago")]
        {
            assert_eq!(age(now, now - TimeDelta::seconds(seconds)), text);
        }
        for (ms, text) in [(0, "0ms"), (1_250, "1.2s"), (65_000, "1m 05s"), (3_720_000, "1h 02m")] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn sizes_are_rounded_down() {
        for (count, text) in
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_999, "1.9 kB"), (5_400_000, "5.4 MB")]
        {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "18446744.0 TB");
    }

    #[test]
    fn values_stay_on_their_line_and_steer_no_terminal() {
        assert_eq!(value(&json!({"a": "b\n"})), r#"{"a":"b\n"}"#);
        assert_eq!(value(&json!("x".repeat(100))), format!("\"{}…", "x".repeat(59)));
        assert_eq!(plain("a\u{1b}[31m\u{9b}é"), "a\\u{1b}[31m\\u{9b}é");
    }

    #[test]
    fn what_lets_a_text_look_like_another_is_shown() {
        let ranges = [
            ('\u{202a}', '\u{202e}'),
            ('\u{2066}', '\u{2069}'),
            ('\u{2028}', '\u{2029}'),
            ('\u{200b}', '\u{200b}'),
        ];
        for c in ranges.into_iter().flat_map(|(first, last)| first..=last).chain([
            '\u{61c}',
            '\u{feff}',
            '\u{e0041}',
        ]) {
            assert_eq!(plain(&format!("a{c}b")), format!("a\\u{{{:x}}}b", u32::from(c)));
        }
        let family = "👩\u{200d}👩\u{200d}👧 می\u{200c}خواهم";
        assert_eq!(plain(family), family);
    }

    #[test]
    fn a_document_is_the_same_and_misleads_nobody() {
        let value = json!({"a\u{202e}": "\u{9b}31m \u{2028} \u{e0041} é\n\u{7f}"});
        for text in [value.to_string(), format!("{value:#}")] {
            let plain = plain_json(text);
            assert!(!plain.contains(|c| misleads(c) && c != '\n'), "{plain}");
            assert_eq!(serde_json::from_str::<Value>(&plain).unwrap(), value);
        }
    }
}
