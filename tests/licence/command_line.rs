//! `relay license` and `relay-license` as their users meet them.

use crate::vendor::{Vendor, program};
use crate::{evaluation, free_address, offline};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `relay license …` in a data directory of its own.
fn relay(folder: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_relay"))
        .env_clear()
        .env("AGENT_RELAY_DATA_DIR", folder)
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .arg("license")
        .args(line)
        .arg("--global")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn show(folder: &Path) -> Value {
    serde_json::from_slice(&relay(folder, &["show", "--json"]).stdout).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_key_is_activated_shown_without_being_told_and_forgotten() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "pro", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("relay.toml"), format!("[licence]\nserver = \"{}\"\n", vendor.url())).unwrap();
    assert_eq!(show(folder.path())["state"], "community");
    let activated = relay(folder.path(), &["activate", &key]);
    let text = said(&activated);
    assert!(activated.status.success() && text.starts_with("License: Pro  Expires: 20"), "{text}");
    assert!(text.contains("Agents: -/100") && text.contains("evaluation build"), "{text}");
    for name in ["license", "license.cache"] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
    // The server has gone: what was confirmed is known.
    drop(vendor);
    let shown = relay(folder.path(), &["show"]);
    let json = show(folder.path());
    assert_eq!((json["state"].as_str(), json["tier"].as_str()), (Some("good"), Some("pro")));
    for text in [&text, &said(&shown), &json.to_string()] {
        assert!(!text.contains(&key) && text.contains(&key[..11]), "{text}");
    }
    let forgotten = relay(folder.path(), &["deactivate"]);
    assert!(said(&forgotten).starts_with("License: Community"), "{}", said(&forgotten));
    assert!(!folder.path().join("license").exists());
    assert!(said(&relay(folder.path(), &["deactivate"])).starts_with("no licence was activated\n"));
}

#[test]
fn an_offline_licence_is_activated_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("acme.licence");
    std::fs::write(&file, offline(30)).unwrap();
    let activated = relay(folder.path(), &["activate", file.to_str().unwrap()]);
    assert!(said(&activated).starts_with("License: Enterprise  Expires: 20"), "{}", said(&activated));
    let shown = show(folder.path());
    assert_eq!((shown["offline"].as_bool(), shown["limits"]["maxAgents"].clone()), (Some(true), Value::Null));
    assert!(said(&activated).contains("messages  no limit"), "{}", said(&activated));
    // Its file is a secret, like the storage key's.
    let warned = || show(folder.path())["warnings"].to_string().contains("license can be read by others; chmod 600 ");
    assert!(!warned());
    std::fs::set_permissions(folder.path().join("license"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(warned());
    // A link in its place is not followed.
    let place = folder.path().join("license");
    std::fs::remove_file(&place).unwrap();
    std::os::unix::fs::symlink(&file, &place).unwrap();
    assert_eq!(show(folder.path())["state"], "unusable");
}

#[test]
fn what_is_no_licence_is_refused_with_a_sentence_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stranger = folder.path().join("stranger");
    let text = offline(30);
    let (payload, _) = text.split_once('.').unwrap();
    std::fs::write(&stranger, format!("{payload}.{}", "A".repeat(86))).unwrap();
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    std::fs::write(folder.path().join("other"), "Dear customer, attached is\nyour licence\n").unwrap();
    std::fs::write(folder.path().join("cut"), &text[..text.len() - 20]).unwrap();
    std::fs::write(folder.path().join("half"), &payload[..60]).unwrap();
    let neither = "holds neither a licence key nor a whole licence document (it may be cut off); copy the file again";
    let cases: [(&[&str], i32, &str); 14] = [
        (&["activate", "./empty"], 1, "./empty is empty: it holds no licence; the licence of before stays"),
        (&["activate", ""], 2, "needs a licence key"),
        (&["activate", "other"], 1, neither),
        (&["activate", "cut"], 1, neither),
        (&["activate", "half"], 1, neither),
        (&["activate", "ar_pro_0000000000000000_0000"], 1, "typing error"),
        (&["activate", "AR_PRO_0000000000000000_0000"], 1, "keys are written in lower case"),
        (&["activate", "ar_pro_00000"], 1, "characters where one of its tier has 28"),
        (&["activate", "ar_key_0123456789"], 1, "API key"),
        (&["activate", "nowhere.licence"], 1, "no file nowhere.licence"),
        (&["activate", stranger.to_str().unwrap()], 1, "does not bear the signature"),
        (&["activate"], 2, "needs a licence key"),
        (&["dance"], 2, "knows show, activate and deactivate"),
        (&["show", "twice"], 2, "no more"),
    ];
    for (line, code, words) in cases {
        let output = relay(folder.path(), line);
        assert!(output.status.code() == Some(code) && said(&output).contains(words), "{line:?}: {}", said(&output));
    }
    assert!(!folder.path().join("license").exists());
}

#[test]
fn a_good_licence_is_given_up_for_nothing_that_grants_less() {
    let vendor = Vendor::start();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let settings = |url: &str| std::fs::write(folder.join("relay.toml"), format!("[licence]\nserver = \"{url}\"\n"));
    settings(&vendor.url()).unwrap();
    let revoked = vendor.issue(&["--tier", "pro", "--days", "30"]);
    vendor.run(&["revoke", &revoked]);
    let unknown = agent_relay::licence::LicenceKey::from_random(agent_relay::base::tier::Tier::Team, 5).unwrap();
    let refused = |licence: &str, words: &str| {
        let output = relay(folder, &["activate", licence]);
        assert!(output.status.code() == Some(1) && said(&output).contains(words), "{}", said(&output));
    };
    refused(&revoked, "was revoked; ask whoever sold it to you; nothing was activated");
    refused(unknown.reveal(), "does not know this key");
    assert!(!folder.join("license").exists());
    let good = vendor.issue(&["--tier", "team", "--days", "30"]);
    assert!(relay(folder, &["activate", &good]).status.success());
    let kept = || ["license", "license.cache"].map(|name| std::fs::read(folder.join(name)).unwrap());
    let before = kept();
    refused(&revoked, "was revoked; ask whoever sold it to you; the licence of before stays");
    refused(unknown.reveal(), "newest one; the licence of before stays");
    std::fs::write(folder.join("empty"), "").unwrap();
    refused("./empty", "the licence of before stays");
    settings(&format!("http://{}", free_address())).unwrap();
    refused(unknown.reveal(), "cannot be confirmed now, because the licence server cannot be asked since");
    std::fs::remove_file(folder.join("relay.toml")).unwrap();
    refused(unknown.reveal(), "no licence server is set (licence.server in relay.toml); try again when it can");
    assert!(kept() == before && show(folder)["tier"] == "team");
    // The one that is there may be activated again: it was confirmed.
    assert!(relay(folder, &["activate", &good]).status.success());
}

#[test]
fn a_key_whose_server_is_away_is_kept_and_said_to_be_unconfirmed() {
    let folder = tempfile::tempdir().unwrap();
    let key = agent_relay::licence::LicenceKey::from_random(agent_relay::base::tier::Tier::Team, 5).unwrap();
    let settings = format!("[licence]\nserver = \"http://{}\"\n", free_address());
    std::fs::write(folder.path().join("relay.toml"), settings).unwrap();
    let activated = relay(folder.path(), &["activate", key.reveal()]);
    let text = said(&activated);
    assert!(
        activated.status.success() && text.contains("not been confirmed yet") && text.contains("cannot be asked"),
        "{text}"
    );
    let aside = String::from_utf8_lossy(&activated.stderr);
    assert!(aside.contains("activated but not confirmed") && aside.contains("the community tier counts"), "{aside}");
}

#[test]
fn the_vendors_tool_makes_keys_once_and_refuses_what_makes_no_sense() {
    let vendor = Vendor::start();
    let folder = vendor.folder.as_ref().unwrap().path().to_owned();
    let keygen = || program().args(["keygen", "--output", "new.key"]).current_dir(&folder).output().unwrap();
    let made = keygen();
    let text = std::fs::read_to_string(folder.join("new.key")).unwrap();
    let public = agent_relay::licence::SigningKey::parse(&text).unwrap().public();
    assert!(made.status.success() && said(&made).contains(&public.to_string()) && !said(&made).contains(text.trim()));
    assert_eq!(mode(&folder.join("new.key")), 0o600);
    assert!(said(&keygen()).contains("never overwritten"));
    let refused: [(&[&str], i32, &str); 11] = [
        (&["issue", "--tier", "gold", "--days", "3"], 2, "none of pro, team, enterprise"),
        (&["issue", "--tier", "community", "--days", "3"], 2, "none of pro, team, enterprise"),
        (&["issue", "--tier", "pro", "--days", "0"], 2, "from 1 to"),
        (&["issue", "--tier", "pro", "--days", "3", "--offline"], 2, "enterprise tier"),
        (&["issue", "--tier", "enterprise", "--days", "3", "--offline"], 2, "needs --signing-key"),
        (&["issue", "--tier", "pro", "--days", "3", "--agents", "0"], 2, "--agents must be"),
        (&["issue", "--tier", "pro", "--days", "3", "--retention", "unlimited"], 2, "up to 36500 days (90 when"),
        (&["issue", "--tier", "team", "--days", "3", "--retention", "36501"], 2, "for the enterprise tier"),
        (&["revoke", "17"], 1, "no such licence"),
        (&["revoke", "ar_pro_0000000000000000_0000"], 2, "typing error"),
        (&["dance"], 2, "dance"),
    ];
    for (line, code, words) in refused {
        let output = vendor.try_run(line);
        assert!(output.status.code() == Some(code) && said(&output).contains(words), "{line:?}: {}", said(&output));
    }
    vendor.run(&["issue", "--tier", "enterprise", "--days", "3", "--offline", "--signing-key", "key", "--output", "a"]);
    let document = std::fs::read_to_string(folder.join("a")).unwrap();
    let signed = agent_relay::licence::Signed::open(&document, evaluation().public()).unwrap();
    assert_eq!((signed.document().serial, signed.document().offline), (2, true));
    // What cannot be written is not registered either.
    for (output, words) in [("a", "never overwritten"), ("nowhere/a", "cannot be made")] {
        let line =
            ["issue", "--tier", "enterprise", "--days", "3", "--offline", "--signing-key", "key", "--output", output];
        let refused = vendor.try_run(&line);
        assert!(refused.status.code() == Some(1) && said(&refused).contains(words), "{}", said(&refused));
    }
    assert_eq!(vendor.list()["licences"].as_array().unwrap().len(), 2);
    assert!(vendor.run(&["revoke", "2"]).contains("goes on until its end"));
    assert!(vendor.run(&["list"]).contains("revoked"));
    // A mistyped folder is not taken for a registry without licences.
    let lines: [&[&str]; 3] = [
        &["list", "--db", "bd"],
        &["revoke", "1", "--db", "bd"],
        &["serve", "--listen", "127.0.0.1:0", "--signing-key", "key", "--db", "bd"],
    ];
    for line in lines {
        let output = program().args(line).current_dir(&folder).output().unwrap();
        assert!(output.status.code() == Some(1), "{line:?}: {}", said(&output));
        assert!(
            said(&output).contains("there is no registry in bd; `relay-license issue` makes one"),
            "{}",
            said(&output)
        );
    }
    assert!(!folder.join("bd").exists());
}
