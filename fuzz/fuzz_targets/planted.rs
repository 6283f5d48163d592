//! The control: a bug that was put here on purpose, as deep inside a decoder as real ones are. A fuzzer that does not
//! find it within seconds sees nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = retake::store::decode("the bytes", bytes)
        && value.as_array().is_some_and(|items| items.len() > 2 && items[0] == true)
    {
        panic!("the planted bug");
    }
});
