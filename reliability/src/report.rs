//! What a trial found, and how it is told. The only place that prints.

use std::io::Write;

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

/// Prints what a trial found. Returns whether all is as it must be.
#[expect(clippy::print_stdout, reason = "the figures are what a trial is for")]
pub(crate) fn tell(trial: &str, seed: u64, outcome: &Outcome<Report>) -> bool {
    println!("{trial} (seed {seed})");
    match outcome {
        Ok(report) => {
            for Finding { name, figure, verdict } in &report.findings {
                let verdict = match verdict {
                    Verdict::Held => "held",
                    Verdict::Broken => "BROKEN",
                    Verdict::ControlFailed => "control, fails as it must",
                    Verdict::ControlPassed => "CONTROL PASSED: the trial sees nothing",
                };
                println!("  {name}: {figure} [{verdict}]");
            }
            report.holds()
        }
        Err(error) => {
            println!("  ERROR: {error}");
            false
        }
    }
}

#[expect(clippy::print_stderr, reason = "it talks to whoever started it")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

/// Says a line to whoever reads what this process prints. Nobody may be there any more.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}
