//! Any text as relay.toml: no panic, and a refusal names a line that the file has and is one line of text itself.
#![no_main]

use agent_relay::daemon::settings::{Settings, SettingsError};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    let lines = 1 + text.bytes().filter(|byte| *byte == b'\n').count();
    let Err(error) = Settings::check_file(Path::new("relay.toml"), text) else { return };
    let line = match &error {
        SettingsError::Unknown { line, .. } | SettingsError::Misplaced { line, .. } => *line,
        SettingsError::Syntax { line, .. } => *line,
        SettingsError::Value { .. } => 1,
        other => panic!("a file's text alone is looked at: {other}"),
    };
    assert!((1..=lines).contains(&line), "line {line} of {lines}");
    assert!(!error.to_string().is_empty());
});
