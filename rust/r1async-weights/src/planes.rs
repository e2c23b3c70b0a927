//! All values: the first bytes of many together, then the second ones. Bytes of one place resemble each other.
//!
//! In pieces of `PIECE` values; of each piece, from the lowest byte to the highest, a stored length and the plane.

use crate::bits::Reader;
use crate::element::Word;
use crate::{CodecError, Scratch};

/// Values. A plane of a piece is one block of zstd, and a piece of all planes fits a cache.
const PIECE: usize = 1 << 17;

/// `word(i)` is value i, already turned into what compresses.
pub(crate) fn encode<W: Word>(
    len: usize,
    scratch: &mut Scratch,
    word: impl Fn(usize) -> W,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut plane = vec![0; PIECE.min(len)];
    let mut words = vec![W::ZERO; PIECE.min(len)];
    for start in (0..len).step_by(PIECE) {
        let count = PIECE.min(len - start);
        for (at, place) in words[..count].iter_mut().enumerate() {
            *place = word(start + at);
        }
        for byte in 0..W::BYTES {
            for (place, word) in plane.iter_mut().zip(&words[..count]) {
                *place = (word.to_u64() >> (8 * byte)) as u8;
            }
            scratch.write_stream(&mut out, &plane[..count]);
        }
    }
    out
}

/// Calls `each` with the first index of a piece, and its words.
pub(crate) fn walk<W: Word>(
    payload: &[u8],
    len: usize,
    scratch: &mut Scratch,
    mut each: impl FnMut(usize, &[W]),
) -> Result<(), CodecError> {
    let mut from = Reader(payload);
    let mut plane = vec![0; PIECE.min(len)];
    let mut words = vec![W::ZERO; PIECE.min(len)];
    for start in (0..len).step_by(PIECE) {
        let count = PIECE.min(len - start);
        for byte in 0..W::BYTES {
            scratch.read_stream(&mut from, &mut plane[..count], "a plane")?;
            for (word, &part) in words[..count].iter_mut().zip(&plane) {
                let held = if byte == 0 { 0 } else { word.to_u64() };
                *word = W::from_u64(held | u64::from(part) << (8 * byte));
            }
        }
        each(start, &words[..count]);
    }
    from.end()
}
