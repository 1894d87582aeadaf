//! Keeps a node's identity alive, on managers and workers alike.
//!
//! A certificate ends, roots are replaced, roles change. One thread per node, `agent`, sees to it that the node always has
//! the certificate and the roots that the swarm wants it to have. [`machine::Machine`] decides when; [`run`] carries it out
//! through two seams: a [`run::Swarm`], which tells what the swarm wants and passes requests on, and a [`run::Keep`], which
//! writes files. A manager's swarm is its own store (in `node`); a worker's is [`outside::Outside`], a session with some
//! manager.
//!
//! What the rest of the program may rely on:
//!
//! - [`own::Own`] holds the certificate, key and roots in use. Whoever makes a connection asks it at that moment. A renewal
//!   replaces what later handshakes use, in both directions; connections that exist keep what they were made with, and no
//!   connection is closed for a renewal.
//! - A certificate is asked for at a random moment between 50 % and 80 % of its life, at once when the swarm says so, when
//!   the role it names is not the node's, or when it is over. What fails is tried again after 5 s, then ever less often, up
//!   to once an hour, and at once after news.
//! - Each certificate has a key of its own. A crash at any moment leaves a key with its certificate ([`files`]).
//! - New roots are taken only if the certificate in use is valid under them: whoever controls a single connection cannot
//!   have a node trust a root that did not sign for it.
//! - A worker asks another manager when its own falls silent or ends the session, remembers the managers that it was told
//!   of, and takes only a manager's word for it that it was removed.
//!
//! Not here: what follows from a role (`node` makes a manager of a worker and the other way round), who may have which
//! certificate (`ca`), which roots the swarm has.
//!
//! Invariants: nothing is used before it is on disk; a certificate is for the key that asked for it, for this node and this
//! swarm, and leads to a root that is trusted already.

pub mod files;
pub mod machine;
pub mod outside;
pub mod own;
pub mod remotes;
pub mod run;

pub use outside::{Link, Outside};
pub use own::Own;
