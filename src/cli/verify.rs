//! `verify`: proves that another store holds the same bytes of a snapshot, by digests.
//!
//! The far program answers questions, line by line (see [`super::digests`]); what is compared
//! with what is decided in `replica::compare`.

use super::args::Target;
use super::cut::{LOOK_EVERY, all_came_true};
use super::digests::{FromFar, ToFar, VERSION};
use super::output::{self, human};
use super::progress::Progress;
use super::shipping::{hear, say};
use crate::control::Access;
use crate::delta::digest::{Answer, BlockOf, Content, Grain, Question};
use crate::engine::api::SnapshotInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::compare::{Comparison, Side, add, bytes_in, compare};
use crate::transport::{Destination, Peer, one_line};
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::ops::Range;
use uuid::Uuid;

/// How often a snapshot that both sides have is looked for: those of replication come and go.
const ATTEMPTS: usize = 5;

/// Prove that another store holds the same bytes of a snapshot
///
/// Digests travel, no data. Only what is in use on either side is read. A snapshot is found
/// there by its identity, whatever its name; without @SNAP it is the youngest one that both
/// sides have, and those that replication made count, too: a session that does not keep its
/// last one here ships another first. Exit code 0: every byte is the same;
/// 4: some differ, or can't be read because they are damaged; 3: the snapshot is not there.
///
/// With --repair, a block that is damaged on one side gets the other side's content, on either
/// side, if that has the checksum that the block had when it was saved. Nothing else is ever
/// changed: a snapshot that differs stays as it is.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshot to verify; VOL alone: the youngest one that both sides have
    #[arg(value_name = "VOL[@SNAP]")]
    target: Target,
    /// Where its copy is: ssh://[user@]host[:port]/STORE/VOL, or /STORE/VOL
    #[arg(value_name = "DEST")]
    destination: Destination,
    /// Print JSON, offsets and lengths in bytes
    #[arg(long)]
    json: bool,
    /// Repair blocks whose checksum tells that they are damaged, with the other side's content
    #[arg(long)]
    repair: bool,
    /// The program to run there, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    remote_command: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// `Corrupt` when the copies are not known to be the same; `Conflict` when there is none; those
/// of either store and of the connection.
pub(super) fn run(store: &Access, args: &Args) -> Result<()> {
    let there = &args.destination;
    let volume = args.target.volume.as_str();
    let snapshots = snapshots_of(store, volume)?;
    let named = match &args.target.snapshot {
        None => None,
        Some(name) => {
            let found = snapshots.iter().find(|snapshot| snapshot.name == name.as_str());
            let gone = || Error::not_found(format!("there is no snapshot {}", args.target));
            Some(found.ok_or_else(gone)?.uuid)
        }
    };
    let mut near = Near::new(store, volume);
    let mut readable = Readable::default();
    let (found, repaired, name) = loop {
        let far_end = ["digests", there.volume.as_str()];
        let mut peer = Peer::start(there, args.remote_command.as_deref(), &far_end)?;
        let (input, output) = (peer.input(), peer.output());
        let mut far = Far { place: peer.place().to_owned(), input, output };
        let done = agree(&mut near, &mut far, named, &mut readable).and_then(|agreed| {
            let Some(name) = agreed else { return Ok(None) };
            let known = snapshots.iter().find(|snapshot| snapshot.uuid == near.snapshot);
            let bar = Progress::bytes(&format!("{volume}@{name}"), known.map(|snapshot| snapshot.in_use));
            let mut found = compare(&mut near, &mut far, &mut |bytes| bar.add(bytes))?;
            let repaired = if args.repair { repair(&mut near, &mut far, &mut found)? } else { 0 };
            Ok(Some((found, repaired, name)))
        });
        drop(far);
        let agreed = match done {
            Ok(agreed) => agreed,
            // A failure without a hint is a connection that ended without a word.
            Err(error) if error.kind() == ErrorKind::Interrupted && error.hint_text().is_none() => {
                return Err(peer.finish().err().unwrap_or(error));
            }
            Err(error) => return Err(error),
        };
        peer.finish()?;
        match agreed {
            Some(done) => break done,
            // The far end is gone meanwhile: it may have had the store that the set goes to.
            None => readable.failed = near.have_one_shipped(&there.to_string()).err(),
        }
    };
    drop(near);
    let report = Report::new(volume, &name, there, &found, repaired);
    if args.json {
        output::print_json(&report)?
    } else {
        output::print(&report.text())?
    }
    if found.is_equal() {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{volume}@{name} and its copy at {there}: {} differ, {} can't be compared because they are damaged",
        human(report.differing_bytes),
        human(report.damaged_bytes)
    ))
    .hint(if bytes_in(&found.differs) == 0 && !args.repair {
        "'snapvol verify --repair' mends what the other side has whole; 'snapvol scrub' says which files are damaged"
    } else {
        "a delta does not mend it: delete the copy there and ship the volume whole; 'snapvol scrub' says which files are damaged"
    }))
}

fn snapshots_of(store: &Access, volume: &str) -> Result<Vec<SnapshotInfo>> {
    let mut all = store.list(Some(volume))?.volumes;
    all.retain(|found| found.name == volume);
    Ok(all.pop().map(|found| found.snapshots).unwrap_or_default())
}

/// What was done so that the youngest state in common can be read here: it may have shrunk to a
/// bookmark.
#[derive(Default)]
struct Readable {
    /// Sets that were asked for.
    asked: usize,
    /// Why the last one was not shipped: then what else both have, which is older, will do.
    failed: Option<Error>,
}

/// Finds the snapshot to compare: the one that was named, or the youngest that both sides
/// have. From then on it stays on both. Returns its name here; none: it can't be read, and one
/// that can is to be shipped first.
fn agree<W: Write, R: BufRead>(
    near: &mut Near<'_>,
    far: &mut Far<W, R>,
    named: Option<Uuid>,
    readable: &mut Readable,
) -> Result<Option<String>> {
    for _ in 0..ATTEMPTS {
        let wanted = match named {
            Some(named) => vec![named],
            None => near.store.offers(&near.volume, readable.failed.is_none())?,
        };
        let Some(held) = far.greet(near.comparison, &wanted)? else {
            if let Some(error) = readable.failed.take() {
                return Err(error);
            }
            let what = if named.is_some() { "the snapshot is" } else { "no snapshot of the volume is" };
            return Err(Error::conflict(format!("{}: {what} held there", far.place))
                .hint("bring it there with 'snapvol copy', or follow the volume with 'snapvol replicate'"));
        };
        if !wanted.contains(&held) {
            return Err(Error::invalid(format!(
                "{}: it offers a snapshot that was not asked for",
                far.place
            )));
        }
        near.snapshot = held;
        near.ask(0..0, Grain::Chunk)?;
        match near.answer() {
            Ok(answer) => return Ok(Some(answer.name)),
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                if readable.failed.is_none() && readable.asked < ATTEMPTS {
                    readable.asked += 1;
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::conflict("no snapshot stays on both sides for long enough").hint("run the same command again"))
}

/// Has each side put right what it has damaged and the other side has whole. What was put right
/// is damaged no more; returns how many bytes that is.
fn repair<W: Write, R: BufRead>(
    near: &mut Near<'_>,
    far: &mut Far<W, R>,
    found: &mut Comparison,
) -> Result<u64> {
    let block = u64::from(near.block_size);
    let before = bytes_in(&found.damaged_here) + bytes_in(&found.damaged_there);
    let here = unmended(&found.damaged_here, block, |at| match far.content(at)? {
        Some(content) => near.store.restore_content(&near.block(at), &content),
        None => Ok(false),
    })?;
    let there = unmended(&found.damaged_there, block, |at| match near.store.content(&near.block(at))? {
        Some(content) => far.restore(at, content),
        None => Ok(false),
    })?;
    (found.damaged_here, found.damaged_there) = (here, there);
    Ok(before - bytes_in(&found.damaged_here) - bytes_in(&found.damaged_there))
}

/// The blocks of those ranges that `mend` does not put right.
fn unmended(
    ranges: &[Range<u64>],
    block: u64,
    mut mend: impl FnMut(u64) -> Result<bool>,
) -> Result<Vec<Range<u64>>> {
    let mut left = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let end = (at + block).min(range.end);
            if !mend(at)? {
                add(&mut left, at..end);
            }
            at = end;
        }
    }
    Ok(left)
}

/// This side: the store is asked when its answer is wanted.
struct Near<'a> {
    store: &'a Access,
    volume: String,
    comparison: Uuid,
    snapshot: Uuid,
    /// Bytes in a block, once something was answered.
    block_size: u32,
    asked: VecDeque<(Range<u64>, Grain)>,
}

impl<'a> Near<'a> {
    fn new(store: &'a Access, volume: &str) -> Self {
        let (comparison, snapshot) = (Uuid::new_v4(), Uuid::nil());
        let volume = volume.to_owned();
        Self { store, volume, comparison, snapshot, block_size: 0, asked: VecDeque::new() }
    }

    /// Has the session to that destination ship a set whose target stays readable here.
    fn have_one_shipped(&self, there: &str) -> Result<()> {
        let why = |error: Error| {
            error.context(format!(
                "what both sides have of volume {} can't be read here any more, and no set is shipped",
                self.volume
            ))
        };
        self.store.keep_readable(&self.volume, self.comparison)?;
        let wishes = self.store.cut(&self.volume).map_err(why)?;
        loop {
            let sessions = self.store.status()?.sessions;
            let is_there = |wish: &(Uuid, u64)| {
                sessions.iter().any(|status| status.session == wish.0 && status.peer == there)
            };
            let mine: Vec<(Uuid, u64)> = wishes.iter().copied().filter(is_there).collect();
            if mine.is_empty() {
                let what = format!("no session leads from volume {} to {there}", self.volume);
                return Err(why(Error::conflict(what).hint("name a snapshot that both sides have")));
            }
            if all_came_true(&sessions, &mine).map_err(why)? {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
            self.store.keep_readable(&self.volume, self.comparison)?;
        }
    }

    fn block(&self, at: u64) -> BlockOf {
        BlockOf { comparison: self.comparison, volume: self.volume.clone(), snapshot: self.snapshot, at }
    }
}

impl Drop for Near<'_> {
    fn drop(&mut self) {
        // The volume may be gone; else the snapshot is closed after a while.
        let _ = self.store.end_digests(&self.volume, self.comparison);
    }
}

impl Side for Near<'_> {
    fn ask(&mut self, bytes: Range<u64>, by: Grain) -> Result<()> {
        self.asked.push_back((bytes, by));
        Ok(())
    }

    fn answer(&mut self) -> Result<Answer> {
        let asked = self.asked.pop_front();
        let (bytes, by) = asked.ok_or_else(|| Error::invalid("nothing was asked"))?;
        let (from, to) = (bytes.start, bytes.end);
        let (volume, comparison, snapshot) = (self.volume.clone(), self.comparison, self.snapshot);
        let answer = self.store.digests(&Question { comparison, volume, snapshot, from, to, by })?;
        self.block_size = answer.block_size;
        Ok(answer)
    }
}

/// The far side, behind a program that runs there.
struct Far<W, R> {
    place: String,
    input: W,
    output: R,
}

impl<W: Write, R: BufRead> Far<W, R> {
    fn say(&mut self, message: &ToFar) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::Interrupted, format!("{}: the connection broke", self.place));
        say(&mut self.input, message).map_err(gone)
    }

    /// The next message that is no failure.
    fn hear(&mut self) -> Result<FromFar> {
        match hear::<FromFar>(&mut self.output)? {
            Some(FromFar::Failed(wire)) => {
                let error = Error::from(wire);
                let told =
                    Error::new(error.kind(), format!("{}: {}", self.place, one_line(&error.to_string())));
                Err(match error.hint_text() {
                    Some(hint) => told.hint(format!("at {}: {}", self.place, one_line(hint))),
                    None if told.kind() == ErrorKind::Interrupted => told.hint("run the same command again"),
                    None => told,
                })
            }
            Some(message) => Ok(message),
            None => Err(Error::new(ErrorKind::Interrupted, format!("{}: the connection ended", self.place))),
        }
    }

    fn out_of_order(&self) -> Error {
        Error::invalid(format!("{}: an answer out of order", self.place))
    }

    /// The content of a block there, if it is whole.
    fn content(&mut self, at: u64) -> Result<Option<Content>> {
        self.say(&ToFar::Content { at })?;
        match self.hear()? {
            FromFar::Content(content) => Ok(content),
            _ => Err(self.out_of_order()),
        }
    }

    /// Has the far side put a block right.
    fn restore(&mut self, at: u64, content: Content) -> Result<bool> {
        self.say(&ToFar::Restore { at, content })?;
        match self.hear()? {
            FromFar::Restored(done) => Ok(done),
            _ => Err(self.out_of_order()),
        }
    }

    /// Says hello; returns the first of the snapshots that the far side holds.
    fn greet(&mut self, comparison: Uuid, wanted: &[Uuid]) -> Result<Option<Uuid>> {
        let hello = ToFar::Hello { version: VERSION, comparison, wanted: wanted.to_vec() };
        // If the far side is gone already, its end explains it better than this write.
        let _ = self.say(&hello);
        match self.hear()? {
            FromFar::Hello { version: VERSION, held } => Ok(held),
            FromFar::Hello { version, .. } => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} speaks version {version} of the protocol, this side {VERSION}", self.place),
            )
            .hint("use the same release of snapvol on both sides")),
            _ => Err(self.out_of_order()),
        }
    }
}

impl<W: Write, R: BufRead> Side for Far<W, R> {
    fn ask(&mut self, bytes: Range<u64>, by: Grain) -> Result<()> {
        self.say(&ToFar::Ask { from: bytes.start, to: bytes.end, by })
    }

    fn answer(&mut self) -> Result<Answer> {
        match self.hear()? {
            FromFar::Answer(answer) => Ok(answer),
            _ => Err(self.out_of_order()),
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    volume: String,
    snapshot: String,
    destination: String,
    equal: bool,
    /// Bytes, here and there; more in use on one side are zeros that are stored there.
    size: u64,
    in_use: u64,
    in_use_there: u64,
    differing_bytes: u64,
    damaged_bytes: u64,
    repaired_bytes: u64,
    differs: Vec<Extent>,
    damaged: Vec<Damage>,
}

#[derive(Serialize)]
struct Extent {
    offset: u64,
    length: u64,
}

impl From<&Range<u64>> for Extent {
    fn from(range: &Range<u64>) -> Self {
        Self { offset: range.start, length: range.end - range.start }
    }
}

#[derive(Serialize)]
struct Damage {
    side: &'static str,
    #[serde(flatten)]
    extent: Extent,
}

impl Report {
    fn new(volume: &str, snapshot: &str, there: &Destination, found: &Comparison, repaired: u64) -> Self {
        let damaged = |side, ranges: &[Range<u64>]| -> Vec<Damage> {
            ranges.iter().map(|range| Damage { side, extent: range.into() }).collect()
        };
        let mut all = damaged("here", &found.damaged_here);
        all.extend(damaged("there", &found.damaged_there));
        Self {
            volume: volume.to_owned(),
            snapshot: snapshot.to_owned(),
            destination: there.to_string(),
            equal: found.is_equal(),
            size: found.size.0,
            in_use: found.in_use.0,
            in_use_there: found.in_use.1,
            differing_bytes: bytes_in(&found.differs),
            damaged_bytes: bytes_in(&found.damaged_here) + bytes_in(&found.damaged_there),
            repaired_bytes: repaired,
            differs: found.differs.iter().map(Extent::from).collect(),
            damaged: all,
        }
    }

    /// One line a range, then a summary.
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        for Extent { offset, length } in &self.differs {
            let _ = writeln!(text, "{offset} {length} differs");
        }
        for Damage { side, extent: Extent { offset, length } } in &self.damaged {
            let _ = writeln!(text, "{offset} {length} damaged {side}");
        }
        let _ = write!(text, "{}@{}: ", self.volume, self.snapshot);
        let _ = if self.equal {
            write!(text, "equal")
        } else {
            write!(text, "{} differ, {} damaged", human(self.differing_bytes), human(self.damaged_bytes))
        };
        if self.repaired_bytes > 0 {
            let _ = write!(text, "; {} repaired", human(self.repaired_bytes));
        }
        let _ = writeln!(text, "; {} in use here, {} there", human(self.in_use), human(self.in_use_there));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn report(found: &Comparison) -> Report {
        Report::new("db", "a", &"/s/db".parse().unwrap(), found, 0)
    }

    fn far(lines: &str) -> Far<Vec<u8>, Cursor<Vec<u8>>> {
        Far { place: "there".to_owned(), input: Vec::new(), output: Cursor::new(lines.as_bytes().to_vec()) }
    }

    #[test]
    fn lines_and_summary() {
        let mut found = Comparison { size: (65536, 65536), in_use: (8192, 4096), ..Comparison::default() };
        assert_eq!(report(&found).text(), "db@a: equal; 8.0 KiB in use here, 4.0 KiB there\n");
        found.differs = vec![0..4096, 8192..16384];
        found.damaged_there.push(4096..8192);
        let report = report(&found);
        assert_eq!(
            report.text(),
            "0 4096 differs\n8192 8192 differs\n4096 4096 damaged there\n\
             db@a: 12.0 KiB differ, 4.0 KiB damaged; 8.0 KiB in use here, 4.0 KiB there\n"
        );
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json["equal"], false);
        assert_eq!(json["differs"][1], serde_json::json!({"offset": 8192, "length": 8192}));
        assert_eq!(json["damaged"][0], serde_json::json!({"side": "there", "offset": 4096, "length": 4096}));
    }

    #[test]
    fn a_far_side_that_can_not_answer() {
        let greet = |lines: &str| far(lines).greet(Uuid::nil(), &[Uuid::nil()]);
        let kind = |lines: &str| greet(lines).unwrap_err().kind();
        assert_eq!(kind(""), ErrorKind::Interrupted);
        assert_eq!(kind("Welcome!\n"), ErrorKind::Invalid);
        assert_eq!(kind("{\"hello\":{\"version\":2,\"held\":null}}\n"), ErrorKind::Unsupported);
        assert_eq!(greet("{\"hello\":{\"version\":1,\"held\":null}}\n").unwrap(), None);
        let failed = "{\"failed\":{\"kind\":\"not-found\",\"message\":\"gone\\u001b[31m\\nnow\"}}\n";
        let error = greet(failed).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "there: gone[31m; now"));
        let mut far = far("{\"hello\":{\"version\":1,\"held\":null}}\n");
        assert_eq!(far.answer().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
