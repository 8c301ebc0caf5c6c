//! `relay read`: one message, and what became of it.

use super::Failure;
use super::print::{self, Style, cell};
use super::sharing::sharing;
use super::stored::Source;
use crate::base::limits::LABEL_BYTES_MAX;
use crate::base::name::check_agent;
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;
use std::path::PathBuf;

sharing! {
    [reach]
    /// Show one message in full and what became of it at each recipient.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "read",
        help_triggers("-h", "--help"),
        example = "relay read 4f1c
relay read 4f1c2b9a --json
relay read --from alice 0b8e7a52-6f0c-4c55-9d0e-0a3d6a1f2b47",
        note = "With --from the id is the one that the sender has given the message itself; of one that was not accepted the reason is
shown. Messages are kept as long as the retention time says; `relay history` lists them. While the relay is off its store
is read."
    )]
    pub(super) struct Read {
        /// the message's id, or the beginning of it as long as no other message has the same; with --from the sender's own
        /// id, in full
        #[argh(positional)]
        id: String,
        /// the sender, by whose own id the message is looked for
        #[argh(option, arg_name = "name")]
        from: Option<String>,
        /// file with the key of an encrypted store that is read while the relay is off (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Read) -> Result<(), Failure> {
    let question = question(&command.id, command.from.as_deref())?;
    let place = (command.data_dir.as_deref(), command.global);
    let source = Source::of(command.reach()?, place, command.db_key.as_deref())?;
    let message = source.ask(QueryKind::Message, &question)?;
    if command.json { print::json(&message) } else { print::out(&describe(&message, Style::of_output())) }
}

/// What is asked for: by our own id, or by the sender's.
fn question(id: &str, from: Option<&str>) -> Result<Value, Failure> {
    if let Some(from) = from {
        check_agent(from.as_bytes()).map_err(|error| Failure::Usage(format!("--from: {error}")))?;
        return match id.len() {
            1..=LABEL_BYTES_MAX => Ok(serde_json::json!({ "from": from, "label": id })),
            _ => Err(Failure::Usage(format!("a sender's own id is 1 to {LABEL_BYTES_MAX} bytes long"))),
        };
    }
    let lower = id.to_ascii_lowercase();
    if lower.is_empty() || lower.len() > 32 || !lower.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::Usage(
            "an id is up to 32 hexadecimal digits, as `relay send` and `relay listen` show it; by the sender's own id: \
             `relay read --from NAME ID`"
                .to_owned(),
        ));
    }
    Ok(serde_json::json!({ "id": lower }))
}

fn describe(message: &Value, style: Style) -> String {
    let mut text = String::new();
    for (name, key) in [
        ("id", "id"),
        ("from", "from"),
        ("to", "to"),
        ("topic", "topic"),
        ("thread", "thread"),
        ("sent", "sent_at"),
        ("state", "state"),
        ("reason", "reason"),
    ] {
        if message[key].as_str().is_some_and(|value| !value.is_empty()) {
            text += &format!("{name:<8}{}\n", cell(&message[key]));
        }
    }
    for (name, key) in [("data", "data"), ("meta", "meta")] {
        if !message[key].is_null() {
            text += &format!("{name:<8}{}\n", print::clean(&message[key].to_string()));
        }
    }
    if let Some(body) = message["text"].as_str() {
        text += &format!("\n{}\n", print::clean_text(body.trim_end_matches('\n')));
    }
    let recipients = message["recipients"].as_array().map_or(&[][..], Vec::as_slice);
    if !recipients.is_empty() {
        let rows = recipients
            .iter()
            .map(|recipient| {
                let sequence = &recipient["sequence"];
                let place = format!("{}.{}", cell(&sequence["epoch"]), cell(&sequence["counter"]));
                vec![cell(&recipient["name"]), cell(&recipient["state"]), place, cell(&recipient["reason"])]
            })
            .collect();
        text += &format!("\n{}", style.table(&["RECIPIENT", "STATE", "PLACE", "REASON"], rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_shown_in_full_and_harmless() {
        let message = serde_json::json!({
            "id": "4f1c", "from": "alice", "to": "bob", "topic": "", "thread": "t", "sent_at": "2026-11-21T10:00:00Z",
            "text": "one\ntwo\u{1b}[2J", "data": { "a": 1 }, "meta": null, "state": "acknowledged",
            "recipients": [{ "name": "bob", "state": "acknowledged", "sequence": { "epoch": 1, "counter": 9 }, "reason": null }],
        });
        insta::assert_snapshot!(describe(&message, Style::plain()));
    }

    #[test]
    fn what_was_refused_says_why() {
        let refused = serde_json::json!({ "id": "4f1c", "state": "refused", "reason": "not_found", "recipients": [] });
        assert_eq!(describe(&refused, Style::plain()), "id      4f1c\nstate   refused\nreason  not_found\n");
    }

    #[test]
    fn a_message_is_asked_for_by_our_id_or_by_the_senders_own() {
        let uuid = "0b8e7a52-6f0c-4c55-9d0e-0a3d6a1f2b47";
        assert_eq!(question("4F1C", None).unwrap(), serde_json::json!({ "id": "4f1c" }));
        assert_eq!(question(uuid, Some("ann")).unwrap(), serde_json::json!({ "from": "ann", "label": uuid }));
        for (id, from, part) in
            [(uuid, None, "--from NAME ID"), ("", Some("ann"), "1 to 256"), ("x", Some(""), "--from")]
        {
            match question(id, from) {
                Err(Failure::Usage(text)) => assert!(text.contains(part), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
