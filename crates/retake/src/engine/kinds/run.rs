//! `run`: a command and everything it starts, as one process group that ends with the node.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

#[cfg(windows)]
use process_wrap::tokio::JobObject;
#[cfg(unix)]
use process_wrap::tokio::ProcessGroup;
use process_wrap::tokio::{ChildWrapper, CommandWrap, KillOnDrop};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{OUTPUT_BYTES_MAX, beginning, not_for, output_of};
use crate::engine::{Handler, NodeContext, NodeError};
use crate::workflow::{NodeKind, Run};

/// How long stdout and stderr are still read after the command ended, where a process that it left holds them open.
const LEFTOVER_WAIT: Duration = Duration::from_millis(500);

/// How much is read from a pipe at once.
const PIPE_BYTES: usize = 64 * 1024;

/// How much of one line of stderr is looked at. Much more than is shown, so that a secret at the cut is known whole.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// How much of one line of stderr is shown.
const LINE_BYTES_SHOWN: usize = 1024;

/// How many of the last lines of stderr an error shows.
const TAIL_LINES: usize = 20;

/// How many bytes of the last lines of stderr an error shows.
const TAIL_BYTES: usize = 2 * 1024;

/// Runs the commands of `run` nodes: `sh -c COMMAND`, or another shell.
///
/// The output is what the command prints to stdout, at most [`OUTPUT_BYTES_MAX`]: parsed if it is JSON, else the text
/// without its last newline. Lines of stderr are the node's progress. The command reads an empty stdin, and finds
/// `RETAKE_EXECUTION`, `RETAKE_NODE`, `RETAKE_ATTEMPT` and `RETAKE_IDEMPOTENCY_KEY` in its environment, and `TRACEPARENT`
/// where the run is traced.
///
/// The command leads a process group of its own. The group is killed when the future is dropped and when the command has
/// ended, whether it succeeded or not: what shall outlive the node leaves the group, as with `setsid`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunHandler {}

impl RunHandler {
    /// Returns the handler.
    pub fn new() -> Self {
        Self {}
    }
}

#[async_trait::async_trait]
impl Handler for RunHandler {
    async fn handle(&self, ctx: NodeContext) -> Result<Value, NodeError> {
        let NodeKind::Run(run) = ctx.kind() else { return Err(not_for("run", ctx.kind())) };
        let mut group = Group::start(command(run, &ctx)?)?;
        let mut stdout = Vec::new();
        let mut stderr = Stderr::new(&ctx);
        let status = group.finish(|bytes| keep(&mut stdout, bytes), |bytes| stderr.take(bytes)).await?;
        drop(group);
        stderr.end_line();
        if status.success() { output(&ctx, stdout) } else { Err(failure(status, &stderr)) }
    }
}

fn command(run: &Run, ctx: &NodeContext) -> Result<Command, NodeError> {
    let shell = run.shell.as_deref().map_or_else(|| Ok("sh".to_owned()), |shell| ctx.evaluate_text(shell))?;
    let mut command = Command::new(shell);
    command.arg("-c").arg(ctx.evaluate_text(&run.command)?);
    if let Some(cwd) = &run.cwd {
        command.current_dir(ctx.evaluate_text(cwd)?);
    }
    // Before the node's own variables, which win.
    command.envs(ctx.traceparent().map(|traceparent| ("TRACEPARENT", traceparent)));
    for (name, value) in &run.env {
        command.env(name, ctx.evaluate_text(value)?);
    }
    command
        .env("RETAKE_EXECUTION", ctx.execution_id().to_string())
        .env("RETAKE_NODE", ctx.node())
        .env("RETAKE_ATTEMPT", ctx.attempt().to_string())
        .env("RETAKE_IDEMPOTENCY_KEY", ctx.idempotency_key())
        .envs(ctx.compensated_key().map(|key| ("RETAKE_COMPENSATED_KEY", key)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// A command that runs, and what it starts. Dropping it kills them all.
struct Group(Box<dyn ChildWrapper>);

impl Group {
    fn start(command: Command) -> Result<Self, NodeError> {
        let mut command = CommandWrap::from(command);
        command.wrap(KillOnDrop);
        #[cfg(unix)]
        command.wrap(ProcessGroup::leader());
        #[cfg(windows)]
        command.wrap(JobObject);
        command.spawn().map(Self).map_err(|error| not_started(&error, command.command()))
    }

    /// Waits until the command has ended, and gives away what it prints meanwhile. Where one of the takers refuses, its
    /// error is returned at once.
    async fn finish(
        &mut self,
        stdout: impl FnMut(&[u8]) -> Result<(), NodeError>,
        stderr: impl FnMut(&[u8]) -> Result<(), NodeError>,
    ) -> Result<ExitStatus, NodeError> {
        let (from_stdout, from_stderr) = (self.0.stdout().take(), self.0.stderr().take());
        let reading = async {
            tokio::try_join!(read(from_stdout, stdout), read(from_stderr, stderr)).map(|((), ())| ())
        };
        let mut reading = std::pin::pin!(reading);
        // The leader alone: waiting for the group would wait for what it left in the background.
        let leader = self.0.inner_mut().wait();
        let mut leader = std::pin::pin!(leader);
        tokio::select! {
            biased;
            all = &mut reading => {
                all?;
                leader.await.map_err(unreadable)
            }
            status = &mut leader => {
                // The pipes end here and now, unless a process that was left holds them.
                if let Ok(all) = tokio::time::timeout(LEFTOVER_WAIT, reading).await {
                    all?;
                }
                status.map_err(unreadable)
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It fails where nobody is left to be killed.
        let _nobody_left = self.0.start_kill();
    }
}

async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    mut take: impl FnMut(&[u8]) -> Result<(), NodeError>,
) -> Result<(), NodeError> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = vec![0; PIPE_BYTES];
    loop {
        match pipe.read(&mut buffer).await.map_err(unreadable)? {
            0 => return Ok(()),
            bytes => take(&buffer[..bytes])?,
        }
    }
}

fn keep(stdout: &mut Vec<u8>, bytes: &[u8]) -> Result<(), NodeError> {
    if stdout.len() + bytes.len() > OUTPUT_BYTES_MAX {
        return Err(NodeError::permanent(format!(
            "the command printed more than {OUTPUT_BYTES_MAX} bytes to stdout and was ended: \
             let it write to a file and print the file's path"
        )));
    }
    stdout.extend_from_slice(bytes);
    Ok(())
}

fn output(ctx: &NodeContext, stdout: Vec<u8>) -> Result<Value, NodeError> {
    let text = String::from_utf8(stdout).map_err(|error| {
        NodeError::permanent(format!(
            "stdout is not UTF-8 at byte {}: print text, or write to a file and print the file's path",
            error.utf8_error().valid_up_to()
        ))
    })?;
    // Before it is parsed: a secret of digits could become a number that is written otherwise.
    let mut text = ctx.masked(text);
    if let Some(value) = output_of(&text, "stdout")? {
        return Ok(value);
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(Value::String(text))
}

fn failure(status: ExitStatus, stderr: &Stderr<'_>) -> NodeError {
    let how = match status.code() {
        Some(code) => format!("the command exited with status {code}"),
        None => format!("the command was ended by {status}"),
    };
    let tail = stderr.tail();
    NodeError::new(if tail.is_empty() {
        format!("{how}, and printed nothing to stderr")
    } else {
        format!("{how}; its stderr ends with:\n{tail}")
    })
}

fn not_started(error: &Error, command: &Command) -> NodeError {
    let command = command.as_std();
    let shell = command.get_program().to_string_lossy();
    let kind = error.kind();
    if matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory) {
        return NodeError::permanent(match command.get_current_dir() {
            Some(cwd) => format!("the shell `{shell}` or the directory `{}` is not there", cwd.display()),
            None => format!("the shell `{shell}` is not there"),
        });
    }
    if kind == ErrorKind::ArgumentListTooLong {
        return NodeError::permanent(
            "the command and its environment are larger than the system takes: pass large values in a file",
        );
    }
    let message = format!("the command could not be started by `{shell}`: {error}");
    if matches!(kind, ErrorKind::PermissionDenied | ErrorKind::InvalidInput) {
        NodeError::permanent(message)
    } else {
        NodeError::new(message)
    }
}

fn unreadable(error: Error) -> NodeError {
    NodeError::new(format!("the command's end or output could not be read: {error}"))
}

/// Turns what a command prints to stderr into lines of progress, and keeps the last of them.
struct Stderr<'a> {
    ctx: &'a NodeContext,
    line: Vec<u8>,
    lines: VecDeque<String>,
}

impl<'a> Stderr<'a> {
    fn new(ctx: &'a NodeContext) -> Self {
        Self { ctx, line: Vec::new(), lines: VecDeque::new() }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), NodeError> {
        // A carriage return alone ends a line too: that is how progress bars are drawn.
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let line = piece.strip_suffix(b"\n").or_else(|| piece.strip_suffix(b"\r"));
            let text = line.unwrap_or(piece);
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if line.is_some() {
                self.end_line();
            }
        }
        Ok(())
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        let line = self.ctx.masked(String::from_utf8_lossy(&line).into_owned());
        let line = beginning(&line, LINE_BYTES_SHOWN);
        self.ctx.progress(line.as_str());
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn tail(&self) -> String {
        let mut room = TAIL_BYTES;
        let fits = |line: &&String| {
            let fits = line.len() < room;
            room = room.saturating_sub(line.len() + 1);
            fits
        };
        let mut lines: Vec<&str> = self.lines.iter().rev().take_while(fits).map(String::as_str).collect();
        lines.reverse();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::stand_in::Attempt;
    use super::*;
    use crate::workflow::Node;

    /// Far longer than anything here takes: what reaches it has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn node(run: Run) -> Node {
        Node::new(NodeKind::Run(run))
    }

    async fn run(command: &str) -> Result<Value, NodeError> {
        Attempt::new(Node::run(command)).make(RunHandler::new()).await
    }

    async fn refusal(command: &str) -> NodeError {
        run(command).await.unwrap_err()
    }

    /// Waits until what is asked for is there.
    async fn eventually<T>(what: impl Fn() -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = what() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("it comes in time")
    }

    fn is_alive(pid: &str) -> bool {
        let mut probe = std::process::Command::new("sh");
        // A zombie is dead already: only its parent, which is the system's first process, has not looked.
        let script = format!("state=$(ps -o stat= -p {pid}) && case $state in Z*) exit 1;; esac");
        probe.args(["-c", &script]).status().unwrap().success()
    }

    #[tokio::test]
    async fn stdout_is_json_where_it_is_json_and_text_where_it_is_not() {
        assert_eq!(run("echo '{\"a\": [1, 2.5]}'").await.unwrap(), json!({"a": [1, 2.5]}));
        assert_eq!(run("echo 42").await.unwrap(), json!(42));
        assert_eq!(run("printf 'two\\nlines\\n\\n'").await.unwrap(), json!("two\nlines\n"));
        assert_eq!(run("true").await.unwrap(), json!(""));
    }

    #[tokio::test]
    async fn json_that_would_change_is_an_error_that_names_what() {
        let error = refusal("echo '{\"id\": 123456789012345678901234567890}'").await;
        assert_eq!(
            error.message(),
            "stdout is JSON that cannot be taken as it is: \
             at `id`, the number 123456789012345678901234567890 would not be kept exactly: write it in quotes"
        );
        assert!(!error.is_retryable());
        assert!(refusal("echo '{\"a\": 1, \"a\": 2}'").await.message().contains("`a` stands there twice"));
    }

    #[tokio::test]
    async fn output_that_is_no_text_is_an_error_with_its_place() {
        let error = refusal("printf 'ab\\377'").await;
        assert!(error.message().starts_with("stdout is not UTF-8 at byte 2"), "{error}");
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn a_failed_command_tells_its_status_and_the_end_of_its_stderr() {
        let error = refusal("seq 1 30 >&2; exit 3").await;
        let tail: Vec<String> = (11..=30).map(|line| line.to_string()).collect();
        assert_eq!(
            error.message(),
            format!("the command exited with status 3; its stderr ends with:\n{}", tail.join("\n"))
        );
        assert!(error.is_retryable());
        assert_eq!(
            refusal("kill -9 $$").await.message(),
            "the command was ended by signal: 9 (SIGKILL), and printed nothing to stderr"
        );
        let long = refusal("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1").await;
        assert!(long.message().len() < 2 * TAIL_BYTES, "{}", long.message().len());
    }

    #[tokio::test]
    async fn a_command_finds_its_execution_and_variables_in_its_environment() {
        let directory = tempfile::tempdir().unwrap();
        let cwd = directory.path().canonicalize().unwrap();
        let attempt = Attempt::new(node(Run {
            cwd: Some(cwd.to_str().unwrap().to_owned()),
            env: [("TOKEN".to_owned(), "${{ secrets.TOKEN }}".to_owned())].into(),
            ..Run::new(
                "echo $RETAKE_EXECUTION $RETAKE_NODE $RETAKE_ATTEMPT $RETAKE_IDEMPOTENCY_KEY $TOKEN $PWD ${{ 1 + 1 }}",
            )
        }));
        let output = attempt.make(RunHandler::new()).await.unwrap();
        let execution = attempt.ctx.execution_id();
        assert_eq!(output, json!(format!("{execution} it 2 key-1 *** {} 2", cwd.display())));
    }

    #[tokio::test]
    async fn stderr_is_progress_in_lines_and_a_cut_leaves_no_part_of_a_secret() {
        let mut attempt = Attempt::new(Node::run(
            "echo one >&2; printf 'half\\rtwo\\r\\n' >&2; printf '%01019d' 0 >&2; echo ${{ secrets.TOKEN }} >&2; printf end >&2",
        ));
        attempt.make(RunHandler::new()).await.unwrap();
        let zeros = format!("{}***", "0".repeat(1019));
        assert_eq!(attempt.progress(), ["one", "half", "two", zeros.as_str(), "end"]);
    }

    #[tokio::test]
    async fn another_shell_is_called_and_a_missing_one_is_named() {
        let run = |shell: &str| Run { shell: Some(shell.to_owned()), ..Run::new("echo $0") };
        assert_eq!(
            Attempt::new(node(run("/bin/sh"))).make(RunHandler::new()).await.unwrap(),
            json!("/bin/sh")
        );
        let error = Attempt::new(node(run("no-such-shell"))).make(RunHandler::new()).await.unwrap_err();
        assert_eq!(error.message(), "the shell `no-such-shell` is not there");
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_command_and_all_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pids");
        let command =
            format!("sleep 1000 & echo $! $$ > {0}.new; mv {0}.new {0}; sleep 1000", file.display());
        let attempt = Attempt::new(Node::run(command));
        let pids = {
            let mut running = std::pin::pin!(attempt.make(RunHandler::new()));
            tokio::select! {
                ended = &mut running => panic!("it ended: {ended:?}"),
                pids = eventually(|| std::fs::read_to_string(&file).ok()) => {
                    assert!(pids.split_whitespace().all(is_alive), "{pids}");
                    pids
                }
            }
        };
        for pid in pids.split_whitespace() {
            eventually(|| (!is_alive(pid)).then_some(())).await;
        }
        assert_eq!(pids.split_whitespace().count(), 2);
    }

    #[tokio::test]
    async fn a_process_left_behind_neither_holds_the_node_up_nor_outlives_it() {
        let attempt = Attempt::new(Node::run("sleep 1000 & echo $!"));
        let output = tokio::time::timeout(PATIENCE, attempt.make(RunHandler::new())).await.unwrap().unwrap();
        eventually(|| (!is_alive(&output.to_string())).then_some(())).await;
    }

    #[tokio::test]
    async fn a_command_that_closes_its_pipes_is_still_waited_for() {
        assert!(refusal("exec >&- 2>&-; sleep 0.1; exit 7").await.message().contains("status 7"));
    }

    #[tokio::test]
    async fn a_command_that_prints_without_end_is_ended() {
        let error = tokio::time::timeout(PATIENCE, refusal("yes 'far too much'")).await.unwrap();
        assert!(error.message().contains("more than 16777216 bytes"), "{error}");
        assert!(!error.is_retryable());
    }
}
