//! A running relay whose licence server goes away, and whose licence is taken away: it goes on, and nobody is dropped.

use crate::liar::{Liar, Lie};
use crate::vendor::Vendor;
use crate::{DAY, PATIENCE, evaluation, offline};
use agent_relay::base::tier::Tier;
use agent_relay::client::{self, Address, Client, Error, Options};
use agent_relay::daemon::licence_desk::reading;
use agent_relay::licence::{Document, LicenceKey};
use agent_relay::wire::{ErrorCode, QueryKind};
use serde_json::Value;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

/// `relay` in a data directory of its own.
fn relay(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    command
        .env_clear()
        .env("AGENT_RELAY_DATA_DIR", folder)
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

struct Daemon(Child);

impl Daemon {
    /// Starts one and waits until it says that it is ready; says how long that took.
    fn start(folder: &Path) -> Daemon {
        let path = folder.join("notify");
        let _ = std::fs::remove_file(&path);
        let notices = UnixDatagram::bind(&path).unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = relay(folder);
        command.args(["up", "--global", "--cores", "2"]).env("NOTIFY_SOCKET", &path).stderr(Stdio::null());
        let begun = Instant::now();
        let daemon = Daemon(command.stdout(Stdio::null()).spawn().unwrap());
        let mut notice = [0; 512];
        let length = notices.recv(&mut notice).unwrap();
        assert!(String::from_utf8_lossy(&notice[..length]).contains("READY=1"));
        eprintln!("ready after {:?}", begun.elapsed());
        daemon
    }

    fn stop(mut self, folder: &Path) {
        assert!(run(folder, &["down", "--global"]).status.success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(folder: &Path, line: &[&str]) -> Output {
    relay(folder).args(line).output().unwrap()
}

fn shown(folder: &Path) -> Value {
    let output = run(folder, &["license", "show", "--json", "--global"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// Waits until every shard allows so many agents: the list of shards that an answer is made from is asked behind the news of
/// it, so the answer after the first that tells it is true of all.
fn until_seats(folder: &Path, max: &Value) {
    let ask = || {
        let answer = client::ask(&Address::Unix(folder.join("relay.sock")), QueryKind::Status, "{}", PATIENCE).unwrap();
        serde_json::from_slice::<Value>(&answer).unwrap()["agents"]["max"].clone()
    };
    let begun = Instant::now();
    while ask() != *max {
        assert!(begun.elapsed() < PATIENCE, "the limit is never {max}");
    }
    ask();
}

fn connect(folder: &Path, name: &str) -> Result<Client, Error> {
    let address = Address::Unix(folder.join("relay.sock"));
    Client::connect(&address, &Options { connect_timeout: PATIENCE, ..Options::named(name) })
}

#[test]
fn a_start_that_is_refused_says_how_the_licence_stands() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let refused = |given: Option<&str>| {
        let mut command = relay(folder);
        command.args(["up", "--global", "--cores", "1", "--require-auth"]);
        if let Some(text) = given {
            command.env("AGENT_RELAY_LICENSE_KEY", text);
        }
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        let line = said.lines().find(|line| line.contains("Authentication requires Pro tier")).unwrap_or_else(|| {
            panic!("{said}");
        });
        assert!(line.contains("`relay license activate KEY` activates it"), "{line}");
        line.split_once("How the licence stands: ").map(|(_, standing)| standing.to_owned())
    };
    assert_eq!(refused(None), None, "nobody has given one");
    assert!(refused(Some("ar_pro_mistyped")).unwrap().contains("This is the community tier"));
    let key = LicenceKey::from_random(Tier::Enterprise, 7).unwrap();
    let now = reading().wall_ms;
    let ended = Document::of_tier(Tier::Enterprise, key.hash(), now - 9 * DAY, now - DAY);
    let ended = Document { offline: true, serial: 1, ..ended }.sign(&evaluation());
    assert!(refused(Some(&ended)).unwrap().starts_with("the Enterprise licence ended on 20"));
    let liar = Liar::start(Lie::Hang);
    std::fs::write(folder.join("relay.toml"), format!("[licence]\nserver = \"{}\"\n", liar.url())).unwrap();
    let pending = refused(Some(LicenceKey::from_random(Tier::Pro, 3).unwrap().reveal())).unwrap();
    assert!(pending.contains("has not been confirmed yet") && pending.contains("in time"), "{pending}");
    liar.stop();
}

#[test]
fn a_paid_up_relay_goes_on_without_its_server_and_drops_nobody_when_its_licence_goes() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "pro", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("relay.toml"), format!("[licence]\nserver = \"{}\"\n", vendor.url())).unwrap();
    let daemon = Daemon::start(folder);
    assert_eq!(shown(folder)["state"], "community");
    // Activated under the running relay.
    assert!(run(folder, &["license", "activate", &key, "--global"]).status.success());
    assert_eq!((shown(folder)["state"].as_str(), shown(folder)["tier"].as_str()), (Some("good"), Some("pro")));
    // The server goes, the relay goes on, over a restart, too.
    let _registry = vendor.stop();
    daemon.stop(folder);
    let daemon = Daemon::start(folder);
    assert_eq!(shown(folder)["tier"], "pro");
    let agents: Vec<Client> = (0..12).map(|number| connect(folder, &format!("agent-{number}")).unwrap()).collect();
    assert_eq!(shown(folder)["agents"], 12);
    // The licence goes, and everybody stays; only who comes next is refused.
    assert!(run(folder, &["license", "deactivate", "--global"]).status.success());
    until_seats(folder, &Value::from(10));
    assert!(matches!(connect(folder, "late"), Err(Error::Refused { code: ErrorCode::QuotaExceeded, .. })));
    let now = shown(folder);
    assert_eq!((now["state"].as_str(), now["agents"].as_u64()), (Some("community"), Some(12)));
    assert_eq!(now["retention"]["max_days_in_force"], 90, "what is kept is not deleted before a week of warning");
    // An offline licence brings everything back, and asks nobody.
    std::fs::write(folder.join("acme.licence"), offline(30)).unwrap();
    let activated = run(folder, &["license", "activate", "acme.licence", "--global"]);
    let text = String::from_utf8(activated.stdout).unwrap();
    assert!(
        activated.status.success() && text.contains("Agents: 12/unlimited") && text.contains("Retention: 7 days"),
        "{text}"
    );
    until_seats(folder, &Value::Null);
    connect(folder, "late").unwrap();
    let text = run(folder, &["license", "--global"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.starts_with("License: Enterprise") && text.contains("Agents: 1") && text.contains("/unlimited"),
        "{text}"
    );
    // Another licence in the operator's own environment is not the relay's.
    let elsewhere = relay(folder).args(["license", "--global"]).env("AGENT_RELAY_LICENSE_KEY", &key).output().unwrap();
    let text = String::from_utf8(elsewhere.stdout).unwrap();
    assert!(
        text.starts_with("License: Enterprise") && text.contains("AGENT_RELAY_LICENSE_KEY is another licence here")
    );
    drop(agents);
    daemon.stop(folder);
    let usage = std::fs::read_to_string(folder.join("usage.json")).unwrap();
    let usage: Value = serde_json::from_str(&usage).unwrap();
    let day = usage["days"].as_object().unwrap().values().next_back().unwrap();
    assert!(day["agents_peak"].as_u64().unwrap() >= 12, "{usage}");
}
