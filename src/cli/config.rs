//! `relay config`: every setting, its value and where that came from.

use super::print::{self, Style};
use super::sharing::sharing;
use super::{Failure, up};
use crate::daemon::paths::Place;
use crate::daemon::settings::{DAYS_MAX, Flags, Resolved, Settings, Shape, UNLIMITED};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};
use std::path::PathBuf;

sharing! {
    [place]
    /// Print every setting with its value, where it came from, its unit, default and bounds.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "config",
        help_triggers("-h", "--help"),
        example = "relay config
relay config --config ./relay.toml --json",
        note = "Precedence: flag, environment, relay.toml, default. A running relay keeps the settings it started with:
every change needs a restart."
    )]
    pub(super) struct Config {
        /// print one JSON value
        #[argh(switch)]
        json: bool,
        /// settings file instead of relay.toml in the project folder
        #[argh(option, arg_name = "file")]
        config: Option<PathBuf>,
    }
}

pub(super) fn run(command: Config) -> Result<(), Failure> {
    let place = Place { data_dir: command.data_dir, socket: command.socket, global: command.global };
    let settings = up::settings(&Flags { place, config: command.config, values: Vec::new() })?;
    if command.json {
        return print::json(&as_json(&settings));
    }
    let rows = settings.resolved.iter().map(row).collect();
    let head = ["SETTING", "VALUE", "UNIT", "FROM", "DEFAULT", "BOUNDS"];
    let file = match &settings.file {
        Some(path) => format!("settings file: {}\n", path.display()),
        None => format!("settings file: none (would be {})\n", settings.layout.settings_file().display()),
    };
    print::out(&format!("{}{file}", Style::of_output().table(&head, rows)))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { print::clean(text).into_owned() }
}

fn row(setting: &Resolved) -> Vec<String> {
    let bounds = match setting.record.shape {
        Shape::Number { min, max } => format!("{min} to {max}"),
        Shape::Choice(words) => words.join("|"),
        Shape::Path => "a path".to_owned(),
        Shape::Addresses => "addresses".to_owned(),
        Shape::Days => format!("1 to {DAYS_MAX}, or {UNLIMITED}"),
        Shape::Key => "a key file".to_owned(),
        Shape::Switch => "true|false".to_owned(),
        Shape::Url => "a URL".to_owned(),
        Shape::Licence => "a licence".to_owned(),
    };
    vec![
        setting.record.key.to_owned(),
        or_dash(&setting.values.join(", ")),
        or_dash(setting.record.unit),
        print::clean(&setting.source.to_string()).into_owned(),
        or_dash(&setting.default),
        bounds,
    ]
}

fn as_json(settings: &Settings) -> Value {
    let entries: Vec<Value> = settings
        .resolved
        .iter()
        .map(|setting| {
            let record = setting.record;
            let typed = |text: &str| match record.shape {
                Shape::Number { .. } => text.parse::<u64>().map_or(Value::Null, Value::from),
                // A number, or the word for no end.
                Shape::Days => text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from),
                _ => Value::from(text),
            };
            let value = match record.shape {
                Shape::Addresses => json!(setting.values),
                _ => setting.values.first().map_or(Value::Null, |value| typed(value)),
            };
            let default = if setting.default.is_empty() { Value::Null } else { typed(&setting.default) };
            let mut entry = json!({
                "key": record.key, "value": value, "source": setting.source.to_string(), "unit": record.unit,
                "default": default, "restart": true, "environment": record.environment, "flag": record.flag,
                "sentence": record.sentence,
            });
            match record.shape {
                Shape::Number { min, max } => {
                    entry["minimum"] = json!(min);
                    entry["maximum"] = json!(max);
                }
                Shape::Days => {
                    entry["minimum"] = json!(1);
                    entry["maximum"] = json!(DAYS_MAX);
                }
                Shape::Choice(words) => entry["choices"] = json!(words),
                Shape::Path | Shape::Addresses | Shape::Key | Shape::Switch | Shape::Url | Shape::Licence => {}
            }
            entry
        })
        .collect();
    json!({ "file": settings.file, "settings": entries, "warnings": settings.warnings })
}
