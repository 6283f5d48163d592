//! A checkpoint: the body of a row, its delta, the state; or JSON.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retake::testkit::decoders::checkpoint(bytes));
