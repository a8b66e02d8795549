//! Any bytes, as the answers of another store that is compared with this one, in JSON, a line
//! each: an error or a result that is sorted, merged and within the volume.
//! `cargo fuzz run --fuzz-dir tests/fuzz compare fixtures/fuzz/compare`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::delta::digest::{Answer, CHUNK, Digest, Grain, Span};
use snapvol::replica::compare::{Side, compare};
use snapvol::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;

/// The volume here has three chunks; a block of the second is in use.
const SIZE: u64 = 3 * CHUNK;
const BLOCK: u32 = 4096;

/// The store here, and the one that says what the fuzzer makes up.
enum Store<'a> {
    Here(VecDeque<(Range<u64>, Grain)>),
    There(std::slice::Split<'a, u8, fn(&u8) -> bool>),
}

impl Side for Store<'_> {
    fn ask(&mut self, bytes: Range<u64>, by: Grain) -> Result<()> {
        if let Self::Here(asked) = self {
            asked.push_back((bytes, by));
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<Answer> {
        match self {
            Self::There(lines) => {
                let line = lines.next().ok_or_else(|| Error::invalid("it says nothing more"))?;
                serde_json::from_slice(line).map_err(|error| Error::invalid(error.to_string()))
            }
            Self::Here(asked) => {
                let (bytes, by) = asked.pop_front().ok_or_else(|| Error::invalid("nothing was asked"))?;
                let span = Span { at: CHUNK, in_use: 4096, digest: Some(Digest::of_zeros()) };
                let spans = Vec::from_iter(bytes.contains(&CHUNK).then_some(span));
                let _ = by;
                Ok(Answer { name: "s".to_owned(), size: SIZE, block_size: BLOCK, reached: bytes.end, spans })
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let newline: fn(&u8) -> bool = |byte| *byte == b'\n';
    let mut there = Store::There(data.split(newline));
    let Ok(found) = compare(&mut Store::Here(VecDeque::new()), &mut there, &mut |_| {}) else { return };
    let size = found.size.0.max(found.size.1);
    for ranges in [&found.differs, &found.damaged_here, &found.damaged_there] {
        assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size));
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    }
});
