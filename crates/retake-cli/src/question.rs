//! Questions to a person, who is asked only at a terminal.

use std::io::{IsTerminal, stderr, stdin};

use crate::app::App;
use crate::failure::{Code, Failure};

/// Asks before something is changed. Returns whether the answer is yes.
///
/// # Errors
/// Names `--yes` where nobody can be asked.
pub(crate) fn confirm(app: &App, question: &str) -> Result<bool, Failure> {
    if app.output.json || !stdin().is_terminal() || !stderr().is_terminal() {
        let failure = Failure::new(Code::Usage, "nobody can be asked here whether to go ahead");
        return Err(failure.hint("`--yes` goes ahead without asking"));
    }
    app.output.note(format!("{question} [y/N]"));
    let mut answer = String::new();
    stdin().read_line(&mut answer).map_err(|error| Failure::system("cannot read the answer", error))?;
    let is_yes = matches!(answer.trim().to_lowercase().as_str(), "y" | "yes");
    if !is_yes {
        app.output.note("nothing was changed");
    }
    Ok(is_yes)
}
