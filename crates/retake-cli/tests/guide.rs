//! The guide holds together: its pages are all in its summary, its links lead somewhere, its workflows are valid, and
//! the files that its transcripts use are the ones that it shows. The transcripts are in `transcripts.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use retake::workflow::{self, Workflow};
use serde_json::Value;

const PAGES: &str = "../../docs/guide/src";

/// Pages outside the guide that link to each other and to it.
const OTHERS: [&str; 3] = ["../../README.md", "../../CONTRIBUTING.md", "../../ARCHITECTURE.md"];

#[test]
fn every_page_is_in_the_summary_and_everything_in_the_summary_is_a_page() {
    let summary = Page::read(&Path::new(PAGES).join("SUMMARY.md"));
    let listed: Vec<String> = summary.links().map(str::to_owned).collect();
    let unique: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), unique.len(), "a page is listed twice: {listed:?}");

    let there: BTreeSet<String> =
        pages().iter().map(Page::name).filter(|name| name != "SUMMARY.md").collect();
    assert!(there.contains("introduction.md"), "these are not the guide's pages: {there:?}");
    assert_eq!(unique, there);
}

#[test]
fn every_relative_link_leads_to_a_page_and_a_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        for link in page.links().filter(|link| !link.contains("://")) {
            // What is not in the book would be missing where the book is read.
            if link.contains("../") || !leads_somewhere(&page, link) {
                broken.push(format!("{}: {link}", page.name()));
            }
        }
    }
    for page in OTHERS.map(|path| Page::read(Path::new(path))) {
        let relative = page.links().filter(|link| !link.contains("://"));
        broken.extend(relative.filter(|link| !leads_somewhere(&page, link)).map(str::to_owned));
    }
    assert_eq!(broken, [""; 0]);
}

#[test]
fn every_workflow_that_is_shown_is_valid() {
    let mut seen = 0;
    for page in pages() {
        for block in page.blocks().filter(|block| block.language == "yaml") {
            let text = completed(&block.text);
            if let Err(error) = Workflow::from_bytes(&page.name(), text.as_bytes()) {
                let problems: Vec<&str> = error.problems().map(|problem| problem.message()).collect();
                panic!("{}: {problems:?} in\n{text}", page.name());
            }
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} workflows were found");
}

#[test]
fn every_key_of_a_workflow_file_is_in_the_reference() {
    let reference = Page::read(&Path::new(PAGES).join("workflow-file.md")).text;
    let keys = keys(&workflow::schema());
    assert!(keys.contains("checkpoints"), "these are not the keys of a workflow: {keys:?}");
    let missing = |key: &&String| !reference.lines().any(|line| names(line, key));
    assert_eq!(keys.iter().filter(missing).collect::<Vec<_>>(), [""; 0]);
}

/// A page shows a file as a YAML block whose first line is the file's name.
#[test]
fn the_files_that_transcripts_use_are_the_ones_that_the_pages_show() {
    for page in pages() {
        let files = page.path.with_extension("in");
        let Ok(files) = fs::read_dir(&files) else { continue };
        for file in files.map(|file| file.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            let heading = format!("# {name}\n");
            let shown: Vec<&Block> =
                page.blocks.iter().filter(|block| block.text.starts_with(&heading)).collect();
            assert_eq!(shown.len(), 1, "{} shows {name} once", page.name());
            assert_eq!(shown[0].text, fs::read_to_string(&file).unwrap(), "{name} of {}", page.name());
        }
    }
}

/// One that has no language is run as a transcript, and one that is not run may be wrong.
#[test]
fn every_block_names_its_language_and_every_transcript_is_run() {
    for page in pages() {
        for block in page.blocks() {
            let known = ["console", "yaml", "sh", "text", "json", "rust", "toml"];
            assert!(known.contains(&block.language.as_str()), "{}: `{}`", page.name(), block.language);
            let is_transcript = block.text.starts_with("$ ");
            assert_eq!(block.language == "console", is_transcript, "{}:\n{}", page.name(), block.text);
        }
    }
}

/// A Markdown file.
struct Page {
    path: PathBuf,
    text: String,
    headings: BTreeSet<String>,
    links: Vec<String>,
    blocks: Vec<Block>,
}

/// What stands between two fences.
struct Block {
    language: String,
    text: String,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut page = Self {
            path: path.to_owned(),
            text: text.clone(),
            headings: BTreeSet::new(),
            links: Vec::new(),
            blocks: Vec::new(),
        };
        // What stands outside of blocks and of code.
        let mut prose = String::new();
        let mut open: Option<Block> = None;
        for line in text.lines() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(language)) => {
                    open = Some(Block { language: language.to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => page.blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {
                    if let Some(heading) = line.strip_prefix('#') {
                        page.headings.insert(anchor(heading.trim_start_matches('#')));
                    }
                    prose.push_str(&without_code(line));
                    prose.push('\n');
                }
            }
        }
        assert!(open.is_none(), "{} has a block that is not closed", path.display());
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        page.links = targets.map(|(target, _)| target.to_owned()).collect();
        page
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn links(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(String::as_str)
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter()
    }
}

fn pages() -> Vec<Page> {
    let entries = fs::read_dir(PAGES).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|it| it == "md")).collect();
    files.sort();
    files.iter().map(|file| Page::read(file)).collect()
}

fn leads_somewhere(page: &Page, link: &str) -> bool {
    let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
    let target = if file.is_empty() { page.path.clone() } else { page.path.with_file_name(file) };
    match heading {
        None => target.exists(),
        Some(heading) => target.is_file() && Page::read(&target).headings.contains(heading),
    }
}

/// Returns the name of every property in a JSON Schema.
fn keys(schema: &Value) -> BTreeSet<String> {
    let inner = match schema {
        Value::Object(entries) => entries.values().collect::<Vec<_>>(),
        Value::Array(items) => items.iter().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let own = schema["properties"].as_object().into_iter().flat_map(serde_json::Map::keys).cloned();
    own.chain(inner.into_iter().flat_map(keys)).collect()
}

/// Tells whether a line is the row of a table, or the heading, of a key.
fn names(line: &str, key: &str) -> bool {
    line.starts_with(&format!("| `{key}` |")) || line == format!("### `{key}`")
}

/// Returns a heading's anchor, as mdBook and GitHub make it.
fn anchor(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    let plain: String = heading.trim().to_lowercase().chars().filter(kept).collect();
    plain.replace(' ', "-")
}

/// Returns a line without what stands between backquotes: links in code are no links.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// Returns a workflow whose name or nodes are not shown, with some.
fn completed(text: &str) -> String {
    let has = |key: &str| text.lines().any(|line| line.starts_with(key));
    let name = if has("name:") { "" } else { "name: shown\n" };
    let nodes = if has("nodes:") { "" } else { "\nnodes: { only: { wait: 1s } }\n" };
    format!("{name}{text}{nodes}")
}
