//! What this manager tells whoever has to find out what is wrong with it. Read from memory only: it works without a
//! leader, without a majority, with a disk that does not answer, and before the node has joined.

use super::*;
use crate::types::api::{Diagnosis, QueueReport};

impl NodeHandler {
    pub(super) fn diagnose(&mut self, now: Instant) -> Diagnosis {
        let metrics = self.http_metrics();
        let queues = self.metrics.queues().into_iter();
        Diagnosis {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: self.identity.node_id,
            boot: self.identity.boot,
            uptime_ms: u64::try_from(now.since(Instant::default()).as_millis()).unwrap_or(u64::MAX),
            joined: self.member.is_some(),
            raft: self.report(),
            sync_count: self.sync.count(),
            sync_p50_us: self.sync.quantile_us(0.5),
            sync_p99_us: self.sync.quantile_us(0.99),
            queues: queues.map(|(name, depth, capacity)| QueueReport { name, depth, capacity }).collect(),
            events: self.raft.events(now),
            metrics,
        }
    }

    fn http_metrics(&mut self) -> String {
        match &self.member {
            Some(_) => self.http("/metrics").2,
            None => self.metrics.render(),
        }
    }
}
