//! A workflow file: YAML or JSON, checks, graph.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retake::testkit::decoders::workflow_file(bytes));
