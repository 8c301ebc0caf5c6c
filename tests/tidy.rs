//! The house rules as tables. Each rule is a plain function from text to complaints, tried below on bad samples, so that
//! this test is known to be able to fail.
#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

use agent_relay::base::{CloseReason, RefuseReason};
use agent_relay::wire::ErrorCode;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms and which others each may import: always ones further down, never one beside it. `lib.rs` draws this.
const FLOORS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("wire", &["base"]),
    ("relay", &["base", "wire"]),
    ("tls", &["base"]),
    ("licence", &["base"]),
    ("uring", &["base"]),
    ("mesh", &["base", "wire", "relay", "tls"]),
    ("client", &["base", "wire", "tls"]),
    ("store", &["base", "wire", "relay"]),
    ("http", &["base", "tls"]),
    ("shard", &["base", "wire", "relay", "tls", "uring", "mesh"]),
    ("writer", &["base", "wire", "relay", "uring", "mesh", "store"]),
    ("keeper", &["base", "wire", "relay", "uring", "mesh", "store"]),
    ("history", &["base", "wire", "relay", "uring", "mesh", "store"]),
    (
        "daemon",
        &[
            "base", "wire", "relay", "tls", "licence", "uring", "mesh", "store", "http", "shard", "writer", "keeper",
            "history",
        ],
    ),
    ("cli", &["base", "wire", "relay", "tls", "licence", "store", "history", "uring", "client", "daemon"]),
    ("vendor", &["base", "licence", "http", "store"]),
    ("bin", &["cli", "vendor"]),
];

/// Each foreign crate and the rooms that may name it.
const DOORS: &[(&str, &[&str])] = &[
    ("argh", &["cli", "vendor"]),
    ("base64", &["daemon", "licence", "vendor"]),
    ("bytes", &["base"]),
    ("comfy_table", &["cli"]),
    ("crc32fast", &["wire", "store"]),
    ("crossbeam", &["mesh"]),
    ("foldhash", &["base"]),
    // The command line draws the salt of the labels it makes.
    ("getrandom", &["daemon", "cli", "vendor"]),
    ("glommio", &["daemon"]),
    ("hashbrown", &["relay", "store"]),
    ("heed", &["store", "vendor"]),
    ("hmac", &["base"]),
    ("http_body_util", &["http"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("io_uring", &["uring"]),
    ("jiff", &["cli", "daemon", "history", "vendor"]),
    ("listenfd", &["daemon"]),
    ("parking_lot", &["cli", "history", "keeper", "store", "writer"]),
    // uring has a module of this name.
    ("ring", &["licence", "store", "uring"]),
    ("rkyv", &["wire"]),
    ("rustls", &["tls"]),
    ("rustls_pki_types", &["tls"]),
    ("rusqlite", &["cli"]),
    ("rustix", &["cli", "client", "daemon", "history", "keeper", "shard", "store", "uring", "writer"]),
    ("sd_notify", &["daemon"]),
    ("serde", &["daemon", "history", "licence", "vendor", "wire"]),
    ("serde_json", &["cli", "client", "daemon", "history", "licence", "vendor", "wire"]),
    ("sha2", &["base", "daemon", "licence"]),
    ("signal_hook", &["daemon", "vendor"]),
    ("siphasher", &["store"]),
    ("thiserror", &["base", "client", "daemon", "http", "licence", "store", "tls", "vendor", "wire"]),
    ("tokio", &["http"]),
    ("toml", &["daemon"]),
    ("tracing", &["daemon", "keeper", "shard", "vendor", "writer"]),
    ("tracing_appender", &["daemon"]),
    ("tracing_subscriber", &["daemon"]),
    ("ureq", &["http"]),
    ("x509_parser", &["tls"]),
    ("zeroize", &["base", "cli", "client", "daemon", "licence", "shard", "store", "tls", "uring", "vendor", "wire"]),
];

/// The one room where `unsafe` may stand; every other forbids it in its first lines.
const UNSAFE_ROOM: &str = "uring";

/// And the one file of another room: its room cannot forbid it as a whole, but no other file there may have it.
const UNSAFE_FILES: &[&str] = &["src/store/open.rs"];

/// Words that name no room.
const BANNED_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc", "manager", "shared", "stuff"];

/// Longest file, in lines, and the files that may be longer.
const FILE_LINES_MAX: usize = 700;
const LONG_FILES: &[(&str, &str)] = &[
    ("src/relay/mod.rs", "the heart's one entry: what each event means is read in one place"),
    ("tests/uring.rs", "one list of promises that both drivers keep, with the helper that drives them"),
];

/// What the heart must not know: `now` is an argument, seeds are options, and no walk depends on a random hash.
const NOT_IN_THE_HEART: &[&str] =
    &["std::time", "std::net", "std::fs", "std::io", "std::thread", "std::sync", "HashMap", "HashSet", "rand"];

/// Marks of unfinished work.
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!(", "dbg!("];

#[derive(Debug, PartialEq)]
struct Complaint(String);

/// Lines of code with their numbers: no comments, no text between quotes.
fn code(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().enumerate().map(|(index, line)| {
        let mut out = String::new();
        let mut quoted = false;
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if quoted => drop(characters.next()),
                '"' => quoted = !quoted,
                '/' if !quoted && characters.peek() == Some(&'/') => break,
                _ if !quoted => out.push(character),
                _ => {}
            }
        }
        (index + 1, out)
    })
}

/// The names that follow `prefix` in a line: `crate::wire` and `crate::{wire, base}` alike.
fn names_after(line: &str, prefix: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    line.match_indices(prefix)
        .flat_map(|(at, _)| {
            let rest = &line[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => list.split(['}', ',']).map(|item| word(item.trim())).collect(),
                None => vec![word(rest)],
            }
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn has_word(line: &str, wanted: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(wanted)
        .any(|(at, _)| !part(line[..at].chars().next_back()) && !part(line[at + wanted.len()..].chars().next()))
}

fn floors(room: &str, text: &str) -> Vec<Complaint> {
    let Some((_, allowed)) = FLOORS.iter().find(|(known, _)| *known == room) else {
        return vec![Complaint(format!("{room}: a room that no floor in tests/tidy.rs and lib.rs has"))];
    };
    let rooms = |name: &str| FLOORS.iter().any(|(known, _)| *known == name);
    if let Some((number, _)) = code(text).find(|(_, line)| line.trim_end().ends_with("crate::{")) {
        // This reads line by line.
        return vec![Complaint(format!("line {number}: one `use crate::room::…` a line, not a list of rooms"))];
    }
    code(text)
        .flat_map(|(number, line)| {
            let mut names = names_after(&line, "crate::");
            names.extend(names_after(&line, "agent_relay::"));
            names.into_iter().map(move |name| (number, name))
        })
        .filter(|(_, name)| rooms(name) && name != room && !allowed.contains(&name.as_str()))
        .map(|(number, name)| Complaint(format!("line {number}: {room} imports {name}, which is not below it")))
        .collect()
}

fn doors(room: &str, text: &str) -> Vec<Complaint> {
    code(text)
        .flat_map(|(number, line)| {
            let named = |name: &str| {
                let path = format!("{name}::");
                line.match_indices(&path).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    // `crate::wire::…` and `super::toml::…` are our own; so is `x_serde::`.
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                }) || line.trim() == format!("use {name};")
            };
            DOORS
                .iter()
                .filter(|(name, rooms)| named(name) && !rooms.contains(&room))
                .map(|(name, rooms)| Complaint(format!("line {number}: {room} names {name}, whose door is {rooms:?}")))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn unsafety(room: &str, is_door: bool, text: &str) -> Vec<Complaint> {
    if room == UNSAFE_ROOM {
        return Vec::new();
    }
    let mut complaints: Vec<Complaint> = code(text)
        .filter(|(_, line)| has_word(line, "unsafe") || line.contains("allow(unsafe_code)"))
        .map(|(number, _)| Complaint(format!("line {number}: unsafe outside src/{UNSAFE_ROOM}")))
        .collect();
    if is_door {
        // First thing after the room's own words: nothing may come before it.
        let first = text.lines().find(|line| !line.starts_with("//!") && !line.trim().is_empty());
        if first != Some("#![forbid(unsafe_code)]") {
            complaints.push(Complaint("#![forbid(unsafe_code)] is not the first line of code".into()));
        }
    }
    complaints
}

fn heart(text: &str) -> Vec<Complaint> {
    let body = text.split("#[cfg(test)]").next().unwrap();
    code(body)
        .flat_map(|(number, line)| {
            let found = NOT_IN_THE_HEART.iter().filter(|wanted| has_word(&line, wanted)).copied();
            found
                .map(|word| Complaint(format!("line {number}: {word} in the heart; hand the value in")))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn file(path: &str, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    // Fuzz targets and binaries, too: whoever opens a file is told what it is.
    if !text.starts_with("//! ") {
        complaints.push(Complaint("it does not begin with `//!` and what it is for".into()));
    }
    let lines = text.lines().count();
    let excused = LONG_FILES.iter().any(|(long, _)| *long == path);
    if lines > FILE_LINES_MAX && !excused {
        complaints.push(Complaint(format!("{lines} lines; split it, or give the reason in LONG_FILES")));
    }
    for (number, line) in code(text) {
        for mark in UNFINISHED.iter().filter(|mark| line.contains(**mark)) {
            complaints.push(Complaint(format!("line {number}: {mark}…) is unfinished work")));
        }
    }
    let banned = |part: &str| BANNED_NAMES.contains(&part.trim_end_matches(".rs"));
    if let Some(part) = path.split('/').find(|part| banned(part)) {
        complaints.push(Complaint(format!("`{part}` names no room: say what it holds")));
    }
    complaints
}

/// Each dependency has its reason: a comment above it, or above the run of lines it stands in.
fn manifest(text: &str) -> Vec<Complaint> {
    let (mut in_dependencies, mut reason, mut complaints) = (false, false, Vec::new());
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            (in_dependencies, reason) = (line.ends_with("dependencies]"), false);
        } else if line.starts_with('#') {
            reason = true;
        } else if line.is_empty() {
            reason = false;
        } else if in_dependencies && line.contains('=') && !reason {
            complaints.push(Complaint(format!("no reason above `{line}`")));
        }
    }
    complaints
}

fn dependencies(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && !line.starts_with('#') && line.contains('=') {
            names.push(line.split(['=', '.', ' ']).next().unwrap().replace('-', "_"));
        }
    }
    names
}

/// Paths of the machine a document was written on. What users have (`/tmp`, `/home/you`, `/var/lib`) is theirs.
fn document(text: &str) -> Vec<Complaint> {
    let outside = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("../sha", "red"), concat!("/tmp/", "t-")];
    text.lines()
        .enumerate()
        .filter(|(_, line)| outside.iter().any(|path| line.contains(path)))
        .map(|(index, _)| Complaint(format!("line {}: a path outside the project", index + 1)))
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folders` whose name ends so, relative to the project, with its text.
fn files(folders: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            if path.ends_with("target") || path.ends_with("corpus") {
                continue;
            }
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn room_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    Some(inside.split_once('/').map_or("lib", |(room, _)| room))
}

fn settle(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn about(path: &str, complaints: Vec<Complaint>) -> Vec<String> {
    complaints.into_iter().map(|complaint| format!("{path}: {}", complaint.0)).collect()
}

#[test]
fn every_room_imports_from_below_and_names_only_the_crates_whose_door_it_is() {
    let mut complaints = Vec::new();
    for (path, text) in files(&["src"], &[".rs"]) {
        let Some(room) = room_of(&path).filter(|room| *room != "lib") else { continue };
        complaints.extend(about(&path, floors(room, &text)));
        complaints.extend(about(&path, doors(room, &text)));
        if !UNSAFE_FILES.contains(&path.as_str()) {
            let has_unsafe_file = UNSAFE_FILES.iter().any(|file| room_of(file) == Some(room));
            let is_door = !has_unsafe_file && path == format!("src/{room}/mod.rs");
            complaints.extend(about(&path, unsafety(room, is_door, &text)));
        }
        if room == "relay" {
            complaints.extend(about(&path, heart(&text)));
        }
    }
    settle(complaints);
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    let all = files(&["src", "tests", "bench", "perf"], &[".rs"]);
    assert!(all.len() > 50, "the files are found");
    settle(all.iter().flat_map(|(path, text)| about(path, file(path, text))).collect());
    for (path, reason) in LONG_FILES {
        assert!(Path::new(&root().join(path)).exists(), "{path} is gone, and so is its excuse: {reason}");
    }
}

#[test]
fn every_dependency_has_a_reason_a_door_and_a_use() {
    let mut complaints = Vec::new();
    for (path, text) in files(&["Cargo.toml", "bench/Cargo.toml", "perf/Cargo.toml"], &["Cargo.toml"]) {
        complaints.extend(about(&path, manifest(&text)));
    }
    let source: String = files(&["src"], &[".rs"]).into_iter().map(|(_, text)| text).collect();
    for name in dependencies(&fs::read_to_string(root().join("Cargo.toml")).unwrap()) {
        if !DOORS.iter().any(|(known, _)| *known == name) {
            complaints.push(format!("Cargo.toml: {name} has no door in tests/tidy.rs"));
        }
        if !has_word(&source, &name) {
            complaints.push(format!("Cargo.toml: nobody uses {name}"));
        }
    }
    settle(complaints);
}

#[test]
fn every_reason_and_code_is_explained_to_users_of_the_wire_and_to_operators() {
    let wire = fs::read_to_string(root().join("docs/WIRE.md")).unwrap();
    let operating = fs::read_to_string(root().join("docs/OPERATING.md")).unwrap();
    let mut complaints = Vec::new();
    let mut look = |document: &str, text: &str, name: &str| {
        let tables = text.lines().filter(|line| line.starts_with('|'));
        if !tables.into_iter().any(|line| line.contains(&format!("`{name}`"))) {
            complaints.push(format!("{document}: no table explains `{name}`"));
        }
    };
    let closes = CloseReason::ALL.iter().map(|reason| reason.name());
    let refusals = RefuseReason::ALL.iter().map(|reason| reason.name());
    for name in closes.chain(refusals) {
        look("docs/WIRE.md", &wire, name);
        look("docs/OPERATING.md", &operating, name);
    }
    for code in ErrorCode::ALL {
        look("docs/WIRE.md", &wire, code.name());
    }
    settle(complaints);
}

#[test]
fn documents_and_scripts_name_no_path_outside_the_project() {
    let places = ["README.md", "docs", "scripts", ".ci", "src", "tests", "bench", "perf", "Cargo.toml", ".deny.toml"];
    let endings = [".md", ".sh", "run", ".toml", ".rs", ".mjs", ".py", ".txt", ".snap"];
    settle(files(&places, &endings).iter().flat_map(|(path, text)| about(path, document(text))).collect());
}

#[test]
fn the_rules_find_what_they_forbid() {
    assert_eq!(floors("wire", "use crate::relay::Event;").len(), 1);
    assert_eq!(floors("uring", "use crate::{base, mesh::Mesh};").len(), 1);
    assert_eq!(floors("client", "let x = crate::uring::Driver::new();").len(), 1);
    assert_eq!(floors("wire", "use crate::{\n    relay::Event,\n};").len(), 1);
    assert_eq!(floors("cellar", "").len(), 1);
    assert_eq!(floors("wire", "use crate::base::Name; // not crate::relay::Event").len(), 0);
    assert_eq!(doors("relay", "use rkyv::Archive;").len(), 1);
    assert_eq!(doors("cli", "let t = comfy_table::Table::new(); let u = io_uring::IoUring::new(8);").len(), 1);
    assert_eq!(doors("daemon", "use glommio::CpuSet; crate::toml::read(\"rkyv::\");").len(), 0);
    assert_eq!(unsafety("mesh", false, "unsafe { *pointer }").len(), 1);
    assert_eq!(unsafety("mesh", true, "//! Words.\npub mod x;\n#![forbid(unsafe_code)]").len(), 1);
    assert_eq!(unsafety("mesh", true, "//! Words.\n\n#![forbid(unsafe_code)]\nmod x;").len(), 0);
    assert_eq!(heart("use std::time::Instant;\nlet m = HashMap::new();").len(), 2);
    assert_eq!(heart("use std::collections::VecDeque;\n#[cfg(test)]\nuse std::time::Instant;").len(), 0);
    assert_eq!(file("src/base/x.rs", "fn main() { todo!() }").len(), 2);
    assert_eq!(file("src/util/x.rs", "//! Words.\n").len(), 1);
    assert_eq!(file("src/base/x.rs", &format!("//! Words.\n{}", "\n".repeat(FILE_LINES_MAX))).len(), 1);
    assert_eq!(manifest("[dependencies]\n# why\na = \"1\"\n\nb = \"1\"\n[lints]\nc = \"1\"").len(), 1);
    assert_eq!(document(&format!("see {}x", concat!("/wo", "rk/"))).len(), 1);
    assert_eq!(dependencies("[dependencies]\nio-uring = \"1\"\n[dev-dependencies]\nx = \"1\""), ["io_uring"]);
}
