//! An encoded tensor from anybody, and two of them merged.
//!
//! Bytes: dtype, values, codec of each of two payloads, length of the first; then both payloads, and what is left of
//! them is also a version of a tensor that has to come back.

use r1async_weights::{Codec, Dtype, Part, Scratch, decode, encode, merge};

/// So that every width, and floats and integers, come up.
pub const DTYPES: [&str; 6] = ["bfloat16", "float32", "float64", "uint8", "int16", "int64"];
/// Bytes before the payloads.
pub const HEAD: usize = 6;

/// Decodes and merges what the bytes say.
///
/// # Panics
/// A decoder does, or a merged delta leads elsewhere than its two parts.
pub fn apply(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return;
    };
    let name = DTYPES[usize::from(head[0]) % DTYPES.len()];
    let dtype = Dtype::named(name).expect("one of ours");
    let len = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let codec = |at: usize| Codec::ALL[usize::from(head[at]) % Codec::ALL.len()];
    let (first, second) = rest.split_at(usize::from(head[5]).min(rest.len()));
    let (first, second) = (
        Part {
            codec: codec(3),
            payload: first,
        },
        Part {
            codec: codec(4),
            payload: second,
        },
    );
    let mut scratch = Scratch::default();
    let base: Vec<u8> = (0..len * dtype.width()).map(|at| (at / 7) as u8).collect();
    let mut shadow = base.clone();
    let mut both = decode(first, dtype, &mut shadow, &mut scratch).is_ok();
    both &= decode(second, dtype, &mut shadow, &mut scratch).is_ok();
    if let Ok(merged) = merge(first, second, dtype, base.len(), &mut scratch) {
        assert!(merged.changed <= len);
        let mut other = base.clone();
        let done = decode(merged.part(), dtype, &mut other, &mut scratch);
        if both {
            assert_eq!(done, Ok(()));
            assert_eq!(other, shadow);
        }
    }
    let mut new = base.clone();
    new.iter_mut()
        .zip(rest)
        .for_each(|(place, byte)| *place ^= byte);
    let delta = encode(&base, &new, dtype, &mut scratch).expect("two versions of one tensor");
    let mut shadow = base;
    decode(delta.part(), dtype, &mut shadow, &mut scratch).expect("our own bytes");
    assert_eq!(shadow, new);
}

/// Payloads of every codec for every dtype, and pairs of them.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut scratch = Scratch::default();
    for (at, name) in DTYPES.into_iter().enumerate() {
        let dtype = Dtype::named(name).expect("one of ours");
        let len = 40usize;
        let base: Vec<u8> = (0..len * dtype.width()).map(|at| (at / 7) as u8).collect();
        for every in [1, 3, 17, 1000] {
            let mut new = base.clone();
            new.iter_mut().step_by(every).for_each(|byte| *byte ^= 1);
            let full = r1async_weights::encode_full(&new, dtype, &mut scratch);
            let delta = encode(&base, &new, dtype, &mut scratch);
            let made = [full.expect("whole values"), delta.expect("two versions")];
            for (first, second) in [(0, 1), (1, 1)] {
                let number = |which: usize| {
                    let is = |codec: &Codec| *codec == made[which].codec;
                    Codec::ALL.iter().position(is).expect("one of them") as u8
                };
                let cut = made[first].payload.len().min(255) as u8;
                let mut seed = vec![at as u8, len as u8, 0, number(first), number(second), cut];
                seed.extend_from_slice(&made[first].payload);
                seed.extend_from_slice(&made[second].payload);
                seeds.push(seed);
            }
        }
    }
    seeds
}
