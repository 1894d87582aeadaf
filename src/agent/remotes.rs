//! Which manager a worker asks next: at random among those with the best record.
//!
//! swarmkit weighs its managers with smoothed observations (`remotes/remotes.go`); what matters of it is that a manager
//! which failed is asked after those which did not, and that workers spread over the rest.

use std::collections::BTreeMap;

use crate::sys::entropy::SeededEntropy;

/// A manager that failed so often is no worse than one that failed oftener: it gets its chance again.
const MOST_FAILURES: u32 = 8;

/// Addresses of managers, and how they have served lately.
#[derive(Debug)]
pub struct Remotes {
    /// Failures since the last success.
    failures: BTreeMap<String, u32>,
    /// Addresses that a person gave: kept whatever the swarm says, since they may be names that it does not know.
    given: Vec<String>,
    random: SeededEntropy,
}

impl Remotes {
    /// Begins with these; `given` stay when the swarm names others.
    pub fn new(known: impl IntoIterator<Item = String>, given: Vec<String>, seed: u64) -> Self {
        let mut remotes = Self { failures: BTreeMap::new(), given, random: SeededEntropy::new(seed) };
        remotes.replace(known);
        remotes
    }

    /// These are the managers now. What is known of those that stay is kept.
    pub fn replace(&mut self, addrs: impl IntoIterator<Item = String>) {
        let given = self.given.clone();
        let addrs = addrs.into_iter().chain(given).filter(|addr| !addr.is_empty());
        let known = std::mem::take(&mut self.failures);
        let failures = |addr: &String| known.get(addr).copied().unwrap_or(0);
        self.failures = addrs.map(|addr| (failures(&addr), addr)).map(|(failures, addr)| (addr, failures)).collect();
    }

    /// One of those that failed least; `None` when none is known.
    pub fn choose(&mut self) -> Option<String> {
        let least = self.failures.values().min()?;
        let best: Vec<&String> =
            self.failures.iter().filter(|(_, failures)| *failures == least).map(|(addr, _)| addr).collect();
        let place = self.random.below(best.len() as u64) as usize;
        best.get(place).map(|addr| (*addr).clone())
    }

    /// It answered.
    pub fn served(&mut self, addr: &str) {
        if let Some(failures) = self.failures.get_mut(addr) {
            *failures = 0;
        }
    }

    /// It did not, or ended what it had begun.
    pub fn failed(&mut self, addr: &str) {
        if let Some(failures) = self.failures.get_mut(addr) {
            *failures = (*failures + 1).min(MOST_FAILURES);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.failures.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remotes(addrs: &[&str]) -> Remotes {
        Remotes::new(addrs.iter().map(|addr| (*addr).to_owned()), vec!["given:1".to_owned()], 3)
    }

    /// How often each was chosen.
    fn chosen(remotes: &mut Remotes) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..300 {
            *counts.entry(remotes.choose().expect("there are some")).or_default() += 1;
        }
        counts
    }

    #[test]
    fn workers_spread_over_managers_that_serve() {
        let counts = chosen(&mut remotes(&["a:1", "b:1"]));
        assert_eq!(counts.len(), 3);
        assert!(counts.values().all(|count| *count > 50), "{counts:?}");
    }

    #[test]
    fn a_manager_that_failed_is_asked_after_the_others_and_not_never() {
        let mut remotes = remotes(&["a:1", "b:1"]);
        remotes.failed("a:1");
        assert!(!chosen(&mut remotes).contains_key("a:1"));
        remotes.failed("b:1");
        remotes.failed("given:1");
        assert_eq!(chosen(&mut remotes).len(), 3);
        for _ in 0..100 {
            remotes.failed("a:1");
            remotes.failed("b:1");
        }
        assert_eq!(chosen(&mut remotes).len(), 1);
        for _ in 0..100 {
            remotes.failed("given:1");
        }
        assert_eq!(chosen(&mut remotes).len(), 3);
        remotes.served("b:1");
        assert_eq!(chosen(&mut remotes).into_keys().collect::<Vec<_>>(), ["b:1"]);
    }

    #[test]
    fn managers_that_the_swarm_does_not_name_any_more_are_forgotten_and_given_ones_kept() {
        let mut remotes = remotes(&["a:1", "b:1"]);
        remotes.failed("b:1");
        remotes.replace(["b:1".to_owned(), "c:1".to_owned()]);
        assert_eq!(chosen(&mut remotes).into_keys().collect::<Vec<_>>(), ["c:1", "given:1"]);
        let mut nobody = Remotes::new([], Vec::new(), 1);
        assert!(nobody.choose().is_none() && nobody.is_empty());
    }
}
