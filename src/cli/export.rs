//! `relay export`: every stored message that is asked for, as JSON lines, the oldest first. Reads the store itself, beside
//! a running relay or without one, a page at a time.

use super::Failure;
use super::filter::Filter;
use super::print::{self, Progress};
use super::sharing::sharing;
use super::stored::{Missing, Place, Reader};
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

sharing! {
    [filter folder]
    /// Write stored messages as JSON lines, the oldest first, while the relay runs or while it does not.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "export",
        help_triggers("-h", "--help"),
        example = "relay export --output messages.jsonl
relay export --agent bob --since 7d | jq -r .text",
        note = "Each line is one message as `relay history --json` shows it, with data, metadata, recipients and state. It is for
other programs; `relay backup` makes what `relay restore` takes."
    )]
    pub(super) struct Export {
        /// jsonl, the only one so far
        #[argh(option, arg_name = "format", default = "String::from(\"jsonl\")")]
        format: String,
        /// a new file instead of standard output; one that exists is not overwritten
        #[argh(option, arg_name = "file")]
        output: Option<PathBuf>,
        /// file with the key of an encrypted store (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
    }
}

/// The cursor before every message.
const BEGINNING: &str = "0.0";
/// Messages read at once; a page is bounded in bytes as well.
const PAGE_MESSAGES: u32 = 500;

pub(super) fn run(command: &Export) -> Result<(), Failure> {
    if command.format != "jsonl" {
        return Err(Failure::Usage("--format: only jsonl is written".to_owned()));
    }
    let filter = command.filter()?;
    let place = Place::of(command.data_dir.as_deref(), command.global, command.db_key.as_deref())?;
    let mut progress = Progress::start();
    progress.show("reading the store …");
    let reader = Reader::open(&place)?;
    let missing = match &command.output {
        None => {
            let out = &mut BufWriter::new(io::stdout().lock());
            let (_, missing) = export(&reader, &filter, out, &mut progress, "the output")?;
            drop(progress);
            missing
        }
        Some(path) => {
            let name = path.display().to_string();
            let failed = |error: io::Error| Failure::Failed(format!("cannot write {name}: {error}"));
            let file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
            let (count, missing) = export(&reader, &filter, &mut BufWriter::new(&file), &mut progress, &name)?;
            file.sync_all().map_err(failed)?;
            drop(progress);
            print::out(&format!("{} written to {}\n", print::count(count, "message"), print::clean(&name)))?;
            missing
        }
    };
    // What was written is good; but whoever goes by the exit code is not to take it for everything.
    missing.damage().map_or(Ok(()), |sentence| Err(Failure::Failed(sentence)))
}

fn export(
    reader: &Reader,
    filter: &Filter,
    out: &mut impl Write,
    progress: &mut Progress,
    name: &str,
) -> Result<(u64, Missing), Failure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Failed(format!("cannot write {name}: {error}")),
    };
    let mut question = filter.as_json();
    question["limit"] = PAGE_MESSAGES.into();
    question["after"] = BEGINNING.into();
    let (mut count, mut missing) = (0u64, Missing::default());
    loop {
        let mut answer = reader.ask(QueryKind::History, &question)?;
        missing.note(&answer);
        let Value::Array(messages) = answer["messages"].take() else { break };
        // A page of damage alone is not the end.
        if messages.is_empty() && answer["damaged"].is_null() {
            break;
        }
        for message in &messages {
            // A very long one is cut on a page, and whole by itself.
            let whole = match message["text_truncated"] == true {
                true => Some(reader.ask(QueryKind::Message, &serde_json::json!({ "id": message["id"] }))?),
                false => None,
            };
            writeln!(out, "{}", print::json_text(whole.as_ref().unwrap_or(message))).map_err(failed)?;
        }
        count += messages.len() as u64;
        progress.show(&format!("{count} messages exported …"));
        let next = answer["next"].take();
        if next.is_null() || next == question["after"] {
            break;
        }
        question["after"] = next;
    }
    out.flush().map_err(failed)?;
    Ok((count, missing))
}
