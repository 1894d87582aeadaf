//! `skep watch`: changes as they are committed, a line or a JSON document for each.

use serde_json::{Value, json};

use super::args::WatchArgs;
use super::exit::{DONE, Ended, Failure};
use super::objects;
use super::output::{Written, clean};
use super::session::Session;
use crate::types::api::{Action, Filter, WatchItem, WatchRequest};

/// `skep watch`.
pub fn watch(session: &mut Session, args: &WatchArgs) -> Ended {
    let request = WatchRequest {
        from: args.from.map(|revision| (session.client.hello().lineage, revision)),
        skip_snapshot: true,
        kinds: args.kind.clone(),
        filter: Filter::default(),
        include_old: session.out.json,
    };
    let watch = session.client.watch(request, session.timeout)?;
    for item in watch {
        if let Written::Closed = show_watch_item(session, item?)? {
            return DONE;
        }
        if let Written::Closed = session.out.flush()? {
            return DONE;
        }
    }
    DONE
}

fn show_watch_item(session: &mut Session, item: WatchItem) -> Result<Written, Failure> {
    match item {
        WatchItem::Snapshot { .. } => Ok(Written::Yes),
        WatchItem::Begin { revision, .. } | WatchItem::Mark { revision } => match session.out.json {
            true => session.out.record(&json!({ "revision": revision, "mark": true })),
            false => Ok(Written::Yes),
        },
        WatchItem::Change { revision, events } if session.out.json => {
            let events: Vec<Value> = events
                .iter()
                .map(|event| {
                    let mut shown = json!({
                        "action": event.action,
                        "kind": event.object.kind(),
                        "object": objects::document(&event.object),
                    });
                    if let Some(old) = &event.old {
                        shown["old"] = objects::document(old);
                    }
                    shown
                })
                .collect();
            session.out.record(&json!({ "revision": revision, "events": events }))
        }
        WatchItem::Change { revision, events } => {
            for event in &events {
                let action = match event.action {
                    Action::Create => "create",
                    Action::Update => "update",
                    Action::Remove => "remove",
                };
                let (kind, id, name) = (event.object.kind(), event.object.id(), clean(objects::name(&event.object)));
                if let Written::Closed = session.out.line(&format!("{revision} {action} {kind} {id} {name}"))? {
                    return Ok(Written::Closed);
                }
            }
            Ok(Written::Yes)
        }
    }
}
