#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| r1async_fuzz::weights::apply(bytes));
