//! Where a master key comes from.

use std::io::Read;
use std::process::{Command, Stdio};

use retake::store::MasterKey;

use crate::failure::{Code, Failure};

/// Most bytes of a file, or of what a command prints, that are read for a key.
const TEXT_BYTES_MAX: u64 = 4 * 1024;

/// Digits of a key.
const KEY_DIGITS: usize = 64;

/// Reads the key that a source names. No error holds what was read.
pub(crate) fn read(source: &str) -> Result<MasterKey, Failure> {
    let text = match source.split_once(':') {
        Some(("env", name)) => std::env::var(name).map_err(|_| {
            failed(format!("the environment has no {}, which is to hold the key", shown(name)))
        })?,
        Some(("file", path)) => {
            let file = std::fs::File::open(path).and_then(limited);
            file.map_err(|error| Failure::unreadable(format!("the key from {}", shown(path)), &error))?
        }
        Some(("command", command)) => printed(command)?,
        Some(_) | None => {
            // What stands there may be a key itself, and is not repeated.
            return Err(failed("a key is named by `env:NAME`, `file:PATH` or `command:COMMAND`"));
        }
    };
    MasterKey::parse(&text).map_err(|error| {
        // A command may hold what opens the place of the key.
        let place = if source.starts_with("command:") { "its command" } else { shown(source) };
        failed(format!("the key from {place} cannot be read: {error}")).hint("`retake key new` draws one")
    })
}

/// Returns a place as it may be repeated: somebody may have put the key itself there.
fn shown(place: &str) -> &str {
    let digits = place.bytes().filter(u8::is_ascii_hexdigit).count();
    if digits < KEY_DIGITS { place } else { "the place that was named" }
}

fn printed(command: &str) -> Result<String, Failure> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::system("the command for the key cannot be started", error))?;
    let text = child.stdout.take().map(limited).transpose();
    let status = child.wait().map_err(|error| Failure::system("the command for the key was lost", error))?;
    if !status.success() {
        return Err(failed(format!("the command for the key ended with {status}")));
    }
    let text = text.map_err(|error| Failure::system("what the command for the key prints is lost", error))?;
    Ok(text.unwrap_or_default())
}

fn limited(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::new(Code::Usage, message)
}
