//! Faults planted on purpose: each must be found.
#![cfg(debug_assertions)]

use skep::sys::faults::{Fault, plant};

use crate::explore::{Settings, explore};

#[test]
#[ignore = "a look at what finds which fault, for whoever changes the table"]
fn survey() {
    let most = std::env::var("SKEP_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_u64);
    let only = std::env::var("FAULT").ok();
    for fault in Fault::ALL {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|name| format!("{fault:?}") == name)) {
            continue;
        }
        let _planted = plant(Some(*fault));
        let began = std::time::Instant::now();
        let found =
            (1..=most).find_map(|seed| explore(seed, &Settings::default()).err().map(|failure| (seed, failure)));
        match found {
            Some((seed, failure)) => {
                let text: String = failure.to_string().chars().take(180).collect();
                println!("{fault:?} | {seed} | {text} | {:?}", began.elapsed());
            }
            None => println!("{fault:?} | - | {:?}", began.elapsed()),
        }
    }
}
