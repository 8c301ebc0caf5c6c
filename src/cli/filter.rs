//! Which stored messages are meant: the flags that `history` and `export` share, checked, as the daemon is asked.

use super::Failure;
use crate::base::name::{check_agent, check_topic, topic_of};
use serde_json::{Map, Value};

/// What all of the messages have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    members: Map<String, Value>,
}

impl Filter {
    /// Reads the flags by their names: from, to, agent, thread, topic, since, until.
    pub(super) fn of(flags: &[(&str, &Option<String>)]) -> Result<Filter, Failure> {
        Filter::at(flags, jiff::Timestamp::now())
    }

    fn at(flags: &[(&str, &Option<String>)], now: jiff::Timestamp) -> Result<Filter, Failure> {
        let mut members = Map::new();
        for (name, text) in flags {
            let Some(text) = text else { continue };
            let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("--{name}: {error}"));
            let (name, value) = match *name {
                "since" | "until" => {
                    (format!("{name}_ms"), Value::from(time_ms(text, now).map_err(|text| wrong(&text))?))
                }
                "to" if text.starts_with('#') => ("topic".to_owned(), topic(text).map_err(|error| wrong(&error))?),
                "topic" => ("topic".to_owned(), topic(text).map_err(|error| wrong(&error))?),
                "to" if text == "*" => ("to".to_owned(), Value::from("*")),
                "thread" => ("thread".to_owned(), Value::from(text.as_str())),
                _ => {
                    check_agent(text.as_bytes()).map_err(|error| wrong(&error))?;
                    ((*name).to_owned(), Value::from(text.as_str()))
                }
            };
            members.insert(name, value);
        }
        Ok(Filter { members })
    }

    /// As the arguments of a question.
    pub(super) fn as_json(&self) -> Value {
        Value::Object(self.members.clone())
    }
}

fn topic(text: &str) -> Result<Value, String> {
    check_topic(topic_of(text.as_bytes())).map(Value::from).map_err(|error| error.to_string())
}

/// A time: so long ago (`2h`, `7d`), or a time with its zone, or a date or a time here.
fn time_ms(text: &str, now: jiff::Timestamp) -> Result<u64, String> {
    let zone = jiff::tz::TimeZone::system;
    let moment = if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        Some(moment)
    } else if let Ok(moment) = text.parse::<jiff::civil::DateTime>() {
        moment.to_zoned(zone()).map(|zoned| zoned.timestamp()).ok()
    } else {
        let hours = text.parse::<jiff::Span>().ok().and_then(|span| {
            let hours = span.total((jiff::Unit::Hour, jiff::SpanRelativeTo::days_are_24_hours())).ok()?;
            Some(hours.abs()).filter(|hours| hours.is_finite())
        });
        let ago = hours.and_then(|hours| jiff::SignedDuration::try_from_secs_f64(hours * 3600.0).ok());
        // Longer ago than times go is the beginning.
        ago.map(|ago| now.checked_sub(ago).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
    };
    match moment {
        Some(moment) => Ok(u64::try_from(moment.as_millisecond()).unwrap_or(0)),
        None => Err(format!("{text:?} is no time; say 90m, 2h or 7d, or a time such as 2026-11-21T10:00:00Z")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter(flags: &[(&str, &str)]) -> Result<Value, String> {
        let owned: Vec<(&str, Option<String>)> =
            flags.iter().map(|(name, text)| (*name, Some((*text).into()))).collect();
        let flags: Vec<(&str, &Option<String>)> = owned.iter().map(|(name, text)| (*name, text)).collect();
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        match Filter::at(&flags, now) {
            Ok(filter) => Ok(filter.as_json()),
            Err(Failure::Usage(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_the_arguments_of_a_question() {
        let noon = 1_795_262_400_000_u64;
        assert_eq!(filter(&[]), Ok(json!({})));
        assert_eq!(
            filter(&[
                ("from", "ann"),
                ("to", "#builds"),
                ("thread", "t 1"),
                ("since", "2h"),
                ("until", "2026-11-21T12:00:00Z")
            ]),
            Ok(
                json!({ "from": "ann", "topic": "builds", "thread": "t 1", "since_ms": noon - 7_200_000, "until_ms": noon })
            )
        );
        assert_eq!(filter(&[("to", "*")]), Ok(json!({ "to": "*" })));
        for (text, ms) in [("7d", noon - 604_800_000), ("90m", noon - 5_400_000), ("2026-11-21T13:00:00+01:00", noon)] {
            assert_eq!(filter(&[("since", text)]), Ok(json!({ "since_ms": ms })), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_its_flag() {
        for (name, text) in [("from", "a/b"), ("topic", ""), ("to", "#"), ("since", "yesterday"), ("until", "")] {
            let refused = filter(&[(name, text)]).unwrap_err();
            assert!(refused.starts_with(&format!("--{name}: ")), "{refused}");
        }
    }
}
