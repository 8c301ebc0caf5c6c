//! The command line as its users meet it: the real program, its texts (golden files in tests/cli), its exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "evaluation/mod.rs"]
mod evaluation;

use agent_relay::base::tier::Tier;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const COMMANDS: [&str; 19] = [
    "up", "down", "status", "agents", "who", "send", "listen", "read", "history", "doctor", "bench", "config",
    "license", "keygen", "rekey", "backup", "restore", "export", "import",
];

/// `relay` in a data directory of its own and an environment without surprises.
fn relay(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    command
        .env_clear()
        .env("AGENT_RELAY_DATA_DIR", directory)
        .env("HOME", directory)
        .env(evaluation::VARIABLE, evaluation::licence(Tier::Enterprise))
        .current_dir(directory)
        .stdin(Stdio::null());
    command
}

fn run(directory: &Path, line: &[&str]) -> Output {
    relay(directory).args(line).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// A daemon that is stopped when the test ends, however it ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts `relay up --global` and waits, by the service manager's protocol, until it is ready.
fn start(directory: &Path, line: &[&str]) -> Daemon {
    let notices = directory.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notices).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = relay(directory);
    command.arg("up").arg("--global").args(line).env("NOTIFY_SOCKET", &notices).stderr(Stdio::null());
    let daemon = Daemon(command.stdout(Stdio::null()).spawn().unwrap());
    let mut notice = [0; 512];
    let length = loop {
        match socket.recv(&mut notice) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => break received.unwrap(),
        }
    };
    assert!(String::from_utf8_lossy(&notice[..length]).contains("READY=1"));
    std::fs::remove_file(notices).unwrap();
    daemon
}

fn golden(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("cli");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn every_help_text_is_golden_and_has_an_example() {
    let directory = tempfile::tempdir().unwrap();
    golden("help", &stdout(&run(directory.path(), &["--help"])));
    for command in COMMANDS {
        let output = run(directory.path(), &[command, "--help"]);
        assert_eq!(code(&output), 0);
        let text = stdout(&output);
        assert!(text.contains("Examples:"), "{command}: {text}");
        golden(&format!("help_{command}"), &text);
        assert_eq!(stdout(&run(directory.path(), &["help", command])), text);
    }
}

#[test]
fn bad_usage_exits_with_two_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&[], "say what to do"),
        (&["stauts"], "Did you mean `relay status`?"),
        (&["licence"], "there is no command \"licence\""),
        (&["status", "--jsn"], "Did you mean --json?"),
        (&["send", "--to", "bob", "hi"], "--from"),
        (&["send", "--from", "a/b", "--to", "bob", "hi"], "must not contain '/'"),
        (&["send", "--from", "a", "--to", "b", "--wait", "read", "hi"], "one of accepted"),
        (&["up", "--cores", "0"], "from 1 to 256"),
        (&["--cores=x"], "from 1 to 256"),
        (&["up", "--http", "127.0.0.1:3888"], "--http is not in this version"),
        (&["up", "--listen", "0.0.0.0:7070"], "so TLS is required there"),
        (&["read", "xyz"], "hexadecimal"),
        (&["status", "--connect", "127.0.0.1:7070", "--global"], "leave --socket, --global and --data-dir out"),
        (&["who", "--connect", "tcp://nowhere"], "--connect: nowhere is not host:port"),
        (&["listen", "--as", "a", "--client-cert", "c.pem"], "needed together"),
        (&["down", "--connect", "127.0.0.1:7070", "--now"], "--now needs the relay's process"),
        (&["up", "--retention", "0"], "from 1 to 36500 days"),
        (&["up", "--durability", "sometimes"], "one of batch, strict, relaxed"),
        (&["history", "--since", "yesterday"], "--since: "),
        (&["history", "--limit", "1000000"], "--limit \"1000000\" is not a whole number from 0 to 100000"),
        (&["export", "--format", "csv"], "only jsonl"),
        (&["rekey"], "--new-db-key FILE or --to-plain"),
        (&["keygen"], "--output"),
        (&["bench", "--pairs", "0"], "from 1 to 256"),
    ];
    for (line, sentence) in cases {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 2, "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{line:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{line:?}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "bad usage leaves nothing behind");
}

#[test]
fn without_a_daemon_commands_fail_with_a_sentence_and_json_stays_json() {
    let directory = tempfile::tempdir().unwrap();
    let lines: &[&[&str]] = &[
        &["status"],
        &["agents"],
        &["who"],
        &["down"],
        &["read", "4f"],
        &["history"],
        &["history", "--follow"],
        &["send", "--from", "a", "--to", "b", "x"],
        &["listen", "--as", "a"],
    ];
    for line in lines {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 1, "{line:?}");
        assert!(stderr(&output).contains("no relay is running"), "{line:?}: {}", stderr(&output));
        let output = run(directory.path(), &[line, &["--json"][..]].concat());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(value["error"].as_str().unwrap().contains("relay up"), "{line:?}: {value}");
    }
}

#[test]
fn what_cannot_be_reached_elsewhere_is_a_failure_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    // A port that was free a moment ago and that nobody listens on.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let missing = directory.path().join("missing.pem").to_str().unwrap().to_owned();
    let cases: &[(&[&str], &str)] = &[
        (&["status", "--connect", &address], "no relay answers at 127.0.0.1:"),
        (&["send", "--connect", &address, "--from", "a", "--to", "b", "x"], "no relay answers at 127.0.0.1:"),
        (&["who", "--connect", &address, "--ca", &missing], "authority's certificate in "),
        (&["agents", "--connect", "/nonexistent/relay.sock"], "/nonexistent/relay.sock"),
    ];
    for (line, sentence) in cases {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 1, "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{line:?}: {}", stderr(&output));
    }
    let mut command = relay(directory.path());
    let output =
        command.args(["status", "--connect", &address]).env("AGENT_RELAY_API_KEY", "hunter2").output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("AGENT_RELAY_API_KEY: ") && !stderr(&output).contains("hunter2"));
}

#[test]
fn a_value_that_a_flag_cannot_take_is_refused_in_one_form_with_what_it_may_be() {
    let directory = tempfile::tempdir().unwrap();
    let lines: &[&[&str]] = &[
        &["history", "--limit", "x"],
        &["history", "--limit=-1"],
        &["history", "--limit", "1000000"],
        &["history", "--limit", "1", "--limit", "2"],
        &["keys", "log", "--limit", "0"],
        &["keys", "create", "--name", "a", "--rate", "foo"],
        &["keys", "token", "3f2a", "--minutes", "16"],
        &["down", "--timeout", "x"],
        &["send", "--from", "a", "--to", "b", "--timeout", "1.5", "hi"],
        &["listen", "--as", "bob", "--count", "many"],
        &["listen", "--as", "bob", "--timeout", "\u{1b}[2J"],
        &["bench", "--pairs", "-1"],
        &["bench", "--window", "0"],
        &["bench", "--body", "15"],
        &["bench", "--seconds", "3601"],
        &["bench", "--cores", "two"],
        &["up", "--cores", "two"],
    ];
    let vendors: &[&[&str]] = &[
        &["issue", "--tier", "pro", "--days", "-1", "--db", "db"],
        &["issue", "--tier", "pro", "--days", "0", "--db", "db"],
        &["issue", "--tier", "pro", "--days", "a year", "--db", "db"],
        &["issue", "--tier", "pro", "--days", "1", "--agents", "many", "--db", "db"],
        &["serve", "--listen", "8443", "--db", "db", "--signing-key", "key"],
    ];
    let mut text = String::new();
    for (program, lines) in [("relay", lines), ("relay-license", vendors)] {
        for line in lines {
            let output = match program {
                "relay" => run(directory.path(), line),
                _ => Command::new(env!("CARGO_BIN_EXE_relay-license")).env_clear().args(*line).output().unwrap(),
            };
            assert_eq!(code(&output), 2, "{line:?}: {}", stderr(&output));
            assert!(output.stdout.is_empty(), "{line:?}");
            text += &format!("$ {program} {}\n{}", line.join(" ").escape_debug(), stderr(&output));
        }
    }
    golden("refused_values", &text);
}

#[test]
fn what_is_no_address_or_no_number_is_said_with_what_it_may_be() {
    let directory = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["status", "--connect", "127.0.0.1"], "--connect: 127.0.0.1 is not host:port"),
        (&["status", "--connect", "https://relay.example"], "--connect: https://relay.example is not host:port"),
        (&["status", "--connect", "host:99999"], "--connect: host:99999 is not host:port"),
        (&["keys", "create", "--name", "a", "--expires", "100000d"], "--expires: 100000d is too long"),
    ];
    for (line, sentence) in cases {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 2, "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{line:?}: {}", stderr(&output));
    }
    let output = run(directory.path(), &["status", "--connect", "/nosock"]);
    assert_eq!(stderr(&output), "relay: no relay answers at the socket /nosock\n");
}

#[test]
fn a_bench_of_its_own_needs_nobody_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = relay(directory.path());
    command.args(["bench", "--pairs", "1", "--seconds", "1", "--json"]).env("TMPDIR", directory.path());
    // What is set for the relay that serves is not for this one.
    let output = command.env("AGENT_RELAY_REQUIRE_AUTH", "true").output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value["messages"].as_u64().unwrap() > 0 && value["undelivered"] == 0, "{value}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_version_and_the_second_name() {
    let directory = tempfile::tempdir().unwrap();
    let version = format!("relay {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&run(directory.path(), &["--version"])), version);
    let other = Command::new(env!("CARGO_BIN_EXE_agent-relay")).arg("--version").output().unwrap();
    assert_eq!(stdout(&other), version);
}

#[test]
fn config_tells_where_each_value_came_from() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("relay.toml"), "cores = 3\n").unwrap();
    let mut command = relay(directory.path());
    let output =
        command.env("AGENT_RELAY_RETENTION_DAYS", "2").args(["config", "--global", "--json"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let setting = |key: &str| {
        let all = value["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("{key}")).clone()
    };
    assert_eq!(setting("cores")["value"], 3);
    assert!(setting("cores")["source"].as_str().unwrap().ends_with("relay.toml:1"));
    assert_eq!(setting("retention.days")["source"], "AGENT_RELAY_RETENTION_DAYS");
    let flush = setting("persistence.flush_interval_ms");
    assert_eq!((&flush["value"], &flush["unit"], &flush["minimum"]), (&50.into(), &"ms".into(), &1.into()));
    assert!(stdout(&run(directory.path(), &["config", "--global"])).contains("retention.days"));

    std::fs::write(directory.path().join("relay.toml"), "[limits]\n\nconections = 3\n").unwrap();
    let output = run(directory.path(), &["config", "--global"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("relay.toml:3:") && stderr(&output).contains("limits.connections"));
}

#[test]
fn doctor_names_every_check_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), &["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> =
        value["checks"].as_array().unwrap().iter().map(|check| check["check"].as_str().unwrap()).collect();
    let expected = ["kernel", "io_uring", "memlock", "open files", "data directory", "socket path", "clock", "CPUs"];
    for name in expected {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    for check in value["checks"].as_array().unwrap() {
        assert_eq!(check["verdict"] != "ok", check["repair"].is_string(), "{check}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_second_up_says_who_is_running_and_down_stops_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(directory.path(), &[]);
    let socket = directory.path().join("relay.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);

    let begun = Instant::now();
    let second = run(directory.path(), &["up", "--global"]);
    let took = begun.elapsed();
    assert_eq!(code(&second), 1);
    let text = stderr(&second);
    assert!(text.contains(&format!("pid {}", daemon.0.id())) && text.contains("relay.sock"), "{text}");
    assert!(took < Duration::from_secs(2), "it took {took:?}; the aim is 100 ms on an idle machine");
    assert!(socket.exists(), "the first one's socket is untouched");

    let down = run(directory.path(), &["down", "--global"]);
    assert_eq!(code(&down), 0, "{}", stderr(&down));
    assert!(!socket.exists() && !directory.path().join("relay.sock.pid").exists());
    assert_eq!(code(&run(directory.path(), &["down", "--global"])), 1);
}

#[test]
fn after_a_crash_the_next_one_starts_over_its_remains() {
    let directory = tempfile::tempdir().unwrap();
    let mut crashed = start(directory.path(), &[]);
    crashed.0.kill().unwrap();
    crashed.0.wait().unwrap();
    assert!(directory.path().join("relay.sock").exists());
    drop(start(directory.path(), &[]));
}

#[test]
fn detach_returns_when_it_is_ready_and_now_stops_it() {
    let directory = tempfile::tempdir().unwrap();
    let up = run(directory.path(), &["--detach", "--global"]);
    assert_eq!(code(&up), 0, "{}", stderr(&up));
    assert!(stdout(&up).contains("relay is running: pid "), "{}", stdout(&up));
    let again = run(directory.path(), &["up", "--detach", "--global"]);
    assert!(stderr(&again).contains("already running"), "{}", stderr(&again));
    let down = run(directory.path(), &["down", "--now", "--global", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&down.stdout).unwrap();
    assert_eq!(value["stopped"], true);
}

#[test]
fn output_that_nobody_reads_any_more_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let mut child =
        relay(directory.path()).arg("config").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success() && said.is_empty(), "{said}");
}

/// The lines of standard output as JSON values.
fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    assert_eq!(code(output), 0, "{}", stderr(output));
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn texts(lines: &[serde_json::Value]) -> Vec<&str> {
    lines.iter().map(|line| line["text"].as_str().unwrap()).collect()
}

#[test]
fn a_store_lives_through_kill_backup_restore_and_rekey() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (key, backup, exported) = (path("relay.key"), path("backup"), path("messages.jsonl"));
    let ok = |line: &[&str]| {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 0, "{line:?}: {}{}", stdout(&output), stderr(&output));
        output
    };
    let refused = |line: &[&str], sentence: &str| {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 1, "{line:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(sentence), "{line:?}: {}", stderr(&output));
    };
    let send = |text: &str| {
        ok(&["send", "--global", "--from", "alice", "--to", "bob", "--wait", "durable", text]);
    };
    let with_key = ["--global", "--db-key", &key];
    ok(&["keygen", "--output", &key]);
    refused(&["keygen", "--output", &key], "never overwritten");

    let mut daemon = start(directory.path(), &["--db-key", &key, "--retention", "30d"]);
    ok(&["listen", "--global", "--as", "bob", "--timeout", "0"]);
    send("one");
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    drop(daemon);

    let daemon = start(directory.path(), &["--db-key", &key, "--retention", "30d"]);
    send("two");
    let status = stdout(&ok(&["status", "--global", "--verbose"]));
    assert!(
        status.contains("encrypted") && status.contains("batch: what has a durable receipt survives kill"),
        "{status}"
    );
    assert!(status.contains("Retention: 30 days (no tier maximum)"), "{status}");
    assert_eq!(texts(&json_lines(&ok(&["history", "--global", "--json"]))), ["two", "one"]);
    assert_eq!(texts(&json_lines(&ok(&["history", "--global", "--json", "--limit", "1"]))), ["two"]);
    assert!(json_lines(&ok(&["history", "--global", "--json", "--from", "carol"])).is_empty());
    assert!(stdout(&ok(&["history", "--global", "--to", "bob"])).contains("alice"));
    ok(&[&["backup", &backup], &with_key[..]].concat());
    refused(&[&["backup", &backup], &with_key[..]].concat(), "choose another folder");
    let lines = json_lines(&ok(&[&["export"], &with_key[..]].concat()));
    assert_eq!(texts(&lines), ["one", "two"]);
    ok(&[&["export", "--output", &exported], &with_key[..]].concat());
    assert_eq!(std::fs::read_to_string(&exported).unwrap().lines().count(), 2);
    refused(&["export", "--global"], "--db-key");
    refused(&[&["restore", &backup, "--replace"], &with_key[..]].concat(), "already running");
    refused(&[&["rekey", "--to-plain"], &with_key[..]].concat(), "already running");
    send("three");
    let questions: [&[&str]; 6] = [
        &["history", "--global"],
        &["history", "--global", "--json"],
        &["history", "--global", "--json", "--limit", "2", "--to", "bob"],
        &["history", "--global", "--json", "--from", "carol"],
        &["history", "--global", "--json", "--agent", "alice", "--until", "1h"],
        &["history", "--global", "--since", "1h"],
    ];
    let ids = json_lines(&ok(questions[1]));
    let id = ids[0]["id"].as_str().unwrap();
    let reads: [&[&str]; 2] = [&["read", "--global", id], &["read", "--global", &id[..6], "--json"]];
    let questions: Vec<&[&str]> = questions.into_iter().chain(reads).collect();
    let answers: Vec<String> = questions.iter().map(|question| stdout(&ok(question))).collect();
    ok(&["down", "--global"]);
    drop(daemon);

    // What the relay has answered its store answers while it is off.
    for (question, answer) in questions.iter().zip(&answers) {
        assert_eq!(&stdout(&ok(&[*question, &["--db-key", &key]].concat())), answer, "{question:?}");
        refused(question, "--db-key");
    }
    refused(&["history", "--global", "--follow", "--db-key", &key], "only a running one");
    refused(&["history", "--socket", &path("elsewhere.sock"), "--global"], "no relay is running");
    refused(&["read", "--global", "ffff", "--db-key", &key], "no message");

    refused(&[&["restore", &backup], &with_key[..]].concat(), "--replace");
    let restored = stdout(&ok(&[&["restore", &backup, "--replace"], &with_key[..]].concat()));
    assert!(restored.contains("store.replaced-"), "{restored}");
    ok(&[&["rekey", "--to-plain"], &with_key[..]].concat());
    let doctor = run(directory.path(), &["doctor", "--global"]);
    assert!(stdout(&doctor).contains("sound: 2 messages"), "{}", stdout(&doctor));

    let _daemon = start(directory.path(), &[]);
    assert_eq!(texts(&json_lines(&ok(&["history", "--global", "--json"]))), ["two", "one"]);
    let heard = ok(&["listen", "--global", "--as", "bob", "--count", "2", "--timeout", "30", "--json"]);
    assert_eq!(texts(&json_lines(&heard)), ["one", "two"]);
}

#[test]
fn an_npm_relays_messages_become_history() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/fixtures/messages-1.6.0.sqlite");
    let import = || run(directory.path(), &["import", "--global", fixture]);
    let first = import();
    assert_eq!(stdout(&first).lines().next(), Some("8 messages imported"), "{}", stderr(&first));
    assert!(stdout(&import()).starts_with("0 messages imported\n8 were in the store already\n"));
    let daemon = start(directory.path(), &["--retention", "unlimited"]);
    let refused = import();
    assert!(
        code(&refused) == 1 && stderr(&refused).contains(&format!("pid {}", daemon.0.id())),
        "{}",
        stderr(&refused)
    );
    let history = json_lines(&run(directory.path(), &["history", "--global", "--json", "--thread", "review-7"]));
    assert_eq!(texts(&history), ["two\nlines, and 日本"]);
    assert_eq!(json_lines(&run(directory.path(), &["history", "--global", "--json", "--to", "Bob"])).len(), 4);
    let listened = run(directory.path(), &["listen", "--global", "--as", "Bob", "--timeout", "1", "--json"]);
    assert!(json_lines(&listened).is_empty(), "nothing of it is owed to anybody");
}

#[test]
fn after_an_import_of_what_is_old_the_clock_is_believed() {
    let directory = tempfile::tempdir().unwrap();
    // Its newest message is of 2025.
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/fixtures/messages-1.6.0.sqlite");
    assert_eq!(code(&run(directory.path(), &["import", "--global", fixture])), 0);
    let doctor = stdout(&run(directory.path(), &["doctor", "--global"]));
    assert!(!doctor.contains("days ahead of"), "{doctor}");
    let _daemon = start(directory.path(), &["--retention", "unlimited"]);
    let status: serde_json::Value =
        serde_json::from_slice(&run(directory.path(), &["status", "--global", "--json", "--verbose"]).stdout).unwrap();
    assert_eq!(status["clock_doubt_ms"].as_i64().unwrap_or(0), 0, "{status}");
}

#[test]
fn what_damage_has_taken_is_said_and_no_backup_is_made_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let go = |line: &[&str]| run(directory.path(), &[line, &["--global"]].concat());
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/fixtures/messages-1.6.0.sqlite");
    assert_eq!(code(&go(&["import", fixture])), 0);
    // So that its rows are written, and only messages lie in what is damaged.
    drop((start(directory.path(), &["--retention", "unlimited"]), go(&["down"])));
    let sound = go(&["export"]);
    assert_eq!((code(&sound), stderr(&sound).as_str(), json_lines(&sound).len()), (0, "", 8));
    assert_eq!(code(&go(&["backup", &path("earlier")])), 0);
    let mut folders = vec![directory.path().to_path_buf()];
    let mut changed = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.extend((!entry.ends_with("earlier")).then_some(entry));
            } else if entry.ends_with("data.mdb") || entry.ends_with("journal") {
                let mut bytes = std::fs::read(&entry).unwrap();
                let word = "lines, and 日本".as_bytes();
                while let Some(at) = bytes.windows(word.len()).position(|window| window == word) {
                    bytes[at] ^= 1;
                    changed += 1;
                }
                std::fs::write(&entry, bytes).unwrap();
            }
        }
    }
    assert!(changed > 0);
    let exported = go(&["export", "--output", &path("messages.jsonl")]);
    assert_eq!(code(&exported), 1);
    assert!(stdout(&exported).contains("messages written"), "{}", stdout(&exported));
    let history = go(&["history"]);
    assert_eq!(code(&history), 0);
    for said in [stderr(&exported), stderr(&history)] {
        assert!(said.contains("the store is damaged (log 1: ") && said.contains("`relay doctor`"), "{said}");
    }
    let refused = go(&["backup", &path("backup")]);
    assert_eq!((code(&refused), std::path::Path::new(&path("backup")).exists()), (1, false));
    assert!(stderr(&refused).contains("log 1: ") && stderr(&refused).contains("--damaged"), "{}", stderr(&refused));
    let copied = go(&["backup", &path("backup"), "--damaged"]);
    assert_eq!(code(&copied), 0);
    assert!(stderr(&copied).contains("1 damaged place passed over"), "{}", stderr(&copied));
    let refused = go(&["restore", &path("backup"), "--replace"]);
    assert!(code(&refused) == 1 && stderr(&refused).contains("--damaged"), "{}", stderr(&refused));
    assert_eq!(code(&go(&["restore", &path("backup"), "--replace", "--damaged"])), 0);
    assert_eq!(code(&go(&["restore", &path("earlier"), "--replace"])), 0);
    assert_eq!(json_lines(&go(&["export"])).len(), 8);
}

#[test]
fn history_follows_what_comes() {
    let directory = tempfile::tempdir().unwrap();
    let _daemon = start(directory.path(), &[]);
    run(directory.path(), &["listen", "--global", "--as", "bob", "--timeout", "0"]);
    let send = |text: &str| {
        let output =
            run(directory.path(), &["send", "--global", "--from", "alice", "--to", "bob", "--wait", "durable", text]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    };
    send("before");
    let mut command = relay(directory.path());
    let mut follow =
        command.args(["history", "--global", "--follow", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let mut next =
        || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap()["text"].clone();
    assert_eq!(next(), "before");
    send("after");
    assert_eq!(next(), "after");
    // Whoever read it goes away: so does it.
    drop(lines);
    assert!(follow.wait().unwrap().success());
}

#[test]
fn every_command_of_keys_has_a_golden_help_and_needs_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    golden("help_keys", &stdout(&run(directory.path(), &["keys", "--help"])));
    for (command, needs) in [
        ("list", &[][..]),
        ("create", &["--name", "a"]),
        ("revoke", &["3f2a"]),
        ("rotate", &["3f2a"]),
        ("token", &["3f2a"]),
        ("log", &[]),
    ] {
        let text = stdout(&run(directory.path(), &["keys", command, "--help"]));
        assert!(text.contains("Examples:"), "{command}: {text}");
        assert_eq!(stdout(&run(directory.path(), &["help", "keys", command])), text);
        golden(&format!("help_keys_{command}"), &text);
        let output = run(directory.path(), &[&["keys", command, "--json"], needs].concat());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(code(&output), 1);
        assert!(value["error"].as_str().unwrap().contains("no relay is running"), "{command}: {value}");
    }
    for (line, sentence) in [
        (&["keys"][..], "Run `relay keys --help`"),
        (&["keys", "revok", "3f2a"], "Did you mean `relay keys revoke`?"),
        (&["keys", "create"], "Run `relay keys create --help`"),
        (&["keys", "create", "--name", "a", "--scopes", "root"], "send, receive and admin"),
        (&["keys", "create", "--name", "a", "--expires", "soon"], "90s, 12h, 30d"),
    ] {
        let output = run(directory.path(), line);
        assert_eq!(code(&output), 2, "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{line:?}: {}", stderr(&output));
    }
}
