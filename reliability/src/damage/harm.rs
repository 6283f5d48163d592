//! What is done to files: bits that flip, sectors that read as zeros, ends that are cut off, pages in the wrong place.

use fastrand::Rng;

/// What disks read and write at once, in bytes.
const SECTOR: usize = 512;

/// The store's pages, in bytes.
const PAGE: usize = 4096;

/// What stands in front of the first page of a log, and of each page in it, in bytes.
const LOG_HEAD: usize = 32;
const FRAME_HEAD: usize = 24;

/// A kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    FlippedBit,
    FlippedBits,
    ZeroedSector,
    Garbage,
    CutAtPage,
    Cut,
    SwappedPages,
    CopiedPage,
    StalePage,
}

/// All kinds.
const HARMS: [Harm; 9] = [
    Harm::FlippedBit,
    Harm::FlippedBits,
    Harm::ZeroedSector,
    Harm::Garbage,
    Harm::CutAtPage,
    Harm::Cut,
    Harm::SwappedPages,
    Harm::CopiedPage,
    Harm::StalePage,
];

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Main,
    Log,
}

/// How a file is laid out in pages.
#[derive(Debug, Clone, Copy)]
struct Layout {
    head: usize,
    page: usize,
}

impl Layout {
    fn of(victim: Victim) -> Self {
        match victim {
            Victim::Main => Self { head: 0, page: PAGE },
            Victim::Log => Self { head: LOG_HEAD, page: FRAME_HEAD + PAGE },
        }
    }

    fn pages(self, bytes: &[u8]) -> usize {
        bytes.len().saturating_sub(self.head) / self.page
    }

    fn range(self, page: usize) -> std::ops::Range<usize> {
        let start = self.head + page * self.page;
        start..start + self.page
    }
}

/// Draws a kind of damage.
pub(super) fn any(draw: &mut Rng) -> Harm {
    HARMS[draw.usize(..HARMS.len())]
}

/// Damages a file until it is not what it was. `stale` is the main file as it was earlier.
pub(super) fn harm(bytes: &mut Vec<u8>, harm: Harm, victim: Victim, stale: &[u8], draw: &mut Rng) {
    let before = bytes.clone();
    while *bytes == before {
        once(bytes, harm, Layout::of(victim), stale, draw);
    }
}

fn once(bytes: &mut Vec<u8>, harm: Harm, layout: Layout, stale: &[u8], draw: &mut Rng) {
    let pages = layout.pages(bytes);
    match harm {
        Harm::FlippedBit => flip(bytes, draw),
        Harm::FlippedBits => (0..draw.usize(2..=16)).for_each(|_| flip(bytes, draw)),
        Harm::ZeroedSector => {
            let start = draw.usize(..bytes.len() / SECTOR) * SECTOR;
            bytes[start..start + SECTOR].fill(0);
        }
        Harm::Garbage => {
            let start = draw.usize(..bytes.len());
            let end = bytes.len().min(start + draw.usize(1..=PAGE));
            draw.fill(&mut bytes[start..end]);
        }
        Harm::CutAtPage => bytes.truncate(layout.head + layout.page * draw.usize(..pages)),
        Harm::Cut => bytes.truncate(draw.usize(..bytes.len())),
        Harm::SwappedPages => {
            let (one, other) = (layout.range(draw.usize(..pages)), layout.range(draw.usize(..pages)));
            let kept = bytes[one.clone()].to_vec();
            bytes.copy_within(other.clone(), one.start);
            bytes[other].copy_from_slice(&kept);
        }
        Harm::CopiedPage => {
            bytes.copy_within(layout.range(draw.usize(..pages)), layout.range(draw.usize(..pages)).start);
        }
        Harm::StalePage => {
            let old = Layout::of(Victim::Main);
            let page = draw.usize(..old.pages(stale).min(pages));
            // In a log, behind the head of its frame.
            let start = layout.range(page).end - PAGE;
            bytes[start..start + PAGE].copy_from_slice(&stale[old.range(page)]);
        }
    }
}

pub(super) fn flip(bytes: &mut [u8], draw: &mut Rng) {
    let place = draw.usize(..bytes.len());
    bytes[place] ^= 1 << draw.u8(..8);
}
