//! Backups, part by part.

use super::*;
use crate::control::Feed;
use crate::net::requests::Pull;
use crate::store::SnapshotDecoder;
use crate::sys::time::Instant;
use crate::types::api::{BackupInfo, BackupRequest};

fn begin(swarm: &Swarm, stale: bool, confirmed: bool) -> Step<Feed> {
    let request = incoming(Call::Backup, envelope::encode(&BackupRequest { stale }));
    swarm.control.decide(&request, 0, confirmed, 77)
}

#[test]
fn a_backup_waits_for_a_round_unless_it_may_be_stale() {
    let swarm = Swarm::ready();
    assert!(matches!(begin(&swarm, false, false), Step::Barrier));
    assert!(matches!(begin(&swarm, false, true), Step::Stream(Feed::Backup(_))));
    assert!(matches!(begin(&swarm, true, false), Step::Stream(Feed::Backup(_))));
}

#[test]
fn two_backups_are_made_at_a_time() {
    let swarm = Swarm::ready();
    let (first, _second) = (begin(&swarm, true, false), begin(&swarm, true, false));
    let Step::Refuse(status) = begin(&swarm, true, false) else { panic!("a third one is begun") };
    assert_eq!(status.code, Code::ResourceExhausted);
    assert!(!status.hint.is_empty());
    drop(first);
    assert!(matches!(begin(&swarm, true, false), Step::Stream(Feed::Backup(_))));
}

#[test]
fn a_manager_without_the_swarms_data_gives_no_backup() {
    let mut joining = Swarm::ready();
    joining.control.context.raft.state = RaftState::Joining;
    for swarm in [Swarm::new(), joining] {
        let Step::Refuse(status) = begin(&swarm, true, false) else { panic!("it has nothing to give") };
        assert_eq!(status.code, Code::Unavailable);
        assert!(!status.hint.is_empty());
    }
}

#[test]
fn a_backup_is_the_state_at_one_revision_whatever_is_written_meanwhile_and_however_small_the_room() {
    let mut swarm = Swarm::ready();
    for number in 0..40 {
        swarm.write(secret(&format!("s{number}"))).unwrap();
    }
    let before = swarm.view(Clone::clone);
    let Step::Stream(mut feed) = begin(&swarm, true, false) else { panic!("it is allowed") };
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut room = 10;
    loop {
        match swarm.control.pull(Instant::default(), &mut feed, room) {
            Pull::Part(part) => {
                assert!(!part.is_empty() && part.len() <= room);
                parts.push(part.to_vec());
                swarm.create_config(&format!("c{}", parts.len()));
            }
            Pull::Full => room = 999,
            Pull::Done => break,
            other => panic!("{other:?}"),
        }
    }
    let info: BackupInfo = envelope::decode(&parts[0], parts[0].len()).unwrap();
    assert_eq!((info.revision, info.hash, info.created_at), (before.revision(), before.hash(), Timestamp(77)));
    let mut decoder = SnapshotDecoder::new();
    parts[1..].iter().for_each(|part| decoder.push(part).unwrap());
    assert_eq!(decoder.finish().unwrap().hash(), before.hash());
}
