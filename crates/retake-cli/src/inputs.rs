//! The inputs of a run, as the command line gives them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use retake::execution::parse_exact;
use retake::store::VALUE_BYTES_MAX;
use retake::workflow::{Definition, InputType, TypedError, Workflow};
use serde_json::Value;

use crate::failure::{Code, Failure};

/// How much of a file is read: what a value may have, and far more than a workflow may, so that a message can tell by how
/// much it is too large. A device that never ends is refused, and so is what would have to be cut.
const READ_BYTES_MAX: u64 = VALUE_BYTES_MAX as u64;

/// Reads a workflow from a file, or from stdin where the file is `-`.
pub(crate) fn workflow(file: &Path) -> Result<Workflow, Failure> {
    let (name, bytes) = if file.as_os_str() == "-" {
        ("stdin".to_owned(), read(io::stdin()))
    } else {
        (file.display().to_string(), File::open(file).and_then(read))
    };
    let bytes = bytes.map_err(|error| Failure::unreadable(&name, &error))?;
    Ok(Workflow::from_bytes(&name, &bytes)?)
}

/// Returns the inputs: those of a JSON file, and over them those that were typed as `k=v` or `k=@file`.
pub(crate) fn collect(
    definition: &Definition,
    file: Option<&Path>,
    typed: &[String],
) -> Result<BTreeMap<String, Value>, Failure> {
    let mut inputs = match file {
        Some(file) => from_file(file)?,
        None => BTreeMap::new(),
    };
    let mut given = BTreeMap::new();
    for pair in typed {
        let (name, text) = pair.split_once('=').ok_or_else(|| {
            Failure::new(Code::Usage, format!("`-i {pair}` gives no value"))
                .hint(format!("write `-i {pair}=VALUE`"))
        })?;
        // One that the workflow does not take is refused with the others' names, by the workflow.
        let kind = definition.inputs.get(name).map_or(InputType::Any, |spec| spec.kind);
        if given.insert(name.to_owned(), value(name, kind, text)?).is_some() {
            return Err(Failure::new(Code::Usage, format!("input `{name}` is given twice")));
        }
    }
    inputs.extend(given);
    Ok(inputs)
}

fn value(name: &str, kind: InputType, text: &str) -> Result<Value, Failure> {
    let refused = |error: TypedError| {
        let failure = Failure::new(Code::Usage, format!("input `{name}`: {error}"));
        match kind {
            InputType::List => failure.hint(format!("write it as JSON: -i '{name}=[\"a\", \"b\"]'")),
            InputType::Object => {
                failure.hint(format!("write it as JSON: -i '{name}={{\"key\": \"value\"}}'"))
            }
            InputType::String
            | InputType::Number
            | InputType::Integer
            | InputType::Boolean
            | InputType::Any => failure,
        }
    };
    match text.strip_prefix('@') {
        None => kind.read(text).map_err(refused),
        Some(escaped) if escaped.starts_with('@') => kind.read(escaped).map_err(refused),
        Some(file) => {
            let bytes = File::open(file).and_then(read).map_err(|error| {
                Failure::unreadable(format!("input `{name}` from {file}"), &error)
                    .hint(format!("a value that begins with `@` is written with two: {name}=@{text}"))
            })?;
            kind.read(&text_of(&format!("input `{name}` in {file}"), bytes)?).map_err(refused)
        }
    }
}

fn from_file(file: &Path) -> Result<BTreeMap<String, Value>, Failure> {
    let shown = file.display();
    let bytes = File::open(file)
        .and_then(read)
        .map_err(|error| Failure::unreadable(format!("inputs from {shown}"), &error))?;
    let text = text_of(&shown.to_string(), bytes)?;
    match parse_exact(&text) {
        Ok(Value::Object(inputs)) => Ok(inputs.into_iter().collect()),
        Ok(_) => Err(Failure::new(Code::Usage, format!("{shown} is not a JSON object of inputs by name"))),
        Err(error) => Err(Failure::caused(Code::Usage, format!("{shown} cannot be read as inputs"), &error)),
    }
}

fn text_of(what: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|_| Failure::new(Code::Usage, format!("{what} is not UTF-8")))
}

/// Reads a file that the command line names and that holds text, such as a value.
pub(crate) fn text(file: &Path) -> io::Result<String> {
    String::from_utf8(File::open(file).and_then(read)?).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// Reads to the end, which must come before there is too much.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > READ_BYTES_MAX {
        let why = format!("it has more than {READ_BYTES_MAX} bytes, which is the most that is read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}
