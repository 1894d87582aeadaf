//! Which managers to dial and when, and which connection reaches them: decisions only, no sockets, no clock.
//!
//! Every manager dials every other, so that between two of them there are two connections, and either end notices by
//! itself when the other is gone. Whoever has to send takes the connection it dialled if that is up, else the one it was
//! dialled over.
//!
//! When the last connection to a manager closes, its address is dialled at once, before anyone is told: a refusal means
//! that the process is gone, which lets its followers elect another leader without waiting for a timeout. Silence means
//! nothing, and is reported as such after [`PROBE`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::handler::ConnectionId;
use crate::sys::entropy::SeededEntropy;
use crate::sys::time::Instant;
use crate::types::NodeId;

/// How long the redial after a loss may take before the loss is reported.
const PROBE: Duration = Duration::from_millis(300);
/// A redial that failed otherwise than by a refusal is repeated so soon: while a process dies its sockets close one
/// after another, and a connection may still slip into the queue of a listener that is about to close.
const PROBE_RETRY: Duration = Duration::from_millis(5);
/// The pause after the first failed dial; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between dials.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A connection that lived so long makes its peer one that can be reached: dialled again without a pause.
const STABLE: Duration = Duration::from_secs(1);

/// What the loop must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Connect to a peer; report the end of the attempt with its number.
    Dial {
        /// Whom.
        peer: NodeId,
        /// The attempt.
        attempt: u64,
        /// Where.
        addr: String,
        /// There is no time to look a name up again.
        hurried: bool,
    },
    /// Give up an attempt, without a report.
    Abort(u64),
    /// Close a connection, without a report.
    Close(ConnectionId),
    /// Tell the handler: a peer can be reached.
    Connected(NodeId),
    /// Tell the handler: a peer cannot be reached any more.
    Disconnected {
        /// Who.
        peer: NodeId,
        /// Its address refuses connections.
        refused: bool,
    },
}

/// How an attempt to connect ended, if not in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody listens there.
    Refused,
    /// Anything else.
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Dialling {
    #[default]
    Idle,
    Paused {
        until: Instant,
    },
    Running {
        attempt: u64,
        since: Instant,
        until: Instant,
    },
}

#[derive(Debug)]
struct Peer {
    /// Where to dial; `None` for a manager that is connected to us and that nobody told us to dial.
    addr: Option<String>,
    dialling: Dialling,
    outbound: Option<(ConnectionId, Instant)>,
    inbound: Option<(ConnectionId, Instant)>,
    /// The handler was told that it can be reached.
    reported: bool,
    /// The last connection closed, and the handler is told at this time at the latest.
    probe: Option<Instant>,
    last_probe: Option<Instant>,
    pause: Duration,
}

/// All managers that matter.
#[derive(Debug)]
pub(super) struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    attempts: u64,
    dial_timeout: Duration,
    jitter: SeededEntropy,
}

impl Peers {
    /// `seed` spreads the dials of managers that start together.
    pub(super) const fn new(seed: u64, dial_timeout: Duration) -> Self {
        Self { peers: BTreeMap::new(), attempts: 0, dial_timeout, jitter: SeededEntropy::new(seed) }
    }

    /// Dial these and nobody else.
    pub(super) fn set(&mut self, now: Instant, list: Vec<(NodeId, String)>, effects: &mut Vec<Effect>) {
        let mut wanted: BTreeMap<NodeId, String> = list.into_iter().collect();
        for (id, peer) in &mut self.peers {
            let addr = wanted.remove(id);
            if addr.is_some() && addr == peer.addr {
                continue;
            }
            // An address that changed is used for the next dial; a connection that is up proved itself.
            if let Dialling::Running { attempt, .. } = peer.dialling {
                effects.push(Effect::Abort(attempt));
            }
            peer.dialling = Dialling::Idle;
            peer.addr = addr;
            if peer.addr.is_none() {
                if let Some((connection, _)) = peer.outbound.take() {
                    effects.push(Effect::Close(connection));
                }
                peer.report_if_gone(*id, effects);
            } else if peer.outbound.is_none() {
                peer.pause = MIN_PAUSE;
                peer.dialling = Dialling::Paused { until: now };
            }
        }
        self.peers.retain(|_, peer| peer.addr.is_some() || peer.inbound.is_some());
        for (id, addr) in wanted {
            let dialling = Dialling::Paused { until: now };
            self.peers.insert(id, Peer { addr: Some(addr), dialling, ..Peer::default() });
        }
        self.expire(now, effects);
    }

    /// Dials those at once whose turn has not come yet, as often as in the beginning.
    pub(super) fn redial(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for peer in self.peers.values_mut() {
            peer.pause = MIN_PAUSE;
            if let Dialling::Paused { until } = &mut peer.dialling {
                *until = now.min(*until);
            }
        }
        self.expire(now, effects);
    }

    /// A connection to a manager is up and both sides accepted each other.
    pub(super) fn link_up(
        &mut self,
        now: Instant,
        id: NodeId,
        connection: ConnectionId,
        outbound: bool,
        effects: &mut Vec<Effect>,
    ) {
        let peer = self.peers.entry(id).or_default();
        let place = if outbound { &mut peer.outbound } else { &mut peer.inbound };
        // A manager dials us once: that it dials again tells that its older connection is dead.
        if let Some((older, _)) = place.replace((connection, now)) {
            effects.push(Effect::Close(older));
        }
        match peer.dialling {
            Dialling::Running { .. } if outbound => peer.dialling = Dialling::Idle,
            Dialling::Paused { .. } if peer.outbound.is_none() => {
                // It is there, says its own call.
                peer.pause = MIN_PAUSE;
                peer.dialling = Dialling::Paused { until: now };
            }
            _ => {}
        }
        peer.probe = None;
        if !peer.reported {
            peer.reported = true;
            effects.push(Effect::Connected(id));
        }
        self.expire(now, effects);
    }

    /// A connection that was up closed.
    pub(super) fn link_down(&mut self, now: Instant, id: NodeId, connection: ConnectionId, effects: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut lived = None;
        for place in [&mut peer.outbound, &mut peer.inbound] {
            if let Some((found, since)) = *place
                && found == connection
            {
                *place = None;
                lived = Some(now.since(since));
            }
        }
        let Some(lived) = lived else { return };
        if lived >= STABLE {
            peer.pause = MIN_PAUSE;
        }
        if peer.outbound.is_none() && peer.inbound.is_none() && peer.reported {
            let again = peer.last_probe.is_some_and(|last| now.since(last) < STABLE);
            if peer.addr.is_some() && !again {
                peer.last_probe = Some(now);
                peer.probe = Some(now + PROBE);
                let fresh = matches!(peer.dialling, Dialling::Running { since, .. } if since == now);
                if !fresh {
                    if let Dialling::Running { attempt, .. } = peer.dialling {
                        effects.push(Effect::Abort(attempt));
                    }
                    peer.dialling = Dialling::Paused { until: now };
                }
            } else {
                peer.report_if_gone(id, effects);
            }
        }
        if peer.addr.is_some() && peer.outbound.is_none() && peer.dialling == Dialling::Idle {
            let until = if lived >= STABLE { now } else { now + pause(peer, &mut self.jitter) };
            peer.dialling = Dialling::Paused { until };
        }
        if peer.addr.is_none() && peer.outbound.is_none() && peer.inbound.is_none() {
            self.peers.remove(&id);
        }
        self.expire(now, effects);
    }

    /// An attempt ended without a connection.
    pub(super) fn dial_failed(
        &mut self,
        now: Instant,
        id: NodeId,
        attempt: u64,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !matches!(peer.dialling, Dialling::Running { attempt: running, .. } if running == attempt) {
            return;
        }
        match (peer.probe, failure) {
            (Some(until), Failure::Other) if now + PROBE_RETRY < until => {
                peer.dialling = Dialling::Paused { until: now + PROBE_RETRY };
                return;
            }
            (Some(_), failure) => {
                peer.probe = None;
                peer.reported = false;
                effects.push(Effect::Disconnected { peer: id, refused: failure == Failure::Refused });
            }
            (None, _) => {}
        }
        let until = now + pause(peer, &mut self.jitter);
        peer.dialling = Dialling::Paused { until };
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut failed = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.probe.is_some_and(|until| until <= now) {
                peer.probe = None;
                peer.report_if_gone(*id, effects);
            }
            match (peer.dialling, &peer.addr) {
                (Dialling::Paused { until }, Some(addr)) if until <= now => {
                    self.attempts += 1;
                    let attempt = self.attempts;
                    peer.dialling = Dialling::Running { attempt, since: now, until: now + self.dial_timeout };
                    let hurried = peer.probe.is_some();
                    effects.push(Effect::Dial { peer: *id, attempt, addr: addr.clone(), hurried });
                }
                (Dialling::Running { attempt, until, .. }, _) if until <= now => failed.push((*id, attempt)),
                _ => {}
            }
        }
        for (id, attempt) in failed {
            effects.push(Effect::Abort(attempt));
            self.dial_failed(now, id, attempt, Failure::Other, effects);
        }
    }

    /// When [`Peers::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let due = |peer: &Peer| {
            let dial = match peer.dialling {
                Dialling::Idle => None,
                Dialling::Paused { until } | Dialling::Running { until, .. } => Some(until),
            };
            [dial, peer.probe].into_iter().flatten().min()
        };
        self.peers.values().filter_map(due).min()
    }

    /// The connection to send over.
    pub(super) fn best(&self, id: NodeId) -> Option<ConnectionId> {
        let peer = self.peers.get(&id)?;
        peer.outbound.or(peer.inbound).map(|(connection, _)| connection)
    }

    /// Every connection that is up.
    pub(super) fn links(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.peers.values().flat_map(|peer| [peer.outbound, peer.inbound]).flatten().map(|(connection, _)| connection)
    }
}

impl Peer {
    fn report_if_gone(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        if self.reported && self.outbound.is_none() && self.inbound.is_none() {
            self.reported = false;
            self.probe = None;
            effects.push(Effect::Disconnected { peer: id, refused: false });
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            addr: None,
            dialling: Dialling::Idle,
            outbound: None,
            inbound: None,
            reported: false,
            probe: None,
            last_probe: None,
            pause: MIN_PAUSE,
        }
    }
}

/// The pause before the next dial, between half of it and all of it; the one after that is twice as long.
fn pause(peer: &mut Peer, jitter: &mut SeededEntropy) -> Duration {
    let pause = peer.pause;
    peer.pause = (pause * 2).min(MAX_PAUSE);
    let half = pause / 2;
    half + Duration::from_millis(jitter.below(half.as_millis() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(7);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn connection(number: u64) -> ConnectionId {
        ConnectionId(number)
    }

    /// The machine, and what it asked for since it was last looked at.
    struct Bench {
        peers: Peers,
        effects: Vec<Effect>,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench = Self { peers: Peers::new(1, Duration::from_secs(5)), effects: Vec::new() };
            bench.peers.set(at(0), vec![(PEER, "peer:1".to_owned())], &mut bench.effects);
            bench
        }

        fn up(&mut self, ms: u64, number: u64, outbound: bool) {
            self.peers.link_up(at(ms), PEER, connection(number), outbound, &mut self.effects);
        }

        fn down(&mut self, ms: u64, number: u64) {
            self.peers.link_down(at(ms), PEER, connection(number), &mut self.effects);
        }

        fn failed(&mut self, ms: u64, attempt: u64, failure: Failure) {
            self.peers.dial_failed(at(ms), PEER, attempt, failure, &mut self.effects);
        }

        /// Lets time pass in steps of a millisecond; gives back when the next effect came.
        fn wait(&mut self, from: u64) -> u64 {
            for ms in from..from + 10_000 {
                self.peers.expire(at(ms), &mut self.effects);
                if !self.effects.is_empty() {
                    return ms;
                }
            }
            panic!("nothing happens any more");
        }

        #[track_caller]
        fn check(&mut self, expected: &[Effect]) {
            assert_eq!(std::mem::take(&mut self.effects), expected);
        }
    }

    fn dial(attempt: u64, hurried: bool) -> Effect {
        Effect::Dial { peer: PEER, attempt, addr: "peer:1".to_owned(), hurried }
    }

    fn lost(refused: bool) -> Effect {
        Effect::Disconnected { peer: PEER, refused }
    }

    #[test]
    fn failed_dials_come_again_at_growing_intervals() {
        let mut bench = Bench::new();
        let (mut now, mut longest) = (0, 0);
        for attempt in 1..12 {
            bench.check(&[dial(attempt, false)]);
            bench.failed(now, attempt, Failure::Refused);
            let next = bench.wait(now);
            longest = longest.max(next - now);
            let bound = (50 << (attempt - 1)).min(2000);
            assert!((bound / 2..=bound).contains(&(next - now)), "attempt {attempt} after {} ms", next - now);
            now = next;
        }
        assert!(longest > 1000);
    }

    #[test]
    fn who_waits_for_the_next_dial_can_be_told_not_to() {
        let mut bench = Bench::new();
        let mut now = 0;
        for attempt in 1..8 {
            bench.check(&[dial(attempt, false)]);
            bench.failed(now, attempt, Failure::Other);
            if attempt < 7 {
                now = bench.wait(now);
            }
        }
        let Bench { peers, effects, .. } = &mut bench;
        peers.redial(at(now), effects);
        bench.check(&[dial(8, false)]);
        bench.failed(now, 8, Failure::Other);
        assert!(bench.wait(now) - now <= 50);
        bench.check(&[dial(9, false)]);
        // One that is on its way is left alone.
        let Bench { peers, effects, .. } = &mut bench;
        peers.redial(at(now + 50), effects);
        bench.check(&[]);
    }

    #[test]
    fn a_dial_that_hangs_is_given_up() {
        let mut bench = Bench::new();
        bench.check(&[dial(1, false)]);
        assert_eq!(bench.wait(0), 5000);
        bench.check(&[Effect::Abort(1)]);
        bench.wait(5000);
        bench.check(&[dial(2, false)]);
    }

    #[test]
    fn a_loss_is_told_after_the_redial_was_refused_and_not_before() {
        let mut bench = Bench::new();
        bench.up(1, 1, true);
        bench.up(2, 2, false);
        bench.check(&[dial(1, false), Effect::Connected(PEER)]);
        bench.down(5000, 1);
        bench.check(&[dial(2, false)]);
        bench.down(5000, 2);
        bench.check(&[]);
        bench.failed(5001, 2, Failure::Refused);
        bench.check(&[lost(true)]);
    }

    #[test]
    fn a_redial_that_fails_otherwise_is_repeated_and_then_told_as_silence() {
        let mut bench = Bench::new();
        bench.up(1, 1, true);
        bench.down(5000, 1);
        bench.check(&[dial(1, false), Effect::Connected(PEER), dial(2, true)]);
        bench.failed(5002, 2, Failure::Other);
        assert_eq!(bench.wait(5002), 5007);
        bench.check(&[dial(3, true)]);
        // The third hangs.
        assert_eq!(bench.wait(5007), 5300);
        bench.check(&[lost(false)]);
    }

    #[test]
    fn a_redial_that_succeeds_in_time_means_nothing_is_told() {
        let mut bench = Bench::new();
        bench.up(1, 1, true);
        bench.down(5000, 1);
        bench.up(5100, 2, true);
        bench.check(&[dial(1, false), Effect::Connected(PEER), dial(2, true)]);
        assert_eq!(bench.peers.best(PEER), Some(connection(2)));
        assert_eq!(bench.peers.next_deadline(), None, "an idle link needs no timer");
    }

    #[test]
    fn a_peer_that_accepts_and_hangs_up_is_not_dialled_without_pause() {
        let mut bench = Bench::new();
        bench.check(&[dial(1, false)]);
        bench.up(1, 1, true);
        bench.check(&[Effect::Connected(PEER)]);
        bench.down(2, 1);
        // Once at once, to find out.
        bench.check(&[dial(2, true)]);
        bench.up(3, 2, true);
        bench.down(4, 2);
        bench.check(&[lost(false)]);
        assert!(bench.wait(4) >= 25);
        bench.check(&[dial(3, false)]);
    }

    #[test]
    fn a_call_from_the_peer_ends_the_pause_and_serves_until_our_own_is_up() {
        let mut bench = Bench::new();
        let mut now = 0;
        for attempt in 1..8 {
            bench.check(&[dial(attempt, false)]);
            bench.failed(now, attempt, Failure::Refused);
            now = bench.wait(now);
        }
        bench.check(&[dial(8, false)]);
        bench.failed(now, 8, Failure::Refused);
        bench.up(now + 1, 1, false);
        bench.check(&[Effect::Connected(PEER), dial(9, false)]);
        assert_eq!(bench.peers.best(PEER), Some(connection(1)));
        bench.up(now + 2, 2, true);
        assert_eq!(bench.peers.best(PEER), Some(connection(2)));
        // It dials again: the older connection must be dead.
        bench.up(now + 3, 3, false);
        bench.check(&[Effect::Close(connection(1))]);
    }

    #[test]
    fn a_peer_that_is_not_wanted_any_more_is_let_go() {
        let mut bench = Bench::new();
        bench.up(1, 1, true);
        bench.check(&[dial(1, false), Effect::Connected(PEER)]);
        bench.peers.set(at(2), Vec::new(), &mut bench.effects);
        bench.check(&[Effect::Close(connection(1)), lost(false)]);
        assert_eq!(bench.peers.next_deadline(), None);
        // A manager that nobody named may still connect, and is reported.
        bench.up(3, 2, false);
        bench.down(4, 2);
        bench.check(&[Effect::Connected(PEER), lost(false)]);
    }
}
