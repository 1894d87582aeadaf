//! What people hand over, and what is made of it: tokens, certificates, keys, requests to sign, files of the state
//! directory, words of the command line.

use std::sync::LazyLock;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use skep::cli::fuzz as cli;
use skep::node::fuzz::{DataDir, Greetings, NodeFile, Phase};
use skep::pki::seal::DataKey;
use skep::pki::{
    JoinToken, KeyFile, NodeIdentity, PrivateKey, RootCa, Trust, UnlockKey, classify, client_config, generate_key,
    identity_of, signing_request,
};
use skep::sys::entropy::SeededEntropy;
use skep::types::ids::{base36, parse_base36, prefix_range};
use skep::types::object::{Kind, Profile};
use skep::types::{ChangeId, ClusterId, Lineage, NodeId, RaftId, Revision, Role};

use super::{ENVELOPE, PLAIN, Target, numbered, tagged};

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target { name: "token", run: token, seeds: token_seeds, words: &["SWMTKN", "-", "1", "z"], ..PLAIN },
        Target { name: "certificate", run: certificate, seeds: certificate_seeds, bytes_per_byte: 64, ..PLAIN },
        Target { name: "pem", run: pem, seeds: pem_seeds, words: PEM_WORDS, runs: 1500, bytes_per_byte: 64, ..PLAIN },
        Target { name: "csr", run: csr, seeds: csr_seeds, words: PEM_WORDS, runs: 1500, bytes_per_byte: 64, ..PLAIN },
        Target {
            name: "node_files",
            run: node_files,
            seeds: node_file_seeds,
            words: JSON_WORDS,
            runs: 300,
            ..ENVELOPE
        },
        Target { name: "cli", run: words, seeds: word_seeds, words: CLI_WORDS, runs: 4000, ..ENVELOPE },
        Target { name: "command_line", run: command_line, seeds: line_seeds, words: LINE_WORDS, runs: 150, ..ENVELOPE },
    ]
}

/// 2026-01-01T00:00:00Z.
const NOW_MS: u64 = 1_767_225_600_000;
const NODE: NodeId = NodeId(0x1234_5678);
const CLUSTER: ClusterId = ClusterId(0xFEDC);

fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}

fn token(input: &[u8]) {
    let given = text(input);
    match given.parse::<JoinToken>() {
        Ok(token) => {
            assert_eq!(token.to_string(), given);
            // The secret may stand in the digest as well, where somebody mutated it in; what is shown instead tells.
            assert!(format!("{token:?}") == format!("{}<secret>", &given[..given.len() - 25]), "the secret is shown");
        }
        Err(error) => assert!(given.len() < 8 || !error.to_string().contains(&*given), "the text is shown: {error}"),
    }
}

fn token_seeds() -> Vec<(String, Vec<u8>)> {
    numbered((1..4).map(|seed| JoinToken::generate("root", &mut SeededEntropy::new(seed)).to_string().into_bytes()))
}

static ROOT: LazyLock<RootCa> =
    LazyLock::new(|| RootCa::generate(NOW_MS, &mut SeededEntropy::new(1)).expect("the date is one of our time"));

fn chain(role: Role) -> String {
    let request = signing_request(&key()).expect("an ed25519 key signs");
    let (hour, entropy) = (Duration::from_secs(3600), &mut SeededEntropy::new(9));
    ROOT.sign_request(&request, NODE, role, CLUSTER, NOW_MS, hour, entropy).expect("the request is sound")
}

fn key() -> PrivateKey {
    generate_key(&mut SeededEntropy::new(2))
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM").to_vec()
}

/// A certificate as a peer shows it.
fn certificate(input: &[u8]) {
    let read = identity_of(input);
    match &read {
        Ok(identity) => assert!(!format!("{identity:?} {}", identity.is_expired(NOW_MS)).is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let class = classify(Some(&[CertificateDer::from(input.to_vec())]), NOW_MS);
    assert_eq!(read.is_ok(), class != skep::pki::Class::None);
    // As somebody's own chain, and as a root: whatever is taken can be worked with.
    let pem = encode_pem("CERTIFICATE", input);
    if let Ok(identity) = NodeIdentity::new(&pem, key()) {
        let sound = identity.verify(ROOT.certificate_pem(), NOW_MS).is_ok();
        assert!(!sound || [Role::Manager, Role::Worker].iter().any(|role| der(&chain(*role)) == input), "forged");
    }
    load_root(&pem, &ROOT.key().to_pem());
}

/// A root that is taken signs a node's request, or says why not; what it signed verifies.
fn load_root(certificate: &str, key_pem: &str) {
    let Ok(root) = RootCa::load(certificate, key_pem) else { return };
    let request = signing_request(&key()).expect("an ed25519 key signs");
    let (hour, entropy) = (Duration::from_secs(3600), &mut SeededEntropy::new(9));
    if let Ok(chain) = root.sign_request(&request, NODE, Role::Manager, CLUSTER, NOW_MS, hour, entropy) {
        let identity = NodeIdentity::new(&chain, key()).expect("what was signed names a node");
        assert_eq!((identity.identity().node_id, identity.identity().cluster_id), (NODE, CLUSTER));
    }
}

fn encode_pem(label: &str, der: &[u8]) -> String {
    // A key of the product's own writes base64; here any encoder does.
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let mut three = [0; 3];
            three[..group.len()].copy_from_slice(group);
            let word = u32::from_be_bytes([0, three[0], three[1], three[2]]);
            for place in 0..4 {
                let digit = char::from(ALPHABET[(word >> (18 - 6 * place) & 63) as usize]);
                text.push(if place <= group.len() { digit } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn certificate_seeds() -> Vec<(String, Vec<u8>)> {
    numbered([der(&chain(Role::Manager)), der(&chain(Role::Worker)), der(ROOT.certificate_pem())])
}

const PEM_WORDS: &[&str] =
    &["-----BEGIN ", "-----END ", "-----\n", "CERTIFICATE", "PRIVATE KEY", "\n", "=", "ENCRYPTED "];

/// PEM text as a chain, as roots, as a key.
fn pem(input: &[u8]) {
    let text = text(input);
    if let Ok(identity) = NodeIdentity::new(&text, key()) {
        assert_eq!(identity.chain_pem(), text);
        let _ = identity.verify(&text, NOW_MS);
    }
    if let Err(error) = client_config(None, Trust::Roots(text.clone().into_owned())) {
        assert!(!error.to_string().is_empty());
    }
    match PrivateKey::from_pem(&text, "key") {
        Ok(key) => {
            let again = PrivateKey::from_pem(&key.to_pem(), "key").expect("what was written is read");
            assert_eq!(again.public(), key.public());
            signing_request(&key).expect("a key that was taken signs");
            load_root(ROOT.certificate_pem(), &text);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    load_root(&text, &ROOT.key().to_pem());
}

fn pem_seeds() -> Vec<(String, Vec<u8>)> {
    let (key, root_key) = (key().to_pem().to_string(), ROOT.key().to_pem().to_string());
    let bundle = format!("{}{}", ROOT.certificate_pem(), chain(Role::Worker));
    numbered([chain(Role::Manager), ROOT.certificate_pem().to_owned(), bundle, key, root_key].map(String::into_bytes))
}

/// What a node asks the CA to sign. The first byte chooses whether the text comes as it is or its inside was changed.
fn csr(input: &[u8]) {
    let Some((form, body)) = input.split_first() else { return };
    let pem = if form & 1 == 0 { text(body).into_owned() } else { encode_pem("CERTIFICATE REQUEST", body) };
    let (hour, entropy) = (Duration::from_secs(3600), &mut SeededEntropy::new(9));
    match ROOT.sign_request(&pem, NODE, Role::Worker, CLUSTER, NOW_MS, hour, entropy) {
        Ok(chain) => {
            let identity = identity_of(&der(&chain)).expect("what was signed names a node");
            assert_eq!((identity.node_id, identity.role, identity.cluster_id), (NODE, Role::Worker, CLUSTER));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn csr_seeds() -> Vec<(String, Vec<u8>)> {
    use rustls::pki_types::CertificateSigningRequestDer;
    let pem = signing_request(&key()).expect("an ed25519 key signs");
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).expect("it is PEM");
    numbered([tagged(0, pem.as_bytes()), tagged(1, &der)])
}

const JSON_WORDS: &[&str] =
    &["{", "}", "\"", ":", "null", "18446744073709551615", "-1", "1e999", "[", "\\u0000", "member"];

fn unlock_key() -> UnlockKey {
    UnlockKey::from_bytes(&[0x43; 32]).expect("a key has 32 bytes")
}

struct Files {
    root: tempfile::TempDir,
    dir: DataDir,
}

/// A state directory, its key file sound.
static FILES: LazyLock<std::sync::Mutex<Files>> = LazyLock::new(|| {
    let root = tempfile::tempdir().expect("a directory can be made");
    let dir = DataDir::open(root.path()).expect("an empty directory can be used");
    std::fs::create_dir(root.path().join("pki")).expect("a directory can be made");
    std::sync::Mutex::new(Files { root, dir })
});

/// The first byte chooses the file.
fn node_files(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    let files = FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(files.root.path().join(name), bytes).expect("a file can be written");
    };
    match which % 3 {
        0 => {
            put("node.json", bytes);
            match files.dir.read() {
                Ok(file) => {
                    let file: NodeFile = file.expect("the file is there");
                    assert!(file.boot < u64::MAX, "the next start could not be counted");
                    files.dir.write(&file).expect("a file can be written");
                    assert_eq!(files.dir.read().ok().flatten(), Some(file));
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        1 => {
            put("pki/node.key", bytes);
            let unlock_key = unlock_key();
            if let Ok(Some(keys)) = files.dir.open_keys(Some(&unlock_key)) {
                keys.change(|_| {}).expect("a file can be written");
                let again = files.dir.open_keys(Some(&unlock_key)).ok().flatten().expect("what was written is read");
                let (file, again) = (keys.file(), again.file());
                assert_eq!((again.node_key.public(), again.data_keys), (file.node_key.public(), file.data_keys));
                assert_eq!((again.rotate, again.renew, again.lock), (file.rotate, file.renew, file.lock));
            }
        }
        _ => {
            put("peers.json", bytes);
            assert!(!format!("{:?}", Greetings::load(&files.root.path().join("peers.json"))).is_empty());
        }
    }
    let _ = std::fs::remove_file(files.root.path().join("peers.json"));
}

fn node_file_seeds() -> Vec<(String, Vec<u8>)> {
    let root = tempfile::tempdir().expect("a directory can be made");
    let dir = DataDir::open(root.path()).expect("an empty directory can be used");
    let read = |name: &str| std::fs::read(root.path().join(name)).expect("it was just written");
    let mut inputs = Vec::new();
    let mut file = NodeFile::new(Phase::Joining, Profile::Lan);
    (file.request, file.join) = (Some((ChangeId(5), Revision(0))), Some("10.0.0.7:4242".to_owned()));
    dir.write(&file).expect("a file can be written");
    inputs.push(tagged(0, &read("node.json")));
    (file.phase, file.node_id, file.cluster_id) = (Phase::Member, Some(NODE), Some(CLUSTER));
    (file.raft_id, file.lineage, file.boot) = (Some(RaftId(2)), Some(Lineage(7)), 41);
    dir.write(&file).expect("a file can be written");
    inputs.push(tagged(0, &read("node.json")));
    let keys = KeyFile::new(key(), DataKey::from_bytes([0x42; 32]));
    dir.create_keys(keys).expect("a file can be written");
    inputs.push(tagged(1, &read("pki/node.key")));
    // Sealed under a salt that is random: the one that stands in the corpus was written once, under this target's unlock key.
    inputs.push(include_bytes!("../corpus/node_files/04").to_vec());
    inputs.push(tagged(2, format!("{{\"{NODE}\": {{\"boot\": 3, \"nonce\": 99}}}}").as_bytes()));
    numbered(inputs)
}

const CLI_WORDS: &[&str] = &[
    "MiB",
    "kb",
    "GiB",
    "18446744073709551615",
    "99999999999",
    "d",
    "h",
    "m",
    "ms",
    "=",
    "label=",
    "name=",
    "id=",
    "@",
    ":",
    "[",
    "]",
    "::",
    "0.0.0.0",
    "65535",
    "é",
    "\u{130}",
    "\0",
];

/// One word of a command line, for everything that reads one.
fn words(input: &[u8]) {
    let word = &*text(input);
    if let Ok(size) = cli::size(word) {
        assert_eq!(cli::size(&size.to_string()), Ok(size));
        assert!(cli::payload_size(word).is_err() || cli::payload_size(word) == Ok(size));
    }
    if let Ok(duration) = cli::duration(word) {
        assert_eq!(cli::duration(&format!("{}ms", duration.as_millis())), Ok(duration));
    }
    if let Ok((key, value)) = cli::pair(word) {
        assert!(format!("{key}={value}") == word && !key.contains('='));
    }
    if let Ok(revision) = cli::revision(word) {
        assert_eq!(cli::revision(&revision.to_string()), Ok(revision));
    }
    assert_eq!(cli::kind(word).ok(), Kind::ALL.into_iter().find(|kind| kind.name() == word));
    let Ok(token) = cli::token(word);
    assert_eq!(token.0, word.as_bytes());
    if let Ok(id) = cli::write_id(word) {
        assert_eq!(cli::write_id(&cli::show_write_id(id)), Ok(id));
    }
    if let Ok(term) = cli::filter(word) {
        cli::filters(&[term.clone(), term]);
    }
    if let Some(value) = parse_base36(word) {
        assert_eq!(base36(value), word);
    }
    if let Some((first, last)) = prefix_range(word) {
        assert!(first <= last && base36(first).starts_with(word) && base36(last).starts_with(word));
    }
    if cli::address("--listen", word).is_ok() {
        let interfaces = || vec!["10.0.0.7".parse().expect("it is an address")];
        let chosen = cli::advertised(word, None, interfaces).expect("there is one address");
        assert!(chosen.is_none_or(|chosen| cli::address("--advertise", &chosen).is_ok()));
    }
}

fn word_seeds() -> Vec<(String, Vec<u8>)> {
    let id = base36(0x0123_4567_89ab_cdef);
    let words = [
        "64MiB",
        "100000",
        "1h30m",
        "500ms",
        "tier=front",
        "label=tier=front",
        "name=web",
        "kind=route",
        "config",
        "42",
        "10.0.0.7:4242",
        "[fd00::7]:4242",
        "0.0.0.0:4242",
        "[::]:0",
        "m1.example:4242",
    ];
    let ids = [id.clone(), format!("{id}@17"), format!("id={}", &id[..7])];
    numbered(words.map(str::to_owned).into_iter().chain(ids).map(String::into_bytes))
}

const LINE_WORDS: &[&str] =
    &["\n", "--", "--json\n", "--label\n", "a=b", "-q\n", "--timeout\n", "config\n", "create\n", "--from\n", "-"];

/// A whole command line, a word a line. Nothing is carried out.
fn command_line(input: &[u8]) {
    let text = text(input);
    let words: Vec<&str> = std::iter::once("skep").chain(text.lines().take(20)).collect();
    cli::command_line(&words);
}

fn line_seeds() -> Vec<(String, Vec<u8>)> {
    let lines = [
        "run --data-dir /tmp/d --listen 127.0.0.1:0 --profile sdcard --token-file -",
        "config create web - --label tier=front --change-id 0000000000000000000000009@3 --json",
        "resource update r - --if-version 7 --timeout 1m30s",
        "watch --from 3 --kind config --kind node",
        "cluster update --snapshot-bytes 64MiB --cert-expiry 90d",
        "secret ls -q --filter name=a --filter label=b=c --stale",
    ];
    numbered(lines.map(|line| line.replace(' ', "\n").into_bytes()))
}
