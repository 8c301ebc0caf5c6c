//! JSON text: checking it (by serde_json), cutting it into members without copying, and writing it.
//! Nothing here recurses, so depth costs no stack.

use crate::wire::Text;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// How deep members that the relay passes on may be nested. Recipients' parsers recurse; ours does not.
pub(super) const DEPTH_MAX: usize = 128;

/// Whether `text` is one JSON value and nothing else.
pub(super) fn check(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<IgnoredAny>(text).map(|_| ())
}

/// `bytes` as the text of a JSON object, if they are one.
pub(super) fn object(bytes: &[u8]) -> Option<&str> {
    let text = trim(std::str::from_utf8(bytes).ok()?);
    (text.starts_with('{') && check(text).is_ok()).then_some(text)
}

/// `text` without the white space that JSON allows around a value.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

/// The members of an object, key and value each as they stand in the text. The text must have passed [`check`]; on any
/// other text the cut is somewhere, but it never panics.
pub(super) struct Members<'t> {
    rest: &'t str,
}

impl<'t> Members<'t> {
    /// The members of `object`; none when it is another kind of value.
    pub(super) fn of(object: &'t str) -> Members<'t> {
        Members { rest: trim(object).strip_prefix('{').unwrap_or("") }
    }
}

impl<'t> Iterator for Members<'t> {
    type Item = (&'t str, &'t str);

    fn next(&mut self) -> Option<(&'t str, &'t str)> {
        let rest = behind(self.rest, b',');
        if !rest.starts_with('"') {
            return None;
        }
        let (key, rest) = rest.split_at_checked(string_end(rest.as_bytes(), 0))?;
        let rest = behind(rest, b':');
        let (value, rest) = rest.split_at_checked(value_end(rest.as_bytes()))?;
        self.rest = rest;
        Some((key, value))
    }
}

/// `text` behind white space and `mark`s: both are ASCII, so what is left begins with a character.
fn behind(text: &str, mark: u8) -> &str {
    let skipped = text.bytes().take_while(|byte| *byte == mark || is_space(char::from(*byte))).count();
    &text[skipped..]
}

/// Where the string that starts at `start` ends, its closing quote included.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        at += plain_length(rest);
        match bytes.get(at) {
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// How many bytes at the start need no escape in a JSON string: eight at a time, since bodies are long.
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    const QUOTES: u64 = ONES * b'"' as u64;
    const BACKSLASHES: u64 = ONES * b'\\' as u64;
    // The classic test for a zero byte: exact for the lowest one, which is all that is asked for.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & TOPS;
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word & TOPS;
        let found = control | zeros(word ^ QUOTES) | zeros(word ^ BACKSLASHES);
        if found != 0 {
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &u8| ESCAPES[usize::from(*byte)] == 0;
    bytes.len() - tail.len() + tail.iter().take_while(|byte| is_plain(byte)).count()
}

fn value_end(bytes: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at = string_end(bytes, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return at + depth,
            b'}' | b']' => depth -= 1,
            b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// Whether `value` is nested more than `levels` deep.
pub(super) fn too_deep(value: &str, levels: usize) -> bool {
    let bytes = value.as_bytes();
    if bytes.len() <= levels {
        return false;
    }
    let (mut depth, mut at) = (0usize, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at = string_end(bytes, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > levels {
            return true;
        }
        at += 1;
    }
    false
}

/// The string that `value` is; `None` when it is another kind of value. A lone surrogate becomes U+FFFD.
pub(super) fn string(value: &str) -> Option<Text<'_>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    Some(if inner.contains('\\') { Cow::Owned(unescape(inner)) } else { Cow::Borrowed(inner) })
}

/// What a key says, however it is spelled: `"body"` and `"bod\u0079"` are the same member to every reader.
pub(super) fn name(key: &str) -> Text<'_> {
    string(key).unwrap_or(Cow::Borrowed(key))
}

/// The number that `value` is; digits beyond a double's are rounded, as JavaScript does.
pub(super) fn number(value: &str) -> Option<f64> {
    value.starts_with(|first: char| first == '-' || first.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

fn unescape(inner: &str) -> String {
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        out.push_str(plain);
        let Some(letter) = escape.as_bytes().get(1) else { return out };
        let simple = match letter {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (character, used) = unicode(escape);
                out.push(character);
                rest = escape.get(used..).unwrap_or("");
                continue;
            }
            other => char::from(*other),
        };
        out.push(simple);
        rest = escape.get(2..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// The character of an escape `\uXXXX` or a pair of them, and how many bytes it took.
fn unicode(escape: &str) -> (char, usize) {
    let unit = |at: usize| {
        let digits = escape.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let Some(first) = unit(0) else { return (char::REPLACEMENT_CHARACTER, escape.len()) };
    if let (0xD800..=0xDBFF, Some(second @ 0xDC00..=0xDFFF)) = (first, unit(6)) {
        let combined = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        return (char::from_u32(combined).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

/// Where JSON text goes: a send buffer, or a count of what would go there.
pub(super) trait Sink {
    /// Appends `bytes`.
    fn put(&mut self, bytes: &[u8]);

    /// Appends `value` in decimal digits.
    fn put_number(&mut self, mut value: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.put(&digits[at..]);
    }

    /// Appends `bytes` as a JSON string; what is not UTF-8 becomes U+FFFD.
    fn put_string(&mut self, bytes: &[u8]) {
        self.put(b"\"");
        self.put_inside(bytes);
        self.put(b"\"");
    }

    /// Appends `bytes` as a part of a JSON string, without quotes.
    fn put_inside(&mut self, bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            // Nearly always, and several times as fast.
            return self.put_escaped(text.as_bytes());
        }
        for chunk in bytes.utf8_chunks() {
            self.put_escaped(chunk.valid().as_bytes());
            if !chunk.invalid().is_empty() {
                self.put("\u{FFFD}".as_bytes());
            }
        }
    }

    /// Appends valid UTF-8 with JSON's escapes, the same as `JSON.stringify`.
    fn put_escaped(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            let (plain, escaped) = rest.split_at(plain_length(rest));
            self.put(plain);
            let Some((byte, after)) = escaped.split_first() else { return };
            let escape = ESCAPES[usize::from(*byte)];
            if escape == b'u' {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                self.put(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            } else {
                self.put(&[b'\\', escape]);
            }
            rest = after;
        }
    }
}

/// The letter after the backslash for each byte that needs one; 0 for the others.
static ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 32 {
        table[byte] = b'u';
        byte += 1;
    }
    table[8] = b'b';
    table[9] = b't';
    table[10] = b'n';
    table[12] = b'f';
    table[13] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts bytes instead of keeping them.
pub(super) struct Count(pub(super) usize);

impl Sink for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_cut_where_json_says() {
        let text = r#" { "a" : 1 , "b\"}" : [ 1, {"x":"]"} ] ,"c":"q\\", "d":{}, "e" :null } "#;
        assert!(check(text).is_ok());
        let members: Vec<_> = Members::of(text).collect();
        let expected = [
            (r#""a""#, "1"),
            (r#""b\"}""#, r#"[ 1, {"x":"]"} ]"#),
            (r#""c""#, r#""q\\""#),
            (r#""d""#, "{}"),
            (r#""e""#, "null"),
        ];
        assert_eq!(members, expected);
        assert_eq!(Members::of("{}").count(), 0);
        assert_eq!(Members::of("[1]").count(), 0);
    }

    #[test]
    fn escapes_read_as_javascript_reads_them() {
        let read = |text| string(text).map(Cow::into_owned);
        assert_eq!(read(r#""\u00e9\n\/\"\\\b\f\r\t""#).as_deref(), Some("é\n/\"\\\u{8}\u{c}\r\t"));
        assert_eq!(read(r#""\ud83e\udd80""#).as_deref(), Some("🦀"));
        assert_eq!(read(r#""a\ud800b""#).as_deref(), Some("a\u{FFFD}b"));
        assert_eq!(read(r#""\udc00\ud83e""#).as_deref(), Some("\u{FFFD}\u{FFFD}"));
        assert_eq!(read(r#""\ud83e\ud83e\udd80""#).as_deref(), Some("\u{FFFD}🦀"));
        assert_eq!(read("5"), None);
        assert_eq!(name(r#""\u0074ype""#), "type");
    }

    #[test]
    fn what_is_written_is_what_serde_json_writes() {
        let text: String = (0..0x300u32).filter_map(char::from_u32).chain("→🦀".chars()).collect();
        let mut out = Vec::new();
        out.put_string(text.as_bytes());
        assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
        let mut out = Vec::new();
        out.put_string(b"a\xff\xfeb");
        assert_eq!(out, "\"a\u{FFFD}\u{FFFD}b\"".as_bytes());
        for value in [0, 9, 10, u64::MAX] {
            let mut out = Vec::new();
            out.put_number(value);
            assert_eq!(out, value.to_string().into_bytes());
        }
    }

    #[test]
    fn depth_is_counted_outside_strings() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!too_deep(&nested(DEPTH_MAX), DEPTH_MAX));
        assert!(too_deep(&nested(DEPTH_MAX + 1), DEPTH_MAX));
        assert!(!too_deep(&format!("\"{}\"", nested(1000)), DEPTH_MAX));
        assert!(check(&nested(500_000)).is_ok(), "depth costs no stack");
    }
}
