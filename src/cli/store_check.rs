//! What `relay doctor` says of the store. Its contents are read by a child process: reading a damaged map, or one whose
//! file was cut short, can end the process that does it.

use super::Failure;
use super::doctor::Check;
use super::print::{self, Progress};
use super::stored::Place;
use crate::daemon::storage;
use crate::store::copy;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "store";
/// Stands before the clock's doubt, in milliseconds, on the child's second line.
const CLOCK_LINE: &str = "wall clock ahead, ms: ";
/// How long the child may look.
const LOOK_TIME: Duration = Duration::from_secs(30);
/// How often it is asked whether it has finished.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// What to do about a store that is damaged.
const REPAIR: &str = "relay down; relay restore BACKUP. Without a backup: relay export --output FILE saves what can still be \
read; then move the store's folder away, and the relay makes a new one";

/// The store is its owner's alone.
pub(super) fn permissions(folder: &Path) -> Check {
    let name = "store files";
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Check::ok(name, format!("{} will be made", folder.display()));
    };
    // Two files; a folder with more is looked into no further.
    let files = entries.take(64).flatten().map(|entry| (entry.path(), 0o600));
    let own = std::iter::once((folder.to_path_buf(), 0o700));
    for (path, mode) in own.chain(files) {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.mode() & 0o077 != 0 {
            let found = format!("{} is open to other users (mode {:o})", path.display(), metadata.mode() & 0o777);
            return Check::warn(name, found, format!("chmod {mode:o} {}", path.display()));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            let found = format!("{} belongs to another user ({})", path.display(), metadata.uid());
            return Check::fail(name, found, format!("sudo chown -R $(id -u) {}", folder.display()));
        }
    }
    Check::ok(name, format!("{}, yours alone", folder.display()))
}

/// What interrupted copies have left: it may be under an old key, or none.
pub(super) fn leftovers(folder: &Path) -> Option<Check> {
    let left: Vec<String> = copy::leftovers(folder).iter().map(|path| path.display().to_string()).collect();
    let repair = format!("relay down; rm -r {}", left.join(" "));
    (!left.is_empty())
        .then(|| Check::warn("store leftovers", format!("{}, of copies that did not end", left.join(", ")), repair))
}

/// What the running relay says of its store, which may look well from outside while its disk refuses.
pub(super) fn health(status: Option<&Value>) -> Check {
    let name = "store health";
    let Some(status) = status else {
        let found = "a relay runs here and does not answer";
        return Check::warn(name, found, "relay status; if it stays, look at its log");
    };
    let store = &status["store"];
    let health = &store["health"];
    if health["ok"] != false {
        return Check::ok(name, "well, says the running relay");
    }
    let sentence = health["sentence"].as_str().unwrap_or("the running relay says that it is not well");
    let waiting = store["at_stake"]["messages"].as_u64().filter(|messages| *messages > 0);
    let waiting = waiting.map_or_else(String::new, |messages| {
        format!(" ({} not on the disk yet)", print::count(messages, "accepted message"))
    });
    let repair = match health["problem"].as_str() {
        Some("corrupt") => REPAIR,
        Some("full" | "quota") => "free some space and leave the relay running: it goes on by itself",
        Some("gone") => "mv the store's folder back and leave the relay running: it goes on by itself",
        _ => "dmesg; leave the relay running until the disk is well: it goes on by itself",
    };
    Check::fail(name, format!("{sentence}{waiting}"), repair)
}

/// What the child says of the store.
pub(super) struct Contents {
    pub(super) check: Check,
    /// By how much the wall clock is ahead of the time that the store believes, milliseconds; 0: it is believed, for all
    /// that is known.
    pub(super) clock_doubt_ms: i64,
}

impl From<Check> for Contents {
    fn from(check: Check) -> Contents {
        Contents { check, clock_doubt_ms: 0 }
    }
}

/// Asks a child process to read all of it.
pub(super) fn contents(data_dir: Option<&Path>, global: bool, db_key: Option<&Path>, folder: &Path) -> Contents {
    if !folder.exists() && !copy::is_interrupted(folder) {
        return Check::ok(NAME, "none yet").into();
    }
    let Ok(program) = std::env::current_exe() else {
        return Check::warn(NAME, "not looked into: cannot find my own program", "relay doctor --check-store").into();
    };
    let mut command = Command::new(program);
    command.args(["doctor", "--check-store"]);
    for (flag, path) in [("--data-dir", data_dir), ("--db-key", db_key)] {
        command.args(path.iter().flat_map(|path| [flag.as_ref(), path.as_os_str()]));
    }
    command.args(global.then_some("--global"));
    judge(command, LOOK_TIME)
}

fn judge(mut command: Command, time: Duration) -> Contents {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            return Check::warn(NAME, format!("not looked into: {error}"), "relay doctor --check-store").into();
        }
    };
    let begun = Instant::now();
    // It says a sentence or two, which fit its pipe: it never waits for us.
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > time {
            drop(child.kill());
            drop(child.wait());
            let found = format!("sound as far as was read in {} s", time.as_secs());
            let repair = "relay doctor --check-store reads all of it, however long that takes";
            return Check::warn(NAME, found, repair).into();
        }
        std::thread::sleep(ASK_EVERY);
    }
    let Ok(output) = child.wait_with_output() else {
        return Check::warn(NAME, "not looked into: the check was lost", "relay doctor --check-store").into();
    };
    let said = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let (text, clock) = text.split_once(CLOCK_LINE).unwrap_or((&text, ""));
        let text = print::clean(text.trim().trim_start_matches("relay: ")).into_owned();
        (text, clock.trim().parse().unwrap_or(0))
    };
    let check = match (output.status.code(), output.status.signal()) {
        (Some(0), _) => {
            let (sound, clock_doubt_ms) = said(&output.stdout);
            return Contents { check: Check::ok(NAME, sound), clock_doubt_ms };
        }
        (Some(code), _) => {
            let (found, _) = said(&output.stderr);
            let found = if found.is_empty() { format!("the check ended with {code}") } else { found };
            // Whoever lacks the key learns nothing of the store, and nothing is wrong with it.
            if found.contains("--db-key") {
                return Check::warn(NAME, format!("not looked into: {found}"), "relay doctor --db-key FILE").into();
            }
            Check::fail(NAME, found, REPAIR)
        }
        (None, signal) => {
            let signal = signal.map_or_else(String::new, |signal| format!(" (signal {signal})"));
            Check::fail(NAME, format!("damaged: whoever reads it dies{signal}"), REPAIR)
        }
    };
    check.into()
}

/// The child's life.
pub(super) fn run(data_dir: Option<&Path>, global: bool, db_key: Option<&Path>) -> Result<(), Failure> {
    let place = Place::of(data_dir, global, db_key)?;
    let mut progress = Progress::start();
    let store = place.open_for_reading()?;
    let report = store.check(|segment| progress.show(&format!("segment {segment} …"))).map_err(Failure::failed)?;
    drop(progress);
    if let Some(first) = report.damages.first() {
        let more = match report.damage_count {
            1 => String::new(),
            count => format!(", the first of {count} places"),
        };
        return Err(Failure::Failed(format!("damaged: {first}{more}")));
    }
    let ((first, last), (file, used)) = (report.segments, report.file_bytes);
    let journal = match report.journal_bytes {
        0 => String::new(),
        length => format!(", {} of journal", print::bytes(length)),
    };
    print::out(&format!(
        "sound: {} in segments {first} to {last}, {}, {}, {}, {} ({} used){journal}{}\n",
        print::count(report.messages, "message"),
        print::count(report.agents, "agent"),
        print::count(report.keys, "API key"),
        print::count(report.events, "audit event"),
        print::bytes(file),
        print::bytes(used),
        if report.encrypted { ", encrypted" } else { "" }
    ))?;
    match storage::clock_doubt_ms(&store) {
        Ok(doubt_ms) if doubt_ms != 0 => print::out(&format!("{CLOCK_LINE}{doubt_ms}\n")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;
    use std::os::unix::fs::PermissionsExt;

    fn child(script: &str, time: Duration) -> Contents {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        judge(command, time)
    }

    fn shell(script: &str, time: Duration) -> Check {
        child(script, time).check
    }

    #[test]
    fn the_child_is_believed_whatever_becomes_of_it() {
        let patient = Duration::from_secs(60);
        let sound = shell("echo sound: 3 messages", patient);
        assert_eq!((sound.verdict, &sound.found[..]), (Verdict::Ok, "sound: 3 messages"));
        let doubting = child(&format!("echo sound; echo '{CLOCK_LINE}-7200000'"), patient);
        assert_eq!((&doubting.check.found[..], doubting.clock_doubt_ms), ("sound", -7_200_000));
        let damaged = shell("echo 'relay: log 7: torn' >&2; exit 1", patient);
        assert_eq!((damaged.verdict, &damaged.found[..]), (Verdict::Fail, "log 7: torn"));
        let died = shell("kill -BUS $$", patient);
        assert_eq!(died.verdict, Verdict::Fail);
        assert!(died.found.contains("signal 7") && died.repair.contains("relay restore"), "{died:?}");
        let locked = shell("echo 'give its key with --db-key FILE' >&2; exit 1", patient);
        assert_eq!(locked.verdict, Verdict::Warn);
        let slow = shell("exec sleep 600", Duration::ZERO);
        assert!(slow.verdict == Verdict::Warn && slow.repair.contains("--check-store"), "{slow:?}");
    }

    #[test]
    fn a_running_relay_whose_disk_refuses_fails_with_its_sentence() {
        let status = |health| serde_json::json!({ "store": { "health": health, "at_stake": { "messages": 5 } } });
        let well = status(serde_json::json!({ "ok": true }));
        assert_eq!((health(Some(&well)).verdict, health(None).verdict), (Verdict::Ok, Verdict::Warn));
        for problem in ["full", "gone", "io", "corrupt"] {
            let sick = status(serde_json::json!({ "ok": false, "problem": problem, "sentence": "it hurts" }));
            let check = health(Some(&sick));
            assert_eq!(
                (check.verdict, &check.found[..]),
                (Verdict::Fail, "it hurts (5 accepted messages not on the disk yet)")
            );
            assert!(!check.repair.is_empty());
        }
    }

    #[test]
    fn a_store_that_others_can_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("store");
        assert_eq!(permissions(&folder).verdict, Verdict::Ok);
        std::fs::create_dir(&folder).unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(&folder, 0o700);
        let file = folder.join("data.mdb");
        std::fs::write(&file, "").unwrap();
        mode(&file, 0o640);
        let check = permissions(&folder);
        assert_eq!((check.verdict, check.repair), (Verdict::Warn, format!("chmod 600 {}", file.display())));
        mode(&file, 0o600);
        assert_eq!(permissions(&folder).verdict, Verdict::Ok);
    }
}
