//! `retake demo`: a run that is killed, resumed, rolled back and edited before your eyes, and what the model's server
//! saw of it.

mod directory;
mod model_server;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::{Edit, Engine, Plan, Rerun, Rollback};
use retake::execution::{ExecutionContext, ExecutionState, TokenUsage};
use retake::store::{ExecutionFilter, ExecutionRecord, HistoryPage, Seq, SqliteStore, StoreExt};
use retake::workflow::{NodeKind, Price, Workflow};
use serde::Serialize;
use serde_json::json;
use tokio::process::{Child, Command};

use self::directory::Directory;
use self::model_server::{ModelServer, Process};
use self::tally::{Numbers, Seen};
use crate::app::App;
use crate::failure::{Code, Failure};

const WORKFLOW: &str = include_str!("demo/research.yaml");

/// Where a demo keeps its files, from where it is run.
const DIRECTORY: &str = ".retake/demo";

/// What the demo's run is called.
const RUN: &str = "demo";

/// Where the run is rolled back to: just after this node was recorded. It reads the variable.
const POINT: &str = "revise";

/// What is changed then.
const CHANGE: (&str, &str) = ("tone", "playful");

/// What is edited at the end. Three nodes depend on it.
const EDIT: (&str, &str) = ("readers", "children");

/// The shortest answer: the process must still be at work when it is killed.
const DELAY_MIN: Duration = Duration::from_millis(10);

/// Watch a run being killed, resumed, rolled back and edited, and count what that saves.
///
/// Takes about 20 seconds, needs no key and no network: a mock model answers from this process. Whatever the store
/// named by `--store`, the demo keeps to one of its own, in .retake/demo.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How long the mock model takes for an answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_delay)]
    delay: Duration,
}

/// The parts that the demo goes through share these.
struct Stage<'a> {
    app: &'a App,
    directory: Directory,
    server: ModelServer,
    workflow: Workflow,
    /// What to type for this program.
    program: String,
}

/// The run, as its history shows it.
struct Look {
    record: ExecutionRecord,
    /// What each node took that asked the model and whose answer was recorded.
    taken: BTreeMap<String, TokenUsage>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    nodes: usize,
    recorded_at_kill: &'a BTreeSet<String>,
    rerun: &'a [Rerun],
    rerun_by_edit: &'a [Rerun],
    #[serde(flatten)]
    numbers: &'a Numbers,
    seconds: f64,
    store: String,
}

impl Demo {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let began = app.clock.elapsed();
        let stage = Stage::set(app, self.delay).await?;
        let (nodes, asking) = (stage.workflow.graph().len(), stage.prices().len());
        stage.say(&format!(
            "A research assistant of {nodes} nodes. {asking} of them ask a model: a mock one, in this process, that \
             takes {} for an answer.",
            humantime::format_duration(self.delay)
        ));
        let recorded_at_kill = stage.run_and_kill(asking / 2).await?;
        stage.say("The same run goes on. What was recorded is not asked again.");
        stage.run_to_end(Process::Resumed, vec!["resume".into(), RUN.into()]).await?;
        let resumed = stage.look_at_completed().await?;
        let plan = stage.roll_back().await?;
        let rolled_back = stage.look_at_completed().await?;
        let edit = stage.edit().await?;
        let edited = stage.look_at_completed().await?;
        let names = |plan: &Plan| plan.rerun.iter().map(|rerun| rerun.node.clone()).collect();
        let seen = Seen {
            calls: stage.server.calls(),
            recorded_at_kill,
            resumed: resumed.taken,
            rolled_back: rolled_back.taken,
            edited: edited.taken,
            sent_back: names(&plan),
            sent_back_by_edit: names(&edit),
            recorded_after_edit: stage.recorded_since(rolled_back.record.head).await?,
            prices: stage.prices(),
        };
        let contradictions = seen.contradictions();
        if !contradictions.is_empty() {
            let mut failure = Failure::new(Code::RunFailed, "what the server saw does not fit the history");
            failure.causes = contradictions;
            return Err(failure);
        }
        let numbers = seen.numbers();
        let seconds = (app.clock.elapsed() - began).as_secs_f64();
        if app.output.json {
            app.output.document(&Document {
                nodes,
                recorded_at_kill: &seen.recorded_at_kill,
                rerun: &plan.rerun,
                rerun_by_edit: &edit.rerun,
                numbers: &numbers,
                seconds,
                store: stage.directory.store().display().to_string(),
            });
        } else {
            stage.sum_up(&numbers, nodes, seconds);
            stage.show_around(&plan);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if delay < DELAY_MIN {
        return Err(format!("an answer takes at least {}", humantime::format_duration(DELAY_MIN)));
    }
    Ok(delay)
}

impl<'a> Stage<'a> {
    async fn set(app: &'a App, delay: Duration) -> Result<Self, Failure> {
        let workflow = Workflow::parse("research.yaml", WORKFLOW)?;
        let directory = Directory::prepare(DIRECTORY.into(), WORKFLOW)?;
        let server = ModelServer::start(delay)
            .await
            .map_err(|error| Failure::system("the mock model cannot listen on 127.0.0.1", error))?;
        let program = std::env::args().next().unwrap_or_else(|| "retake".to_owned());
        Ok(Self { app, directory, server, workflow, program })
    }

    /// Runs the workflow until the model has given so many answers and is in the middle of one more, and kills it.
    /// Returns the nodes whose answers were recorded.
    async fn run_and_kill(&self, answers: usize) -> Result<BTreeSet<String>, Failure> {
        let file = self.directory.workflow().into_os_string();
        let mut child = self.start(Process::Killed, vec!["run".into(), file, "--name".into(), RUN.into()])?;
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            () = self.server.answered_and_a_half(answers) => None,
        };
        if ended.is_none() {
            child.start_kill().map_err(cannot_watch)?;
        }
        let status = child.wait().await.map_err(cannot_watch)?;
        if !was_killed(status) {
            return Err(Failure::new(
                Code::RunFailed,
                format!("the run ended ({status}) before it was killed"),
            )
            .hint("a longer `--delay` leaves more time"));
        }
        let recorded: BTreeSet<String> = self.look().await?.taken.into_keys().collect();
        self.say(&format!(
            "Killed in the middle of an answer, with SIGKILL. The model had been called {} times; {} answers are \
             recorded.",
            self.server.calls().len(),
            recorded.len()
        ));
        Ok(recorded)
    }

    /// Takes the run back to an earlier point with one variable changed, and lets it go on from there.
    async fn roll_back(&self) -> Result<Plan, Failure> {
        let (variable, value) = CHANGE;
        self.say(&format!(
            "It is done. Now back to the moment after `{POINT}`, with another {variable}: the plan tells what runs \
             again, and why."
        ));
        let plan = self.plan().await?;
        let address = format!("{RUN}@node:{POINT}").into();
        let change = format!("{variable}={value}").into();
        let arguments =
            vec!["rollback".into(), address, "--set".into(), change, "--yes".into(), "--run".into()];
        self.run_to_end(Process::RolledBack, arguments).await?;
        Ok(plan)
    }

    /// Works out what the rollback will do, to hold what it does against.
    async fn plan(&self) -> Result<Plan, Failure> {
        let engine = self.engine()?;
        let record = self.record(&engine).await?;
        let history = engine.store().history(record.id, HistoryPage::default()).await?;
        let point = history.iter().find(|checkpoint| checkpoint.nodes.iter().any(|node| node == POINT));
        let target: Seq = point.map(|checkpoint| checkpoint.seq).ok_or_else(|| {
            Failure::new(Code::RunFailed, format!("the history has no point at which `{POINT}` was recorded"))
        })?;
        let set = BTreeMap::from([(CHANGE.0.to_owned(), json!(CHANGE.1))]);
        Ok(engine.plan_rollback(record.id, target, &Rollback { set, ..Rollback::default() }).await?)
    }

    /// Changes another variable where the run stands, and lets it go on.
    async fn edit(&self) -> Result<Plan, Failure> {
        let (variable, value) = EDIT;
        let engine = self.engine()?;
        let record = self.record(&engine).await?;
        let set = BTreeMap::from([(variable.to_owned(), json!(value))]);
        let plan = engine.plan_edit(record.id, &Edit { set, ..Edit::default() }).await?;
        self.say(&format!(
            "And one variable more, with nothing taken back for it: only {} nodes depend on `{variable}`.",
            plan.rerun.len()
        ));
        let change = format!("{variable}={value}").into();
        let arguments =
            vec!["edit".into(), RUN.into(), "--var".into(), change, "--yes".into(), "--run".into()];
        self.run_to_end(Process::Edited, arguments).await?;
        Ok(plan)
    }

    /// Returns the nodes that the history recorded after a point.
    async fn recorded_since(&self, seq: Seq) -> Result<BTreeSet<String>, Failure> {
        let engine = self.engine()?;
        let record = self.record(&engine).await?;
        let history = engine.store().history(record.id, HistoryPage::default()).await?;
        let newer = history.into_iter().filter(|checkpoint| checkpoint.seq > seq);
        Ok(newer.flat_map(|checkpoint| checkpoint.nodes).collect())
    }

    async fn run_to_end(&self, process: Process, arguments: Vec<OsString>) -> Result<(), Failure> {
        let shown = shown(&arguments);
        let status = self.start(process, arguments)?.wait().await.map_err(cannot_watch)?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(Code::RunFailed, format!("`retake {shown}` ended with {status}")))
    }

    fn start(&self, process: Process, arguments: Vec<OsString>) -> Result<Child, Failure> {
        self.note(&format!("  $ {} {}", self.retake(), shown(&arguments)).bold().to_string());
        let executable = std::env::current_exe()
            .map_err(|error| Failure::system("this program cannot be found", error))?;
        let mut command = Command::new(&executable);
        command.arg("--store").arg(self.directory.store()).args(arguments);
        command.env("OPENAI_BASE_URL", self.server.base_url(process));
        // The mock model is asked without a key and without a detour; a real key stays here.
        for variable in ["OPENAI_API_KEY", "RETAKE_SECRETS", "RETAKE_LLM_MODEL", "RETAKE_PROXY"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        if self.app.output.json {
            command.arg("--json").stdout(Stdio::null());
        }
        command
            .spawn()
            .map_err(|error| Failure::system(format!("cannot run {}", executable.display()), error))
    }

    async fn look_at_completed(&self) -> Result<Look, Failure> {
        let look = self.look().await?;
        if look.record.state == ExecutionState::Completed {
            return Ok(look);
        }
        let state = look.record.state.name();
        Err(Failure::new(Code::RunFailed, format!("the run should be completed now, and is {state}")))
    }

    async fn look(&self) -> Result<Look, Failure> {
        let engine = self.engine()?;
        let record = self.record(&engine).await?;
        let ctx = engine.store().context(record.id, record.head).await?;
        let taken = |node| Some((self.workflow.graph().name(node).to_owned(), self.taken(&ctx, node)?));
        Ok(Look { taken: self.workflow.graph().nodes().filter_map(taken).collect(), record })
    }

    fn taken(&self, ctx: &ExecutionContext, node: usize) -> Option<TokenUsage> {
        let result = ctx.get_node_result(&self.workflow.graph().id(node))?;
        result.output()?;
        result.metrics.as_ref()?.token_usage.clone()
    }

    async fn record(&self, engine: &Engine) -> Result<ExecutionRecord, Failure> {
        let filter = ExecutionFilter { address: Some(RUN.to_owned()), ..ExecutionFilter::default() };
        let found = engine.store().executions(&filter).await?.pop();
        found.ok_or_else(|| Failure::new(Code::RunFailed, "the run has left no history"))
    }

    fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::new(Arc::new(SqliteStore::open_existing(self.directory.store())?)))
    }

    /// Returns the prices of the nodes that ask the model.
    fn prices(&self) -> BTreeMap<String, Price> {
        let nodes = &self.workflow.definition().nodes;
        let price = |kind: &NodeKind| match kind {
            NodeKind::Llm(llm) => llm.price.clone(),
            NodeKind::Run(_)
            | NodeKind::Http(_)
            | NodeKind::Set(_)
            | NodeKind::Wait(_)
            | NodeKind::Approval(_)
            | NodeKind::Call(_) => None,
        };
        nodes.iter().filter_map(|(name, node)| Some((name.clone(), price(&node.kind)?))).collect()
    }

    fn sum_up(&self, numbers: &Numbers, nodes: usize, seconds: f64) {
        let line = |text: String| self.app.output.line(text);
        let dollars =
            |cost: &Option<String>| cost.as_ref().map_or("unknown".to_owned(), |cost| format!("${cost}"));
        let whole = numbers.calls_of_a_whole_run;
        line(String::new());
        line("What the model's server saw".bold().to_string());
        let row = |what: &str, calls: usize, remark: String| {
            line(format!("  {what:<18}{calls:>4} calls   {remark}"))
        };
        row(
            "until the kill",
            numbers.calls_before_kill,
            format!("{} of them cut off by it", numbers.calls_cut_off),
        );
        row(
            "after the resume",
            numbers.calls_after_resume,
            format!("{} of them for the second time: no answer had been recorded", numbers.calls_repeated),
        );
        row(
            "after the rollback",
            numbers.calls_after_rollback,
            format!("of the {whole} that a whole run makes"),
        );
        row(
            "after the edit",
            numbers.calls_after_edit,
            format!("of these {whole}; {} of {nodes} nodes ran again", numbers.nodes_run_after_edit),
        );
        row(
            "in all",
            numbers.calls_made,
            format!("{} tokens, {}", numbers.tokens_made, dollars(&numbers.cost_made_usd)),
        );
        row(
            "from zero",
            numbers.calls_from_zero,
            format!(
                "{} tokens, {}: {} until the kill, {whole} again after it, {whole} for each change",
                numbers.tokens_from_zero,
                dollars(&numbers.cost_from_zero_usd),
                numbers.calls_before_kill
            ),
        );
        line(format!("  in {seconds:.1} s; every number was counted just now"));
    }

    /// Prints commands to look at what the demo left.
    fn show_around(&self, plan: &Plan) {
        self.app.output.line(format!("\n{}", "Look around".bold()));
        let commands = [
            format!("log {RUN}"),
            format!("show {RUN}@{} {POINT}", plan.target),
            format!("show {RUN} {POINT}"),
            format!("op log {RUN}"),
            format!("explain {RUN} title"),
            format!("rollback {RUN}@node:draft --set {}=solemn --dry-run", CHANGE.0),
        ];
        for command in commands {
            self.app.output.line(format!("  {} {command}", self.retake()));
        }
    }

    /// Returns what to type for a command on the demo's store.
    fn retake(&self) -> String {
        format!("{} --store {}", self.program, self.directory.store().display())
    }

    fn say(&self, text: &str) {
        self.note(&format!("\n{}", text.cyan()));
    }

    /// Tells a story only to people: with `--json`, stderr holds nothing but an error.
    fn note(&self, text: &str) {
        if !self.app.output.json {
            self.app.output.note(text);
        }
    }
}

fn shown(arguments: &[OsString]) -> String {
    arguments.iter().map(|argument| argument.display().to_string()).collect::<Vec<_>>().join(" ")
}

fn cannot_watch(error: std::io::Error) -> Failure {
    Failure::system("the run's process cannot be watched", error)
}

#[cfg(unix)]
fn was_killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    const SIGKILL: i32 = 9;
    status.signal() == Some(SIGKILL)
}

#[cfg(not(unix))]
fn was_killed(status: ExitStatus) -> bool {
    !status.success()
}
