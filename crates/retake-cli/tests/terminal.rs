//! What a person is asked at a terminal. A pseudo-terminal stands for it.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;

use crate::place::Place;

/// A command at a terminal.
struct Session {
    terminal: File,
    child: Child,
    seen: String,
}

impl Session {
    fn start(place: &Place, arguments: &[&str]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let end =
            || Stdio::from(open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
        let mut command = place.command(arguments);
        command.env("TERM", "dumb").stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        Self { terminal: terminal.into(), child, seen: String::new() }
    }

    /// Reads until a text is seen, or until the command has ended.
    fn wait_for(&mut self, text: &str) {
        let mut bytes = [0; 4_096];
        while !self.seen.contains(text) {
            match self.terminal.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody has the other end any more.
                Err(_) => return,
            }
        }
    }

    /// Answers the question. Returns the exit code, and what was said from then on.
    fn answer(mut self, answer: &str) -> (i32, String) {
        let before = self.seen.len();
        writeln!(self.terminal, "{answer}").unwrap();
        self.wait_for("\u{0}");
        let code = self.child.wait().unwrap().code().unwrap();
        (code, self.seen[before..].to_owned())
    }
}

fn asked(place: &Place, arguments: &[&str], question: &str) -> Session {
    let mut session = Session::start(place, arguments);
    session.wait_for("[y/N]");
    assert!(session.seen.contains(&format!("{question} [y/N]")), "{arguments:?}: {}", session.seen);
    session
}

#[test]
fn what_is_agreed_to_is_done_and_all_else_leaves_the_run_as_it_is() {
    let place = Place::with_letter("otter");
    let rollback = ["rollback", "otter@2"];
    for answer in ["n", "", "maybe"] {
        let (code, said) = asked(&place, &rollback, "go back to @2?").answer(answer);
        assert_eq!(code, 0, "{answer}: {said}");
        assert!(said.contains("nothing was changed"), "{answer}: {said}");
        assert_eq!(place.head("otter"), 4, "{answer}");
    }
    let (code, said) = asked(&place, &rollback, "go back to @2?").answer("y");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("otter is paused at @5"), "{said}");
    let (code, said) = asked(&place, &["edit", "otter", "--var", "tone=warm"], "change otter?").answer("yes");
    assert_eq!((code, place.head("otter")), (0, 6), "{said}");
    let question = "let the results of plan go?";
    place.write("other.yaml", "name: other\nnodes: { plan: { set: { topic: beavers } } }\n");
    let (code, said) = asked(&place, &["resume", "otter", "--def", "other.yaml"], question).answer("n");
    assert_eq!((code, place.head("otter")), (0, 6), "{said}");
}

#[test]
fn a_run_that_moves_on_while_somebody_thinks_is_left_as_it_is() {
    let place = Place::with_letter("otter");
    for arguments in [&["rollback", "otter@2"][..], &["edit", "otter", "--var", "tone=warm"]] {
        let session = asked(&place, arguments, "?");
        place.json(&["checkpoint", "otter"]);
        let head = place.head("otter");
        let (code, said) = session.answer("y");
        assert_eq!(code, 4, "{arguments:?}: {said}");
        assert_eq!(place.head("otter"), head, "{arguments:?}");
    }
    assert_eq!(place.json(&["show", "otter"])["variables"]["tone"], json!("dry"));
}

#[test]
fn a_history_is_not_written_to_a_terminal() {
    let place = Place::with_letter("otter");
    let mut session = Session::start(&place, &["export", "otter"]);
    session.wait_for("\u{0}");
    assert_eq!(session.child.wait().unwrap().code(), Some(2));
    let said = session.seen;
    assert!(said.contains("`-o FILE` writes it to a file") && !said.contains("blake3"), "{said}");
}
