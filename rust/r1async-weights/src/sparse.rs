//! Few changes: gaps between them and differences, entropy coded.
//!
//! ```text
//! varint   changes c, at least one
//! u8       shift s
//! varint   g, then a stream of g bytes    gaps >> s: 255 says that 255 more follow, what is less ends the gap
//!          a stream of c bytes            differences, zigzag - 1: below 192 itself; else 192 + bits - 8
//! the rest                                bits, lowest first: of each change the s lowest bits of its gap, and of a
//!                                         difference of that many bits all but the highest
//! ```
//! Where changes are independent a gap is geometric. Bytes that begin again at 255 are then independent too, and the
//! lowest bits of long gaps are nearly evenly spread: the entropy coder finds a stream that it can code almost at its
//! entropy, where varints of gaps would mix first and second bytes. A stream is its stored length and zstd-1, or the
//! bytes as they are if that is not longer.

use crate::bits::{BitReader, BitWriter, Reader, write_varint};
use crate::element::Word;
use crate::scan::Changes;
use crate::{CodecError, Scratch};

/// A gap's byte that says: so many, and more.
const MORE: u8 = 255;
/// Differences below this are a byte of their own.
const DIRECT: u64 = 192;
/// `DIRECT` and what is above it have 8 bits or more.
const DIRECT_BITS: u32 = 8;
const MAX_SHIFT: u32 = 24;

/// Values of a tensor that gaps of 32 bits reach.
pub(crate) const MAX_LEN: usize = u32::MAX as usize;

pub(crate) fn encode<W: Word>(changes: &Changes<W>, len: usize, scratch: &mut Scratch) -> Vec<u8> {
    let count = changes.len();
    // The mean becomes 8 to 15: the lowest bits below are evenly spread (a geometric gap's differ by 12 % at most), and
    // so few different bytes need but a short table in front of each stream.
    let shift = (len / count.max(1)).max(1).ilog2().saturating_sub(3);
    let shift = shift.min(MAX_SHIFT);
    let mut gaps = Vec::with_capacity(count + (len >> shift) / 255);
    let mut values = Vec::with_capacity(count);
    let mut bits = BitWriter::default();
    for (&gap, &delta) in changes.gaps.iter().zip(&changes.deltas) {
        let mut high = gap >> shift;
        while high >= u32::from(MORE) {
            gaps.push(MORE);
            high -= u32::from(MORE);
        }
        gaps.push(high as u8);
        if shift > 0 {
            bits.push(u64::from(gap) & ((1 << shift) - 1), shift);
        }
        let value = delta.zigzag().to_u64() - 1;
        if value < DIRECT {
            values.push(value as u8);
        } else {
            let length = value.ilog2();
            values.push((DIRECT as u32 + length + 1 - DIRECT_BITS) as u8);
            bits.push(value ^ (1 << length), length);
        }
    }
    let mut out = Vec::new();
    write_varint(&mut out, count as u64);
    out.push(shift as u8);
    write_varint(&mut out, gaps.len() as u64);
    scratch.write_stream(&mut out, &gaps);
    scratch.write_stream(&mut out, &values);
    out.extend_from_slice(&bits.finish());
    out
}

/// Calls `each` with index and difference of every change, in order, of a tensor of `len` values.
#[inline(always)]
pub(crate) fn walk<W: Word>(
    payload: &[u8],
    len: usize,
    scratch: &mut Scratch,
    mut each: impl FnMut(usize, W),
) -> Result<(), CodecError> {
    let mut from = Reader(payload);
    let count = from.count(len as u64, "the number of changes")?;
    if count == 0 {
        let (what, got) = ("the number of changes", 0);
        return Err(CodecError::Impossible { what, got });
    }
    let shift = u32::from(from.bytes(1, "the shift")?[0]);
    if shift > MAX_SHIFT {
        let (what, got) = ("the shift", u64::from(shift));
        return Err(CodecError::Impossible { what, got });
    }
    // Every change ends one gap, and all gaps together skip no more than there is.
    let limit = count + (len >> shift) / usize::from(MORE);
    let mut gaps = vec![0; from.count(limit as u64, "bytes of gaps")?];
    scratch.read_stream(&mut from, &mut gaps, "gaps")?;
    let mut values = vec![0; count];
    scratch.read_stream(&mut from, &mut values, "differences")?;
    let mut bits = BitReader::new(from.0);
    let mut gaps = gaps.into_iter();
    let mut at = 0u64;
    for symbol in values {
        let mut high = 0u64;
        loop {
            let byte = gaps.next().ok_or(CodecError::Cut("gaps"))?;
            high += u64::from(byte);
            if byte < MORE {
                break;
            }
        }
        at += (high << shift) + bits.take(shift)?;
        if at >= len as u64 {
            let len = len as u64;
            return Err(CodecError::Position { at, len });
        }
        each(at as usize, value::<W>(symbol, &mut bits)?);
        at += 1;
    }
    match gaps.len() {
        0 => bits.end(),
        left => Err(CodecError::Trailing(left)),
    }
}

#[inline(always)]
fn value<W: Word>(symbol: u8, bits: &mut BitReader) -> Result<W, CodecError> {
    let symbol = u64::from(symbol);
    if symbol < DIRECT {
        return Ok(W::from_u64(symbol + 1).unzigzag());
    }
    let length = (symbol - DIRECT) as u32 + DIRECT_BITS - 1;
    let what = "a difference";
    if length >= 8 * W::BYTES as u32 {
        return Err(CodecError::Impossible { what, got: symbol });
    }
    let value = bits.take(length)? | (1 << length);
    // All bits set, plus one, is no word: no difference is so large.
    match W::from_u64(value.wrapping_add(1)) {
        zero if zero == W::ZERO => Err(CodecError::Impossible { what, got: value }),
        zigzag => Ok(zigzag.unzigzag()),
    }
}
