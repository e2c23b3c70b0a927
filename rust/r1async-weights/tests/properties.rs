//! Whatever two versions hold, the second comes back bit for bit; whatever bytes come, nothing breaks.

use proptest::prelude::*;
use r1async_weights::{
    Codec, Dtype, Encoded, Scratch, decode, encode, encode_full, hash, merge, parallel,
};

const DTYPES: [&str; 10] = [
    "bfloat16", "float16", "float32", "float64", "int8", "uint8", "bool", "int16", "int32", "int64",
];

/// Patterns of a float that a codec could get wrong, by width: both zeros, the smallest and largest subnormal, one,
/// infinities, quiet and signalling NaNs with a payload, all bits.
fn special(width: usize, kind: usize) -> u64 {
    let bf16 = [
        0x0000, 0x8000, 0x0001, 0x807f, 0x3f80, 0x7f80, 0xff80, 0x7fc1, 0xff81, 0x7f81, 0xffff,
        0x7fff,
    ][kind % 12];
    let rest: u64 = [0, u64::MAX >> 16, 1][kind % 3];
    match width {
        1 => bf16 >> 8,
        2 => bf16,
        4 => bf16 << 16 | rest & 0xffff,
        _ => bf16 << 48 | rest,
    }
}

fn put(bytes: &mut [u8], width: usize, at: usize, value: u64) {
    bytes[at * width..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// A small generator of random numbers of its own: proptest draws the seed, not a million values.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn tensor(len: usize, width: usize, seed: &mut u64) -> Vec<u8> {
    let mut bytes = vec![0; len * width];
    for at in 0..len {
        let drawn = random(seed);
        let value = if drawn.is_multiple_of(4) {
            special(width, (drawn >> 8) as usize % 36)
        } else {
            // Values that trained weights have, so that planes compress: exponents near that of 0.02.
            let exponent = (0x3c00 + (drawn >> 8 & 0x1ff)) | ((drawn & 1 << 40) >> 25);
            exponent << (16 * (width / 4 * 2).saturating_sub(1).min(3)) | drawn >> 50
        };
        put(&mut bytes, width, at, value);
    }
    bytes
}

/// `base` with a share of its values changed: by a unit in the last place, by anything, to a special pattern.
fn change(base: &[u8], width: usize, share: f64, seed: &mut u64) -> Vec<u8> {
    let mut new = base.to_vec();
    for at in 0..base.len() / width {
        let drawn = random(seed);
        if (drawn >> 40) as f64 / (1 << 24) as f64 >= share {
            continue;
        }
        let mut word = [0; 8];
        word[..width].copy_from_slice(&base[at * width..][..width]);
        let held = u64::from_le_bytes(word);
        let value = match drawn % 8 {
            0 => special(width, (drawn >> 8) as usize % 36),
            1 => random(seed),
            2 | 3 => held.wrapping_sub(1),
            4 => held ^ 1 << (8 * width - 1), // -x, and -0 for +0
            _ => held.wrapping_add(1),
        };
        put(&mut new, width, at, value);
    }
    new
}

fn applied(base: &[u8], encoded: &Encoded, dtype: Dtype, scratch: &mut Scratch) -> Vec<u8> {
    let mut shadow = base.to_vec();
    decode(encoded.part(), dtype, &mut shadow, scratch).expect("our own bytes");
    shadow
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1..70usize, 60..2_000usize, 4_000..20_000usize]
}

fn shares() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..0.02, 0.0..0.5, Just(1.0)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_version_comes_back_bit_for_bit(
        name in prop::sample::select(&DTYPES[..]), len in lengths(), share in shares(), mut seed: u64,
    ) {
        let (dtype, mut scratch) = (Dtype::named(name).unwrap(), Scratch::default());
        let base = tensor(len, dtype.width(), &mut seed);
        let new = change(&base, dtype.width(), share, &mut seed);
        let differ = base.chunks(dtype.width()).zip(new.chunks(dtype.width())).filter(|(a, b)| a != b).count();

        let delta = encode(&base, &new, dtype, &mut scratch).unwrap();
        prop_assert_eq!(delta.changed, differ);
        prop_assert_eq!(delta.codec == Codec::Same, differ == 0);
        prop_assert!(delta.payload.len() <= new.len());
        prop_assert_eq!(applied(&base, &delta, dtype, &mut scratch), new.clone());

        let full = encode_full(&new, dtype, &mut scratch).unwrap();
        prop_assert!(!full.codec.needs_base());
        prop_assert!(full.payload.len() <= new.len());
        prop_assert_eq!(applied(&vec![0xa5; new.len()], &full, dtype, &mut scratch), new.clone());
    }

    #[test]
    fn two_deltas_merged_do_what_both_do(
        name in prop::sample::select(&DTYPES[..]), len in lengths(), shares in (shares(), shares()),
        first_is_full: bool, and_back: bool, mut seed: u64,
    ) {
        let (dtype, mut scratch) = (Dtype::named(name).unwrap(), Scratch::default());
        let one = tensor(len, dtype.width(), &mut seed);
        let two = change(&one, dtype.width(), shares.0, &mut seed);
        let three = if and_back { one.clone() } else { change(&two, dtype.width(), shares.1, &mut seed) };
        let first = if first_is_full {
            encode_full(&two, dtype, &mut scratch).unwrap()
        } else {
            encode(&one, &two, dtype, &mut scratch).unwrap()
        };
        let second = encode(&two, &three, dtype, &mut scratch).unwrap();
        let both = merge(first.part(), second.part(), dtype, one.len(), &mut scratch).unwrap();
        prop_assert_eq!(applied(&one, &both, dtype, &mut scratch), three.clone());
        let deltas = first.codec.needs_base() && second.codec.needs_base();
        prop_assert!(!(and_back && deltas) || both.codec == Codec::Same);
    }

    #[test]
    fn cut_and_changed_bytes_are_an_error_or_another_version_and_never_a_panic(
        name in prop::sample::select(&DTYPES[..]), len in lengths(), share in shares(), full: bool,
        at: prop::sample::Index, bit in 0..8u8, mut seed: u64,
    ) {
        let (dtype, mut scratch) = (Dtype::named(name).unwrap(), Scratch::default());
        let base = tensor(len, dtype.width(), &mut seed);
        let new = change(&base, dtype.width(), share, &mut seed);
        let made = if full {
            encode_full(&new, dtype, &mut scratch).unwrap()
        } else {
            encode(&base, &new, dtype, &mut scratch).unwrap()
        };
        if made.payload.is_empty() {
            return Ok(());
        }
        let at = at.index(made.payload.len());
        let mut cut = made.clone();
        cut.payload.to_mut().truncate(at);
        prop_assert!(decode(cut.part(), dtype, &mut base.clone(), &mut scratch).is_err());
        let mut longer = made.clone();
        longer.payload.to_mut().push(0);
        prop_assert!(decode(longer.part(), dtype, &mut base.clone(), &mut scratch).is_err());
        let mut flipped = made.clone();
        flipped.payload.to_mut()[at] ^= 1 << bit;
        let mut shadow = base.clone();
        if decode(flipped.part(), dtype, &mut shadow, &mut scratch).is_ok() {
            // What a codec cannot know, the hash does.
            prop_assert!(shadow == new || hash(&shadow) != hash(&new));
        }
        for codec in Codec::ALL {
            let other = Encoded { codec, ..flipped.clone() };
            let _ = decode(other.part(), dtype, &mut base.clone(), &mut scratch);
            let _ = merge(other.part(), made.part(), dtype, base.len(), &mut scratch);
        }
    }
}

#[test]
fn lengths_that_are_no_tensors_are_refused() {
    let (dtype, mut scratch) = (Dtype::named("bfloat16").unwrap(), Scratch::default());
    let told = |text: String| assert_eq!(text, "3 bytes are not a multiple of 2");
    told(
        encode_full(&[0; 3], dtype, &mut scratch)
            .unwrap_err()
            .to_string(),
    );
    told(
        encode(&[0; 4], &[0; 3], dtype, &mut scratch)
            .unwrap_err()
            .to_string(),
    );
    let shorter = encode(&[0; 4], &[0; 2], dtype, &mut scratch).unwrap_err();
    assert_eq!(shorter.to_string(), "2 bytes are not the 4 of the tensor");
    let full = encode_full(&[1; 4], dtype, &mut scratch).unwrap();
    assert!(decode(full.part(), dtype, &mut [0; 6], &mut scratch).is_err());
    assert!(merge(full.part(), full.part(), dtype, 3, &mut scratch).is_err());
    assert!(Codec::named("zip").is_err());
}

#[test]
fn a_sparse_update_is_near_its_entropy_and_half_of_xor() {
    let (dtype, mut scratch) = (Dtype::named("bfloat16").unwrap(), Scratch::default());
    let mut seed = 7;
    let len = 1 << 20;
    for share in [0.001, 0.004, 0.01, 0.03] {
        let base: Vec<u8> = (0..len)
            .flat_map(|_| (0x3c00 + (random(&mut seed) & 0x81ff) as u16).to_le_bytes())
            .collect();
        let mut new = base.clone();
        for at in 0..len {
            let drawn = random(&mut seed);
            if (drawn >> 40) as f64 / (1 << 24) as f64 >= share {
                continue;
            }
            // 80 % by one unit in the last place, the rest geometrically by more.
            let by = if drawn % 10 < 8 {
                1
            } else {
                (drawn >> 8 & 0xffff | 1).trailing_zeros() + 2
            };
            let held = u16::from_le_bytes([base[2 * at], base[2 * at + 1]]);
            let value = if drawn & 0x80 == 0 {
                held.wrapping_add(by as u16)
            } else {
                held.wrapping_sub(by as u16)
            };
            put(&mut new, 2, at, u64::from(value));
        }
        let ours = encode(&base, &new, dtype, &mut scratch).unwrap();
        let bound = r1async_weights::entropy_bound(&base, &new, dtype);
        let xor = r1async_weights::xor_zstd(&base, &new, &mut scratch).unwrap();
        let (to_bound, to_xor) = (
            ours.payload.len() as f64 / bound,
            ours.payload.len() as f64 / xor.len() as f64,
        );
        // The bound takes the counts of a thousand changes for the truth, and tables cost what they cost.
        assert!(to_bound < 1.12, "{share}: {to_bound} of the bound");
        assert!(to_xor < 0.55, "{share}: {to_xor} of XOR");
        assert!(r1async_weights::index_value(&base, &new, dtype) == 6 * ours.changed);
    }
}

#[test]
fn threads_change_nothing() {
    let dtype = Dtype::named("bfloat16").unwrap();
    let mut seed = 3;
    let pairs: Vec<_> = [5_000, 0, 70_000, 33]
        .map(|len| tensor(len, 2, &mut seed))
        .map(|base| (change(&base, 2, 0.01, &mut seed), base))
        .into();
    let with = |threads| {
        let items: Vec<_> = pairs.iter().collect();
        parallel::map(
            items,
            threads,
            |(new, _)| new.len(),
            |(new, base), scratch| encode(base, new, dtype, scratch).unwrap(),
        )
    };
    assert_eq!(with(1), with(3));
}
