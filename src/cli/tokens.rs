//! `skep token`: the join tokens.
//!
//! A token is made here and not by the manager: the request then says all that there is to do, and when it is repeated, at
//! another manager too, it does the same.

use serde_json::{Value, json};

use super::args::TokenCommand;
use super::commands::{ids, inspect, list, milliseconds, pairs, write_and_show};
use super::exit::{Ended, Exit, Failure};
use super::objects;
use super::output::clean;
use super::session::{Session, unexpected};
use crate::pki::JoinToken;
use crate::sys::entropy::OsEntropy;
use crate::sys::time::wall_ms;
use crate::types::api::{Answer, QueryKind, Write};
use crate::types::object::{Kind, Sensitive};
use crate::types::{Code, Object, Role, Timestamp};

/// Carries the command out.
pub fn token(session: &mut Session, command: &TokenCommand) -> Ended {
    match command {
        TokenCommand::Show { role } => {
            show(session, role.map(Role::from))?;
        }
        TokenCommand::Rotate { role, write: args } => {
            let role = role.map(Role::from);
            if role.is_none() && args.change_id.is_some() {
                let failure = Failure::usage("--change-id asks about one token, and no --role says which");
                return Err(failure.with_hint("add `--role manager` or `--role worker`"));
            }
            for role in role.map_or_else(|| BOTH.to_vec(), |role| vec![role]) {
                let token = make(session)?;
                let write = Write::RotateToken { role, token };
                session.write(args, write).map_err(|failure| {
                    failure.while_attempting(|| format!("cannot rotate the {} token", role.name()))
                })?;
            }
            // What the swarm has now: another may have rotated at the same time, or an earlier attempt made it.
            show(session, role)?;
        }
        TokenCommand::Create { role, label, ttl, uses, write: args } => {
            let role = Role::from(*role);
            let token = make(session)?;
            let text = text(&token)?;
            let write =
                Write::CreateToken { role, labels: pairs(label), ttl_ms: ttl.map(milliseconds), uses: *uses, token };
            let written = session
                .write(args, write)
                .map_err(|failure| failure.while_attempting(|| format!("cannot create a {} token", role.name())))?;
            if text.parse().map(|token: JoinToken| token.object_id()) != Ok(written.id) {
                // An earlier attempt made a token, and nobody knows its text any more.
                let message = format!("the earlier attempt made token {}, whose text is lost", written.id);
                let hint = format!("`skep token rm {}`, then create another", written.id);
                return Err(Failure::refused(Code::FailedPrecondition, message).with_hint(hint));
            }
            match session.out.json {
                true => session
                    .out
                    .document(&json!({ "id": written.id, "role": role, "token": text, "version": written.revision }))?,
                false => session.out.line(&text)?,
            };
        }
        TokenCommand::Ls(args) => {
            let objects = list(session, Kind::Token, args)?;
            if args.quiet && !session.out.json {
                return ids(session, &objects);
            }
            let now = Timestamp(wall_ms());
            let rows: Vec<Value> = objects
                .iter()
                .map(|object| {
                    let mut row = objects::row(object);
                    objects::add_token_state(&mut row, object, now);
                    row
                })
                .collect();
            session.out.rows(objects::columns(Kind::Token), &rows)?;
        }
        TokenCommand::Inspect(object) => return inspect(session, Kind::Token, &object.object),
        TokenCommand::Rm { object, write } => {
            let request = Write::RemoveToken { token: object.object.clone() };
            let attempted = || format!("cannot remove token {}", clean(&object.object));
            return write_and_show(session, write, request, attempted);
        }
    }
    Ok(Exit::Done)
}

const BOTH: [Role; 2] = [Role::Manager, Role::Worker];

/// A new token for the swarm's root.
fn make(session: &mut Session) -> Result<Sensitive, Failure> {
    let id = session.client.hello().cluster_id.to_string();
    let Answer::Object(object) = session.query(QueryKind::Inspect(Kind::Cluster, id))? else {
        return Err(unexpected());
    };
    let Object::Cluster(cluster) = *object else { return Err(unexpected()) };
    let token = JoinToken::generate(&cluster.root_ca.certificate, &mut OsEntropy);
    Ok(Sensitive(token.to_string().into_bytes()))
}

fn text(token: &Sensitive) -> Result<String, Failure> {
    String::from_utf8(token.0.clone()).map_err(|_| unexpected())
}

/// Prints the token for a role, or both.
fn show(session: &mut Session, role: Option<Role>) -> Result<(), Failure> {
    let mut ask = |role: Role| match session.query(QueryKind::Token(role))? {
        Answer::Token(token) => text(&token),
        _ => Err(unexpected()),
    };
    match role {
        Some(role) => {
            let token = ask(role)?;
            match session.out.json {
                true => session.out.document(&json!({ "role": role, "token": token }))?,
                false => session.out.line(&token)?,
            };
        }
        None => {
            let rows = BOTH
                .into_iter()
                .map(|role| Ok(json!({ "role": role, "token": ask(role)? })))
                .collect::<Result<Vec<_>, Failure>>()?;
            session.out.rows(&[("ROLE", "role"), ("TOKEN", "token")], &rows)?;
        }
    }
    Ok(())
}
