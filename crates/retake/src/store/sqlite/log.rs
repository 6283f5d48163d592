//! Whether a write-ahead log ends where its writer ended.
//!
//! SQLite reads a log up to the first frame that is not whole, and takes that for its end: it is where a writer was when
//! the power went. Damage in the middle looks the same, and everything behind it would be gone without a word.
//!
//! The two can be told apart by what follows. Each commit is flushed before the next one begins, so that behind a frame
//! which was never written whole there is one commit at most: that which nobody has acknowledged. And each frame has a
//! checksum over itself and all before it, so that frames which follow one another can be known without those before.
//!
//! ```text
//! [head] 1 2c 3 4c 5 6c            c ends a commit
//!            ^                     3 is not whole: 4c was not acknowledged yet, but 6c was not begun before that
//! ```
//!
//! What cannot be told: damage in the last commit, which looks as if it had not been finished, and a log that was cut
//! off between two commits.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// What stands in front of the first frame, in bytes.
const HEAD_BYTES: usize = 32;

/// What stands in front of the page of each frame, in bytes.
const FRAME_HEAD_BYTES: usize = 24;

/// The first bytes of a log whose checksums are of big-endian numbers; with little-endian ones the last bit is 0.
const MAGIC: u32 = 0x377f_0683;

/// The largest page of a SQLite file.
const PAGE_BYTES_MAX: usize = 65_536;

/// How often a log is read that others begin anew meanwhile.
const ATTEMPTS_MAX: usize = 10;

/// Commits behind a frame that is not whole, of which all but the last were acknowledged.
const COMMITS_MIN: u64 = 2;

/// Where a log is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Break {
    /// Counted from 1; 0 is the head of the log.
    frame: u64,
    /// How many commits follow it.
    commits: u64,
}

/// Refuses a store of whose log SQLite would drop commits that were acknowledged.
pub(super) fn check(store: &Path) -> Result<(), StoreError> {
    let path = beside(store);
    let failed = |error: io::Error| StoreError::Io {
        location: path.display().to_string(),
        action: "reading it",
        source: std::sync::Arc::new(error),
    };
    let Some(Break { frame, commits }) = broken(store, &path).map_err(failed)? else { return Ok(()) };
    let place = if frame == 0 { "its head".to_owned() } else { format!("its frame {frame}") };
    let why =
        format!("{place} is not what was written, and {commits} commits behind it cannot be read without it");
    Err(StoreError::Corrupt { record: format!("the log {}", path.display()), why })
}

/// Returns the write-ahead log of a store.
pub(super) fn beside(store: &Path) -> PathBuf {
    let mut log = store.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Tells whether there is anything in a store's log.
pub(super) fn has_frames(store: &Path) -> bool {
    std::fs::metadata(beside(store)).is_ok_and(|log| log.len() > 0)
}

fn broken(store: &Path, log: &Path) -> io::Result<Option<Break>> {
    let mut log = match File::open(log) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(page_bytes) = page_bytes(store)? else { return Ok(None) };
    for _ in 0..ATTEMPTS_MAX {
        let before = head(&mut log)?;
        let found = match before {
            Some(before) => scan(&log, &before, page_bytes)?,
            None => None,
        };
        // Another process may have begun the log anew; what it adds at the end does not matter.
        if found.is_none() || head(&mut log)? == before {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Returns the size of the file's pages, unless it makes no sense: then the file itself will be refused.
fn page_bytes(store: &Path) -> io::Result<Option<usize>> {
    let mut head = [0; 18];
    match File::open(store).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => {}
        Err(error) if is_nothing(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let bytes = match u16::from_be_bytes([head[16], head[17]]) {
        1 => PAGE_BYTES_MAX,
        bytes => usize::from(bytes),
    };
    Ok(Some(bytes).filter(|bytes| bytes.is_power_of_two() && *bytes >= 512))
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

fn head(log: &mut File) -> io::Result<Option<[u8; HEAD_BYTES]>> {
    let mut head = [0; HEAD_BYTES];
    log.seek(SeekFrom::Start(0))?;
    match log.read_exact(&mut head) {
        Ok(()) => Ok(Some(head)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads all frames behind the head.
fn scan(log: &File, head: &[u8; HEAD_BYTES], page_bytes: usize) -> io::Result<Option<Break>> {
    let order = if number(head, 0) == MAGIC { u32::from_be_bytes } else { u32::from_le_bytes };
    let sum = |before, bytes: &[&[u8]]| bytes.iter().fold(before, |sum, bytes| add(sum, bytes, order));
    let is_head_whole = number(head, 0) | 1 == MAGIC && sum((0, 0), &[&head[..24]]) == pair(head, 24);
    let mut salts = is_head_whole.then(|| pair(head, 16));
    let mut before = pair(head, 24);
    let mut broken = (!is_head_whole).then_some(0);
    let mut commits = 0;
    let mut frames = BufReader::with_capacity(1 << 16, log);
    let mut frame = vec![0; FRAME_HEAD_BYTES + page_bytes];
    for count in 1_u64.. {
        match frames.read_exact(&mut frame) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        // Without the head, the first frame tells which are of the same log and not of an older one.
        let is_of_this_log = *salts.get_or_insert(pair(&frame, 8)) == pair(&frame, 8);
        let stored = pair(&frame, 16);
        let is_whole = is_of_this_log && sum(before, &[&frame[..8], &frame[FRAME_HEAD_BYTES..]]) == stored;
        if !is_whole {
            broken = broken.or(Some(count));
            // What follows from here on may be whole by itself.
            commits = 0;
        }
        let ends_a_commit = is_of_this_log && number(&frame, 4) != 0;
        commits += u64::from(ends_a_commit);
        match broken {
            Some(at) if commits >= COMMITS_MIN => {
                let rest = count_commits(&mut frames, &mut frame, salts)?;
                return Ok(Some(Break { frame: at, commits: commits + rest }));
            }
            Some(_) => {}
            None => commits = 0,
        }
        before = stored;
    }
    Ok(None)
}

/// Counts the commits in the rest of the frames, whole or not.
fn count_commits(frames: &mut impl Read, frame: &mut [u8], salts: Option<(u32, u32)>) -> io::Result<u64> {
    let mut commits = 0;
    loop {
        match frames.read_exact(frame) {
            Ok(()) => commits += u64::from(Some(pair(frame, 8)) == salts && number(frame, 4) != 0),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(commits),
            Err(error) => return Err(error),
        }
    }
}

/// Goes on with a checksum over more bytes, as [SQLite's format](https://sqlite.org/fileformat2.html#walcksm) has it.
fn add((mut one, mut two): (u32, u32), bytes: &[u8], order: fn([u8; 4]) -> u32) -> (u32, u32) {
    for eight in bytes.chunks_exact(8) {
        one = one.wrapping_add(order([eight[0], eight[1], eight[2], eight[3]])).wrapping_add(two);
        two = two.wrapping_add(order([eight[4], eight[5], eight[6], eight[7]])).wrapping_add(one);
    }
    (one, two)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn pair(bytes: &[u8], at: usize) -> (u32, u32) {
    (number(bytes, at), number(bytes, at + 4))
}
