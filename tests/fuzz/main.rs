//! Every decoder against inputs that nobody meant: bytes from peers, from people and from a disk.
//!
//! A [target](targets::Target) is a function that takes any bytes at all. It panics only when a promise is broken: the product
//! panicked; what was decoded and encoded came out as something else; two replicas that were given the same entries differ; a
//! stream cut into other pieces means something else; a log that opened cannot be read, written and opened again; a machine
//! wants what no machine may (a second vote in a term, a committed entry replaced); or more memory was held than a decoder may
//! take for so short an input.
//!
//! Targets do not stop at the first check of a format. Where a checksum, a seal or a hash would turn every changed byte away,
//! the target puts it right first, so that what lies behind it is reached: that is what a faulty disk cannot do, but a faulty
//! peer or a bug on the writing side can. Raft messages go through the validator into a real machine with a store behind it, as
//! joiner, follower, learner, candidate and leader, with syncs and apply on time and late.
//!
//! The corpus in `corpus/<target>/` holds small inputs that the product itself wrote (`SKEP_FUZZ=write` writes them again; a
//! test notices when they are no longer what it writes) and every input that once broke something, as `crash-*`. The
//! [mutator](mutate) changes them a little, under a seed.
//!
//! ```text
//! cargo test --test fuzz                                       the corpus and some thousand inputs a target, always the same
//! SKEP_FUZZ_FOR=10m cargo test --test fuzz -- --nocapture      new inputs for ten minutes for each target; scripts/fuzz does it
//! SKEP_FUZZ_SEED=7                                             other inputs
//! SKEP_FUZZ_INPUT=file-or-hex cargo test --test fuzz token     one input again
//! ```
//!
//! A failure prints the input, cut down, and the command that repeats it. With a nightly compiler and cargo-fuzz the same
//! targets run under libFuzzer, which follows coverage instead of luck: `cargo-fuzz/`, started by `scripts/fuzz`.
//!
//! Not here: sockets, TLS records and timing (rustls and `tests/process`), and power cuts (`tests/sim`).
#![allow(missing_docs, clippy::unwrap_used)]

mod mutate;
mod targets;

use std::any::Any;
use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use skep::sys::entropy::SeededEntropy;
use targets::Target;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process: one target runs at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The seed of a normal test run.
const SEED: u64 = 0x5ce9;
/// Inputs tried to cut a failing one down.
const SHRINKS: usize = 2000;
/// The corpus is read by people and carried by everybody.
const MAX_CORPUS_BYTES: u64 = 300 << 10;

fn corpus_dir(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// Inputs by file name, in order.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(corpus_dir(target)) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

thread_local! {
    /// Panics are expected and reported here, not by the harness.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs one input; the message of its panic, or of the bound it broke.
fn attempt(target: &Target, input: &[u8]) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                loud(info);
            }
        }));
    });
    IS_QUIET.set(true);
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let held = MEMORY.peak_usage().saturating_sub(before);
    IS_QUIET.set(false);
    result.map_err(|panic| message(panic.as_ref()))?;
    let allowed = input.len() * target.bytes_per_byte + target.bytes_besides;
    if held > allowed {
        return Err(format!("{held} bytes of memory were held for {} of input; {allowed} are allowed", input.len()));
    }
    Ok(())
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Cuts a failing input down, keeps it, and says how to run it again.
fn report(target: &Target, input: &[u8], why: &str, how: &str) -> ! {
    let small = mutate::shrink(input, SHRINKS, |shorter| attempt(target, shorter).is_err());
    let why = attempt(target, &small).err().unwrap_or_else(|| why.to_owned());
    let name = format!("crash-{:08x}", crc32fast::hash(&small));
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", target.name));
    fs::write(&kept, &small).unwrap();
    let shown = if small.len() <= 400 { hex(&small) } else { format!("{}...", hex(&small[..400])) };
    panic!(
        "{target} broke: {why}\n\
         found by {how}; cut down from {was} to {is} bytes: {shown}\n\
         again:  SKEP_FUZZ_INPUT={kept} cargo test --test fuzz {target}\n\
         to keep it:  cp {kept} tests/fuzz/corpus/{target}/{name}",
        target = target.name,
        was = input.len(),
        is = small.len(),
        kept = kept.display(),
    );
}

/// `10m`, `30s`, `500ms`.
fn run_time() -> Option<Duration> {
    let text = std::env::var("SKEP_FUZZ_FOR").ok()?;
    Some(skep::cli::fuzz::duration(&text).expect("SKEP_FUZZ_FOR is a duration such as 10m"))
}

fn seed() -> u64 {
    std::env::var("SKEP_FUZZ_SEED").map_or(SEED, |text| text.parse().expect("SKEP_FUZZ_SEED is a number"))
}

/// One input that a person names, as a file or in hexadecimal.
fn given() -> Option<Vec<u8>> {
    let text = std::env::var("SKEP_FUZZ_INPUT").ok()?;
    if let Ok(bytes) = fs::read(&text) {
        return Some(bytes);
    }
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.expect("SKEP_FUZZ_INPUT is a file or hexadecimal");
    Some(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8)).collect())
}

fn fuzz(name: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let targets = targets::all();
    let target = targets.iter().find(|target| target.name == name).expect("the test is named after a target");
    if let Some(input) = given() {
        // Not caught: the person wants to see where.
        (target.run)(&input);
        attempt(target, &input).unwrap();
        return;
    }
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "there is no corpus: write it with SKEP_FUZZ=write cargo test --test fuzz");
    // What is made once, such as keys, is made by a run that does not count.
    let _ = attempt(target, &corpus[0].1);
    for (file, input) in &corpus {
        if let Err(why) = attempt(target, input) {
            report(target, input, &why, &format!("corpus/{name}/{file}"));
        }
    }
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    let (seed, time, began) = (seed(), run_time(), Instant::now());
    let mut tried = 0;
    while time.map_or(tried < target.runs, |time| began.elapsed() < time) {
        // Every input has a seed of its own: one can be made again without those before it.
        let input = mutate::input(&inputs, target.words, &mut SeededEntropy::new(seed ^ tried << 20));
        if let Err(why) = attempt(target, &input) {
            report(target, &input, &why, &format!("seed {seed}, input {tried}"));
        }
        tried += 1;
    }
    let elapsed = began.elapsed().as_secs_f64().max(1e-9);
    println!("{name}: {tried} inputs in {elapsed:.2} s, {:.0} a second, seed {seed}", tried as f64 / elapsed);
}

macro_rules! tests {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                fuzz(stringify!($target));
            }
        )*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($target)),*];
            let targets: Vec<&str> = targets::all().iter().map(|target| target.name).collect();
            assert_eq!(targets, tested);
        }
    };
}

tests! {
    frame request answer hello ping raft_message http
    entry member_entry snapshot_stream
    raft_step
    log_headers log_records log_sealed log_segment snapshot_file
    token certificate pem csr node_files cli command_line
    issue
    backup
}

/// Nothing here builds the program for cargo-fuzz, which needs another compiler.
#[test]
fn every_crate_that_a_target_uses_is_one_that_the_program_for_cargo_fuzz_has() {
    let manifest = include_str!("cargo-fuzz/Cargo.toml");
    let sources = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/targets")).unwrap();
    let mut seen = 0;
    for path in sources.map(|entry| entry.unwrap().path()) {
        let source = fs::read_to_string(&path).unwrap();
        for used in source.lines().filter_map(|line| line.trim_start().strip_prefix("use ")?.split("::").next()) {
            let used = used.trim_start_matches("::");
            if !["std", "super", "crate", "self"].contains(&used) {
                seen += 1;
                assert!(manifest.contains(&format!("\n{used} = ")), "{}: {used} is missing", path.display());
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_corpus_is_what_the_product_writes_and_what_once_broke_it() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let write = std::env::var("SKEP_FUZZ").is_ok_and(|what| what == "write");
    let mut bytes = 0;
    for target in targets::all() {
        let dir = corpus_dir(target.name);
        let seeds = (target.seeds)();
        if write {
            fs::create_dir_all(&dir).unwrap();
            for (file, _) in corpus(target.name).iter().filter(|(file, _)| !file.starts_with("crash-")) {
                fs::remove_file(dir.join(file)).unwrap();
            }
            for (file, input) in &seeds {
                fs::write(dir.join(file), input).unwrap();
            }
        }
        let (kept, written): (Vec<_>, Vec<_>) =
            corpus(target.name).into_iter().partition(|(file, _)| file.starts_with("crash-"));
        bytes += kept.iter().chain(&written).map(|(_, input)| input.len() as u64).sum::<u64>();
        let mut seeds = seeds;
        seeds.sort();
        assert!(
            written == seeds,
            "corpus/{} is not what the product writes: if its format was meant to change, run \
             SKEP_FUZZ=write cargo test --test fuzz the_corpus",
            target.name
        );
    }
    assert!(bytes < MAX_CORPUS_BYTES, "the corpus has {bytes} bytes");
}

#[test]
fn a_target_that_breaks_is_reported_with_its_input_cut_down() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let target = Target {
        name: "broken",
        run: |input| assert!(!input.contains(&0x2a), "the answer"),
        seeds: Vec::new,
        words: &[],
        bytes_per_byte: 16,
        bytes_besides: 64 << 10,
        runs: 0,
    };
    let input: Vec<u8> = (0..100).collect();
    assert!(attempt(&target, &input[..40]).is_ok());
    let why = attempt(&target, &input).unwrap_err();
    let report = panic::catch_unwind(|| report(&target, &input, &why, "hand")).unwrap_err();
    let said = message(report.as_ref());
    assert!(said.contains("broken broke: the answer") && said.contains("to 1 bytes: 2a"), "{said}");
    let greedy = Target { run: |_| drop(vec![1_u8; 1 << 20]), ..target };
    assert!(attempt(&greedy, &input).unwrap_err().contains("bytes of memory were held for 100 of input"));
}
