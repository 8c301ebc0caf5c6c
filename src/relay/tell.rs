//! What became of a message, told to whoever sent it: on its own shard, in the words of its dialect.

use super::delivery::News;
use super::event::{Again, Mail, NOBODY, Origin, Outcome, What};
use super::home::AgentSlot;
use super::outbox::{Outbox, Output, Record};
use super::send::{is_fanout, outcome};
use super::session::{Session, State};
use super::{Relay, text_of};
use crate::base::{AgentId, Bytes, Now, RefuseReason, SessionId, ShardId};
use crate::wire::{Busy, Dialect, ErrorCode, ErrorFrame, Frame, Message, Parcel, Receipt, ReceiptState, Wants};

impl Relay {
    /// To the shard that the message came from; here and now when that is this one.
    pub(super) fn send_outcome(&mut self, outcome: Outcome, outbox: &mut Outbox) {
        if outcome.origin.shard == self.options.shard {
            self.tell(outcome, outbox);
        } else {
            outbox.mails.push((outcome.origin.shard, Mail::Outcome(Box::new(outcome))));
        }
    }

    /// It has its place; the commit of record `number` makes it durable.
    pub(super) fn tell_accepted(
        &mut self,
        parcel: &Parcel,
        origin: Origin,
        recipient: AgentId,
        what: What,
        number: u64,
        outbox: &mut Outbox,
    ) {
        if parcel.wants == Wants::default() {
            return;
        }
        if parcel.wants.contains(Wants::ACCEPTED) {
            self.send_outcome(outcome(parcel, origin, recipient, what), outbox);
        }
        if parcel.wants.contains(Wants::DURABLE) {
            self.uncommitted.push_back((number, outcome(parcel, origin, recipient, What::Durable)));
        }
    }

    /// The same SEND again. What became of the first only its recipient's home knows: it may still be on its way there,
    /// wait for a name, be refused or not be committed. So the question travels behind it.
    pub(super) fn ask_again(&mut self, message: Message<'_>, origin: Origin, outbox: &mut Outbox) {
        let wants = message.wants();
        if !wants.contains(Wants::ACCEPTED) && !wants.contains(Wants::DURABLE) {
            return;
        }
        let parcel = message.parcel(self.chunks.copy(message.raw));
        if is_fanout(parcel.to()) && !self.track(&parcel, origin) {
            // As many questions as may be open are open.
            return;
        }
        self.ask_homes(&parcel, origin, outbox);
    }

    /// What has become of it? To wherever it went the first time.
    pub(super) fn ask_homes(&mut self, parcel: &Parcel, origin: Origin, outbox: &mut Outbox) {
        let homes = if is_fanout(parcel.to()) {
            0..self.options.shards
        } else {
            let home = self.hasher.hash(parcel.to()).home(self.options.shards);
            home.0..home.0 + 1
        };
        let asked = self.given_back;
        for home in homes {
            if ShardId(home) == self.options.shard {
                self.answer_again(parcel, origin, asked, outbox);
            } else {
                let again = Again { parcel: parcel.clone(), origin, asked };
                outbox.mails.push((ShardId(home), Mail::Again(Box::new(again))));
            }
        }
    }

    /// What became of a SEND whose recipients live here, and that was sent before. What was refused is not remembered:
    /// whoever asks has heard of it before the answer comes, by the same lane, and knows which came after its question.
    pub(super) fn answer_again(&mut self, parcel: &Parcel, origin: Origin, asked: u64, outbox: &mut Outbox) {
        let said = |what| outcome(parcel, origin, AgentId(0), what);
        // Its record may still be on its way: durable when everything pushed so far is.
        if is_fanout(parcel.to()) {
            self.send_outcome(said(What::FanoutTaken { recipients: 0 }), outbox);
            self.uncommitted.push_back((self.records, said(What::FanoutDurable)));
        } else {
            if self.grace.ask(parcel.id, origin) {
                // Its outcome is still to come.
                return;
            }
            if origin.submitted
                && let Some(reason) = self.refused_lately(parcel.id)
            {
                // The home of its sender's name has not heard of that yet.
                let recipient = text_of(parcel.to()).into();
                let what = What::Refused { reason, retry_after_ms: 0, queue_depth: 0, recipient };
                return self.send_outcome(said(what), outbox);
            }
            if parcel.wants.contains(Wants::ACCEPTED) {
                self.send_outcome(said(What::AcceptedBefore { asked }), outbox);
            }
            if parcel.wants.contains(Wants::DURABLE) {
                self.uncommitted.push_back((self.records, said(What::DurableBefore { asked })));
            }
        }
        self.tell_committed(outbox);
    }

    pub(super) fn on_committed(&mut self, now: Now, through: u64, outbox: &mut Outbox) {
        self.committed = self.committed.max(through);
        self.tell_committed(outbox);
        self.after_commit(now, outbox);
    }

    fn tell_committed(&mut self, outbox: &mut Outbox) {
        while self.uncommitted.front().is_some_and(|(number, _)| *number <= self.committed) {
            if let Some((_, outcome)) = self.uncommitted.pop_front() {
                self.send_outcome(outcome, outbox);
            }
        }
    }

    /// A delivery has moved on: whoever asked hears it; of a failure the sender hears in any case.
    pub(super) fn tell_news(&mut self, recipient: AgentId, news: News, outbox: &mut Outbox) {
        let failure = match news.what {
            What::Failed(reason) => Some(reason),
            _ => None,
        };
        if let Some(reason) = failure {
            self.count_refusal(reason);
            self.push_record(Record::Failed { id: news.id, recipient, reason }, outbox);
        }
        if let Some(ask) = news.ask {
            let (origin, label, wants) = (ask.origin, ask.label, ask.wants);
            let said = Outcome { origin, id: news.id, label, wants, recipient, what: news.what };
            return self.send_outcome(said, outbox);
        }
        let Some(raw) = news.raw else { return };
        let Some(message) = Message::check(&raw, 0) else { return };
        // Nobody kept the sender's session: its name finds its home, and its home finds it.
        let shard = self.hasher.hash(message.from()).home(self.options.shards);
        let origin = Origin { shard, session: NOBODY, ordinal: 0, submitted: false };
        let label = Bytes::copy_from_slice(message.label());
        let said = Outcome { origin, id: news.id, label, wants: message.wants(), recipient, what: news.what };
        self.send_outcome(said, outbox);
    }

    /// Says it on the sender's connection, if that is still there; else on the connection that its agent has now.
    pub(super) fn tell(&mut self, mut outcome: Outcome, outbox: &mut Outbox) {
        let id = if self.is_submitter(outcome.origin.session) {
            // What was refused is told apart where its recipient lives.
            outcome.what = match outcome.what {
                What::AcceptedBefore { .. } => What::Accepted,
                What::DurableBefore { .. } => What::Durable,
                what => what,
            };
            outcome.origin.session
        } else {
            let Some(slot) = self.sender_of(&outcome) else { return };
            let agent = &mut self.agents[slot];
            if matches!(outcome.what, What::Refused { .. })
                && outcome.recipient == AgentId(0)
                && outcome.id.sender == agent.id
            {
                // Not accepted means not sent: the same SEND may come again.
                self.given_back += 1;
                agent.numbers.give_back(outcome.id.number, self.given_back);
            }
            if let What::AcceptedBefore { asked } | What::DurableBefore { asked } = outcome.what {
                if agent.numbers.was_given_back_since(asked, outcome.id.number) {
                    // It was refused, and that has been told; perhaps it has even been sent anew since.
                    return;
                }
                outcome.what = match outcome.what {
                    What::AcceptedBefore { .. } => What::Accepted,
                    _ => What::Durable,
                };
            }
            match agent.session() {
                Some(id) => id,
                None => return,
            }
        };
        let Some(session) = self.sessions.find(id) else { return };
        debug_assert!(matches!(session.state, State::Live(_)) || self.is_submitter(id));
        let dialect = session.dialect;
        let Some(outcome) = self.gather(id, outcome) else { return };
        match dialect {
            Dialect::Native => self.tell_native(id, &outcome, outbox),
            Dialect::Json => tell_json(id, &outcome, outbox),
        }
    }

    /// Whose message it was: the agent on the connection that it came from, or the one that it names.
    fn sender_of(&self, outcome: &Outcome) -> Option<AgentSlot> {
        let here = self.sessions.find(outcome.origin.session).and_then(Session::agent);
        here.or_else(|| self.agents.find_id(outcome.id.sender))
    }

    /// A fan-out is accepted, or durable, when every shard has said so.
    fn gather(&mut self, id: SessionId, mut outcome: Outcome) -> Option<Outcome> {
        let trackers = &mut self.sessions.find_mut(id)?.trackers;
        // An ordinal means something on its own session only.
        let (origin, same) = (outcome.origin, outcome.origin.session == id);
        let index = trackers.iter().position(|tracker| same && tracker.ordinal == origin.ordinal);
        match outcome.what {
            What::FanoutTaken { .. } => {
                let tracker = &mut trackers[index?];
                tracker.untaken -= 1;
                outcome.what = What::Accepted;
                (tracker.untaken == 0 && tracker.wants.contains(Wants::ACCEPTED)).then_some(outcome)
            }
            What::FanoutDurable => {
                let tracker = &mut trackers[index?];
                tracker.uncommitted -= 1;
                if tracker.uncommitted > 0 {
                    return None;
                }
                let wants = trackers.remove(index?).wants;
                outcome.what = What::Durable;
                wants.contains(Wants::DURABLE).then_some(outcome)
            }
            _ => Some(outcome),
        }
    }

    fn tell_native(&mut self, id: SessionId, outcome: &Outcome, outbox: &mut Outbox) {
        let state = match &outcome.what {
            What::Accepted => ReceiptState::Accepted,
            What::Durable => ReceiptState::Durable,
            What::Delivered => ReceiptState::Delivered,
            What::Acknowledged => ReceiptState::Acknowledged,
            What::Read => ReceiptState::Read,
            What::Failed(reason) => ReceiptState::Failed(*reason),
            What::Refused { .. } => return outbox.reply(id, refusal(outcome)),
            What::FanoutTaken { .. } | What::FanoutDurable => return,
            What::AcceptedBefore { .. } | What::DurableBefore { .. } => return,
        };
        let receipt = Receipt { id: outcome.id, count: 1, state, recipient: outcome.recipient };
        self.push_receipt(id, receipt, outbox);
    }

    /// Adds a receipt, as part of the session's last one of this turn where that speaks of the numbers just before.
    fn push_receipt(&mut self, id: SessionId, receipt: Receipt, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        let (turn, index) = session.receipt_mark;
        if turn == self.turn
            && let Some(Output::Receipt { session, receipt: last }) = outbox.outputs.get_mut(index)
            && *session == id
            && last.state == receipt.state
            && last.recipient == receipt.recipient
            && last.id.sender == receipt.id.sender
            && last.id.number.wrapping_add(u64::from(last.count)) == receipt.id.number
        {
            last.count += 1;
            return;
        }
        session.receipt_mark = (self.turn, outbox.outputs.len());
        outbox.outputs.push(Output::Receipt { session: id, receipt });
    }
}

/// JSON clients hear of durability if they asked for it, and of failures and refusals.
fn tell_json(id: SessionId, outcome: &Outcome, outbox: &mut Outbox) {
    match &outcome.what {
        // Without a label it was sent natively, under the same name: nothing that this client could recognise.
        What::Durable if !outcome.label.is_empty() => {
            let (label, ordinal) = (text_of(&outcome.label).into(), outcome.origin.ordinal);
            outbox.reply(id, Frame::SendAck { label, ordinal });
        }
        What::Failed(reason) => {
            let message = format!("Message was not delivered: {}", reason.name());
            outbox.reply(id, failure(ErrorCode::Timeout, message, outcome, *reason));
        }
        What::Refused { .. } => outbox.reply(id, refusal(outcome)),
        _ => {}
    }
}

/// A refusal in the words that both dialects share: BUSY when trying again may help, else ERROR.
fn refusal(outcome: &Outcome) -> Frame<'static> {
    let What::Refused { reason, retry_after_ms, queue_depth, recipient } = &outcome.what else {
        return Frame::Ignored;
    };
    match reason {
        RefuseReason::NotFound => {
            let message = format!("No agent named \"{recipient}\" is known here");
            failure(ErrorCode::NotFound, message, outcome, *reason)
        }
        RefuseReason::TooLong => {
            let message = "The message would be longer than 1 MiB at its recipient; send it in parts".to_owned();
            failure(ErrorCode::BadRequest, message, outcome, *reason)
        }
        RefuseReason::Malformed => {
            let message = "A SEND must name its own agent as sender, and a topic must be a topic name".to_owned();
            failure(ErrorCode::BadRequest, message, outcome, *reason)
        }
        RefuseReason::Forbidden => {
            let message = "This credential may not send messages".to_owned();
            failure(ErrorCode::Forbidden, message, outcome, *reason)
        }
        _ => Frame::Busy(Box::new(Busy {
            number: outcome.id.number,
            label: text_of(&outcome.label).into(),
            reason: *reason,
            retry_after_ms: *retry_after_ms,
            queue_depth: *queue_depth,
            recipient: recipient.to_string().into(),
        })),
    }
}

fn failure(code: ErrorCode, message: String, outcome: &Outcome, reason: RefuseReason) -> Frame<'static> {
    Frame::Error(Box::new(ErrorFrame {
        code,
        fatal: false,
        message: message.into(),
        number: outcome.id.number,
        label: text_of(&outcome.label).into(),
        outcome: Some(reason),
    }))
}
