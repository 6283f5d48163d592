//! A JSON value from outside: a command's output, a body, a value on the command line.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retake::testkit::decoders::json_value(bytes));
