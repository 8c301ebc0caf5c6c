//! What was used, a row a day (UTC): the most agents at once, and messages sent. Always counted; who may hear of it is
//! decided elsewhere.

use super::clock::date;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Days that are kept.
pub const DAYS_KEPT: usize = 400;
/// Largest file that is looked at.
pub const USAGE_BYTES_MAX: usize = 256 * 1024;

const DAY_MS: u64 = 86_400_000;

/// One day.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Day {
    /// The most agents connected at once.
    pub agents_peak: u64,
    /// Messages that were accepted.
    pub messages_sent: u64,
}

/// The rows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    days: BTreeMap<String, Day>,
    /// The last day that was reported; empty: none.
    #[serde(default)]
    reported: String,
    /// What the daemon's counter stood at when it was last looked at: only what came since is added.
    #[serde(skip)]
    messages_seen: u64,
}

impl Usage {
    /// Reads the file's text; what cannot be read counts as nothing.
    pub fn parse(text: &str) -> Usage {
        if text.len() > USAGE_BYTES_MAX {
            return Usage::default();
        }
        let mut usage: Usage = serde_json::from_str(text).unwrap_or_default();
        usage.days.retain(|day, _| day.len() == 10 && day.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'));
        usage.forget();
        usage
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts and numbers have a JSON form")
    }

    /// So many agents are connected, and so many messages were accepted since the daemon started. Whether that changed a row.
    pub fn note(&mut self, wall_ms: u64, agents: u64, messages_total: u64) -> bool {
        let today = date(wall_ms);
        if self.reported > today {
            // The clock was ahead when that was reported: what comes from now on is to be reported all the same.
            self.reported = date(wall_ms.saturating_sub(DAY_MS));
        }
        let before = self.day(wall_ms);
        let day = self.days.entry(today).or_default();
        day.agents_peak = day.agents_peak.max(agents);
        day.messages_sent = day.messages_sent.saturating_add(messages_total.saturating_sub(self.messages_seen));
        self.messages_seen = messages_total.max(self.messages_seen);
        let changed = *day != before;
        self.forget();
        changed
    }

    /// The day of this time.
    pub fn day(&self, wall_ms: u64) -> Day {
        self.days.get(&date(wall_ms)).copied().unwrap_or_default()
    }

    /// All rows, the newest first.
    pub fn days(&self) -> impl Iterator<Item = (&str, Day)> {
        self.days.iter().rev().map(|(date, day)| (date.as_str(), *day))
    }

    /// Days that are over and were not reported, the oldest first.
    pub fn unreported(&self, wall_ms: u64) -> impl Iterator<Item = (&str, Day)> {
        let today = date(wall_ms);
        let days = self.days.iter().filter(move |(date, _)| **date > self.reported && **date < today);
        days.map(|(date, day)| (date.as_str(), *day))
    }

    /// Everything up to this day has been reported.
    pub fn reported(&mut self, day: &str) {
        if day > self.reported.as_str() {
            self.reported = day.to_owned();
        }
    }

    fn forget(&mut self) {
        while self.days.len() > DAYS_KEPT {
            self.days.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = DAY_MS;

    #[test]
    fn a_day_has_its_peak_and_what_was_sent_in_it() {
        let mut usage = Usage::default();
        assert!(usage.note(0, 3, 100) && usage.note(1, 2, 150));
        assert!(!usage.note(2, 3, 150), "nothing new");
        usage.note(DAY, 1, 151);
        let mut again = Usage::parse(&usage.to_text());
        again.note(DAY + 1, 5, 7);
        let days: Vec<_> =
            again.days().map(|(date, day)| (date.to_owned(), day.agents_peak, day.messages_sent)).collect();
        assert_eq!(days, [("1970-01-02".to_owned(), 5, 8), ("1970-01-01".to_owned(), 3, 150)]);
    }

    #[test]
    fn only_days_that_are_over_are_reported_and_each_once() {
        let mut usage = Usage::default();
        for day in 0..3 {
            usage.note(day * DAY, 1, day);
        }
        let unreported = |usage: &Usage| usage.unreported(2 * DAY).map(|(date, _)| date.to_owned()).collect::<Vec<_>>();
        assert_eq!(unreported(&usage), ["1970-01-01", "1970-01-02"]);
        usage.reported("1970-01-02");
        assert!(unreported(&Usage::parse(&usage.to_text())).is_empty());
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_while_keeps_no_later_day_from_being_reported() {
        let mut usage = Usage::default();
        usage.note(500 * DAY, 1, 1);
        let ahead = usage.unreported(501 * DAY).last().map(|(date, _)| date.to_owned()).unwrap();
        usage.reported(&ahead);
        for day in 100..103 {
            usage.note(day * DAY, 1, day);
        }
        let unreported: Vec<_> = usage.unreported(102 * DAY).map(|(day, _)| day.to_owned()).collect();
        assert_eq!(unreported, [date(100 * DAY), date(101 * DAY)]);
    }

    #[test]
    fn four_hundred_days_are_kept_and_garbage_is_not() {
        let mut usage = Usage::default();
        for day in 0..500 {
            usage.note(day * DAY, 1, day);
        }
        assert_eq!((usage.days().count(), usage.day(499 * DAY).messages_sent), (DAYS_KEPT, 1));
        assert!(usage.to_text().len() < USAGE_BYTES_MAX);
        for garbage in ["", "[]", "{\"days\":{\"x\":{\"agents_peak\":1,\"messages_sent\":2}}}"] {
            assert_eq!(Usage::parse(garbage), Usage::default());
        }
    }
}
