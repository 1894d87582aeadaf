//! TLS settings: 1.3 only, our protocol name, no resumption, mutual where a certificate is presented.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::ca::check_authority;
use super::identity::{Identity, NodeIdentity, identity_of, is_signed_by};
use super::{PkiError, pem};
use crate::sys::time::wall_ms;
use crate::types::{ClusterId, NodeId, Role};

/// The protocol name that both sides must agree on (ALPN).
pub const PROTOCOL: &[u8] = b"skep/1";

/// Whom a client believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Servers whose certificate one of these roots (PEM) signed.
    Roots(String),
    /// Anybody who owns the key of the certificate shown. Only for fetching the root, which the caller then checks
    /// against the digest in its join token; nothing secret may be sent over such a connection.
    Anything,
}

/// Settings for accepting connections. See the folder's essay for which clients get through.
///
/// # Errors
/// When the roots are unreadable or no roots, or the node's key is refused.
pub fn server_config(identity: &NodeIdentity, roots_pem: &str) -> Result<Arc<ServerConfig>, PkiError> {
    server_settings(identity, roots_pem).map(Arc::new)
}

/// Settings for making connections. Without an identity the client is anonymous.
///
/// # Errors
/// When the roots are unreadable or no roots, or the node's key is refused.
pub fn client_config(identity: Option<&NodeIdentity>, trust: Trust) -> Result<Arc<ClientConfig>, PkiError> {
    client_settings(identity, trust).map(Arc::new)
}

/// Settings for links between managers: as [`client_config`], but a manager whose certificate has expired gets through the
/// handshake too. Whoever uses these must [`super::classify`] the other side, and decide.
///
/// # Errors
/// When the roots are unreadable or no roots, or the node's key is refused.
pub fn peer_config(identity: &NodeIdentity, roots_pem: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let inner = server_verifier(roots_pem, Some(identity), true)?;
    settings_with(Some(identity), Arc::new(inner)).map(Arc::new)
}

/// The name to dial a node by: a handshake with any other node fails. Says nothing of the node's role, which
/// [`super::classify`] tells.
pub fn server_name(node: NodeId) -> ServerName<'static> {
    host_name(&dns_name(node))
}

/// The name to dial a manager by when it is not known which one answers.
pub fn manager_name() -> ServerName<'static> {
    host_name(Role::Manager.organizational_unit())
}

/// Checks what `alpn_protocol()` returns after the handshake. TLS itself lets a peer through that offers no protocol.
///
/// # Errors
/// [`PkiError::OtherProtocol`]: close the connection.
pub fn check_protocol(negotiated: Option<&[u8]>) -> Result<(), PkiError> {
    if negotiated == Some(PROTOCOL) { Ok(()) } else { Err(PkiError::OtherProtocol) }
}

/// The host name of a node in its certificate: its id. Host names that end in a number are reserved for IP addresses
/// (WHATWG URL, "ends in a number"), so an id that could be read as one gets a prefix.
pub(super) fn dns_name(node: NodeId) -> String {
    let id = node.to_string();
    let numeric = id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'x');
    if numeric { format!("node-{id}") } else { id }
}

/// A verifier that takes valid client certificates of these roots, or none; for a node, see [`root_store`].
pub(super) fn client_verifier(
    roots_pem: &str,
    node: Option<&NodeIdentity>,
) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    WebPkiClientVerifier::builder_with_provider(root_store(roots_pem, node)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| PkiError::Tls(Error::General(error.to_string())))
}

pub(super) fn server_settings(identity: &NodeIdentity, roots_pem: &str) -> Result<ServerConfig, PkiError> {
    let verifier = ClientVerifier {
        provider: provider(),
        inner: client_verifier(roots_pem, Some(identity))?,
        cluster_id: identity.identity().cluster_id,
    };
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(Clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(PkiError::Tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(certified_key(identity)?));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A resumed session skips the certificate check: expired and removed nodes would get in.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

pub(super) fn client_settings(identity: Option<&NodeIdentity>, trust: Trust) -> Result<ClientConfig, PkiError> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Roots(roots_pem) => Arc::new(server_verifier(&roots_pem, identity, false)?),
        Trust::Anything => Arc::new(AnyServer { provider: provider() }),
    };
    settings_with(identity, verifier)
}

fn server_verifier(
    roots_pem: &str,
    identity: Option<&NodeIdentity>,
    admits_expired: bool,
) -> Result<ServerVerifier, PkiError> {
    let inner = WebPkiServerVerifier::builder_with_provider(root_store(roots_pem, identity)?, provider())
        .build()
        .map_err(|error| PkiError::Tls(Error::General(error.to_string())))?;
    let cluster_id = identity.map(|identity| identity.identity().cluster_id);
    Ok(ServerVerifier { provider: provider(), inner, cluster_id, admits_expired })
}

fn settings_with(
    identity: Option<&NodeIdentity>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(Clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(PkiError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(certified_key(identity)?)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The clock of `sys`, which knows better than the system's on a machine that has none.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(wall_ms())))
    }
}

/// ring, always by name: the process-wide default belongs to whoever embeds us.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The roots, and for a node the successors of them that stand in its own chain. The old root vouches for those already,
/// so that nothing more is trusted by it; but a node that was away when a rotation ended, and has only the old root's
/// certificate on its disk, still knows the managers that were certified since, and learns of the new root from them.
fn root_store(roots_pem: &str, node: Option<&NodeIdentity>) -> Result<Arc<RootCertStore>, PkiError> {
    let roots = pem::certificates(roots_pem, "root certificate")?;
    let mut store = RootCertStore::empty();
    for der in &roots {
        check_authority(der)?;
        store.add(der.clone()).map_err(PkiError::Tls)?;
    }
    for der in node.into_iter().flat_map(|node| node.chain().iter().skip(1)) {
        if check_authority(der).is_ok() && roots.iter().any(|root| is_signed_by(der, root)) {
            store.add(der.clone()).map_err(PkiError::Tls)?;
        }
    }
    Ok(Arc::new(store))
}

fn certified_key(identity: &NodeIdentity) -> Result<SingleCertAndKey, PkiError> {
    let key = CertifiedKey::new(identity.chain().to_vec(), identity.key().tls_signer()?);
    key.keys_match().map_err(PkiError::Tls)?;
    Ok(SingleCertAndKey::from(key))
}

fn host_name(name: &str) -> ServerName<'static> {
    let name = DnsName::try_from(name.to_owned()).expect("ids and role names are host names");
    ServerName::DnsName(name)
}

/// The identity in a certificate that a root of ours signed, if it is of our swarm: a root that was given to us may
/// sign for others too.
fn check_identity(leaf: &CertificateDer<'_>, cluster_id: Option<ClusterId>) -> Result<Identity, Error> {
    let identity = match identity_of(leaf) {
        Ok(identity) if cluster_id.is_none_or(|ours| ours == identity.cluster_id) => Ok(identity),
        Ok(_) => Err(PkiError::OtherSwarm),
        Err(error) => Err(error),
    };
    identity.map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
}

/// What both traits of rustls ask of a verifier beside the certificate: that the other side owns its key. All of ours
/// leave that to the provider.
macro_rules! signatures_by_provider {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Lets expired certificates through, which is all that differs from rustls' own verifier beside [`check_identity`].
#[derive(Debug)]
struct ClientVerifier {
    provider: Arc<CryptoProvider>,
    inner: Arc<dyn ClientCertVerifier>,
    cluster_id: ClusterId,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        let verified = match verified {
            Err(error) if is_expiry(&error) => match last_second(end_entity, now) {
                Some(then) => self.inner.verify_client_cert(end_entity, intermediates, then)?,
                None => return Err(error),
            },
            other => other?,
        };
        check_identity(end_entity, Some(self.cluster_id))?;
        Ok(verified)
    }

    signatures_by_provider!();
}

/// The last second of an expired certificate's life. Expiry is found before the signature is looked at, so everything is
/// checked again as of then. `None` when it is not the node's own certificate that has expired.
fn last_second(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let identity = identity_of(leaf).ok().filter(|identity| identity.is_expired(now.as_secs().saturating_mul(1000)))?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(identity.not_after_ms)))
}

/// rustls' own verifier and [`check_identity`].
#[derive(Debug)]
struct ServerVerifier {
    provider: Arc<CryptoProvider>,
    inner: Arc<WebPkiServerVerifier>,
    /// Our swarm, once we belong to one.
    cluster_id: Option<ClusterId>,
    /// Lets expired certificates through, as [`ClientVerifier`] does.
    admits_expired: bool,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |now| self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = match verify(now) {
            Err(error) if self.admits_expired && is_expiry(&error) => match last_second(end_entity, now) {
                Some(then) => verify(then)?,
                None => return Err(error),
            },
            other => other?,
        };
        check_identity(end_entity, self.cluster_id)?;
        Ok(verified)
    }

    signatures_by_provider!();
}

/// Takes any certificate whose key the server has.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures_by_provider!();
}

fn is_expiry(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }))
}

#[cfg(test)]
mod tests;
