//! What a person sees: the transcripts in `tests/cmd`, each with the files that it begins with beside it.

#[test]
fn the_commands_say_what_the_transcripts_say() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}
