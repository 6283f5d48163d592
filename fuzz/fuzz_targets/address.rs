//! The address of a run and of a point in its history.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retake::testkit::decoders::address(bytes));
