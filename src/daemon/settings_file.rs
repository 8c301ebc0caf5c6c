//! relay.toml to keys, values and lines. Knows which keys exist; decides nothing about values.

use super::settings::{RECORDS, SettingsError, Shape};
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One key of the file.
#[derive(Debug)]
pub(super) struct FileValue {
    pub(super) key: String,
    pub(super) values: Vec<String>,
    pub(super) path: PathBuf,
    pub(super) line: usize,
}

/// Keys of later versions: told apart from typing errors.
const NOT_YET: &[&str] = &["http"];

/// Keys of earlier versions, and what became of them.
const GONE: &[(&str, &str)] = &[
    ("limits.waiting_messages", "it is called limits.owed_messages now"),
    ("limits.history_bytes", "past messages are kept in the store now, as long as retention.days says"),
];

/// Reads the whole file; the first unknown key ends it.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<FileValue>, SettingsError> {
    let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
        path: path.display().to_string(),
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut found = Vec::new();
    collect(&File { path, text }, "", table.get_ref(), &mut found)?;
    Ok(found)
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

fn collect(
    file: &File<'_>,
    prefix: &str,
    table: &DeTable<'_>,
    found: &mut Vec<FileValue>,
) -> Result<(), SettingsError> {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let line = line_at(file.text, name.span().start);
        let path = || file.path.display().to_string();
        if NOT_YET.contains(&key.as_str()) {
            let reason = "it is not in this version".to_owned();
            return Err(SettingsError::Misplaced { path: path(), line, key, reason });
        }
        if let Some((_, reason)) = GONE.iter().find(|(gone, _)| *gone == key) {
            return Err(SettingsError::Misplaced { path: path(), line, key, reason: (*reason).to_owned() });
        }
        let record = RECORDS.iter().find(|record| record.key == key);
        // Tables are one deep, so this recursion is as well.
        if let (None, DeValue::Table(inner)) = (record, value.get_ref()) {
            let inner_prefix = format!("{key}.");
            if RECORDS.iter().any(|record| record.key.starts_with(&inner_prefix)) {
                collect(file, &inner_prefix, inner, found)?;
                continue;
            }
        }
        let Some(record) = record else {
            let hint = nearest(&key).map_or_else(String::new, |nearest| format!(" (did you mean \"{nearest}\"?)"));
            return Err(SettingsError::Unknown { path: path(), line, key, hint });
        };
        if !record.in_file {
            let reason = match record.shape {
                Shape::Licence => "it is the machine's and not the project's; `relay license activate KEY` keeps it",
                _ => "this file is found through it; use the flag or the variable",
            };
            let reason = reason.to_owned();
            return Err(SettingsError::Misplaced { path: path(), line, key, reason });
        }
        found.push(FileValue { key, values: texts(value), path: file.path.to_path_buf(), line });
    }
    Ok(())
}

/// A value as text; what no setting takes becomes a text that no check lets through.
fn texts(value: &Spanned<DeValue<'_>>) -> Vec<String> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().flat_map(texts).collect(),
        DeValue::String(text) => vec![text.to_string()],
        // TOML writes 65_536 and 0x1000 as well.
        DeValue::Integer(integer) => {
            vec![
                i128::from_str_radix(integer.as_str(), integer.radix())
                    .map_or_else(|_| integer.as_str().to_owned(), |number| number.to_string()),
            ]
        }
        DeValue::Boolean(truth) => vec![truth.to_string()],
        DeValue::Float(_) => vec!["a fraction".to_owned()],
        DeValue::Datetime(_) => vec!["a date".to_owned()],
        DeValue::Table(_) => vec!["a table".to_owned()],
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn nearest(key: &str) -> Option<&'static str> {
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |record: &str| edit_distance(key, record).min(edit_distance(&last(key), &last(record)));
    RECORDS.iter().map(|record| record.key).min_by_key(|record| distance(record)).filter(|record| distance(record) <= 3)
}

/// Single-character edits between two short texts (Levenshtein); long ones count as far apart.
pub(crate) fn edit_distance(one: &str, other: &str) -> usize {
    if one.len().max(other.len()) > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (above, left) in one.chars().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (column, right) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}
