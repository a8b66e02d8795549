//! Stamps: the content that a block must have, made from its number and its generation.
//!
//! A stamp fills its 4 KiB with words that all depend on both, so a block that is old,
//! torn, shifted or somebody else's is told from the right one, and checking costs little
//! more than reading the bytes. Generation 0 is what an image is prepared with.

/// Bytes of a stamped block.
pub const STAMP_BYTES: usize = 4096;

const WORDS: usize = STAMP_BYTES / 8;
/// Words of one block differ by this; odd, so that they all differ.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes bits well enough that neighbours have nothing in common (finaliser of murmur3).
fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

fn base(block: u64, generation: u32) -> u64 {
    mix(block << 32 | u64::from(generation))
}

/// Fills a block of a request.
pub fn fill(data: &mut [u8], block: u64, generation: u32) {
    let base = base(block, generation);
    for (index, word) in data.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&base.wrapping_add((index as u64).wrapping_mul(STEP)).to_le_bytes());
    }
    data[..4].copy_from_slice(&generation.to_le_bytes());
}

/// The generation that a block says it has, if the rest of it agrees.
pub fn check(data: &[u8], block: u64) -> Option<u32> {
    let generation = u32::from_le_bytes(*data.first_chunk()?);
    let base = base(block, generation);
    let mut wrong = 0;
    for (index, word) in data.chunks_exact(8).enumerate().skip(1) {
        let expected = base.wrapping_add((index as u64).wrapping_mul(STEP));
        wrong |= u64::from_le_bytes(*word.first_chunk()?) ^ expected;
    }
    let half = u32::from_le_bytes(*data[4..].first_chunk()?);
    let same = half == u32::try_from(base >> 32).ok()?;
    (data.len() == WORDS * 8 && wrong == 0 && same).then_some(generation)
}
