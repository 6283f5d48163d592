//! What a person sees: the transcripts in `tests/cmd` and those of the guide, each with the files that it begins with
//! beside it.

use std::path::PathBuf;

#[test]
fn the_commands_say_what_the_transcripts_say() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}

#[test]
fn the_commands_say_what_the_guide_says() {
    let pages = trycmd::TestCases::new();
    pages.case("../../docs/guide/src/*.md");
    for tool in ["cat", "touch"] {
        pages.register_bin(tool, tool_at(tool));
    }
}

/// Returns where a tool is that a page calls beside `retake`: trycmd looks at no `PATH`.
fn tool_at(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|directory| directory.join(name));
    places.into_iter().find(|file| file.is_file()).unwrap_or_else(|| panic!("no `{name}` is installed"))
}
