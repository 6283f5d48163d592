//! A directory in which the `retake` command works, with a journal that nodes keep outside the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::Outcome;

/// Where `retake` is run.
#[derive(Debug)]
pub(crate) struct Workplace {
    directory: tempfile::TempDir,
    retake: PathBuf,
    store: PathBuf,
}

impl Workplace {
    /// Makes a place with a workflow file, `workflow.yaml`. Its store is in the place, or where `store` says.
    pub(crate) fn new(workflow: &str, store: Option<PathBuf>) -> Outcome<Self> {
        let retake = std::env::current_exe()?.with_file_name("retake");
        if !retake.exists() {
            return Err(format!("no {}: `cargo xtask reliability` builds it", retake.display()).into());
        }
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("workflow.yaml"), workflow)?;
        let store = store.unwrap_or_else(|| directory.path().join("store.db"));
        Ok(Self { directory, retake, store })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a command to its end.
    pub(crate) fn retake(&self, arguments: &[&str]) -> Outcome<Output> {
        Ok(self.command(arguments).output()?)
    }

    /// Starts a command, whose output is read once it has ended.
    pub(crate) fn start(&self, arguments: &[&str]) -> Outcome<Child> {
        Ok(self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Runs a command that must succeed. Returns the JSON document that it prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Outcome<Value> {
        let output = self.retake(&[arguments, &["--json"]].concat())?;
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout)?),
            false => Err(told(arguments, &output).into()),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.retake);
        command
            .current_dir(self.path())
            .args(arguments)
            .stdin(Stdio::null())
            .env("RETAKE_STORE", &self.store);
        command
    }

    /// Returns the lines of the journal: what nodes did, in order.
    pub(crate) fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path().join("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Returns how a command ended, for a message.
pub(crate) fn told(arguments: &[&str], output: &Output) -> String {
    let Output { status, stdout, stderr } = output;
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    format!("`retake {}` ended with {status}: {stdout}{stderr}", arguments.join(" "))
}

/// Returns the events of a command, whose last line may be torn.
pub(crate) fn events(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Returns the nodes whose results were acknowledged: those of every checkpoint that was reported.
pub(crate) fn acknowledged(events: &[Value]) -> Vec<String> {
    let checkpoints = events.iter().filter(|event| event["event"] == "checkpoint");
    let nodes = checkpoints.filter_map(|event| event["nodes"].as_array()).flatten();
    nodes.filter_map(|node| node.as_str().map(str::to_owned)).collect()
}

/// Returns the outputs of the nodes of a state that succeeded.
pub(crate) fn succeeded(state: &Value) -> BTreeMap<String, Value> {
    let nodes = state["nodes"].as_object().into_iter().flatten();
    let succeeded = nodes.filter(|(_, node)| node["status"] == "success");
    succeeded.map(|(name, node)| (name.clone(), node["output"].clone())).collect()
}
