//! When to ask for a new certificate, which roots to trust, when to report. Decides only: no clock, no files, no network.
//!
//! Time comes in twice: the monotonic clock paces attempts, the wall clock says how old a certificate is.

use std::time::Duration;

use crate::sys::entropy::SeededEntropy;
use crate::sys::time::Instant;
use crate::types::Role;

/// The pause after the first attempt that failed; each further one is twice as long (swarmkit's `ca/renewer.go`).
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// After a renewal the swarm may go on asking for one until word of it has come round: so long that is no news.
const SETTLING: Duration = Duration::from_secs(10);
/// A report that failed is made again after this, then after twice as long, up to [`REPORT_LONGEST`].
const REPORT_FIRST: Duration = Duration::from_secs(1);
const REPORT_LONGEST: Duration = Duration::from_secs(60);
/// Authorities date the beginning of a certificate back by a day, for clocks that lag. Its life begins after that.
const BACKDATED_MS: u64 = 86_400_000;

/// What matters of a certificate here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The role it names.
    pub role: Role,
    /// Its beginning, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Its end, milliseconds since 1970.
    pub not_after_ms: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The swarm says what it wants of this node.
    Told {
        /// The role it has now.
        role: Role,
        /// It should have a new certificate.
        renew: bool,
        /// The roots to trust, PEM.
        roots: String,
    },
    /// Somebody says that these are the roots, PEM: no more than an offer, as those of [`Event::Told`].
    Offered(String),
    /// The certificate that [`Effect::Renew`] asked for is here, on disk and in use.
    Renewed(Facts),
    /// No certificate came of [`Effect::Renew`].
    NotRenewed,
    /// The roots are on disk and in use.
    Trusted(String),
    /// Our own certificate does not lead to these roots, or they cannot be written down.
    NotTrusted,
    /// The swarm has the report.
    Reported,
    /// It has not.
    NotReported,
    /// A manager can be reached again, or another one: what failed before may succeed now.
    Connected,
}

/// What must be done; each is answered by an event before the same is asked for again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask for a new certificate. [`Event::Renewed`] or [`Event::NotRenewed`].
    Renew,
    /// Check that our own certificate is valid under these roots; if it is, write them down and use them.
    /// [`Event::Trusted`] or [`Event::NotTrusted`].
    Trust(String),
    /// Tell the swarm what this node is and which root its certificate leads to. [`Event::Reported`] or
    /// [`Event::NotReported`].
    Report,
}

/// A pause that grows while something keeps failing.
#[derive(Clone, Copy, Debug, Default)]
struct Retry {
    failures: u32,
    /// Not before this.
    at: Instant,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    held: Facts,
    /// The roots in use.
    roots: String,
    /// When the certificate is renewed by its age, milliseconds since 1970.
    due_ms: u64,
    /// The role that the swarm says this node has; `None` until it has said so.
    role: Option<Role>,
    /// The swarm wants a new certificate to be asked for.
    wanted: bool,
    /// That is no news before this moment.
    settled: Instant,
    renewing: bool,
    retry: Retry,
    /// Roots that were offered and are not in use.
    offered: Option<String>,
    /// Whether they are to be looked at: once, and once more after each new certificate.
    unchecked: bool,
    trusting: bool,
    /// There is something that was not reported yet.
    unreported: bool,
    reporting: bool,
    report_retry: Retry,
    jitter: SeededEntropy,
}

impl Machine {
    /// A machine for a node that holds this certificate and trusts these roots. `seed` spreads the renewals of nodes that
    /// joined together.
    pub fn new(held: Facts, roots: String, seed: u64) -> Self {
        let mut machine = Self {
            held,
            roots,
            due_ms: 0,
            role: None,
            wanted: false,
            settled: Instant::default(),
            renewing: false,
            retry: Retry::default(),
            offered: None,
            unchecked: false,
            trusting: false,
            unreported: true,
            reporting: false,
            report_retry: Retry::default(),
            jitter: SeededEntropy::new(seed),
        };
        machine.due_ms = machine.choose_moment();
        machine
    }

    /// Takes one event and says what must be done, in order.
    pub fn step(&mut self, now: Instant, now_ms: u64, event: Event) -> Vec<Effect> {
        match event {
            Event::Tick => {}
            Event::Told { role, renew, roots } => self.on_told(role, renew, roots),
            Event::Offered(roots) => self.on_offered(roots),
            Event::Renewed(held) => self.on_renewed(now, now_ms, held),
            Event::NotRenewed => {
                self.renewing = false;
                self.retry = self.later(now, self.retry, FIRST_PAUSE, LONGEST_PAUSE);
            }
            Event::Trusted(roots) => {
                self.trusting = false;
                self.roots = roots;
                if self.offered.as_ref() == Some(&self.roots) {
                    self.offered = None;
                }
                self.unreported = true;
            }
            // Asked again the answer would be the same, until the roots or our certificate are others.
            Event::NotTrusted => self.trusting = false,
            Event::Reported => (self.reporting, self.report_retry) = (false, Retry::default()),
            Event::NotReported => {
                (self.reporting, self.unreported) = (false, true);
                self.report_retry = self.later(now, self.report_retry, REPORT_FIRST, REPORT_LONGEST);
            }
            Event::Connected => (self.retry, self.report_retry) = Default::default(),
        }
        self.act(now, now_ms)
    }

    fn act(&mut self, now: Instant, now_ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.unchecked && !self.trusting {
            self.unchecked = false;
            if let Some(roots) = &self.offered {
                self.trusting = true;
                effects.push(Effect::Trust(roots.clone()));
            }
        }
        if !self.renewing && now >= self.retry.at && self.needs_renewal(now, now_ms) {
            self.renewing = true;
            effects.push(Effect::Renew);
        }
        // A node whose certificate is over can only ask for a new one.
        if self.unreported && !self.reporting && now >= self.report_retry.at && !self.is_expired(now_ms) {
            (self.reporting, self.unreported) = (true, false);
            effects.push(Effect::Report);
        }
        effects
    }

    fn on_told(&mut self, role: Role, renew: bool, roots: String) {
        // News: what failed before is another matter.
        if self.role != Some(role) || (renew && !self.wanted) {
            self.retry = Retry::default();
        }
        (self.role, self.wanted) = (Some(role), renew);
        self.on_offered(roots);
    }

    fn on_offered(&mut self, roots: String) {
        if roots.is_empty() || roots == self.roots {
            self.offered = None;
        } else if self.offered.as_ref() != Some(&roots) {
            (self.offered, self.unchecked) = (Some(roots), true);
        }
    }

    fn on_renewed(&mut self, now: Instant, now_ms: u64, held: Facts) {
        self.renewing = false;
        self.held = held;
        self.due_ms = self.choose_moment();
        self.settled = now + SETTLING;
        self.unreported = true;
        self.unchecked = self.offered.is_some();
        // A certificate of the wrong role, or one that by our clock is as good as over, would be asked for without end.
        self.retry = match self.needs_renewal(now, now_ms) {
            true => self.later(now, self.retry, FIRST_PAUSE, LONGEST_PAUSE),
            false => Retry::default(),
        };
    }

    /// Whether there is a reason to ask for a certificate now.
    fn needs_renewal(&self, now: Instant, now_ms: u64) -> bool {
        let other_role = self.role.is_some_and(|role| role != self.held.role);
        other_role || (self.wanted && now >= self.settled) || now_ms >= self.due_ms
    }

    fn is_expired(&self, now_ms: u64) -> bool {
        now_ms / 1000 > self.held.not_after_ms / 1000
    }

    /// A random moment between half and four fifths of the certificate's life.
    fn choose_moment(&mut self) -> u64 {
        let Facts { not_before_ms, not_after_ms, .. } = self.held;
        // Of a certificate that is not dated back, or not from an authority of ours, the whole life is meant.
        let begin_ms = Some(not_before_ms.saturating_add(BACKDATED_MS)).filter(|begin| *begin < not_after_ms);
        let begin_ms = begin_ms.unwrap_or(not_before_ms);
        let life_ms = not_after_ms.saturating_sub(begin_ms);
        begin_ms + life_ms / 2 + self.jitter.below(life_ms / 10 * 3 + 1)
    }

    /// The pause before the next attempt: between half of it and all of it, so that nodes which failed together do not
    /// return together.
    fn later(&mut self, now: Instant, retry: Retry, first: Duration, longest: Duration) -> Retry {
        let pause = first.saturating_mul(1 << retry.failures.min(16)).min(longest);
        let half = pause / 2;
        let millis = u64::try_from(half.as_millis()).unwrap_or(u64::MAX);
        let at = now + half + Duration::from_millis(self.jitter.below(millis + 1));
        Retry { failures: retry.failures.saturating_add(1), at }
    }

    /// When the certificate is renewed by its age, milliseconds since 1970.
    pub const fn renews_at_ms(&self) -> u64 {
        self.due_ms
    }

    /// When to send [`Event::Tick`] at the latest, as far as the monotonic clock says; the wall clock may make something
    /// due before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let renewal = (!self.renewing && self.retry.failures > 0).then_some(self.retry.at);
        let report = (self.unreported && !self.reporting).then_some(self.report_retry.at);
        renewal.into_iter().chain(report).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const DAY_MS: u64 = 24 * HOUR_MS;
    /// When the certificate of these scripts was signed.
    const SIGNED_MS: u64 = 1_000 * DAY_MS;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    /// A certificate signed at this moment, for so long.
    fn facts(role: Role, signed_ms: u64, life_ms: u64) -> Facts {
        Facts { role, not_before_ms: signed_ms - BACKDATED_MS, not_after_ms: signed_ms + life_ms }
    }

    fn told(role: Role, renew: bool, roots: &str) -> Event {
        Event::Told { role, renew, roots: roots.to_owned() }
    }

    /// A machine, and its two clocks, which go together.
    struct Bench {
        machine: Machine,
        seconds: u64,
    }

    impl Bench {
        /// A worker that has reported and been told what it is already.
        fn new(life_ms: u64) -> Self {
            let machine = Machine::new(facts(Role::Worker, SIGNED_MS, life_ms), "root".to_owned(), 7);
            let mut bench = Self { machine, seconds: 0 };
            bench.check(0, Event::Tick, &[Effect::Report]);
            bench.check(0, Event::Reported, &[]);
            bench.check(0, told(Role::Worker, false, "root"), &[]);
            bench
        }

        fn now_ms(&self) -> u64 {
            SIGNED_MS + self.seconds * 1000
        }

        /// Takes one step so many seconds later.
        #[track_caller]
        fn check(&mut self, seconds: u64, event: Event, expected: &[Effect]) {
            self.seconds += seconds;
            let effects = self.machine.step(at(self.seconds), self.now_ms(), event);
            assert_eq!(effects, expected, "after {} s", self.seconds);
        }

        /// Lets time pass until something is asked for; how many seconds that took.
        #[track_caller]
        fn wait(&mut self, step: u64, expected: &[Effect]) -> u64 {
            for waited in (step..).step_by(usize::try_from(step).expect("small")).take(200_000) {
                self.seconds += step;
                let effects = self.machine.step(at(self.seconds), self.now_ms(), Event::Tick);
                if !effects.is_empty() {
                    assert_eq!(effects, expected);
                    return waited;
                }
            }
            panic!("nothing happens any more");
        }
    }

    #[test]
    fn a_certificate_is_renewed_between_half_and_four_fifths_of_its_life() {
        let mut moments = Vec::new();
        for life_ms in [HOUR_MS, DAY_MS, 90 * DAY_MS] {
            for seed in 0..50 {
                let machine = Machine::new(facts(Role::Manager, SIGNED_MS, life_ms), String::new(), seed);
                let part = (machine.renews_at_ms() - SIGNED_MS) as f64 / life_ms as f64;
                assert!((0.5..=0.8).contains(&part), "{part}");
                moments.push((part * 100.0) as u64);
            }
        }
        moments.sort_unstable();
        moments.dedup();
        assert!(moments.len() > 15, "the moments are not spread: {moments:?}");
        // Not dated back.
        let facts = Facts { role: Role::Worker, not_before_ms: SIGNED_MS, not_after_ms: SIGNED_MS + HOUR_MS };
        let machine = Machine::new(facts, String::new(), 1);
        assert!((SIGNED_MS + HOUR_MS / 2..=SIGNED_MS + HOUR_MS / 5 * 4).contains(&machine.renews_at_ms()));
    }

    #[test]
    fn a_renewal_by_age_happens_once_and_again_in_the_next_life() {
        let mut bench = Bench::new(HOUR_MS);
        let waited = bench.wait(1, &[Effect::Renew]);
        assert!((1800..=2880).contains(&waited), "{waited}");
        bench.check(1, Event::Tick, &[]);
        let renewed = facts(Role::Worker, bench.now_ms(), HOUR_MS);
        bench.check(1, Event::Renewed(renewed), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        let waited = bench.wait(1, &[Effect::Renew]);
        assert!((1795..=2880).contains(&waited), "{waited}");
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again_ever_less_often_up_to_once_an_hour() {
        let mut bench = Bench::new(HOUR_MS);
        bench.wait(1, &[Effect::Renew]);
        let mut pauses = Vec::new();
        for _ in 0..14 {
            bench.check(0, Event::NotRenewed, &[]);
            pauses.push(bench.wait(1, &[Effect::Renew]));
        }
        for (failure, pause) in pauses.iter().enumerate() {
            let full = (5 << failure).min(3600);
            assert!((full / 2..=full + 1).contains(pause), "{failure}: {pauses:?}");
        }
        assert!(pauses[12] >= 1800);
        // A manager that can be reached again ends the pause, and the next failure counts from the beginning.
        bench.check(0, Event::NotRenewed, &[]);
        bench.check(1, Event::Connected, &[Effect::Renew]);
        bench.check(0, Event::NotRenewed, &[]);
        assert!(bench.wait(1, &[Effect::Renew]) <= 6);
    }

    #[test]
    fn an_expired_certificate_is_renewed_at_once_and_reports_only_after_it() {
        let mut machine = Machine::new(facts(Role::Manager, SIGNED_MS, HOUR_MS), "root".to_owned(), 1);
        let long_after = SIGNED_MS + 300 * DAY_MS;
        assert_eq!(machine.step(at(0), long_after, Event::Tick), [Effect::Renew]);
        assert_eq!(machine.step(at(1), long_after, Event::NotRenewed), []);
        assert_eq!(machine.step(at(7), long_after, Event::Tick), [Effect::Renew]);
        let renewed = Event::Renewed(facts(Role::Manager, long_after, HOUR_MS));
        assert_eq!(machine.step(at(8), long_after, renewed), [Effect::Report]);
    }

    #[test]
    fn an_order_to_renew_is_followed_at_once_and_once() {
        let mut bench = Bench::new(90 * DAY_MS);
        bench.check(1, told(Role::Worker, true, "root"), &[Effect::Renew]);
        bench.check(1, told(Role::Worker, true, "root"), &[]);
        let renewed = facts(Role::Worker, bench.now_ms(), 90 * DAY_MS);
        bench.check(1, Event::Renewed(renewed), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        // The manager that we talk to has not heard of the new certificate yet.
        bench.check(1, told(Role::Worker, true, "root"), &[]);
        bench.check(1, told(Role::Worker, false, "root"), &[]);
        bench.check(1, told(Role::Worker, true, "other"), &[Effect::Trust("other".to_owned())]);
        bench.check(1, Event::Trusted("other".to_owned()), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        // It still wants another one: that is an order of its own.
        bench.check(8, Event::Tick, &[Effect::Renew]);
    }

    #[test]
    fn a_new_role_is_asked_for_until_it_comes() {
        let mut bench = Bench::new(90 * DAY_MS);
        bench.check(1, told(Role::Manager, false, "root"), &[Effect::Renew]);
        let worker = facts(Role::Worker, bench.now_ms(), 90 * DAY_MS);
        bench.check(1, Event::Renewed(worker), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        assert!((2..=6).contains(&bench.wait(1, &[Effect::Renew])));
        bench.check(0, Event::Renewed(worker), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        assert!((5..=11).contains(&bench.wait(1, &[Effect::Renew])));
        let manager = facts(Role::Manager, bench.now_ms(), 90 * DAY_MS);
        bench.check(0, Event::Renewed(manager), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        bench.check(100, told(Role::Manager, false, "root"), &[]);
        // And back: at once, however often it failed before.
        bench.check(1, told(Role::Worker, false, "root"), &[Effect::Renew]);
    }

    #[test]
    fn a_certificate_that_our_clock_calls_over_is_not_asked_for_without_pause() {
        let mut bench = Bench::new(HOUR_MS);
        bench.wait(1, &[Effect::Renew]);
        // The authority's clock is two hours behind ours.
        let stale = facts(Role::Worker, bench.now_ms() - 2 * HOUR_MS, HOUR_MS);
        bench.check(0, Event::Renewed(stale), &[]);
        assert!((2..=6).contains(&bench.wait(1, &[Effect::Renew])));
        bench.check(0, Event::Renewed(stale), &[]);
        assert!((5..=11).contains(&bench.wait(1, &[Effect::Renew])));
    }

    #[test]
    fn roots_are_looked_at_once_and_again_after_a_new_certificate() {
        let mut bench = Bench::new(90 * DAY_MS);
        let trust = [Effect::Trust("new".to_owned())];
        bench.check(1, told(Role::Worker, false, "new"), &trust);
        bench.check(1, told(Role::Worker, false, "new"), &[]);
        bench.check(1, Event::NotTrusted, &[]);
        bench.check(1, told(Role::Worker, false, "new"), &[]);
        bench.check(1, told(Role::Worker, true, "new"), &[Effect::Renew]);
        let renewed = facts(Role::Worker, bench.now_ms(), 90 * DAY_MS);
        bench.check(1, Event::Renewed(renewed), &[trust[0].clone(), Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        bench.check(1, Event::Trusted("new".to_owned()), &[Effect::Report]);
        bench.check(0, Event::Reported, &[]);
        bench.check(1, told(Role::Worker, false, "new"), &[]);
        // A manager that knows of no roots says nothing about them.
        bench.check(1, told(Role::Worker, false, ""), &[]);
    }

    #[test]
    fn roots_that_are_replaced_while_they_are_checked_are_checked_after_it() {
        let mut bench = Bench::new(90 * DAY_MS);
        bench.check(1, told(Role::Worker, false, "two"), &[Effect::Trust("two".to_owned())]);
        bench.check(1, told(Role::Worker, false, "three"), &[]);
        let again = [Effect::Trust("three".to_owned()), Effect::Report];
        bench.check(1, Event::Trusted("two".to_owned()), &again);
    }

    #[test]
    fn a_report_is_repeated_until_it_arrives() {
        let mut bench = Bench::new(90 * DAY_MS);
        let renewed = facts(Role::Worker, bench.now_ms(), 90 * DAY_MS);
        bench.check(1, told(Role::Worker, true, "root"), &[Effect::Renew]);
        bench.check(1, Event::Renewed(renewed), &[Effect::Report]);
        bench.check(0, told(Role::Worker, false, "root"), &[]);
        for failure in 0..10 {
            bench.check(0, Event::NotReported, &[]);
            assert!(bench.machine.next_deadline().is_some());
            let waited = bench.wait(1, &[Effect::Report]);
            assert!(waited <= (1 << failure).min(60) + 1, "{waited}");
        }
        bench.check(0, Event::Reported, &[]);
        assert_eq!(bench.machine.next_deadline(), None);
    }
}
