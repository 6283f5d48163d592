//! What the database of the model does with a request: one statement, in one atomic step.

/// The number of a lease.
pub(super) type Fence = u8;

/// The number of a point.
pub(super) type Seq = u8;

/// What a point adds to the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Record {
    /// The result of the node that is next.
    Node(u8),
    /// That the execution waits for somebody.
    Waits,
    Label,
}

/// A commit. Its fence and its head stand for its checkpoint's id, too: nobody makes two under one lease on one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Commit {
    /// `None` from one that holds no lease.
    pub(super) fence: Option<Fence>,
    pub(super) head: Seq,
    pub(super) record: Record,
}

/// How a worker leaves what it claimed: `store::Settlement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Settlement {
    Done,
    Again,
    Held,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Done,
    /// `Conflict::Fenced`, `Conflict::HeadMoved` or `Conflict::Leased`.
    Conflict,
}

/// How the newest lease stands, by the time of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lease {
    GivenBack,
    Holds,
    /// Its time is up, and nobody has taken another since: its holder may still write.
    RanOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ticket {
    Due,
    Claimed,
    Held,
    Gone,
}

/// The one protection that a control goes without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Without {
    Nothing,
    /// A commit is taken whatever its fence.
    Fences,
    /// A commit replaces whatever stands where it goes.
    HeadComparison,
    /// A commit is appended to whatever there is.
    Both,
    /// A claim is settled by whoever says so.
    FencesOfSettlements,
    /// A commit is answered before it is durable.
    Durability,
    /// A commit that is tried again is not known by its id.
    CommitIds,
}

/// The rows of one execution.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Database {
    pub(super) history: Vec<Commit>,
    /// How many points outlive a restart.
    pub(super) durable: usize,
    pub(super) fence: Fence,
    pub(super) lease: Lease,
    pub(super) ticket: Ticket,
    /// Whether an approval is asked of whoever holds the lease.
    pub(super) asked: bool,
    /// Points that somebody was told of, a bit each.
    told: u16,
    pub(super) wrong: Wrong,
}

/// What must never be, noted as it happens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Wrong {
    /// A point that somebody was told of is not there.
    pub(super) lost: bool,
    /// A point was written under a lease that had passed on.
    pub(super) stale: bool,
    /// A node was started by the one who held the lease, though its result was recorded.
    pub(super) again: bool,
    /// A holder was told of a conflict by its own commit.
    pub(super) mistaken: bool,
}

impl Database {
    pub(super) fn new() -> Self {
        Self {
            history: Vec::new(),
            durable: 0,
            fence: 0,
            lease: Lease::GivenBack,
            ticket: Ticket::Due,
            asked: false,
            told: 0,
            wrong: Wrong::default(),
        }
    }

    pub(super) fn head(&self) -> Seq {
        Seq::try_from(self.history.len()).unwrap_or(Seq::MAX)
    }

    /// Returns how many nodes have a result.
    pub(super) fn recorded(&self) -> u8 {
        let nodes = self.history.iter().filter(|point| matches!(point.record, Record::Node(_))).count();
        u8::try_from(nodes).unwrap_or(u8::MAX)
    }

    /// Tells whether the execution waits for somebody.
    pub(super) fn waits(&self) -> bool {
        let told = self.history.iter().rfind(|point| point.record != Record::Label);
        told.is_some_and(|point| point.record == Record::Waits)
    }

    /// Takes the lease, where nobody holds it.
    pub(super) fn take_lease(&mut self) -> Option<Fence> {
        if self.lease == Lease::Holds {
            return None;
        }
        self.fence += 1;
        self.lease = Lease::Holds;
        Some(self.fence)
    }

    /// Claims the ticket, where it is due or its claim has ended without being settled.
    pub(super) fn claim(&mut self) -> Option<Fence> {
        match self.ticket {
            Ticket::Due | Ticket::Claimed => {}
            Ticket::Held | Ticket::Gone => return None,
        }
        let fence = self.take_lease()?;
        self.ticket = Ticket::Claimed;
        Some(fence)
    }

    /// Makes a lease last from now on. Returns false where it has passed to somebody else.
    pub(super) fn renew(&mut self, fence: Fence) -> bool {
        if fence != self.fence {
            return false;
        }
        self.lease = Lease::Holds;
        true
    }

    pub(super) fn release(&mut self, fence: Fence) {
        if fence == self.fence {
            self.lease = Lease::GivenBack;
        }
    }

    /// Appends a point, where head and fence are what the writer thinks.
    pub(super) fn commit(&mut self, commit: Commit, without: Without) -> Answer {
        if self.history.contains(&commit) && without != Without::CommitIds {
            return Answer::Done;
        }
        let is_current = match commit.fence {
            Some(fence) => fence == self.fence || matches!(without, Without::Fences | Without::Both),
            None => self.lease != Lease::Holds,
        };
        let is_on_head =
            commit.head == self.head() || matches!(without, Without::HeadComparison | Without::Both);
        if !is_current || !is_on_head {
            let is_there = self.history.contains(&commit);
            self.wrong.mistaken |= is_there && commit.fence == Some(self.fence);
            return Answer::Conflict;
        }
        self.wrong.stale |= commit.fence.is_some_and(|fence| fence < self.fence);
        if without != Without::Both {
            self.cut(usize::from(commit.head));
        }
        self.history.push(commit);
        if without != Without::Durability {
            self.durable = self.history.len();
        }
        if commit.record != Record::Label && commit.record != Record::Waits {
            self.asked = false;
        }
        if matches!((commit.record, self.ticket), (Record::Node(_), Ticket::Held)) {
            self.ticket = Ticket::Due;
        }
        Answer::Done
    }

    /// Settles a claim and gives its lease back.
    pub(super) fn settle(&mut self, fence: Fence, settlement: Settlement, without: Without) {
        if fence != self.fence && without != Without::FencesOfSettlements {
            return;
        }
        self.ticket = match settlement {
            Settlement::Done => Ticket::Gone,
            Settlement::Again => Ticket::Due,
            Settlement::Held => Ticket::Held,
        };
        self.lease = Lease::GivenBack;
    }

    /// Loses what is not durable.
    pub(super) fn restart(&mut self) {
        self.cut(self.durable);
    }

    /// Somebody hears that its commit is durable.
    pub(super) fn tell(&mut self, commit: Commit) {
        match self.history.iter().position(|point| *point == commit) {
            Some(place) => self.told |= 1 << place,
            None => self.wrong.lost = true,
        }
    }

    fn cut(&mut self, length: usize) {
        self.history.truncate(length);
        self.durable = self.durable.min(length);
        self.wrong.lost |= self.told >> length != 0;
    }
}
