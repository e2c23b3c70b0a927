//! Which values differ between two versions of a tensor, and by how much.

use crate::element::{Word, difference};

/// Bytes that are compared at a time before anybody looks at single values: most blocks have no change.
const BLOCK: usize = 128;

/// The values that changed, in order.
pub(crate) struct Changes<W> {
    /// Unchanged values before each.
    pub gaps: Vec<u32>,
    /// By how much each changed; never zero.
    pub deltas: Vec<W>,
    next: usize,
}

impl<W> Changes<W> {
    pub fn new() -> Self {
        Self {
            gaps: Vec::new(),
            deltas: Vec::new(),
            next: 0,
        }
    }

    /// `at` is above every one before, and below 2^32.
    #[inline(always)]
    pub fn push(&mut self, at: usize, delta: W) {
        self.gaps.push((at - self.next) as u32);
        self.deltas.push(delta);
        self.next = at + 1;
    }

    pub fn len(&self) -> usize {
        self.gaps.len()
    }
}

#[inline(always)]
fn words<const N: usize>(block: &[u8; N]) -> impl Iterator<Item = u64> {
    let (words, _) = block.as_chunks::<8>();
    words.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// `None` if there are more than `limit`. Both slices have the same length, a multiple of the width.
pub(crate) fn changes<W: Word>(
    base: &[u8],
    new: &[u8],
    float: bool,
    limit: usize,
) -> Option<Changes<W>> {
    let mut found = Changes::new();
    let (base_blocks, base_rest) = base.as_chunks::<BLOCK>();
    let (new_blocks, new_rest) = new.as_chunks::<BLOCK>();
    for (index, (a, b)) in base_blocks.iter().zip(new_blocks).enumerate() {
        // Without a branch inside, so that the compiler makes vectors of it.
        let dirty = words(a).zip(words(b)).fold(0, |or, (a, b)| or | (a ^ b));
        if dirty != 0 {
            let first = index * (BLOCK / W::BYTES);
            look(&mut found, first, a, b, float);
            if found.len() > limit {
                return None;
            }
        }
    }
    let first = base_blocks.len() * (BLOCK / W::BYTES);
    let rest = base_rest.chunks(W::BYTES).zip(new_rest.chunks(W::BYTES));
    for (at, (a, b)) in rest.enumerate() {
        if a != b {
            found.push(first + at, difference(W::read(a), W::read(b), float));
        }
    }
    (found.len() <= limit).then_some(found)
}

/// The changes of one block. Eight bytes at a time; of those that differ, value after value.
#[inline(always)]
fn look<W: Word>(
    found: &mut Changes<W>,
    first: usize,
    a: &[u8; BLOCK],
    b: &[u8; BLOCK],
    float: bool,
) {
    let bits = 8 * W::BYTES as u32;
    let lanes = 8 / W::BYTES;
    for (place, (a, b)) in words(a).zip(words(b)).enumerate() {
        let mut differ = a ^ b;
        while differ != 0 {
            let lane = differ.trailing_zeros() / bits;
            let shift = lane * bits;
            let value = |word: u64| W::from_u64(word >> shift);
            let delta = difference(value(a), value(b), float);
            found.push(first + place * lanes + lane as usize, delta);
            differ &= !(u64::MAX >> (64 - bits) << shift);
        }
    }
}
