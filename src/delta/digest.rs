//! The digest: what a span of a snapshot holds, in 32 bytes; and the question and the answer
//! by which two stores compare their copies of a snapshot without sending them.
//!
//! A span is a chunk of [`CHUNK`] bytes or a single block. Its digest says which of its blocks
//! hold something else than zeros, and what those hold. So a block of zeros and a block that
//! is not in use are the same, and an empty volume costs nothing to hash, however large it
//! is. A span of which something can't be read, for its checksum does not match, has no
//! digest: it is damaged, which is neither equal nor different.

use crate::error::{Error, Result};
use base64::display::Base64Display;
use base64::engine::{Engine as _, general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Bytes in a chunk: a multiple of every block size.
pub const CHUNK: u64 = 4 << 20;
/// As many zeros as the largest block has bytes.
static ZEROS: [u8; 65536] = [0; 65536];

/// What spans an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grain {
    /// Chunks of which anything is in use.
    Chunk,
    /// Blocks that hold something else than zeros.
    Block,
}

/// Asks for the digests of a range of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The comparison that it is for: as long as that goes on, the snapshot stays.
    pub comparison: Uuid,
    /// The volume's name in the store that is asked.
    pub volume: String,
    /// The snapshot's identity.
    pub snapshot: Uuid,
    /// The first byte; a multiple of [`CHUNK`].
    pub from: u64,
    /// The byte after the last; what is past the snapshot's end is left out.
    pub to: u64,
    /// Chunks or blocks.
    pub by: Grain,
}

/// The digests of a range, or of its first part where it is long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The snapshot's name.
    pub name: String,
    /// Bytes in the snapshot.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// The answer is about the bytes below this one.
    pub reached: u64,
    /// Ascending. Spans that are not in it hold zeros.
    pub spans: Vec<Span>,
}

/// One span.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its first byte.
    pub at: u64,
    /// Bytes of it that are in use.
    pub in_use: u64,
    /// None: some of it is damaged.
    pub digest: Option<Digest>,
}

/// BLAKE3 of the places of the blocks that are not zeros, then of their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// That of a span of zeros.
    #[must_use]
    pub fn of_zeros() -> Self {
        Maker::default().finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| Error::invalid("a digest is malformed"))?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| serde::de::Error::custom("a digest is malformed"))
    }
}

/// A block of the snapshot that a comparison is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockOf {
    /// The comparison.
    pub comparison: Uuid,
    /// The volume's name in the store that is asked.
    pub volume: String,
    /// The snapshot's identity.
    pub snapshot: Uuid,
    /// The block's first byte.
    pub at: u64,
}

/// The bytes of a block; Base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(pub Bytes);

impl fmt::Debug for Content {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Content({} bytes)", self.0.len())
    }
}

impl Serialize for Content {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&Base64Display::new(&self.0, &STANDARD))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        if bytes.len() > ZEROS.len() {
            return Err(serde::de::Error::custom("that is more than a block has"));
        }
        Ok(Self(bytes.into()))
    }
}

/// Something that was found in a span.
#[derive(Clone, Debug)]
pub enum Found {
    /// Whole blocks, the last of them as long as the volume has it, from that byte on.
    Data(u64, Bytes),
    /// A block that can't be read, by its first byte.
    Damaged(u64),
}

#[derive(Default)]
struct Maker {
    places: blake3::Hasher,
    contents: blake3::Hasher,
}

impl Maker {
    /// Adds what is found at `at`, counted from the span's first byte.
    fn add(&mut self, at: u64, bytes: &[u8], block: usize) {
        // Runs are hashed as a whole: the hash is fast on long pieces.
        let mut run = 0..0;
        for (place, part) in (at..).step_by(block).zip(bytes.chunks(block)) {
            if is_zeros(part) {
                self.contents.update(&bytes[run.clone()]);
                run = run.end + part.len()..run.end + part.len();
            } else {
                self.places.update(&place.to_le_bytes());
                run.end += part.len();
            }
        }
        self.contents.update(&bytes[run]);
    }

    fn finish(self) -> Digest {
        let mut both = blake3::Hasher::new();
        both.update(self.places.finalize().as_bytes()).update(self.contents.finalize().as_bytes());
        Digest(*both.finalize().as_bytes())
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}

/// The chunk that begins at `at`, of which `in_use` bytes are in use and these were found, in
/// order: as one span, if anything is in use in it, or as the blocks that are not zeros.
#[must_use]
pub fn spans_of(at: u64, in_use: u64, found: &[Found], block: usize, by: Grain) -> Vec<Span> {
    match by {
        Grain::Chunk if in_use == 0 => Vec::new(),
        Grain::Chunk => {
            let mut maker = Some(Maker::default());
            for piece in found {
                match (piece, &mut maker) {
                    (Found::Data(place, bytes), Some(maker)) => maker.add(place - at, bytes, block),
                    (Found::Damaged(_), _) => maker = None,
                    (Found::Data(..), None) => {}
                }
            }
            vec![Span { at, in_use, digest: maker.map(Maker::finish) }]
        }
        Grain::Block => {
            let mut spans = Vec::new();
            for piece in found {
                match piece {
                    Found::Data(place, bytes) => {
                        for (at, part) in (*place..).step_by(block).zip(bytes.chunks(block)) {
                            if !is_zeros(part) {
                                let mut maker = Maker::default();
                                maker.add(0, part, block);
                                let in_use = part.len() as u64;
                                spans.push(Span { at, in_use, digest: Some(maker.finish()) });
                            }
                        }
                    }
                    Found::Damaged(at) => {
                        spans.push(Span { at: *at, in_use: block as u64, digest: None });
                    }
                }
            }
            spans
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn data(at: u64, values: &[u8]) -> Found {
        let bytes: Vec<u8> = values.iter().flat_map(|value| [*value; BLOCK]).collect();
        Found::Data(at * 512, bytes.into())
    }

    fn chunk(found: &[Found]) -> Option<Digest> {
        spans_of(0, 1, found, BLOCK, Grain::Chunk)[0].digest
    }

    /// What matters is what a reader would see, not how it was cut up or what is in use.
    #[test]
    fn equal_bytes_have_equal_digests() {
        let one = chunk(&[data(0, &[1, 2, 0, 3])]);
        assert_eq!(one, chunk(&[data(0, &[1]), data(1, &[2]), data(3, &[3])]));
        assert_eq!(one, chunk(&[data(0, &[1, 2]), data(3, &[3, 0, 0]), data(9, &[0])]));
        assert_eq!(chunk(&[data(0, &[0, 0])]), Some(Digest::of_zeros()));
        assert_eq!(chunk(&[]), Some(Digest::of_zeros()));
        assert_eq!(spans_of(0, 0, &[], BLOCK, Grain::Chunk), []);
    }

    #[test]
    fn a_digest_tells_places_contents_and_lengths_apart() {
        let all = [
            chunk(&[data(0, &[1, 2])]),
            chunk(&[data(0, &[2, 1])]),
            chunk(&[data(1, &[1, 2])]),
            chunk(&[data(0, &[1, 0, 2])]),
            chunk(&[data(0, &[1])]),
            chunk(&[data(0, &[1, 1])]),
            chunk(&[Found::Data(0, vec![1; 600].into())]),
            chunk(&[]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(one.is_some());
            assert!(all[..at].iter().all(|other| other != one), "{at}");
        }
    }

    #[test]
    fn damage_has_no_digest() {
        let found = [data(0, &[1, 0]), Found::Damaged(1024), data(3, &[2])];
        assert_eq!(chunk(&found), None);
        let blocks = spans_of(0, 2048, &found, BLOCK, Grain::Block);
        let seen: Vec<_> = blocks.iter().map(|span| (span.at, span.digest.is_some())).collect();
        assert_eq!(seen, [(0, true), (1024, false), (1536, true)]);
        assert_ne!(blocks[0].digest, blocks[2].digest);
    }

    #[test]
    fn the_bytes_of_a_block_are_text_in_json() {
        let content = Content(Bytes::from_static(b"any\0bytes"));
        let json = serde_json::to_string(&content).unwrap();
        assert_eq!(json, "\"YW55AGJ5dGVz\"");
        assert_eq!(serde_json::from_str::<Content>(&json).unwrap(), content);
        for bad in ["\"YW55AGJ5dGVz!\"".to_owned(), format!("\"{}\"", "A".repeat(90_000))] {
            assert!(serde_json::from_str::<Content>(&bad).is_err());
        }
    }

    #[test]
    fn a_digest_is_text_in_json() {
        let digest = Digest::of_zeros();
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        let span = Span { at: 4096, in_use: 512, digest: Some(digest) };
        let json = serde_json::to_string(&span).unwrap();
        assert_eq!(serde_json::from_str::<Span>(&json).unwrap(), span);
        assert!("xyz".parse::<Digest>().is_err());
    }
}
