//! One tensor, encoded by the codec that makes it smallest.

use std::borrow::Cow;

use crate::element::{Word, by_width, difference, moved};
use crate::scan::{Changes, changes};
use crate::{CodecError, Dtype, Scratch, planes, sparse};

/// Share of changed values up to which only [`Codec::Ulp`] is tried: planes are never smaller there.
const SPARSE_ONLY: f64 = 0.25;
/// Share up to which [`Codec::Ulp`] is tried at all.
const SPARSE: f64 = 0.5;
/// A delta above this share of the raw bytes: a snapshot may be smaller.
const DELTA_WORTH: f64 = 0.5;

/// How a tensor's bytes are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// No value changed.
    Same,
    /// The bytes themselves.
    Raw,
    /// The values as byte planes.
    Planes,
    /// The changed values: gaps and differences.
    Ulp,
    /// Differences of all values as byte planes.
    UlpPlanes,
}

impl Codec {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Same,
        Self::Raw,
        Self::Planes,
        Self::Ulp,
        Self::UlpPlanes,
    ];

    /// As a manifest has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Raw => "raw",
            Self::Planes => "planes",
            Self::Ulp => "ulp",
            Self::UlpPlanes => "ulp_planes",
        }
    }

    /// Inverse of `name`.
    ///
    /// # Errors
    /// [`CodecError::UnknownCodec`].
    pub fn named(name: &str) -> Result<Self, CodecError> {
        let found = Self::ALL.into_iter().find(|codec| codec.name() == name);
        found.ok_or_else(|| CodecError::UnknownCodec(name.chars().take(32).collect()))
    }

    /// Whether it can be decoded only over the version that it was made against.
    #[must_use]
    pub fn needs_base(self) -> bool {
        matches!(self, Self::Same | Self::Ulp | Self::UlpPlanes)
    }
}

/// An encoded tensor as it is read: where its bytes came from does not matter.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// How it is encoded.
    pub codec: Codec,
    /// The bytes.
    pub payload: &'a [u8],
}

/// An encoded tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// How.
    pub codec: Codec,
    /// The bytes; those of the tensor itself under [`Codec::Raw`].
    pub payload: Cow<'a, [u8]>,
    /// Values that differ from the base; all of them without one.
    pub changed: usize,
}

impl Encoded<'_> {
    fn same() -> Self {
        Self {
            codec: Codec::Same,
            payload: Cow::Borrowed(&[]),
            changed: 0,
        }
    }

    /// To be read again.
    #[must_use]
    pub fn part(&self) -> Part<'_> {
        Part {
            codec: self.codec,
            payload: &self.payload,
        }
    }
}

/// xxh3-128 of a tensor's bytes.
#[must_use]
pub fn hash(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// The tensor by itself: [`Codec::Planes`] or [`Codec::Raw`].
///
/// # Errors
/// [`CodecError::Shape`]: not a whole number of values.
pub fn encode_full<'a>(
    new: &'a [u8],
    dtype: Dtype,
    scratch: &mut Scratch,
) -> Result<Encoded<'a>, CodecError> {
    let len = values_of(new, dtype)?;
    Ok(by_width!(
        dtype.width(),
        full(new, len, dtype.is_float(), scratch)
    ))
}

/// What leads from `base` to `new`, or `new` itself where that is smaller.
///
/// ```
/// use r1async_weights::{Codec, Dtype, Scratch, decode, encode};
/// let (dtype, mut scratch) = (Dtype::named("bfloat16").unwrap(), Scratch::default());
/// let (base, mut new) = (vec![0x3f; 2000], vec![0x3f; 2000]);
/// new[700] = 0x40;
/// let delta = encode(&base, &new, dtype, &mut scratch).unwrap();
/// assert_eq!((delta.codec, delta.changed), (Codec::Ulp, 1));
/// let mut shadow = base.clone();
/// decode(delta.part(), dtype, &mut shadow, &mut scratch).unwrap();
/// assert_eq!(shadow, new);
/// ```
///
/// # Errors
/// [`CodecError::Shape`]: not a whole number of values, or not as many as the base has.
pub fn encode<'a>(
    base: &[u8],
    new: &'a [u8],
    dtype: Dtype,
    scratch: &mut Scratch,
) -> Result<Encoded<'a>, CodecError> {
    let len = values_of(new, dtype)?;
    same_length(base, new)?;
    Ok(by_width!(
        dtype.width(),
        delta(base, new, len, dtype.is_float(), scratch)
    ))
}

/// Puts the encoded version into `shadow`, which holds the base if the codec needs one.
///
/// # Errors
/// Any [`CodecError`]: `shadow` is then neither version.
pub fn decode(
    part: Part,
    dtype: Dtype,
    shadow: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    let len = values_of(shadow, dtype)?;
    by_width!(
        dtype.width(),
        apply(part, len, dtype.is_float(), shadow, scratch)
    )
}

/// One encoding that does what `first` and then `second` do, of a tensor of `bytes` bytes. A `second` that needs no base
/// is the whole answer: neither is looked into.
///
/// # Errors
/// Any [`CodecError`], if one of the two cannot be of this tensor.
pub fn merge(
    first: Part,
    second: Part,
    dtype: Dtype,
    bytes: usize,
    scratch: &mut Scratch,
) -> Result<Encoded<'static>, CodecError> {
    if !bytes.is_multiple_of(dtype.width()) {
        return Err(not_whole(bytes, dtype));
    }
    by_width!(dtype.width(), merged(first, second, dtype, bytes, scratch))
}

fn values_of(bytes: &[u8], dtype: Dtype) -> Result<usize, CodecError> {
    if bytes.len().is_multiple_of(dtype.width()) {
        Ok(bytes.len() / dtype.width())
    } else {
        Err(not_whole(bytes.len(), dtype))
    }
}

fn not_whole(bytes: usize, dtype: Dtype) -> CodecError {
    let wanted = format!("a multiple of {}", dtype.width());
    CodecError::Shape { bytes, wanted }
}

fn same_length(base: &[u8], new: &[u8]) -> Result<(), CodecError> {
    if base.len() == new.len() {
        return Ok(());
    }
    Err(CodecError::Shape {
        bytes: new.len(),
        wanted: format!("the {} of the tensor", base.len()),
    })
}

#[inline(always)]
fn word_at<W: Word>(bytes: &[u8], at: usize) -> W {
    W::read(&bytes[at * W::BYTES..][..W::BYTES])
}

fn full<'a, W: Word>(new: &'a [u8], len: usize, float: bool, scratch: &mut Scratch) -> Encoded<'a> {
    let payload = planes::encode::<W>(len, scratch, |at| {
        let word = word_at::<W>(new, at);
        if float { word.sign_last() } else { word }
    });
    if payload.len() < new.len() {
        return encoded(Codec::Planes, payload, len);
    }
    Encoded {
        codec: Codec::Raw,
        payload: Cow::Borrowed(new),
        changed: len,
    }
}

fn delta<'a, W: Word>(
    base: &[u8],
    new: &'a [u8],
    len: usize,
    float: bool,
    scratch: &mut Scratch,
) -> Encoded<'a> {
    let differ = |at| difference(word_at::<W>(base, at), word_at::<W>(new, at), float);
    let found = if len < sparse::MAX_LEN {
        changes::<W>(base, new, float, share(len, SPARSE))
    } else {
        None
    };
    let best = match found {
        Some(found) => few(&found, len, scratch, || Cow::Owned(dense(&found, len))),
        None => encoded(
            Codec::UlpPlanes,
            planes::encode::<W>(len, scratch, |at| differ(at).zigzag()),
            (0..len).filter(|&at| differ(at) != W::ZERO).count(),
        ),
    };
    if best.payload.len() <= share(new.len(), DELTA_WORTH) {
        return best;
    }
    let whole = full::<W>(new, len, float, scratch);
    if whole.payload.len() < best.payload.len() {
        let changed = best.changed;
        return Encoded { changed, ..whole };
    }
    best
}

fn share(of: usize, part: f64) -> usize {
    (of as f64 * part) as usize
}

/// The differences of all values.
fn dense<W: Word>(changes: &Changes<W>, len: usize) -> Vec<W> {
    let mut all = vec![W::ZERO; len];
    let mut at = 0;
    for (&gap, &delta) in changes.gaps.iter().zip(&changes.deltas) {
        at += gap as usize;
        all[at] = delta;
        at += 1;
    }
    all
}

/// The smallest for changes that are few.
fn few<'w, W: Word>(
    found: &Changes<W>,
    len: usize,
    scratch: &mut Scratch,
    all: impl FnOnce() -> Cow<'w, [W]>,
) -> Encoded<'static> {
    if found.len() == 0 {
        return Encoded::same();
    }
    let payload = sparse::encode(found, len, scratch);
    if found.len() > share(len, SPARSE_ONLY) {
        let all = all();
        let other = planes::encode::<W>(len, scratch, |at| all[at].zigzag());
        if other.len() < payload.len() {
            return encoded(Codec::UlpPlanes, other, found.len());
        }
    }
    encoded(Codec::Ulp, payload, found.len())
}

fn encoded(codec: Codec, payload: Vec<u8>, changed: usize) -> Encoded<'static> {
    Encoded {
        codec,
        payload: Cow::Owned(payload),
        changed,
    }
}

fn apply<W: Word>(
    part: Part,
    len: usize,
    float: bool,
    shadow: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    let payload = part.payload;
    match part.codec {
        Codec::Same if payload.is_empty() => Ok(()),
        Codec::Same => Err(CodecError::Trailing(payload.len())),
        Codec::Raw => {
            same_length(shadow, payload)?;
            shadow.copy_from_slice(payload);
            Ok(())
        }
        Codec::Planes => planes::walk::<W>(payload, len, scratch, |start, words| {
            for (place, &word) in shadow[start * W::BYTES..].chunks_mut(W::BYTES).zip(words) {
                let word = if float { word.sign_first() } else { word };
                word.write(place);
            }
        }),
        Codec::Ulp => sparse::walk::<W>(payload, len, scratch, |at, delta| {
            let place = &mut shadow[at * W::BYTES..][..W::BYTES];
            moved(W::read(place), delta, float).write(place);
        }),
        Codec::UlpPlanes => planes::walk::<W>(payload, len, scratch, |start, words| {
            for (place, &word) in shadow[start * W::BYTES..].chunks_mut(W::BYTES).zip(words) {
                moved(W::read(place), word.unzigzag(), float).write(place);
            }
        }),
    }
}

fn merged<W: Word>(
    first: Part,
    second: Part,
    dtype: Dtype,
    bytes: usize,
    scratch: &mut Scratch,
) -> Result<Encoded<'static>, CodecError> {
    let (len, float) = (bytes / W::BYTES, dtype.is_float());
    if !second.codec.needs_base() {
        return Ok(encoded(second.codec, second.payload.to_vec(), len));
    }
    if !first.codec.needs_base() {
        // The version that they lead to can be made, and is encoded by itself.
        let mut shadow = vec![0; bytes];
        apply::<W>(first, len, float, &mut shadow, scratch)?;
        apply::<W>(second, len, float, &mut shadow, scratch)?;
        let whole = full::<W>(&shadow, len, float, scratch);
        return Ok(Encoded {
            payload: Cow::Owned(whole.payload.into_owned()),
            ..whole
        });
    }
    if [first, second]
        .iter()
        .all(|part| part.codec != Codec::UlpPlanes)
    {
        let (first, second) = (
            listed::<W>(first, len, scratch)?,
            listed::<W>(second, len, scratch)?,
        );
        let sum = sum(&first, &second);
        return Ok(few(&sum, len, scratch, || Cow::Owned(dense(&sum, len))));
    }
    let mut all = vec![W::ZERO; len];
    for part in [first, second] {
        add_to(&mut all, part, len, scratch)?;
    }
    let limit = share(len, SPARSE);
    let mut found = Changes::new();
    if len < sparse::MAX_LEN {
        let changed = all.iter().enumerate().filter(|(_, d)| **d != W::ZERO);
        changed
            .take(limit + 1)
            .for_each(|(at, &delta)| found.push(at, delta));
        if found.len() <= limit {
            return Ok(few(&found, len, scratch, || Cow::Borrowed(&all)));
        }
    }
    let changed = all.iter().filter(|delta| **delta != W::ZERO).count();
    let payload = planes::encode::<W>(len, scratch, |at| all[at].zigzag());
    Ok(encoded(Codec::UlpPlanes, payload, changed))
}

/// The changes of `Same` or `Ulp`.
fn listed<W: Word>(
    part: Part,
    len: usize,
    scratch: &mut Scratch,
) -> Result<Changes<W>, CodecError> {
    let mut found = Changes::new();
    match part.codec {
        Codec::Same => apply::<W>(part, len, false, &mut [], scratch)?,
        _ => sparse::walk::<W>(part.payload, len, scratch, |at, delta| {
            found.push(at, delta);
        })?,
    }
    Ok(found)
}

/// Both one after the other: differences at one place add up, and may cancel out.
fn sum<W: Word>(first: &Changes<W>, second: &Changes<W>) -> Changes<W> {
    let mut sum = Changes::new();
    let (mut a, mut b) = (placed(first).peekable(), placed(second).peekable());
    loop {
        let at = match (a.peek(), b.peek()) {
            (None, None) => return sum,
            (Some((x, _)), Some((y, _))) => *x.min(y),
            (Some((x, _)), None) | (None, Some((x, _))) => *x,
        };
        let here = |next: Option<(usize, W)>| next.map_or(W::ZERO, |(_, delta)| delta);
        let from_a = here(a.next_if(|(x, _)| *x == at));
        let from_b = here(b.next_if(|(x, _)| *x == at));
        let delta = from_a.add(from_b);
        if delta != W::ZERO {
            sum.push(at, delta);
        }
    }
}

fn placed<W: Word>(changes: &Changes<W>) -> impl Iterator<Item = (usize, W)> {
    let mut next = 0;
    let pairs = changes.gaps.iter().zip(&changes.deltas);
    pairs.map(move |(&gap, &delta)| {
        let at = next + gap as usize;
        next = at + 1;
        (at, delta)
    })
}

fn add_to<W: Word>(
    all: &mut [W],
    part: Part,
    len: usize,
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    match part.codec {
        Codec::Ulp => sparse::walk::<W>(part.payload, len, scratch, |at, delta| {
            all[at] = all[at].add(delta);
        }),
        Codec::UlpPlanes => planes::walk::<W>(part.payload, len, scratch, |start, words| {
            for (place, word) in all[start..].iter_mut().zip(words) {
                *place = place.add(word.unzigzag());
            }
        }),
        _ => apply::<W>(part, len, false, &mut [], scratch),
    }
}
