//! What a trial found, and how it is told. The only place that prints.

use std::io::Write;
use std::time::Instant;

use crate::Outcome;

/// The findings of a trial.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
}

#[derive(Debug)]
struct Finding {
    name: String,
    figure: String,
    verdict: Verdict,
}

/// Whether a promise held, or a control failed as it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Held,
    Broken,
    ControlFailed,
    ControlPassed,
}

impl Report {
    /// Notes what became of a promise: `figure` says how many injections there were, and what they did.
    pub(crate) fn promise(&mut self, name: impl Into<String>, figure: impl Into<String>, held: bool) {
        let verdict = if held { Verdict::Held } else { Verdict::Broken };
        self.findings.push(Finding { name: name.into(), figure: figure.into(), verdict });
    }

    /// Notes what became of a control, which shows that the trial can see what it looks for: it must fail.
    pub(crate) fn control(&mut self, name: impl Into<String>, figure: impl Into<String>, failed: bool) {
        let verdict = if failed { Verdict::ControlFailed } else { Verdict::ControlPassed };
        self.findings.push(Finding { name: name.into(), figure: figure.into(), verdict });
    }

    fn holds(&self) -> bool {
        let is_good = |finding: &Finding| match finding.verdict {
            Verdict::Held | Verdict::ControlFailed => true,
            Verdict::Broken | Verdict::ControlPassed => false,
        };
        !self.findings.is_empty() && self.findings.iter().all(is_good)
    }
}

/// Runs a trial, and prints what it found. Returns whether all is as it must be.
#[expect(clippy::print_stdout, reason = "the figures are what a trial is for")]
#[expect(clippy::disallowed_methods, reason = "how long a trial took is told, and decides nothing")]
pub(crate) fn tell(trial: &str, seed: u64, run: impl FnOnce() -> Outcome<Report>) -> bool {
    let began = Instant::now();
    let outcome = run();
    let mut lines = vec![format!("{trial} (seed {seed}, {:.0} s)", began.elapsed().as_secs_f64())];
    let held = match outcome {
        Ok(report) => {
            lines.extend(report.findings.iter().map(|Finding { name, figure, verdict }| {
                let verdict = match verdict {
                    Verdict::Held => "held",
                    Verdict::Broken => "BROKEN",
                    Verdict::ControlFailed => "control, fails as it must",
                    Verdict::ControlPassed => "CONTROL PASSED: the trial sees nothing",
                };
                format!("  {name}: {figure} [{verdict}]")
            }));
            report.holds()
        }
        Err(error) => {
            lines.push(format!("  ERROR: {error}"));
            false
        }
    };
    // In one piece: others tell theirs at the same time.
    println!("{}", lines.join("\n"));
    held
}

#[expect(clippy::print_stderr, reason = "it talks to whoever started it")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

/// Says a line to whoever reads what this process prints. Nobody may be there any more.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}
