//! What others send, to be measured beside ours (`r1async bench weights`), and what cannot be beaten.

use std::collections::HashMap;

use crate::element::{Word, by_width};
use crate::scan::changes;
use crate::{CodecError, Dtype, Scratch};

/// XOR with the base, all of it through zstd-1.
///
/// # Errors
/// [`CodecError::Shape`]: the lengths differ.
pub fn xor_zstd(base: &[u8], new: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>, CodecError> {
    if base.len() != new.len() {
        let (bytes, wanted) = (new.len(), format!("the {} of the base", base.len()));
        return Err(CodecError::Shape { bytes, wanted });
    }
    let xor: Vec<u8> = base.iter().zip(new).map(|(a, b)| a ^ b).collect();
    Ok(scratch.compress(&xor))
}

/// Inverse of [`xor_zstd`]: `shadow` holds the base, and gets the version.
///
/// # Errors
/// [`CodecError::Zstd`].
pub fn xor_zstd_decode(
    payload: &[u8],
    shadow: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    let mut xor = vec![0; shadow.len()];
    scratch.decompress(payload, &mut xor, "XOR")?;
    shadow
        .iter_mut()
        .zip(xor)
        .for_each(|(place, xor)| *place ^= xor);
    Ok(())
}

/// Bytes of a 32-bit index and the value itself for every changed value.
#[must_use]
pub fn index_value(base: &[u8], new: &[u8], dtype: Dtype) -> usize {
    by_width!(dtype.width(), histogram(base, new, dtype)).0 * (4 + dtype.width())
}

/// Bytes below which no code gets on average that knows only how many values changed, and how often each difference
/// occurs: n H(p) bits for the places, and the entropy of the differences.
#[must_use]
pub fn entropy_bound(base: &[u8], new: &[u8], dtype: Dtype) -> f64 {
    let (changed, counts) = by_width!(dtype.width(), histogram(base, new, dtype));
    let (len, changed) = ((new.len() / dtype.width()) as f64, changed as f64);
    let bits = |part: f64, whole: f64| {
        if part > 0.0 {
            -part * (part / whole).log2()
        } else {
            0.0
        }
    };
    let places = bits(changed, len) + bits(len - changed, len);
    let values: f64 = counts
        .values()
        .map(|&count| bits(count as f64, changed))
        .sum();
    (places + values) / 8.0
}

fn histogram<W: Word>(base: &[u8], new: &[u8], dtype: Dtype) -> (usize, HashMap<u64, u64>) {
    let mut counts = HashMap::new();
    let Some(found) = changes::<W>(base, new, dtype.is_float(), usize::MAX) else {
        return (0, counts);
    };
    for delta in &found.deltas {
        *counts.entry(delta.to_u64()).or_insert(0) += 1;
    }
    (found.len(), counts)
}
