#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    r1async_fuzz::journal::play(script);
});
