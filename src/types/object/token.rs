//! Join tokens with conditions. The two tokens that every swarm has, one for each role, stand in the cluster object.

use super::*;

/// A join token that a person made for a purpose: it ends, or admits so many nodes, or gives them labels. The text of it is
/// known to whoever made it only; the swarm keeps a digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Identity: derived from `secret_digest`, so that a token is found by its secret.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// The labels are those that the admitted nodes get; name and indices are unused.
    pub annotations: Annotations,
    /// Admits nodes of this role.
    pub role: Role,
    /// Admits nobody from then on.
    pub expires_at: Option<Timestamp>,
    /// How many nodes it still admits; `None` means no limit.
    pub uses_left: Option<u32>,
    /// The digest of the root that its text names. With another root nobody can use it any more.
    pub root_digest: String,
    /// SHA-256 of its secret. Never shown by control.
    pub secret_digest: Sensitive,
}

impl Token {
    /// Why it admits nobody at `now`; `None` while it does.
    pub fn is_spent(&self, now: Timestamp) -> Option<TokenEnd> {
        match (self.expires_at, self.uses_left) {
            (Some(end), _) if end <= now => Some(TokenEnd::Expired(end)),
            (_, Some(0)) => Some(TokenEnd::UsedUp),
            _ => None,
        }
    }
}

/// Why a token admits nobody any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEnd {
    /// It ended then.
    Expired(Timestamp),
    /// It admitted as many nodes as it was made for.
    UsedUp,
}
