//! The vendor's real program behind TLS, as it is deployed: whose certificate is believed, and what the operator reads when
//! it is not.

use crate::certificates::{Authority, Pair, Wanted};
use crate::vendor::Vendor;
use crate::{PATIENCE, place};
use agent_relay::base::tier::Tier;
use agent_relay::daemon::licence::Licence;
use agent_relay::daemon::licence_desk::{Desk, DeskPlace, reading};
use agent_relay::licence::Standing;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Ends TLS in front of the vendor's program, one connection at a time.
struct Terminator {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Terminator {
    fn start(pair: &Pair, behind: &str) -> Terminator {
        let chain = CertificateDer::pem_file_iter(&pair.cert).unwrap().collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let behind: SocketAddr = behind.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if seen.load(Ordering::Acquire) {
                    return;
                }
                // Whoever does not believe us goes away in the middle of it.
                let _ = carry(&config, stream.unwrap(), behind);
            }
        });
        Terminator { address, over, thread: Some(thread) }
    }

    /// Where it is, by a name that resolves here.
    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.address.port())
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

/// One question and its answer.
fn carry(config: &Arc<ServerConfig>, socket: TcpStream, behind: SocketAddr) -> std::io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut outside = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket);
    let mut inside = TcpStream::connect(behind)?;
    inside.set_read_timeout(Some(PATIENCE))?;
    let (mut buffer, mut question) = ([0; 4096], Vec::new());
    // The body is one JSON object, sent behind the head.
    while !question.ends_with(b"}") {
        let length = outside.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        question.extend_from_slice(&buffer[..length]);
    }
    // So that the end of the answer is the end of the connection.
    let question = String::from_utf8_lossy(&question).replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    inside.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    inside.read_to_end(&mut answer)?;
    outside.write_all(&answer)?;
    outside.conn.send_close_notify();
    outside.flush()
}

/// How the licence stands after asking at `url`, believing `ca`.
fn asked(folder: &Path, key: &str, url: &str, ca: Option<&Path>) -> (Standing, String) {
    let now = reading();
    let mut desk = Desk::open(DeskPlace { server_ca: ca.map(Into::into), ..place(folder, key, url) }, now);
    desk.check(now, PATIENCE);
    (desk.holder().standing(now), desk.holder().sentence(now))
}

#[test]
fn a_licence_server_is_asked_over_tls_if_its_certificate_is_believed_and_the_refusal_says_what_to_do() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "pro", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (ours, theirs) = (Authority::new(folder, "ours"), Authority::new(folder, "theirs"));
    let behind = |wanted: &Wanted<'_>| Terminator::start(&ours.issue(folder, wanted), &vendor.url());
    let good = behind(&Wanted::named("good"));
    let expired = behind(&Wanted { expired: true, ..Wanted::named("expired") });
    let other = behind(&Wanted { hosts: &["licences.example"], ..Wanted::named("other") });

    let (standing, sentence) = asked(folder, &key, &good.url(), Some(&ours.file));
    assert_eq!(standing, Standing::Good, "{sentence}");
    let garbage = folder.join("garbage.pem");
    std::fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n").unwrap();
    let missing = folder.join("missing.pem");
    let stranger = "its certificate is not signed by an authority that is believed here; name its authority's file (PEM) as licence.ca in relay.toml";
    let cases = [
        (&good, None, stranger),
        (&good, Some(&theirs.file), stranger),
        (&expired, Some(&ours.file), "its certificate has expired; whoever runs it must renew it"),
        (&other, Some(&ours.file), "its certificate is not for the name in licence.server: it is for licences.example"),
        (&good, Some(&missing), "cannot read authority's certificate in "),
        (&good, Some(&garbage), "cannot be used"),
    ];
    for (server, ca, words) in cases {
        let (standing, sentence) = asked(folder, &key, &server.url(), ca.map(|ca| &**ca));
        assert_eq!(standing, Standing::Pending, "{sentence}");
        assert!(sentence.contains(words), "{sentence}");
    }
    // One that speaks no TLS is told from one that is not there.
    let plain = vendor.url().replace("http://", "https://");
    let (_, sentence) = asked(folder, &key, &plain, Some(&ours.file));
    assert!(sentence.contains("does not speak TLS"), "{sentence}");
}

#[test]
fn the_authority_of_the_licence_server_is_a_setting_of_the_relay_and_of_the_command_line() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "team", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ours = Authority::new(folder, "ours");
    let server = Terminator::start(&ours.issue(folder, &Wanted::named("good")), &vendor.url());
    let settings = format!("[licence]\nserver = \"{}\"\n", server.url());
    std::fs::write(folder.join("relay.toml"), &settings).unwrap();
    let activate = |variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
        command.env_clear().env("AGENT_RELAY_DATA_DIR", folder).env("AGENT_RELAY_LICENSE_CA", variable);
        let command = command.current_dir(folder).stdin(Stdio::null());
        let output = command.args(["license", "activate", &key, "--global", "--json"]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(activate(""), "pending");
    assert_eq!(activate(ours.file.to_str().unwrap()), "good");
    // Seen from the file's own folder.
    std::fs::write(folder.join("relay.toml"), format!("{settings}ca = \"ours.ca.pem\"\n")).unwrap();
    std::fs::remove_file(folder.join("license.cache")).unwrap();
    assert_eq!(activate(""), "good");
    std::fs::remove_file(folder.join("license.cache")).unwrap();
    let place = DeskPlace { server_ca: Some(ours.file.clone()), given: None, ..place(folder, "", &server.url()) };
    let licence = Licence::at(place);
    assert_eq!(licence.in_force().tier, Tier::Team);
    licence.stop();
}
