//! Who does what in the model, and in which order it can happen: in any.
//!
//! | step | what it stands for |
//! | --- | --- |
//! | [`Action::Claim`] | `Queue::claim`; one whose answer is lost is a claim and [`Action::Leave`] |
//! | [`Action::Load`] | `engine`: the head and its state are read once the lease is held, by then of any age |
//! | [`Action::Run`] | `engine::run`: a node starts, and `Run::save` commits what it gives on the head that the run knows, under its fence; how long the node takes is how late the commit arrives |
//! | [`Action::Save`] | `Run::save` of something else: that it waits, or what was asked of it |
//! | [`Action::Retry`] | the store tries a commit again after a lost connection, with the same checkpoint id, while the first may still arrive |
//! | [`Action::Deliver`] | the database does what a message asks, however late, and whoever still waits for it hears what became of it, or the answer is lost |
//! | [`Action::Leave`] | the process dies, or gives up what it waits for |
//! | [`Action::Settle`] | `Queue::settle`, at the end, at an approval, and when the worker is told to stop |
//! | [`Action::Renew`] | `Held::renew`; the run ends where its lease has passed on |
//! | [`Action::TimePasses`] | the lease runs out, by the time of the database |
//! | [`Action::Restart`] | the database is killed and recovers what is durable |
//! | [`Action::Operate`] | `Engine::approve`: under a lease of its own, or by asking whoever holds it |
//! | [`Action::Label`] | `Store::commit` without a fence |
//!
//! A worker that is stopped takes no step, and goes on with its next whatever happened meanwhile. A message that is lost
//! is one that is never delivered. Workers are alike, and kept in order, so that states do not differ by who is who.

use stateright::{Model, Property};

use super::database::{Answer, Commit, Database, Fence, Lease, Record, Seq, Settlement, Ticket, Without};

/// What runs in an execution, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Work,
    Approval,
}

/// Who takes part, and what may happen how often.
#[derive(Debug, Clone)]
pub(super) struct Protocol {
    pub(super) without: Without,
    pub(super) workers: usize,
    pub(super) steps: &'static [Step],
    /// How many leases are taken at most.
    pub(super) leases_max: Fence,
    /// How often a commit is tried again at most.
    pub(super) retries_max: u8,
    pub(super) outsider: Outsider,
}

/// Whether somebody without a lease writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outsider {
    Absent,
    Labels,
}

/// What is known of an execution since it was read, or what was written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Known {
    fence: Fence,
    head: Seq,
    /// How many nodes have a result.
    done: u8,
    waits: bool,
}

/// A worker, or the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Process {
    Idle,
    /// Holds a lease, and has not read anything yet.
    Holds(Fence),
    Works(Known),
    /// Runs the next node, if the commit is of one, and waits for what becomes of the commit.
    Saves {
        known: Known,
        commit: Commit,
        retries: u8,
    },
    /// Waits for whoever holds the lease: an operator only.
    Asks,
    /// Will not do anything any more: an operator only.
    Over,
}

/// Something on its way to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Message {
    Commit(Commit),
    Settle(Fence, Settlement),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    database: Database,
    workers: Vec<Process>,
    operator: Process,
    /// The head that the outsider has read.
    read: Option<Seq>,
    /// In order, so that states differ by what is on its way only.
    messages: Vec<Message>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Claim(usize),
    Load(usize),
    Run(usize),
    Save(usize),
    Retry(usize),
    Leave(usize),
    Settle(usize, Settlement),
    Renew(usize),
    Deliver(Message, Reply),
    TimePasses,
    Restart,
    Operate(Operation),
    Label,
}

/// What becomes of the answer to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Heard,
    Lost,
}

/// What the operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Begin,
    Look,
    Load,
    Release,
    Leave,
}

/// What must hold in every state, by name.
pub(super) const NO_LOSS: &str = "no acknowledged point is lost or overwritten";
pub(super) const NO_STALE_WRITE: &str = "nobody writes under a lease that has passed on";
pub(super) const NO_REPEAT: &str = "whoever holds the lease starts no node whose result is recorded";
pub(super) const NO_DOUBLE: &str = "no node is recorded twice";
pub(super) const NO_ORPHAN: &str = "an execution that has not ended can be claimed, sooner or later";
pub(super) const NO_MISTAKE: &str = "nobody takes its own commit for a conflict";

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let operator = match self.steps.contains(&Step::Approval) {
            true => Process::Idle,
            false => Process::Over,
        };
        vec![State {
            database: Database::new(),
            workers: vec![Process::Idle; self.workers],
            operator,
            read: None,
            messages: Vec::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for worker in 0..self.workers {
            self.actions_of(worker, state, actions);
        }
        for message in &state.messages {
            actions.push(Action::Deliver(*message, Reply::Heard));
            actions.push(Action::Deliver(*message, Reply::Lost));
        }
        if state.database.lease == Lease::Holds {
            actions.push(Action::TimePasses);
        }
        if state.database.durable < state.database.history.len() {
            actions.push(Action::Restart);
        }
        let operations: &[Operation] = match state.operator {
            Process::Idle => &[Operation::Begin],
            Process::Asks => &[Operation::Look, Operation::Leave],
            Process::Holds(_) => &[Operation::Load, Operation::Leave],
            Process::Saves { .. } => &[Operation::Leave],
            Process::Works(_) => &[Operation::Release, Operation::Leave],
            Process::Over => &[],
        };
        actions.extend(operations.iter().copied().map(Action::Operate));
        if self.outsider == Outsider::Labels {
            actions.push(Action::Label);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::TimePasses => state.database.lease = Lease::RanOut,
            Action::Restart => state.database.restart(),
            Action::Deliver(message, reply) => self.deliver(&mut state, message, reply)?,
            Action::Operate(operation) => self.operate(&mut state, operation)?,
            Action::Label => self.label(&mut state)?,
            Action::Claim(worker) => {
                self.has_leases(&state)?;
                state.workers[worker] = Process::Holds(state.database.claim()?);
            }
            Action::Load(worker) => {
                let Process::Holds(fence) = state.workers[worker] else { return None };
                state.workers[worker] = Process::Works(known(&state.database, fence));
            }
            Action::Run(worker) => {
                let Process::Works(known) = state.workers[worker] else { return None };
                let is_holder = known.fence == state.database.fence;
                state.database.wrong.again |= is_holder && state.database.recorded() > known.done;
                state.workers[worker] = saves(&mut state.messages, known, Record::Node(known.done));
            }
            Action::Save(worker) => {
                let Process::Works(known) = state.workers[worker] else { return None };
                let record = if known.waits { Record::Node(known.done) } else { Record::Waits };
                state.workers[worker] = saves(&mut state.messages, known, record);
            }
            Action::Retry(worker) => {
                let Process::Saves { commit, retries, .. } = &mut state.workers[worker] else { return None };
                *retries += 1;
                let commit = Message::Commit(*commit);
                send(&mut state.messages, commit);
            }
            Action::Leave(worker) => state.workers[worker] = Process::Idle,
            Action::Settle(worker, settlement) => {
                let Process::Works(known) = state.workers[worker] else { return None };
                send(&mut state.messages, Message::Settle(known.fence, settlement));
                state.workers[worker] = Process::Idle;
            }
            Action::Renew(worker) => {
                let (Process::Works(known) | Process::Saves { known, .. }) = state.workers[worker] else {
                    return None;
                };
                if !state.database.renew(known.fence) {
                    state.workers[worker] = Process::Idle;
                }
            }
        }
        state.workers.sort_unstable();
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_LOSS, |_, state: &State| !state.database.wrong.lost),
            Property::always(NO_STALE_WRITE, |_, state: &State| !state.database.wrong.stale),
            Property::always(NO_REPEAT, |_, state: &State| !state.database.wrong.again),
            Property::always(NO_DOUBLE, |_, state: &State| {
                let history = &state.database.history;
                let is_node = |point: &&Commit| matches!(point.record, Record::Node(_));
                (1..)
                    .zip(history)
                    .filter(|(_, point)| is_node(point))
                    .all(|(next, point)| history[next..].iter().all(|later| later.record != point.record))
            }),
            Property::always(NO_ORPHAN, Self::can_be_claimed),
            Property::always(NO_MISTAKE, |_, state: &State| !state.database.wrong.mistaken),
            Property::sometimes("an execution ends, and its ticket goes", |model, state: &State| {
                model.has_ended(state) && state.database.ticket == Ticket::Gone
            }),
            Property::sometimes("a node runs in two workers at once", |_, state: &State| {
                state.workers.iter().filter(|worker| matches!(worker, Process::Saves { .. })).count() > 1
            }),
            Property::sometimes("a commit arrives after its lease has passed on", |_, state: &State| {
                let is_late =
                    |commit: &Commit| commit.fence.is_some_and(|fence| fence < state.database.fence);
                state.commits().any(is_late)
            }),
            Property::sometimes("a commit arrives that is there already", |model: &Self, state: &State| {
                model.retries_max == 0
                    || state.commits().any(|commit| state.database.history.contains(commit))
            }),
        ]
    }
}

impl State {
    /// Returns the commits on their way.
    fn commits(&self) -> impl Iterator<Item = &Commit> {
        self.messages.iter().filter_map(|message| match message {
            Message::Commit(commit) => Some(commit),
            Message::Settle(..) => None,
        })
    }
}

impl Protocol {
    /// Bounds the search. Whatever can go wrong with two leases shows with few.
    fn has_leases(&self, state: &State) -> Option<()> {
        (state.database.fence < self.leases_max).then_some(())
    }

    fn has_ended(&self, state: &State) -> bool {
        usize::from(state.database.recorded()) >= self.steps.len()
    }

    fn can_be_claimed(&self, state: &State) -> bool {
        self.has_ended(state)
            || match state.database.ticket {
                // A lease that nobody renews runs out.
                Ticket::Due | Ticket::Claimed => true,
                Ticket::Held => state.database.waits(),
                Ticket::Gone => false,
            }
    }

    /// Returns the step that a node count leads to; `None` at the end.
    fn step(&self, known: Known) -> Option<Step> {
        self.steps.get(usize::from(known.done)).copied()
    }

    fn actions_of(&self, worker: usize, state: &State, actions: &mut Vec<Action>) {
        let process = state.workers[worker];
        match process {
            Process::Idle => actions.push(Action::Claim(worker)),
            Process::Holds(_) => actions.push(Action::Load(worker)),
            Process::Works(known) => {
                match self.step(known) {
                    Some(Step::Work) => {
                        actions.push(Action::Run(worker));
                        actions.push(Action::Settle(worker, Settlement::Again));
                    }
                    Some(Step::Approval) => {
                        if !known.waits || state.database.asked {
                            actions.push(Action::Save(worker));
                        }
                        if known.waits {
                            actions.push(Action::Settle(worker, Settlement::Held));
                        }
                    }
                    None => actions.push(Action::Settle(worker, Settlement::Done)),
                }
                actions.push(Action::Renew(worker));
            }
            Process::Saves { retries, .. } if retries < self.retries_max => {
                actions.extend([Action::Retry(worker), Action::Renew(worker)]);
            }
            Process::Saves { .. } => actions.push(Action::Renew(worker)),
            Process::Asks | Process::Over => {}
        }
        if process != Process::Idle {
            actions.push(Action::Leave(worker));
        }
    }

    fn deliver(&self, state: &mut State, message: Message, reply: Reply) -> Option<()> {
        let at = state.messages.iter().position(|other| *other == message)?;
        state.messages.remove(at);
        match message {
            Message::Settle(fence, settlement) => state.database.settle(fence, settlement, self.without),
            Message::Commit(sent) => {
                let answer = state.database.commit(sent, self.without);
                // A writer that does not wait for it any more hears nothing.
                let waits = |process: &&mut Process| matches!(process, Process::Saves { commit, .. } if *commit == sent);
                let writer = state.workers.iter_mut().chain([&mut state.operator]).find(waits);
                match (reply, writer) {
                    (Reply::Heard, Some(process)) => hear(process, &mut state.database, answer),
                    (Reply::Heard | Reply::Lost, _) => {}
                }
            }
        }
        Some(())
    }

    /// What `Engine::approve` does, a step at a time.
    fn operate(&self, state: &mut State, operation: Operation) -> Option<()> {
        match (operation, state.operator) {
            (Operation::Begin, Process::Idle) if state.database.waits() => match state.database.lease {
                Lease::Holds => {
                    state.database.asked = true;
                    state.operator = Process::Asks;
                }
                Lease::GivenBack | Lease::RanOut => {
                    self.has_leases(state)?;
                    state.operator = Process::Holds(state.database.take_lease()?);
                }
            },
            (Operation::Look, Process::Asks) if !state.database.asked => state.operator = Process::Over,
            (Operation::Look, Process::Asks) => {
                self.has_leases(state)?;
                state.operator = Process::Holds(state.database.take_lease()?);
                state.database.asked = false;
            }
            (Operation::Load, Process::Holds(fence)) => {
                let known = known(&state.database, fence);
                state.operator = match known.waits {
                    true => saves(&mut state.messages, known, Record::Node(known.done)),
                    false => {
                        state.database.release(fence);
                        Process::Over
                    }
                };
            }
            (Operation::Release, Process::Works(known)) => {
                state.database.release(known.fence);
                state.operator = Process::Over;
            }
            (Operation::Leave, _) => state.operator = Process::Over,
            (Operation::Begin | Operation::Look | Operation::Load | Operation::Release, _) => return None,
        }
        Some(())
    }

    /// Reads the head, and then commits on it without a lease.
    fn label(&self, state: &mut State) -> Option<()> {
        if state.database.history.iter().any(|point| point.record == Record::Label) {
            return None;
        }
        match state.read {
            None => state.read = Some(state.database.head()),
            Some(head) => {
                let record = Record::Label;
                let commit = Commit { fence: None, head, record };
                if state.database.commit(commit, self.without) == Answer::Done {
                    state.database.tell(commit);
                }
            }
        }
        Some(())
    }
}

fn known(database: &Database, fence: Fence) -> Known {
    Known { fence, head: database.head(), done: database.recorded(), waits: database.waits() }
}

fn after(known: Known, record: Record) -> Known {
    let head = known.head + 1;
    match record {
        Record::Node(_) => Known { head, done: known.done + 1, waits: false, ..known },
        Record::Waits => Known { head, waits: true, ..known },
        Record::Label => Known { head, ..known },
    }
}

/// A writer hears what became of its commit.
fn hear(process: &mut Process, database: &mut Database, answer: Answer) {
    let Process::Saves { known, commit, .. } = *process else { return };
    if answer == Answer::Done {
        database.tell(commit);
    }
    *process = match answer {
        Answer::Done => Process::Works(after(known, commit.record)),
        Answer::Conflict => Process::Idle,
    };
}

fn saves(messages: &mut Vec<Message>, known: Known, record: Record) -> Process {
    let commit = Commit { fence: Some(known.fence), head: known.head, record };
    send(messages, Message::Commit(commit));
    Process::Saves { known, commit, retries: 0 }
}

fn send(messages: &mut Vec<Message>, message: Message) {
    messages.push(message);
    messages.sort_unstable();
}
