//! A stored value: MessagePack.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| retake::testkit::decoders::stored_value(bytes));
