//! The certificate, key and roots that a node uses now, for everybody in the process who makes or takes connections.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::client::TlsTarget;
use crate::net::Credentials;
use crate::pki::{self, Identity, NodeIdentity, PkiError, Trust};
use crate::types::api::{CertificateReport, Hello};
use crate::types::{Role, Timestamp};

/// What a node proves its identity with, and whom it believes. Clones share it.
#[derive(Clone, Debug)]
pub struct Own(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    identity: NodeIdentity,
    roots: String,
    /// What the socket loop uses; kept in step.
    credentials: Option<Credentials>,
    renews_at_ms: u64,
    trouble: String,
}

impl Own {
    /// What was read from the disk.
    pub fn new(identity: NodeIdentity, roots: String) -> Self {
        let inner = Inner { identity, roots, credentials: None, renews_at_ms: 0, trouble: String::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// What the certificate says.
    pub fn identity(&self) -> Identity {
        *self.lock().identity.identity()
    }

    /// Certificate and key.
    pub fn node(&self) -> NodeIdentity {
        self.lock().identity.clone()
    }

    /// The roots, PEM.
    pub fn roots(&self) -> String {
        self.lock().roots.clone()
    }

    /// Who signed the certificate, as `pki::issuer_of` prints it; empty if that cannot be told.
    pub fn issuer(&self) -> String {
        let inner = self.lock();
        pki::issuer_of(inner.identity.chain_pem(), &inner.roots).unwrap_or_default()
    }

    /// TLS settings for a socket loop, which follow every renewal from now on.
    ///
    /// # Errors
    /// When the certificate or the roots cannot be used.
    pub fn credentials(&self) -> Result<Credentials, PkiError> {
        let mut inner = self.lock();
        let (server, client) = settings(&inner.identity, &inner.roots)?;
        let credentials = Credentials::new(server, client);
        inner.credentials = Some(credentials.clone());
        Ok(credentials)
    }

    /// A manager at `addr`, whichever it is. `hello` is sent by a node with a manager's certificate in force: managers
    /// expect it of each other.
    ///
    /// # Errors
    /// When the certificate or the roots cannot be used.
    pub fn target(&self, addr: &str, now_ms: u64, hello: impl FnOnce() -> Hello) -> Result<TlsTarget, PkiError> {
        let inner = self.lock();
        let config = pki::client_config(Some(&inner.identity), Trust::Roots(inner.roots.clone()))?;
        let identity = inner.identity.identity();
        let greets = identity.role == Role::Manager && !identity.is_expired(now_ms);
        drop(inner);
        let hello = greets.then(hello);
        Ok(TlsTarget { addr: addr.to_owned(), server_name: pki::manager_name(), config, expected: None, hello })
    }

    /// Uses another certificate and key from now on.
    ///
    /// # Errors
    /// When they cannot be used: then nothing has changed.
    pub fn renew(&self, identity: NodeIdentity) -> Result<(), PkiError> {
        let mut inner = self.lock();
        let (server, client) = settings(&identity, &inner.roots)?;
        if let Some(credentials) = &inner.credentials {
            credentials.replace(server, client);
        }
        inner.identity = identity;
        Ok(())
    }

    /// Trusts other roots from now on.
    ///
    /// # Errors
    /// When they cannot be used: then nothing has changed.
    pub fn trust(&self, roots: String) -> Result<(), PkiError> {
        let mut inner = self.lock();
        let (server, client) = settings(&inner.identity, &roots)?;
        if let Some(credentials) = &inner.credentials {
            credentials.replace(server, client);
        }
        inner.roots = roots;
        Ok(())
    }

    /// What `skep status` shows of it.
    pub fn report(&self) -> CertificateReport {
        let inner = self.lock();
        let identity = inner.identity.identity();
        CertificateReport {
            role: identity.role,
            expires_at: Timestamp(identity.not_after_ms),
            renews_at: Timestamp(inner.renews_at_ms),
            trouble: inner.trouble.clone(),
        }
    }

    /// When the certificate is to be renewed, and why the last attempt failed.
    pub(super) fn note(&self, renews_at_ms: u64, trouble: Option<String>) {
        let mut inner = self.lock();
        inner.renews_at_ms = renews_at_ms;
        if let Some(trouble) = trouble {
            inner.trouble = trouble;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

fn settings(
    identity: &NodeIdentity,
    roots: &str,
) -> Result<(Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>), PkiError> {
    let server = pki::server_config(identity, roots)?;
    // Peers with expired certificates are judged by the socket loop.
    let client = pki::peer_config(identity, roots)?;
    Ok((server, client))
}
