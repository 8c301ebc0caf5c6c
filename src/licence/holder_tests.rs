//! The holder's promises, one by one; `tests/sim/licence.rs` tries them together.

use super::*;
use crate::licence::{Document, SigningKey};

const DAY: u64 = 86_400_000;
const START: u64 = 20_000 * DAY;

fn signing() -> SigningKey {
    SigningKey::from_random([7; 32])
}

fn key() -> LicenceKey {
    LicenceKey::from_random(Tier::Pro, 1).unwrap()
}

/// So long after the start, the wall clock being right.
fn at(since_ms: u64) -> Reading {
    Reading { wall_ms: START + since_ms, boot_ms: since_ms }
}

fn holder(given: Given, cache: &Cache, now: Reading) -> Holder {
    let beginning =
        Beginning { given, public: signing().public(), has_server: true, cache, lapse: Lapse::default(), boot: "boot" };
    Holder::new(beginning, now)
}

fn document(issued: u64, until: u64) -> Document {
    Document {
        nonce: "n".into(),
        serial: 1,
        ..Document::of_tier(Tier::Pro, key().hash(), START + issued, START + until)
    }
}

fn paid(until: u64) -> Holder {
    let mut holder = holder(Given::Key(key()), &Cache::default(), at(0));
    assert_eq!(holder.standing(at(0)), Standing::Pending);
    holder.answered(at(0), &document(0, until).sign(&signing()), "n", 0).unwrap();
    assert_eq!(holder.look(at(0)).unwrap().tier, Tier::Pro);
    holder
}

#[test]
fn the_server_is_asked_when_a_day_has_passed_and_at_the_end() {
    let holder = paid(30 * DAY);
    assert_eq!(holder.wants_answer(at(DAY - 1)), None);
    assert_eq!(holder.wants_answer(at(DAY)), Some(key().hash()));
    let holder = paid(DAY / 2);
    assert_eq!(holder.wants_answer(at(DAY / 2)), Some(key().hash()));
}

#[test]
fn a_fresh_cache_saves_the_question_and_an_old_one_does_not() {
    let mut cache = Cache::default();
    paid(30 * DAY).keep(&mut cache, at(5));
    let again = holder(Given::Key(key()), &cache, at(DAY - 1));
    assert_eq!((again.standing(at(DAY - 1)), again.wants_answer(at(DAY - 1))), (Standing::Good, None));
    let again = holder(Given::Key(key()), &cache, at(DAY));
    assert_eq!(again.standing(at(DAY)), Standing::Unreachable);
    assert!(again.wants_answer(at(DAY)).is_some() && again.entitlement().tier == Tier::Pro);
    let other = LicenceKey::from_random(Tier::Pro, 2).unwrap();
    assert_eq!(holder(Given::Key(other), &cache, at(6)).standing(at(6)), Standing::Pending);
}

#[test]
fn an_unreachable_server_ends_nothing_before_the_grace_is_over() {
    let mut holder = paid(30 * DAY);
    for hour in 0..37 * 24 {
        let now = at(hour * HOUR_MS);
        if holder.wants_answer(now).is_some() {
            holder.unreachable(now, "connection refused", 3);
        }
        assert_eq!(holder.look(now), None, "hour {hour}");
    }
    assert_eq!(holder.standing(at(36 * DAY)), Standing::Grace);
    assert_eq!(holder.grace_until_ms(at(36 * DAY)), Some(START + 37 * DAY));
    assert_eq!(holder.look(at(37 * DAY)).unwrap().tier, Tier::Community);
    assert!(holder.sentence(at(37 * DAY)).contains("Nobody was disconnected"));
}

#[test]
fn a_document_signed_after_its_end_is_the_vendors_word_that_it_ended() {
    let mut holder = paid(DAY);
    assert_eq!(holder.standing(at(DAY)), Standing::Grace);
    holder.answered(at(DAY), &document(DAY, DAY).sign(&signing()), "n", 0).unwrap();
    assert_eq!(holder.standing(at(DAY)), Standing::Expired);
    assert_eq!(holder.wants_answer(at(DAY + 1)), None);
    assert!(holder.wants_answer(at(DAY + HOUR_MS)).is_some(), "a renewal is noticed within an hour");
    holder.answered(at(DAY + HOUR_MS), &document(DAY + HOUR_MS, 60 * DAY).sign(&signing()), "n", 0).unwrap();
    assert_eq!(holder.standing(at(DAY + HOUR_MS)), Standing::Good);
}

#[test]
fn a_revocation_acts_at_once_and_only_the_vendor_can_say_it() {
    let mut holder = paid(30 * DAY);
    let revoked = Document { revoked_at_ms: Some(START), reason: Some("revoked".into()), ..document(5, 30 * DAY) };
    let forged = revoked.sign(&SigningKey::from_random([8; 32]));
    assert_eq!(holder.answered(at(5), &forged, "n", 0), Err(AnswerError::Document(DocumentError::Signature)));
    assert_eq!(holder.answered(at(5), &revoked.sign(&signing()), "m", 0), Err(AnswerError::OtherQuestion));
    let other = Document { key_hash: LicenceKey::from_random(Tier::Pro, 2).unwrap().hash(), ..revoked.clone() };
    assert_eq!(holder.answered(at(5), &other.sign(&signing()), "n", 0), Err(AnswerError::OtherKey));
    assert_eq!(holder.look(at(6)), None);
    holder.answered(at(7), &revoked.sign(&signing()), "n", 0).unwrap();
    assert_eq!(holder.look(at(7)).unwrap().tier, Tier::Community);
    let mut cache = Cache::default();
    holder.keep(&mut cache, at(8));
    let unknown = Document { reason: Some("unknown".into()), ..revoked };
    assert_eq!(super::Holder::standing(&self::holder(Given::Key(key()), &cache, at(9)), at(9)), Standing::Revoked);
    holder.answered(at(9), &unknown.sign(&signing()), "n", 0).unwrap();
    assert_eq!(holder.standing(at(9)), Standing::NotIssued);
}

#[test]
fn an_answer_of_an_earlier_question_cannot_be_replayed() {
    let mut holder = paid(30 * DAY);
    let old = document(0, 30 * DAY).sign(&signing());
    assert_eq!(holder.answered(at(DAY), &old, "another", 0), Err(AnswerError::OtherQuestion));
    assert_eq!(
        holder.answered(at(DAY), &Document { nonce: String::new(), ..document(0, DAY) }.sign(&signing()), "", 0),
        Err(AnswerError::OtherQuestion)
    );
}

#[test]
fn questions_back_off_to_an_hour_and_never_stop() {
    let mut holder = holder(Given::Key(key()), &Cache::default(), at(0));
    let (mut now_ms, mut waits) = (0, Vec::new());
    for _ in 0..10 {
        holder.unreachable(at(now_ms), "no", 0);
        let wait_ms = holder.next_look_ms(at(now_ms));
        now_ms += wait_ms;
        waits.push(wait_ms / 60_000);
        assert!(holder.wants_answer(at(now_ms)).is_some());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
}

#[test]
fn an_offline_licence_asks_nobody_and_ends_on_its_day() {
    let offline = |tier| Document { offline: true, ..Document::of_tier(tier, key().hash(), START, START + 30 * DAY) };
    let given = Given::parse(&offline(Tier::Enterprise).sign(&signing()), signing().public());
    let mut holder = holder(given, &Cache::default(), at(0));
    for day in 0..100 {
        assert_eq!(holder.wants_answer(at(day * DAY)), None);
    }
    assert!(holder.is_offline() && holder.entitlement().tier == Tier::Enterprise);
    assert!(holder.warnings(at(20 * DAY))[0].contains("ends on"));
    assert_eq!(holder.look(at(30 * DAY - 1)), None);
    assert_eq!(holder.look(at(30 * DAY)).unwrap().tier, Tier::Community);
    assert_eq!(holder.retention_days_max(), None, "what was kept is not deleted yet");
    holder.look(at(37 * DAY));
    assert_eq!(holder.retention_days_max(), Some(7));
    let refused = |document: Document| match Given::parse(&document.sign(&signing()), signing().public()) {
        Given::Unusable(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(offline(Tier::Team)).starts_with("An offline licence requires Enterprise tier"));
    assert!(refused(document(0, DAY)).contains("not an offline licence"));
}

#[test]
fn a_shorter_retention_is_told_only_where_something_would_be_deleted_earlier() {
    let mut holder = paid(30 * DAY);
    let pro = |issued| Document { limits: Default::default(), ..document(issued, 30 * DAY) };
    assert_eq!(holder.retention_warning(at(0), None), None);
    let mut less = pro(DAY);
    less.limits.retention_days_max = Some(Some(7));
    holder.answered(at(DAY), &less.sign(&signing()), "n", 0).unwrap();
    holder.look(at(DAY));
    for asked in [1, 6, 7] {
        assert_eq!(holder.retention_warning(at(DAY), Some(asked)), None, "{asked}");
    }
    let told = holder.retention_warning(at(DAY), Some(30)).unwrap();
    let until = date(START + 8 * DAY);
    let begins = format!(
        "messages older than 7 days are kept until {until}, then deleted: 30 days were asked for, and this licence allows 7."
    );
    assert!(told.starts_with(&begins), "{told}");
    assert!(holder.retention_warning(at(DAY), None).unwrap().contains("an unlimited retention was asked for"));
    assert_eq!(holder.warnings(at(DAY)), Vec::<String>::new());
    holder.look(at(8 * DAY));
    assert_eq!(holder.retention_warning(at(8 * DAY), Some(30)), None, "it is over");
}

#[test]
fn jumps_of_the_wall_clock_change_nothing_and_are_told() {
    let mut holder = paid(30 * DAY);
    for jump in [-3_000_i64, -40, -2, 2, 40, 3_000] {
        let now = Reading { wall_ms: START.saturating_add_signed(jump * DAY as i64), boot_ms: 5 * DAY };
        assert_eq!(holder.look(now), None);
        let told = holder.warnings(now).iter().any(|warning| warning.contains("the clock was set"));
        // Five days have passed: two days ahead of the start is three days behind.
        assert!(told, "{jump}: {:?}", holder.warnings(now));
    }
    let mut cache = Cache::default();
    holder.keep(&mut cache, at(5 * DAY));
    let back = Reading { wall_ms: START - 100 * DAY, boot_ms: 0 };
    let beginning = Beginning {
        given: Given::Key(key()),
        public: signing().public(),
        has_server: true,
        cache: &cache,
        lapse: Lapse::default(),
        boot: "another boot",
    };
    let again = Holder::new(beginning, back);
    assert_eq!(again.time_ms(back), START + 5 * DAY);
}

#[test]
fn what_cannot_be_used_says_so_and_grants_nothing() {
    let holder = |text: &str| holder(Given::parse(text, signing().public()), &Cache::default(), at(0));
    let cases = [
        ("", Standing::Community, "no licence"),
        ("ar_pro_0000", Standing::Unusable, "characters"),
        ("YWJj.ZGVm", Standing::Unusable, "copy all of it"),
        ("hello", Standing::Unusable, "not a licence key"),
    ];
    for (text, standing, words) in cases {
        let holder = holder(text);
        assert_eq!(holder.standing(at(0)), standing, "{text}");
        assert!(holder.sentence(at(0)).contains(words), "{}", holder.sentence(at(0)));
        assert_eq!((holder.entitlement().tier, holder.wants_answer(at(0))), (Tier::Community, None));
    }
    let mut platinum = document(0, DAY);
    platinum.tier = "platinum".into();
    let mut cache = Cache::default();
    cache.insert(Signed::open(&platinum.sign(&signing()), signing().public()).unwrap());
    let holder = super::tests::holder(Given::Key(key()), &cache, at(0));
    assert_eq!(holder.standing(at(0)), Standing::UnknownTier);
    assert!(holder.entitlement().require(Feature::BasicMessaging).is_err());
}

#[test]
fn a_document_from_the_end_of_time_breaks_nothing() {
    let mut holder = holder(Given::Key(key()), &Cache::default(), at(0));
    let far = Document { issued_at_ms: u64::MAX, valid_until_ms: u64::MAX, ..document(0, 0) };
    holder.answered(at(0), &far.sign(&signing()), "n", u64::MAX).unwrap();
    for now in [at(0), at(DAY), Reading { wall_ms: u64::MAX, boot_ms: u64::MAX }, Reading::default()] {
        holder.look(now);
        holder.unreachable(now, "no", u64::MAX);
        assert_eq!(holder.standing(now), Standing::Expired);
        assert!(!holder.sentence(now).is_empty() && !holder.warnings(now).is_empty());
        assert!(holder.next_look_ms(now) <= LOOK_MS);
    }
}
