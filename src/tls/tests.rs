//! Links against each other, however their bytes are cut, and against peers that do not keep the rules.

#[path = "../../tests/it/certificates.rs"]
mod certificates;

use super::*;
use certificates::{Authority, Pair, Wanted};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Both ends of one connection, and what is under way between them.
struct Two {
    server: ServerLink,
    client: ClientLink,
    work: Workspace,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    heard_by_server: Vec<u8>,
    heard_by_client: Vec<u8>,
    /// A byte to be changed on the way: towards the server, after so many bytes, with this mask.
    spoil: Option<(bool, usize, u8)>,
}

impl Two {
    fn new(acceptor: &Acceptor, connector: &Connector, name: &str) -> Two {
        let (server, client) = (acceptor.link().unwrap(), connector.link(name).unwrap());
        let mut two = Two {
            server,
            client,
            work: Workspace::default(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            heard_by_server: Vec::new(),
            heard_by_client: Vec::new(),
            spoil: None,
        };
        two.client.feed(&[], &mut two.heard_by_client, &mut two.to_server).unwrap();
        two
    }

    /// Carries bytes, in pieces of these sizes in turn, until nothing is under way; gives the server's and the client's
    /// outcome.
    fn carry(&mut self, sizes: &[usize]) -> (Result<(), LinkError>, Result<(), LinkError>) {
        let (mut server, mut client) = (Ok(()), Ok(()));
        let mut sizes = sizes.iter().copied().cycle();
        while !self.to_server.is_empty() || !self.to_client.is_empty() {
            let size = sizes.next().unwrap().max(1);
            let mut piece: Vec<u8> = self.to_server.drain(..size.min(self.to_server.len())).collect();
            self.spoil(true, &mut piece);
            if server.is_ok() && !piece.is_empty() {
                server = self.server.feed(&piece, &mut self.work, &mut self.heard_by_server, &mut self.to_client);
            }
            let mut piece: Vec<u8> = self.to_client.drain(..size.min(self.to_client.len())).collect();
            self.spoil(false, &mut piece);
            if client.is_ok() && !piece.is_empty() {
                client = self.client.feed(&piece, &mut self.heard_by_client, &mut self.to_server);
            }
        }
        (server, client)
    }

    fn spoil(&mut self, to_server: bool, piece: &mut [u8]) {
        if let Some((direction, left, mask)) = &mut self.spoil
            && *direction == to_server
        {
            if let Some(byte) = piece.get_mut(*left) {
                *byte ^= *mask;
                self.spoil = None;
            } else {
                *left -= piece.len();
            }
        }
    }

    /// The server's and the client's error; a handshake that succeeds fails the test.
    fn failure(mut self) -> (Option<LinkError>, Option<LinkError>) {
        let (server, client) = self.carry(&[100_000]);
        assert!(server.is_err() || client.is_err(), "the handshake succeeded");
        (server.err(), client.err())
    }

    fn shake(mut self) -> Two {
        assert_eq!(self.carry(&[100_000]), (Ok(()), Ok(())));
        assert!(self.server.is_ready() && self.client.is_ready());
        self
    }

    fn say(&mut self, text: &[u8]) {
        self.server.seal(std::iter::once(text), &mut self.work, &mut self.to_client).unwrap();
    }
}

/// An authority, a relay's certificate and a client's.
struct Place {
    folder: TempDir,
    authority: Authority,
    relay: Pair,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let relay = authority.issue(folder.path(), &Wanted::named("relay"));
        Place { folder, authority, relay }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn files(&self) -> Files {
        Files { cert: self.relay.cert.clone(), key: self.relay.key.clone(), ca: None, mutual: false }
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::load(&self.files()).unwrap()
    }

    fn asking(&self, mutual: bool) -> Acceptor {
        Acceptor::load(&Files { ca: Some(self.authority.file.clone()), mutual, ..self.files() }).unwrap()
    }

    fn connector(&self) -> Connector {
        Connector::new(&ClientFiles { ca: Some(self.authority.file.clone()), cert: None, key: None }).unwrap()
    }

    fn showing(&self, pair: &Pair) -> Connector {
        let (cert, key) = (Some(pair.cert.clone()), Some(pair.key.clone()));
        Connector::new(&ClientFiles { ca: Some(self.authority.file.clone()), cert, key }).unwrap()
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[test]
fn both_ends_understand_each_other_and_nothing_stays_behind_in_an_idle_link() {
    let place = Place::new();
    let mut two = Two::new(&place.acceptor(), &place.connector(), "localhost").shake();
    assert_eq!(two.server.version(), "TLS 1.3");
    assert!(two.server.certificate().is_none());
    let text = pattern(100_000);
    two.client.seal(&text, &mut two.to_server).unwrap();
    // Many pieces, small and large, in few records.
    let pieces = [&text[..10], &text[10..20], &[], &text[20..50_000], &text[50_000..50_001], &text[50_001..]];
    two.server.seal(pieces.into_iter(), &mut two.work, &mut two.to_client).unwrap();
    assert!(two.to_client.len() < text.len() + 9 * 40, "{}", two.to_client.len());
    assert_eq!(two.carry(&[100_000]), (Ok(()), Ok(())));
    assert!(two.heard_by_server == text && two.heard_by_client == text);
    two.client.close(&mut two.to_server);
    two.client.close(&mut two.to_server);
    assert_eq!(two.carry(&[100_000]), (Ok(()), Ok(())));
    assert!(two.server.peer_closed() && !two.client.peer_closed());
    // Half closed: the other direction still works.
    two.say(b"goodbye");
    two.server.close(&mut two.to_client);
    assert_eq!(two.carry(&[100_000]), (Ok(()), Ok(())));
    assert!(two.heard_by_client.ends_with(b"goodbye") && two.client.peer_closed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn however_the_bytes_are_cut_they_arrive_in_order(
        sizes in prop::collection::vec(1usize..5_000, 1..40),
        texts in prop::collection::vec(0usize..40_000, 1..8),
    ) {
        thread_local!(static PLACE: (Acceptor, Connector) = {
            let place = Place::new();
            (place.acceptor(), place.connector())
        });
        let mut two = PLACE.with(|(acceptor, connector)| Two::new(acceptor, connector, "127.0.0.1"));
        prop_assert_eq!(two.carry(&sizes), (Ok(()), Ok(())));
        let mut expected = Vec::new();
        for length in texts {
            let text = pattern(length);
            two.client.seal(&text, &mut two.to_server).unwrap();
            two.say(&text);
            expected.extend_from_slice(&text);
            if length % 2 == 0 {
                prop_assert_eq!(two.carry(&sizes), (Ok(()), Ok(())));
            }
        }
        prop_assert_eq!(two.carry(&sizes), (Ok(()), Ok(())));
        prop_assert!(two.heard_by_server == expected && two.heard_by_client == expected);
    }

    #[test]
    fn garbage_ends_in_an_error_or_in_waiting_and_never_in_a_panic(
        start in 0usize..600,
        noise in prop::collection::vec(any::<u8>(), 1..3_000),
    ) {
        thread_local!(static PLACE: (Acceptor, Connector) = {
            let place = Place::new();
            (place.acceptor(), place.connector())
        });
        let mut two = PLACE.with(|(acceptor, connector)| Two::new(acceptor, connector, "localhost"));
        // A good ClientHello up to somewhere, then anything.
        two.to_server.truncate(start);
        two.to_server.extend_from_slice(&noise);
        let said = std::mem::take(&mut two.to_server);
        let mut out = Vec::new();
        let _ = two.server.feed(&said, &mut two.work, &mut two.heard_by_server, &mut out);
        prop_assert!(!two.server.is_ready() && two.heard_by_server.is_empty() && out.len() < 8_192);
    }

    #[test]
    fn a_changed_byte_on_the_way_is_noticed(at in 0usize..500, mask in 1u8..) {
        thread_local!(static PLACE: (Acceptor, Connector) = {
            let place = Place::new();
            (place.acceptor(), place.connector())
        });
        let mut two = PLACE.with(|(acceptor, connector)| Two::new(acceptor, connector, "localhost")).shake();
        two.client.seal(&pattern(500), &mut two.to_server).unwrap();
        // The length in the header may make the record longer than what has come: then nothing is heard at all.
        two.to_server[at] ^= mask;
        let (server, _) = two.carry(&[1_000]);
        // Two bytes of a record's header mean nothing: the version, which says 1.2 whatever is spoken.
        let meaningless = (1..3).contains(&at) && two.heard_by_server == pattern(500);
        prop_assert!(two.heard_by_server.is_empty() || meaningless);
        prop_assert!(server.is_err() || at < 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_byte_changed_anywhere_in_a_conversation_harms_nobody_but_its_link(
        sizes in prop::collection::vec(1usize..900, 1..10),
        at in 0usize..6_000,
        mask in 1u8..,
        to_server: bool,
        asked: bool,
    ) {
        thread_local!(static PLACE: (Acceptor, Acceptor, Connector) = {
            let place = Place::new();
            let agent = place.authority.issue(place.path(), &Wanted::named("agent"));
            (place.acceptor(), place.asking(true), place.showing(&agent))
        });
        let mut two = PLACE.with(|(acceptor, asking, connector)| {
            Two::new(if asked { asking } else { acceptor }, connector, "localhost")
        });
        two.spoil = Some((to_server, at, mask));
        let mut said = Vec::new();
        for _ in 0..5 {
            let (server, client) = two.carry(&sizes);
            if server.is_err() || client.is_err() || !two.server.is_ready() || !two.client.is_ready() {
                break;
            }
            two.client.refresh_keys(&mut two.to_server);
            two.client.seal(&pattern(700), &mut two.to_server).unwrap();
            two.say(&pattern(700));
            said.extend_from_slice(&pattern(700));
        }
        let _ = two.carry(&sizes);
        // What is heard is what was said, as far as it goes.
        prop_assert!(said.starts_with(&two.heard_by_server) && said.starts_with(&two.heard_by_client));
    }
}

#[test]
fn what_does_not_speak_tls_is_told_apart() {
    let place = Place::new();
    let mut server = place.acceptor().link().unwrap();
    let (mut work, mut heard, mut out) = (Workspace::default(), Vec::new(), Vec::new());
    let plain = b"\x00\x00\x00\x20{\"v\":1,\"type\":\"HELLO\"}";
    assert_eq!(server.feed(plain, &mut work, &mut heard, &mut out), Err(LinkError::NotTls));
    // It stays ended.
    assert_eq!(server.feed(b"more", &mut work, &mut heard, &mut out), Err(LinkError::NotTls));
    let mut two = Two::new(&place.acceptor(), &place.connector(), "localhost");
    let outcome = two.client.feed(plain, &mut two.heard_by_client, &mut two.to_server);
    assert_eq!(outcome, Err(LinkError::NotTls));
}

#[test]
fn a_handshake_is_bounded() {
    let place = Place::new();
    let mut server = place.acceptor().link().unwrap();
    let (mut work, mut heard, mut out) = (Workspace::default(), Vec::new(), Vec::new());
    // A ClientHello that says it is almost 64 KiB long, in records of one byte: the most that can be sent for nothing.
    let mut sent = 0;
    let mut header = vec![0x01, 0x00, 0xff, 0xf0].into_iter();
    let error = loop {
        let byte = header.next().unwrap_or(0);
        match server.feed(&[0x16, 3, 1, 0, 1, byte], &mut work, &mut heard, &mut out) {
            Ok(()) => sent += 6,
            Err(error) => break error,
        }
        assert!(sent <= HANDSHAKE_BYTES_MAX);
    };
    assert!(matches!(error, LinkError::TooLong | LinkError::Broken(_) | LinkError::NotTls), "{error:?}");
}

#[test]
fn floods_of_nothing_end_the_link() {
    let place = Place::new();
    // Keys updated again and again, nothing said between.
    let mut two = Two::new(&place.acceptor(), &place.connector(), "localhost").shake();
    let mut ended = None;
    for round in 0..100 {
        two.client.refresh_keys(&mut two.to_server);
        if let (Err(error), _) = two.carry(&[100_000]) {
            ended = Some((round, error));
            break;
        }
    }
    let (round, error) = ended.expect("it was borne for ever");
    assert!(round < 40 && matches!(error, LinkError::Broken(_)), "{round} {error:?}");
}

#[test]
fn a_session_is_resumed_under_the_same_acceptor_and_not_under_another() {
    let place = Place::new();
    let (acceptor, connector) = (place.acceptor(), place.connector());
    let first = Two::new(&acceptor, &connector, "localhost").shake();
    assert!(!first.server.is_resumed() && !first.client.is_resumed());
    let second = Two::new(&acceptor, &connector, "localhost").shake();
    assert!(second.server.is_resumed() && second.client.is_resumed());
    let third = Two::new(&place.acceptor(), &connector, "localhost").shake();
    assert!(!third.server.is_resumed());
}

#[test]
fn a_client_of_1_2_is_served_and_resumes_too() {
    let place = Place::new();
    let acceptor = place.asking(true);
    let agent = place.authority.issue(place.path(), &Wanted::named("agent"));
    let connector = place.connector().only_tls12(&place.authority.file, (&agent.cert, &agent.key));
    for resumed in [false, true] {
        let mut two = Two::new(&acceptor, &connector, "localhost").shake();
        assert_eq!((two.server.version(), two.server.is_resumed()), ("TLS 1.2", resumed));
        assert_eq!(&*two.server.certificate().unwrap().names[0], "agent");
        let text = pattern(40_000);
        two.say(&text);
        two.client.seal(&text, &mut two.to_server).unwrap();
        assert_eq!(two.carry(&[7, 1_000]), (Ok(()), Ok(())));
        assert!(two.heard_by_client == text && two.heard_by_server == text);
    }
}

#[test]
fn a_client_certificate_says_for_whom_it_speaks_also_when_the_session_is_resumed() {
    let place = Place::new();
    let wanted = Wanted {
        hosts: &["worker.example.org", "192.0.2.7", "2001:db8::7"],
        uri: Some("spiffe://example.org/worker"),
        ..Wanted::named("worker")
    };
    let connector = place.showing(&place.authority.issue(place.path(), &wanted));
    let acceptor = place.asking(false);
    let mut prints = Vec::new();
    for resumed in [false, true] {
        let two = Two::new(&acceptor, &connector, "localhost").shake();
        assert_eq!(two.server.is_resumed(), resumed);
        let certificate = two.server.certificate().unwrap();
        let names: Vec<&str> = certificate.names.iter().map(|name| &**name).collect();
        let expected = ["worker", "worker.example.org", "192.0.2.7", "2001:db8::7", "spiffe://example.org/worker"];
        assert_eq!(names, expected);
        prints.push(certificate.fingerprint);
    }
    assert!(prints[0] == prints[1] && prints[0] != [0; 32]);
    // Asked, but not made to.
    let two = Two::new(&acceptor, &place.connector(), "localhost").shake();
    assert!(two.server.certificate().is_none());
}

#[test]
fn whoever_shows_the_wrong_certificate_or_none_is_refused_and_hears_why() {
    let place = Place::new();
    let strangers = Authority::new(place.path(), "strangers");
    let stranger = strangers.issue(place.path(), &Wanted::named("stranger"));
    let expired = place.authority.issue(place.path(), &Wanted { expired: true, ..Wanted::named("old") });
    let refused = |connector: &Connector, mutual| Two::new(&place.asking(mutual), connector, "localhost").failure();
    let (server, client) = refused(&place.connector(), true);
    assert_eq!(server, Some(LinkError::CertificateWanted));
    assert_eq!(client, Some(LinkError::Refused("it requires a client certificate".into())));
    for mutual in [true, false] {
        assert_eq!(refused(&place.showing(&stranger), mutual).0, Some(LinkError::Untrusted));
        let (server, client) = refused(&place.showing(&expired), mutual);
        assert_eq!(server, Some(LinkError::Expired));
        assert_eq!(client, Some(LinkError::Refused("our certificate has expired".into())));
    }
}

#[test]
fn a_client_believes_only_a_relay_that_its_authority_names_now() {
    let place = Place::new();
    let strangers = Authority::new(place.path(), "strangers");
    let shown = |pair: &Pair| {
        Acceptor::load(&Files { cert: pair.cert.clone(), key: pair.key.clone(), ca: None, mutual: false }).unwrap()
    };
    let refused = |acceptor: &Acceptor, name: &str| Two::new(acceptor, &place.connector(), name).failure().1.unwrap();
    let stranger = strangers.issue(place.path(), &Wanted::named("localhost"));
    assert_eq!(refused(&shown(&stranger), "localhost"), LinkError::Untrusted);
    let old = place.authority.issue(place.path(), &Wanted { expired: true, ..Wanted::named("old") });
    let old = shown(&old);
    assert!(old.warnings()[0].contains("has expired (2021-01-01T00:00:00Z); clients"), "{:?}", old.warnings());
    assert_eq!(refused(&old, "localhost"), LinkError::Expired);
    assert!(matches!(refused(&place.acceptor(), "relay.example.org"), LinkError::WrongName(_)));
    assert!(matches!(refused(&place.acceptor(), "127.0.0.2"), LinkError::WrongName(_)));
    assert!(place.connector().link("not a name").is_err());
    // What `openssl req -x509` makes when nothing is said.
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let (cert_file, key_file) = (place.path().join("itself.pem"), place.path().join("itself.key"));
    std::fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let believing = Connector::new(&ClientFiles { ca: Some(cert_file.clone()), cert: None, key: None }).unwrap();
    let itself = shown(&Pair { cert: cert_file, key: key_file });
    let said = Two::new(&itself, &believing, "localhost").failure().1.unwrap();
    assert_eq!(said, LinkError::AuthorityItself);
    assert!(said.to_string().contains("CA:FALSE"), "{said}");
}

#[test]
fn every_mistake_with_files_has_its_sentence() {
    let place = Place::new();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let other = place.authority.issue(place.path(), &Wanted::named("other"));
    let said = |files: Files| Acceptor::load(&files).unwrap_err().to_string();
    let good = place.files();
    let text = said(Files { cert: place.path().join("absent.pem"), ..good.clone() });
    assert!(text.contains("cannot read certificate") && text.contains("absent.pem"), "{text}");
    let text = said(Files { cert: file("der", "\x30\u{2}binary"), ..good.clone() });
    assert!(text.contains("is not PEM") && text.contains("openssl x509"), "{text}");
    let text = said(Files { cert: good.key.clone(), ..good.clone() });
    assert!(text.contains("holds no certificate") && text.contains("relay.key.pem"), "{text}");
    let text = said(Files { key: good.cert.clone(), ..good.clone() });
    assert!(text.contains("holds no private key") && text.contains("relay.cert.pem"), "{text}");
    let text = said(Files { key: other.key.clone(), ..good.clone() });
    assert!(text.contains("other.key.pem") && text.contains("relay.cert.pem"), "{text}");
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let text = said(Files { key: file("locked.pem", locked), ..good.clone() });
    assert!(text.contains("passphrase") && text.contains("openssl pkey"), "{text}");
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let text = said(Files { cert: file("damaged.pem", damaged), ..good.clone() });
    assert!(text.contains("cannot be used") && text.contains("damaged.pem"), "{text}");
    let text = said(Files { ca: Some(file("damaged.pem", damaged)), ..good.clone() });
    assert!(text.contains("authority") && text.contains("damaged.pem"), "{text}");
    let text = said(Files { cert: file("long.pem", &"x".repeat(2 << 20)), ..good.clone() });
    assert!(text.contains("too long"), "{text}");
    assert!(place.acceptor().warnings().is_empty());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&good.key, open).unwrap();
    let warnings = place.acceptor().warnings().join(" ");
    assert!(warnings.contains("chmod 600") && warnings.contains("relay.key.pem"), "{warnings}");
    let half = ClientFiles { ca: Some(place.authority.file.clone()), cert: Some(other.cert.clone()), key: None };
    assert!(Connector::new(&half).unwrap_err().to_string().contains("the private key is missing"));
}

#[test]
fn an_acceptor_and_its_links_go_from_thread_to_thread() {
    fn can_move<T: Send>() {}
    fn can_be_shared<T: Send + Sync>() {}
    can_move::<ServerLink>();
    can_move::<ClientLink>();
    can_be_shared::<Acceptor>();
    can_be_shared::<Connector>();
}
