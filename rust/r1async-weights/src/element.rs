//! Values as unsigned words, and the order of their bit patterns.

/// How values of a tensor are laid out: their width, and whether the top bit is the sign of a float.
///
/// A float's pattern is sign and magnitude. In order (most negative NaN to most positive) it is the pattern with all
/// bits flipped if the sign is set, with the sign bit set if not: one to one, so that -0 and +0 are neighbours and
/// every NaN keeps its payload. Integers are counted as they are; differences wrap, so their sign does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype {
    width: usize,
    float: bool,
}

impl Dtype {
    /// By its name in a manifest; `None` of a name that is none.
    ///
    /// ```
    /// use r1async_weights::Dtype;
    /// assert_eq!(Dtype::named("bfloat16").unwrap().width(), 2);
    /// assert!(Dtype::named("complex64").is_none());
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (width, float) = match name {
            "bfloat16" | "float16" => (2, true),
            "float32" => (4, true),
            "float64" => (8, true),
            "int8" | "uint8" | "bool" => (1, false),
            "int16" => (2, false),
            "int32" => (4, false),
            "int64" => (8, false),
            _ => return None,
        };
        Some(Self { width, float })
    }

    /// Bytes of one value: 1, 2, 4 or 8.
    #[must_use]
    pub fn width(self) -> usize {
        self.width
    }

    pub(crate) fn is_float(self) -> bool {
        self.float
    }
}

/// An unsigned word of 1, 2, 4 or 8 bytes, little-endian in a tensor.
pub(crate) trait Word: Copy + Eq + Send + Sync + 'static {
    const BYTES: usize;
    const ZERO: Self;
    /// The word whose bytes these are; there are `BYTES` of them.
    fn read(bytes: &[u8]) -> Self;
    fn write(self, bytes: &mut [u8]);
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// A float's pattern to its place in order, and back.
    fn ordered(self) -> Self;
    fn unordered(self) -> Self;
    /// A difference as a number that is small if the difference is near zero on either side, and back.
    fn zigzag(self) -> Self;
    fn unzigzag(self) -> Self;
    /// A float's sign to the lowest bit: the exponent fills a byte of its own.
    fn sign_last(self) -> Self;
    fn sign_first(self) -> Self;
}

macro_rules! word {
    ($word:ty, $signed:ty) => {
        impl Word for $word {
            const BYTES: usize = size_of::<$word>();
            const ZERO: Self = 0;
            #[inline(always)]
            fn read(bytes: &[u8]) -> Self {
                let mut word = [0; size_of::<$word>()];
                word.copy_from_slice(bytes);
                <$word>::from_le_bytes(word)
            }
            #[inline(always)]
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $word
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn ordered(self) -> Self {
                let sign = ((self as $signed) >> (<$word>::BITS - 1)) as $word;
                self ^ (sign | (1 << (<$word>::BITS - 1)))
            }
            #[inline(always)]
            fn unordered(self) -> Self {
                let positive = ((self as $signed) >> (<$word>::BITS - 1)) as $word;
                self ^ (!positive | (1 << (<$word>::BITS - 1)))
            }
            #[inline(always)]
            fn zigzag(self) -> Self {
                (self << 1) ^ (((self as $signed) >> (<$word>::BITS - 1)) as $word)
            }
            #[inline(always)]
            fn unzigzag(self) -> Self {
                (self >> 1) ^ (self & 1).wrapping_neg()
            }
            #[inline(always)]
            fn sign_last(self) -> Self {
                self.rotate_left(1)
            }
            #[inline(always)]
            fn sign_first(self) -> Self {
                self.rotate_right(1)
            }
        }
    };
}

word!(u8, i8);
word!(u16, i16);
word!(u32, i32);
word!(u64, i64);

/// The difference that leads from `base` to `new`.
#[inline(always)]
pub(crate) fn difference<W: Word>(base: W, new: W, float: bool) -> W {
    if float {
        new.ordered().sub(base.ordered())
    } else {
        new.sub(base)
    }
}

/// Inverse of [`difference`].
#[inline(always)]
pub(crate) fn moved<W: Word>(base: W, difference: W, float: bool) -> W {
    if float {
        base.ordered().add(difference).unordered()
    } else {
        base.add(difference)
    }
}

/// Calls a generic function for the word of a width.
macro_rules! by_width {
    ($width:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $width {
            1 => $function::<u8>($($argument),*),
            2 => $function::<u16>($($argument),*),
            4 => $function::<u32>($($argument),*),
            _ => $function::<u64>($($argument),*),
        }
    };
}
pub(crate) use by_width;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_keeps_the_two_zeros_apart_and_is_undone() {
        // bf16: -inf < -1 < -0 < +0 < 1 < inf, and NaNs beyond both ends.
        let rising = [
            0xffc1u16, 0xff80, 0xbf80, 0x8000, 0x0000, 0x3f80, 0x7f80, 0x7fc1,
        ];
        assert!(rising.is_sorted_by(|a, b| a.ordered() < b.ordered()));
        assert_eq!(difference(0x8000u16, 0x0000, true), 1);
        for pattern in 0..=u16::MAX {
            assert_eq!(pattern.ordered().unordered(), pattern);
            assert_eq!(pattern.zigzag().unzigzag(), pattern);
            assert_eq!(pattern.sign_last().sign_first(), pattern);
        }
    }

    #[test]
    fn zigzag_puts_one_up_and_one_down_next_to_each_other() {
        assert_eq!([0u32, u32::MAX, 1].map(Word::zigzag), [0, 1, 2]);
    }
}
