//! One target under libFuzzer: which one, `SKEP_FUZZ_TARGET` says. One program for all of them is built once.
#![no_main]

use std::sync::LazyLock;

#[path = "../../targets/mod.rs"]
mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("SKEP_FUZZ_TARGET").expect("SKEP_FUZZ_TARGET names a folder of tests/fuzz/corpus");
    targets::all().into_iter().find(|target| target.name == name).expect("SKEP_FUZZ_TARGET names a target")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));
