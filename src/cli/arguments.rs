//! What argh does not do: `--x=y`, no command meaning `up`, `-` for standard input, and kind words about flags and
//! commands that do not exist. Decides nothing else.

use super::{Failure, Relay};
use crate::daemon::settings_file::edit_distance;
use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfoKind};

/// Flags of `up` that are the product's but not this version's: refused, so that nobody believes they work.
const NOT_YET: &[(&str, &str)] = &[("--http", "there is no dashboard and no HTTP API yet")];

/// The arguments in the form that argh reads.
pub(super) fn normalise(arguments: &[String]) -> Result<Vec<String>, Failure> {
    let known = Relay::get_args_info();
    let Some(first) = arguments.first() else {
        let help = match super::parse(&["--help".to_owned()])? {
            super::Parsed::Help(text) => text,
            super::Parsed::Command(_) => String::new(),
        };
        return Err(Failure::Usage(format!("say what to do.\n\n{help}")));
    };
    if matches!(first.as_str(), "--help" | "-h" | "help") {
        return help(&known, Vec::new(), &arguments[1..]);
    }
    let (command, mut rest) =
        if first.starts_with('-') { ("up", arguments) } else { (first.as_str(), &arguments[1..]) };
    let mut command = command_named(&known, "relay", command)?;
    let mut normal = vec![command.name.to_owned()];
    // `relay keys list`: a command of commands has no flags of its own.
    while !command.command.commands.is_empty() {
        let title = format!("relay {}", normal.join(" "));
        let Some((name, behind)) = rest.split_first() else {
            return Err(Failure::Usage(format!("say what to do.\nRun `{title} --help` for the list.")));
        };
        if matches!(name.as_str(), "--help" | "-h" | "help") {
            return help(&command.command, normal, behind);
        }
        if name.starts_with('-') {
            return Err(Failure::Usage(format!("`{title}` needs a command before {name}.\nRun `{title} --help`.")));
        }
        command = command_named(&command.command, &title, name)?;
        normal.push(command.name.to_owned());
        rest = behind;
    }
    let title = format!("relay {}", normal.join(" "));
    normal.extend(flags(command, &title, rest)?);
    Ok(normal)
}

/// `relay help keys list` is `relay keys list --help`.
fn help(known: &CommandInfoWithArgs, mut normal: Vec<String>, names: &[String]) -> Result<Vec<String>, Failure> {
    let mut known = known;
    for name in names {
        // What follows a command without commands is no business of its help.
        if known.commands.is_empty() {
            break;
        }
        let title = ["relay"].into_iter().chain(normal.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        let command = command_named(known, &title, name)?;
        normal.push(command.name.to_owned());
        known = &command.command;
    }
    normal.push("--help".to_owned());
    Ok(normal)
}

/// The command that normal arguments are for, in full: `relay keys list`.
pub(super) fn title(arguments: &[String]) -> String {
    let mut known = Relay::get_args_info();
    let mut title = "relay".to_owned();
    for name in arguments {
        let Some(at) = known.commands.iter().position(|command| command.name == name) else { break };
        title = format!("{title} {name}");
        known = known.commands.swap_remove(at).command;
    }
    title
}

fn command_named<'a>(
    known: &'a CommandInfoWithArgs,
    title: &str,
    name: &str,
) -> Result<&'a argh::SubCommandInfo, Failure> {
    if let Some(command) = known.commands.iter().find(|command| command.name == name) {
        return Ok(command);
    }
    let nearest = known.commands.iter().min_by_key(|command| edit_distance(name, command.name));
    let hint = match nearest {
        Some(nearest) if edit_distance(name, nearest.name) <= 2 => format!(" Did you mean `{title} {}`?", nearest.name),
        _ => String::new(),
    };
    let place = if title == "relay" { String::new() } else { format!(" of `{title}`") };
    Err(Failure::Usage(format!("there is no command \"{name}\"{place}.{hint}\nRun `{title} --help` for the list.")))
}

fn flags(command: &argh::SubCommandInfo, title: &str, rest: &[String]) -> Result<Vec<String>, Failure> {
    let kind_of = |name: &str| {
        let flag = command.command.flags.iter().find(|flag| flag.long == name)?;
        Some(matches!(flag.kind, FlagInfoKind::Option { .. }))
    };
    let mut normal = Vec::with_capacity(rest.len());
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            normal.push(argument.clone());
            normal.extend(rest.cloned());
            break;
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (argument.as_str(), None),
        };
        if let Some((flag, reason)) = NOT_YET.iter().find(|(flag, _)| command.name == "up" && *flag == name) {
            return Err(Failure::Usage(format!("{flag} is not in this version: {reason}")));
        }
        match (kind_of(name), value) {
            (Some(true), Some(value)) => normal.extend([name.to_owned(), value.to_owned()]),
            (Some(false), Some(_)) => return Err(Failure::Usage(format!("{name} takes no value"))),
            (Some(true), None) => {
                normal.push(name.to_owned());
                normal.extend(rest.next().cloned());
            }
            // argh would take a lone dash for a flag; no body at all means standard input as well.
            (None, None) if name == "-" && command.name == "send" => {}
            (None, _) if name.starts_with("--") && argument != "--help" => {
                return Err(unknown_flag(command, title, name));
            }
            _ => normal.push(argument.clone()),
        }
    }
    Ok(normal)
}

fn unknown_flag(command: &argh::SubCommandInfo, title: &str, name: &str) -> Failure {
    let nearest = command.command.flags.iter().map(|flag| flag.long).min_by_key(|flag| edit_distance(name, flag));
    let hint = match nearest {
        Some(nearest) if edit_distance(name, nearest) <= 2 => format!(" Did you mean {nearest}?"),
        _ => String::new(),
    };
    Failure::Usage(format!("`{title}` has no flag {name}.{hint}\nRun `{title} --help` for the list."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(line: &[&str]) -> Vec<String> {
        normalise(&line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn refusal(line: &[&str]) -> String {
        match normalise(&line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()) {
            Err(Failure::Usage(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_without_a_command_mean_up() {
        assert_eq!(normal(&["--cores", "2"]), ["up", "--cores", "2"]);
        assert_eq!(normal(&["--cores=2"]), ["up", "--cores", "2"]);
    }

    #[test]
    fn an_equals_sign_splits_flags_and_nothing_else() {
        assert_eq!(
            normal(&["send", "--to=bob", "--thread", "--a=b", "x=y"]),
            ["send", "--to", "bob", "--thread", "--a=b", "x=y"]
        );
        assert_eq!(normal(&["send", "--", "--to=bob"]), ["send", "--", "--to=bob"]);
        assert_eq!(refusal(&["status", "--json=yes"]), "--json takes no value");
    }

    #[test]
    fn help_may_stand_before_or_after_the_command() {
        assert_eq!(normal(&["help", "send"]), ["send", "--help"]);
        assert_eq!(normal(&["--help", "send"]), ["send", "--help"]);
        assert_eq!(normal(&["send", "--help"]), ["send", "--help"]);
        assert_eq!(normal(&["-h"]), ["--help"]);
        for line in [["help", "keys", "list"], ["keys", "help", "list"], ["keys", "list", "--help"]] {
            assert_eq!(normal(&line), ["keys", "list", "--help"]);
        }
        assert_eq!(normal(&["keys", "-h"]), ["keys", "--help"]);
    }

    #[test]
    fn a_command_of_commands_is_read_like_any_other() {
        assert_eq!(normal(&["keys", "create", "--name=a", "--json"]), ["keys", "create", "--name", "a", "--json"]);
        assert_eq!(refusal(&["keys"]), "say what to do.\nRun `relay keys --help` for the list.");
        assert!(
            refusal(&["keys", "lst"]).contains("no command \"lst\" of `relay keys`. Did you mean `relay keys list`?")
        );
        assert!(
            refusal(&["keys", "list", "--jsn"]).contains("`relay keys list` has no flag --jsn. Did you mean --json?")
        );
        assert_eq!(title(&normal(&["keys", "list", "--json"])), "relay keys list");
        assert_eq!(title(&normal(&["send", "keys"])), "relay send");
        assert!(refusal(&["keys", "--json", "list"]).contains("`relay keys` needs a command before --json"));
    }

    #[test]
    fn a_dash_is_standard_input_and_the_word_help_is_a_body() {
        assert_eq!(normal(&["send", "--to", "bob", "-"]), ["send", "--to", "bob"]);
        let line = normal(&["send", "--from", "a", "--to", "b", "help"]);
        let Ok(super::super::Parsed::Command(command)) = super::super::parse(&line) else { panic!("{line:?}") };
        assert!(matches!(*command, super::super::Command::Send(_)));
    }

    #[test]
    fn what_does_not_exist_is_named_with_what_might_be_meant() {
        assert!(refusal(&["stauts"]).contains("Did you mean `relay status`?"));
        assert!(refusal(&["licence"]).starts_with("there is no command \"licence\". Did you mean `relay license`?\n"));
        assert!(refusal(&["frobnicate"]).starts_with("there is no command \"frobnicate\".\n"));
        assert!(refusal(&["status", "--verbos"]).contains("Did you mean --verbose?"));
        assert!(refusal(&["--http=127.0.0.1:1"]).contains("not in this version"));
    }
}
