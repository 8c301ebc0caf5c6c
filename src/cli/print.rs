//! The terminal's only door: tables for people on a terminal, aligned text otherwise, JSON for programs. Whatever a peer
//! wrote is shown with its control characters spelled out, so that no message can drive somebody's terminal.

use super::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// Writes text to standard output.
pub(super) fn out(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Failed(format!("cannot write the output: {error}")),
    })
}

/// Writes a remark to standard error: the output stays what a program can read.
pub(super) fn note(text: &str) {
    eprintln!("relay: {}", clean_text(text));
}

/// Prints one JSON value, indented.
pub(super) fn json(value: &serde_json::Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    out(&format!("{}\n", safe_json(&text)))
}

/// Prints one JSON value on one line.
pub(super) fn json_line(value: &serde_json::Value) -> Result<(), Failure> {
    out(&format!("{}\n", json_text(value)))
}

/// One JSON value on one line, harmless to a terminal.
pub(super) fn json_text(value: &serde_json::Value) -> String {
    safe_json(&value.to_string()).into_owned()
}

/// The same JSON with characters that could drive a terminal as \u escapes: what a program reads does not change.
fn safe_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|character| character != '\n' && is_hostile(character)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if character != '\n' && is_hostile(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// One line of a peer's text: control characters, line breaks and characters that turn text around are spelled out.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    clean_except(text, &[])
}

/// A peer's text of several lines: line breaks and tabs stay.
pub(super) fn clean_text(text: &str) -> Cow<'_, str> {
    clean_except(text, &['\n', '\t'])
}

fn clean_except<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let hostile = |character: char| is_hostile(character) && !kept.contains(&character);
    if !text.chars().any(hostile) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if hostile(character) { safe.extend(character.escape_unicode()) } else { safe.push(character) }
    }
    // The three that everybody knows by their short names.
    Cow::Owned(safe.replace("\\u{a}", "\\n").replace("\\u{9}", "\\t").replace("\\u{d}", "\\r"))
}

/// Control characters (escape sequences begin with them), characters that change the direction of text, and invisible
/// ones. The two joiners stay: scripts and emoji need them.
fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(character as u32,
            0xAD | 0x61C | 0x180E | 0x200B | 0x200E | 0x200F | 0x2028..=0x202E | 0x2060..=0x206F
            | 0xFEFF | 0xFFF9..=0xFFFB | 0xE0000..=0xE007F)
}

/// What standard output is.
#[derive(Clone, Copy)]
pub(super) struct Style {
    /// A person looks at it.
    pub(super) terminal: bool,
    colour: bool,
    columns: Option<u16>,
}

impl Style {
    /// That of this process.
    pub(super) fn of_output() -> Style {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let columns =
            rustix::termios::tcgetwinsize(&stdout).ok().map(|size| size.ws_col).filter(|columns| *columns > 20);
        Style { terminal, colour: terminal && !dumb && !set("NO_COLOR"), columns }
    }

    /// Neither terminal nor colour.
    #[cfg(test)]
    pub(super) fn plain() -> Style {
        Style { terminal: false, colour: false, columns: None }
    }

    /// `text` in a colour (an SGR number), where there are colours.
    pub(super) fn coloured(self, sgr: u8, text: &str) -> String {
        if self.colour { format!("\u{1b}[{sgr}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// A table; cells must be clean already.
    pub(super) fn table(self, head: &[&str], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        if self.terminal {
            table.load_style(presets::UTF8_FULL_CONDENSED);
            if let Some(columns) = self.columns {
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
            }
        } else {
            table.load_style(presets::NOTHING);
        }
        table.set_header(head.to_vec());
        table.add_rows(rows);
        if self.terminal {
            return format!("{table}\n");
        }
        // Aligned text: no padding at either end, so that cut, awk and eyes agree.
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        let indent = lines.iter().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        lines.iter().fold(String::new(), |all, line| all + &line[indent..] + "\n")
    }
}

/// A member of an answer as clean text; `-` when it is absent, null or empty.
pub(super) fn cell(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) if !text.is_empty() => clean(text).into_owned(),
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::Bool(truth) => truth.to_string(),
        serde_json::Value::Array(items) if !items.is_empty() => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        _ => "-".to_owned(),
    }
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// So many of something that has a plural in s.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Seconds for people: the two largest units.
pub(super) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// How long ago an RFC 3339 time was; the text itself (cleaned) when it is none.
pub(super) fn ago(time: &serde_json::Value) -> String {
    let Some(text) = time.as_str() else { return "-".to_owned() };
    match text.parse::<jiff::Timestamp>() {
        Ok(then) => {
            let seconds = jiff::Timestamp::now().as_second().saturating_sub(then.as_second());
            if seconds <= 0 { "now".to_owned() } else { format!("{} ago", span(seconds.unsigned_abs())) }
        }
        Err(_) => clean(text).into_owned(),
    }
}

/// Progress of long work: one line on standard error, rewritten in place, only when a person looks.
pub(super) struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    /// Nothing shown yet.
    pub(super) fn start() -> Progress {
        Progress { shown: false, terminal: io::stderr().is_terminal() }
    }

    /// Replaces the line.
    pub(super) fn show(&mut self, text: &str) {
        if self.terminal {
            self.shown = true;
            eprint!("\r\u{1b}[K{}", clean(text));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_peer_writes_can_drive_a_terminal() {
        let cases = [
            ("plain, 日本 and 🦀", "plain, 日本 and 🦀"),
            ("\u{1b}]0;owned\u{7}", "\\u{1b}]0;owned\\u{7}"),
            ("a\rb", "a\\rb"),
            ("one\ntwo", "one\\ntwo"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("user\u{202e}gpj.exe", "user\\u{202e}gpj.exe"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
            ("👩\u{200d}💻", "👩\u{200d}💻"),
        ];
        for (text, safe) in cases {
            assert_eq!(clean(text), safe, "{text:?}");
        }
        assert_eq!(clean_text("one\n\ttwo\u{1b}"), "one\n\ttwo\\u{1b}");
    }

    #[test]
    fn json_keeps_its_value_and_loses_its_teeth() {
        let value = serde_json::json!({ "text": "\u{9b}2J\u{202e}\u{e0041}\u{7f}" });
        let safe = safe_json(&value.to_string()).into_owned();
        assert!(safe.is_ascii(), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    #[test]
    fn without_a_terminal_a_table_is_aligned_text_without_colour() {
        let style = Style::plain();
        let text = style
            .table(&["NAME", "STATE"], vec![vec!["alice".into(), "live".into()], vec!["bo".into(), "away".into()]]);
        assert_eq!(text, "NAME   STATE\nalice  live\nbo     away\n");
        assert_eq!(style.coloured(31, "fail"), "fail");
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!((bytes(17), bytes(1536), bytes(1 << 30)), ("17 B".into(), "1.5 KiB".into(), "1.0 GiB".into()));
        assert_eq!(
            (span(59), span(61), span(3_700), span(90_000)),
            ("59 s".into(), "1 min 1 s".into(), "1 h 1 min".into(), "1 d 1 h".into())
        );
    }
}
