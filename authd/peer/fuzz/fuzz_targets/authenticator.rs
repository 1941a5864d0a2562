#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| authd_peer_fuzz::authenticator(data));
