//! A directory with a store in it, where commands are run as a script runs them.

#![allow(dead_code, reason = "each file of tests uses some of it")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use retake::engine::{Engine, Registry, Resume, Start};
use retake::store::{SqliteStore, StoreExt};
use retake::workflow::Workflow;
use serde_json::Value;
use tempfile::TempDir;

const LETTER: &str = r#"
name: letter
vars: { tone: dry }
checkpoints: { frequency: always, max: 100 }
max_parallel: 1
nodes:
  plan: { set: { topic: otters } }
  draft: { set: { text: "${{ vars.topic }}, ${{ vars.tone }}" } }
  ok: { approval: "Send ${{ vars.text }}?" }
  send: { run: echo sent, needs: [ok], effect: external }
"#;

/// A directory with a store in it.
pub(crate) struct Place {
    directory: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    /// Returns a place without a store.
    pub(crate) fn empty() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    /// Returns a place with a run that waits for an approval: `@1` start, `@2` plan, `@3` draft, `@4` pause.
    pub(crate) fn with_letter(name: &str) -> Self {
        let place = Self::empty();
        place.start(name);
        place
    }

    /// Returns the same after somebody approved and the run completed.
    pub(crate) fn with_sent_letter(name: &str) -> Self {
        let place = Self::with_letter(name);
        place.json(&["approve", name, "ok"]);
        place.resume(name);
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        self.write_bytes(name, text.as_bytes());
    }

    pub(crate) fn write_bytes(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    pub(crate) fn engine(&self) -> Engine {
        let store = SqliteStore::open(self.path().join(".retake/store.db")).unwrap();
        Engine::new(Arc::new(store)).with_registry(Registry::with_defaults())
    }

    #[tokio::main(flavor = "current_thread")]
    pub(crate) async fn start(&self, name: &str) {
        let workflow = Arc::new(Workflow::parse("letter.yaml", LETTER).unwrap());
        let start = Start { name: Some(name.to_owned()), ..Start::default() };
        self.engine().start(workflow, start).await.unwrap().drive().await.unwrap();
    }

    #[tokio::main(flavor = "current_thread")]
    pub(crate) async fn resume(&self, name: &str) {
        let engine = self.engine();
        let run = retake::engine::address::resolve_run(&**engine.store(), name).await.unwrap();
        engine.resume(run.id, Resume::default()).await.unwrap().drive().await.unwrap();
    }

    #[tokio::main(flavor = "current_thread")]
    pub(crate) async fn head(&self, name: &str) -> u64 {
        let engine = self.engine();
        let run = retake::engine::address::resolve_run(&**engine.store(), name).await.unwrap();
        engine.store().require(run.id).await.unwrap().head
    }

    /// Returns a command that is ready to be started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retake"));
        command.current_dir(self.path()).env_remove("RETAKE_STORE").env("USER", "tester").args(arguments);
        command
    }

    pub(crate) fn retake(&self, arguments: &[&str]) -> Done {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Done { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Returns the document that a command prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let done = self.retake(&[&["--json"], arguments].concat());
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        assert_eq!(done.stderr, "", "{arguments:?}");
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// Returns the text that a command prints.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let done = self.retake(arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        done.stdout
    }

    /// Asserts that a command is refused with a code and a message, and with a hint. Returns the error.
    pub(crate) fn refused(&self, arguments: &[&str], code: i32, message: &str) -> Value {
        let done = self.retake(&[&["--json"], arguments].concat());
        assert_eq!(done.code, code, "{arguments:?}: {} {}", done.stdout, done.stderr);
        assert_eq!(done.stdout, "", "{arguments:?}");
        let error: Value = serde_json::from_str(&done.stderr).unwrap();
        let found = error["error"]["message"].as_str().unwrap();
        assert!(found.contains(message), "{arguments:?}: {found}");
        error["error"].clone()
    }
}
