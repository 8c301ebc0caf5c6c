//! When a licence lapses, what its retention kept is not deleted at once: the longer retention stays for 7 days, and the
//! operator is warned all the while.

use serde::{Deserialize, Serialize};

/// How long the operator is warned before the shorter retention deletes anything.
pub const WARNING_MS: u64 = 7 * 24 * 3_600_000;

/// How unlimited retention is written: longer than any other.
const UNLIMITED_DAYS: u32 = u32::MAX;

/// The longest retention in force, which follows what is granted: up at once, down after a warning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lapse {
    /// What was granted when it was last looked at; absent: never.
    #[serde(default)]
    granted_days: Option<u32>,
    /// The longer one that still holds.
    #[serde(default)]
    kept: Option<Kept>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Kept {
    days: u32,
    until_ms: u64,
}

impl Lapse {
    /// Takes in what is granted now (`None`: unlimited). Whether anything changed, so that it has to be kept.
    pub fn look(&mut self, granted_days: Option<u32>, time_ms: u64) -> bool {
        let before = *self;
        let granted = granted_days.unwrap_or(UNLIMITED_DAYS);
        let until_ms = time_ms.saturating_add(WARNING_MS);
        self.kept = self.kept.filter(|kept| time_ms < kept.until_ms);
        if let Some(kept) = &mut self.kept {
            // A time that lies further ahead than we ever set it was not set by us.
            kept.until_ms = kept.until_ms.min(until_ms);
        }
        let lost = self.granted_days.filter(|last| *last > granted);
        if let Some(days) = lost {
            // The longest of several that were lost one after the other: each of them has its 7 days.
            let days = self.kept.map_or(days, |kept| kept.days.max(days));
            self.kept = Some(Kept { days, until_ms });
        }
        self.kept = self.kept.filter(|kept| kept.days > granted);
        self.granted_days = Some(granted);
        *self != before
    }

    /// The clock was corrected by so much: the warning is as long as it was.
    pub fn clock_moved(&mut self, by_ms: i64) {
        if let Some(kept) = &mut self.kept {
            kept.until_ms = kept.until_ms.saturating_add_signed(by_ms);
        }
    }

    /// The longest retention in force; `None` is unlimited, and so is what nobody has looked at yet: nothing is deleted for
    /// want of looking.
    pub fn days_max(&self) -> Option<u32> {
        let days = self.kept.map(|kept| kept.days).or(self.granted_days);
        days.filter(|days| *days != UNLIMITED_DAYS)
    }

    /// Until when it is longer than what is granted.
    pub fn until_ms(&self) -> Option<u64> {
        self.kept.map(|kept| kept.until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_retention_begins_after_the_warning_and_a_longer_one_at_once() {
        let mut lapse = Lapse::default();
        assert!(lapse.look(Some(90), 0));
        assert!(!lapse.look(Some(90), 1));
        assert!(lapse.look(Some(7), 10));
        assert_eq!((lapse.days_max(), lapse.until_ms()), (Some(90), Some(10 + WARNING_MS)));
        lapse.look(Some(7), 9 + WARNING_MS);
        assert_eq!(lapse.days_max(), Some(90));
        lapse.look(Some(7), 10 + WARNING_MS);
        assert_eq!((lapse.days_max(), lapse.until_ms()), (Some(7), None));
        lapse.look(None, 11 + WARNING_MS);
        assert_eq!(lapse.days_max(), None);
    }

    #[test]
    fn after_two_steps_down_both_have_had_their_time() {
        let mut lapse = Lapse::default();
        lapse.look(None, 0);
        lapse.look(Some(90), 10);
        lapse.look(Some(7), 20);
        assert_eq!((lapse.days_max(), lapse.until_ms()), (None, Some(20 + WARNING_MS)));
        lapse.look(Some(365), 30);
        lapse.look(None, 40);
        assert_eq!((lapse.days_max(), lapse.until_ms()), (None, None), "renewed");
    }

    #[test]
    fn it_survives_a_restart_and_an_edited_file() {
        let mut lapse = Lapse::default();
        lapse.look(None, 0);
        let text = serde_json::to_string(&lapse).unwrap();
        let mut lapse: Lapse = serde_json::from_str(&text).unwrap();
        lapse.look(Some(7), 10);
        assert_eq!(lapse.days_max(), None);
        let text = serde_json::to_string(&lapse).unwrap();
        let read: Lapse = serde_json::from_str(&text).unwrap();
        assert_eq!(read, lapse);
        let mut edited: Lapse =
            serde_json::from_str(&text.replace(&(10 + WARNING_MS).to_string(), &u64::MAX.to_string())).unwrap();
        edited.look(Some(7), 20);
        assert_eq!(edited.until_ms(), Some(20 + WARNING_MS));
        edited.clock_moved(-15);
        assert_eq!(
            edited.until_ms(),
            Some(5 + WARNING_MS),
            "a warning is as long as before when the clock is corrected"
        );
    }
}
