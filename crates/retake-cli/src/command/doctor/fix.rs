//! `retake doctor --fix`: says what a repair kept and lost, run by run.

use std::path::Path;
use std::process::ExitCode;

use owo_colors::OwoColorize;
use retake::execution::node_id;
use retake::store::{HeadFate, RecordFate, Repair, RepairMode, RepairedExecution, Seq, SqliteStore};
use retake::workflow::{Definition, Effect};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::wording;

/// How many points are listed on a line.
const RANGES_MAX: usize = 8;

pub(super) fn execute(app: &App, is_dry_run: bool) -> Result<ExitCode, Failure> {
    if app.is_on_a_server()? {
        let message = "a store on a PostgreSQL server cannot be repaired from outside";
        let hint = "restore the database from a backup (`pg_restore`, or the server's write-ahead log), then look again; \
                    `retake rm ID` removes a run whose own record is damaged";
        return Err(Failure::new(Code::Usage, message).hint(hint));
    }
    let Some(path) = app.store_file()? else {
        return Err(Failure::new(Code::Usage, "a store in memory cannot be repaired"));
    };
    if !path.exists() {
        return Err(Failure::new(Code::NotFound, format!("no store at {}", path.display()))
            .hint("`retake run FILE` makes one"));
    }
    let mode = if is_dry_run { RepairMode::Look } else { RepairMode::Replace };
    let repair = SqliteStore::repair(&path, mode, &app.operation(), &app.options()?)?;
    if app.output.json {
        app.output.document(&document(&path, &repair));
    } else {
        print(app, &path, &repair);
    }
    Ok(ExitCode::SUCCESS)
}

fn document(path: &Path, repair: &Repair) -> Value {
    let runs: Vec<Value> = repair.executions.iter().map(run).collect();
    json!({
        "store": path,
        "sound": repair.problems.is_empty(),
        "fixed": repair.damaged.is_some(),
        "damaged": repair.damaged,
        "problems": repair.problems,
        "log_lost": repair.log_lost,
        "runs": runs,
    })
}

fn run(told: &RepairedExecution) -> Value {
    let (from, to, head) = match told.head {
        HeadFate::FellBack { from, to, head } => (Some(from), Some(to), Some(head)),
        HeadFate::Stands | HeadFate::Lost => (None, None, None),
    };
    json!({
        "execution": told.id,
        "name": told.name,
        "outcome": outcome(told),
        "rebuilt": told.record == RecordFate::Rebuilt,
        "from": from,
        "to": to,
        "head": head,
        "lost": told.lost,
        "unknown": told.unknown,
        "rerun": again(told),
        "may_have_happened": effects(told),
        "taken_back": told.taken_back.iter().map(|operation| operation.number).collect::<Vec<_>>(),
        "operations_lost": told.operations_lost,
        "definitions_lost": told.definitions_lost,
    })
}

fn outcome(told: &RepairedExecution) -> &'static str {
    match told.head {
        HeadFate::Lost => "lost",
        HeadFate::FellBack { .. } => "fell_back",
        HeadFate::Stands if told.is_intact() => "intact",
        HeadFate::Stands => "repaired",
    }
}

/// Returns the nodes whose results are lost, as far as that is known.
fn again(told: &RepairedExecution) -> Vec<&str> {
    let HeadFate::FellBack { .. } = told.head else { return Vec::new() };
    told.nodes.iter().filter(|name| !told.done.contains(&node_id(name))).map(String::as_str).collect()
}

/// Returns the nodes with an effect outside that may have happened since the point fallen back to: where it is not known
/// what a lost point recorded, all that are not done.
fn effects(told: &RepairedExecution) -> Vec<String> {
    let HeadFate::FellBack { .. } = told.head else { return Vec::new() };
    let definition = told.workflow.as_ref().and_then(|kept| Definition::from_json(&kept.definition).ok());
    let nodes = definition.map(|definition| definition.nodes).unwrap_or_default();
    let may_have = |name: &String| !told.unknown.is_empty() || told.nodes.contains(name);
    nodes
        .into_iter()
        .filter(|(name, node)| {
            node.effect == Effect::External && !told.done.contains(&node_id(name)) && may_have(name)
        })
        .map(|(name, _)| name)
        .collect()
}

fn print(app: &App, path: &Path, repair: &Repair) {
    if repair.problems.is_empty() {
        app.output.line(format!("{} is sound: there is nothing to fix", path.display()));
        return;
    }
    if let Some(lost) = &repair.log_lost {
        let lost = format!("! {}", wording::plain(lost));
        app.output.line(lost.red().bold().to_string());
        app.output.line("  - lost: the commits behind it. Whose they were cannot be read: any run may have done more than it knows");
    }
    for told in &repair.executions {
        lines(told, repair.log_lost.is_some()).into_iter().for_each(|line| app.output.line(line));
    }
    match &repair.damaged {
        Some(damaged) => {
            app.output.line(format!("{} is sound now", path.display()));
            app.output.line(format!("the damaged store is kept as {}", damaged.display()));
        }
        None => app.output.line("nothing was written: without `--dry-run` this is done"),
    }
}

fn lines(told: &RepairedExecution, is_log_lost: bool) -> Vec<String> {
    let name = wording::plain(&told.name);
    let mut lines = vec![match told.head {
        HeadFate::Stands if told.is_intact() && is_log_lost => {
            format!("{name} is as it was before these commits")
        }
        HeadFate::Stands if told.is_intact() => format!("{name} is intact"),
        HeadFate::Stands => format!("{name} keeps its head"),
        HeadFate::FellBack { from, to, head } => {
            format!("{name} falls back from @{from} to @{to}, which is @{head} now").bold().to_string()
        }
        HeadFate::Lost => format!("{name} is lost: none of its checkpoints can be read").red().to_string(),
    }];
    if !told.lost.is_empty() {
        lines.push(format!("  - lost: {}", ranges(&told.lost)));
    }
    if told.record == RecordFate::Rebuilt && told.head != HeadFate::Lost {
        lines.push("  ~ its record was damaged, and is made again from its newest checkpoint".to_owned());
    }
    let again = again(told);
    if !again.is_empty() {
        lines.push(format!("  ~ runs again: {}", wording::plain(&again.join(", "))));
    }
    if let (HeadFate::FellBack { .. }, false) = (told.head, told.unknown.is_empty()) {
        lines.push(format!("  ~ what {} recorded cannot be read, and runs again", ranges(&told.unknown)));
    }
    let effects = effects(told);
    if !effects.is_empty() {
        let warning = format!(
            "  ! {} may have happened outside, and would happen once more: look before you resume",
            wording::plain(&effects.join(", "))
        );
        lines.push(warning.red().bold().to_string());
    }
    for operation in &told.taken_back {
        let (kind, command) = (operation.cause.kind(), wording::plain(&operation.command));
        let what = format!("  ! operation {}, {kind}, no longer holds: `{command}`", operation.number);
        lines.push(what.red().bold().to_string());
    }
    if told.operations_lost > 0 {
        lines.push(format!("  - lost: {} of its log", wording::count(told.operations_lost, "operation")));
    }
    for workflow in &told.definitions_lost {
        lines.push(format!(
            "  - lost: the definition of workflow {workflow}: its points can be read, and not be resumed"
        ));
    }
    lines
}

/// Returns points as ranges: `@3, @5 to @9`.
fn ranges(points: &[Seq]) -> String {
    let mut ranges: Vec<(Seq, Seq)> = Vec::new();
    for point in points {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *point => *end = *point,
            Some(_) | None => ranges.push((*point, *point)),
        }
    }
    let surplus = ranges.len().saturating_sub(RANGES_MAX);
    let shown = ranges[surplus..].iter().map(|(start, end)| match start == end {
        true => format!("@{start}"),
        false => format!("@{start} to @{end}"),
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    if surplus == 0 {
        shown
    } else {
        format!("{} more before, {shown}", wording::count(surplus as u64, "range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_that_follow_each_other_are_one_range() {
        assert_eq!(ranges(&[3]), "@3");
        assert_eq!(ranges(&[3, 5, 6, 7, 9]), "@3, @5 to @7, @9");
        let odd: Vec<Seq> = (0..20).map(|point| point * 2).collect();
        assert!(ranges(&odd).starts_with("12 ranges more before, @24, "), "{}", ranges(&odd));
    }
}
