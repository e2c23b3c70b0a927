//! Numbers of any length: varints, and a stream of bits.

use crate::CodecError;

/// Little-endian groups of seven bits.
pub(crate) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What is still to be read of a payload.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn varint(&mut self, what: &'static str) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(CodecError::Cut(what))?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(CodecError::Impossible { what, got: value })
    }

    /// A varint that may not be above `limit`.
    pub fn count(&mut self, limit: u64, what: &'static str) -> Result<usize, CodecError> {
        match self.varint(what)? {
            got if got > limit => Err(CodecError::TooMany { what, got, limit }),
            got => Ok(got as usize),
        }
    }

    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(CodecError::Cut(what))?;
        self.0 = rest;
        Ok(head)
    }

    pub fn end(&self) -> Result<(), CodecError> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(CodecError::Trailing(left)),
        }
    }
}

/// Bits one after the other, lowest first.
#[derive(Default)]
pub(crate) struct BitWriter {
    pub bytes: Vec<u8>,
    held: u128,
    count: u32,
}

impl BitWriter {
    /// The lowest `count` bits of `value`; 64 at most.
    #[inline(always)]
    pub fn push(&mut self, value: u64, count: u32) {
        self.held |= u128::from(value) << self.count;
        self.count += count;
        while self.count >= 32 {
            self.bytes
                .extend_from_slice(&(self.held as u32).to_le_bytes());
            self.held >>= 32;
            self.count -= 32;
        }
    }

    pub fn finish(mut self) -> Vec<u8> {
        let left = self.count.div_ceil(8) as usize;
        self.bytes
            .extend_from_slice(&self.held.to_le_bytes()[..left]);
        self.bytes
    }
}

pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    held: u128,
    count: u32,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            held: 0,
            count: 0,
        }
    }

    /// The next `count` bits; 64 at most.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> Result<u64, CodecError> {
        while self.count < count {
            if let Some((word, rest)) = self.bytes.split_first_chunk::<4>() {
                self.held |= u128::from(u32::from_le_bytes(*word)) << self.count;
                self.count += 32;
                self.bytes = rest;
            } else {
                let (&byte, rest) = self.bytes.split_first().ok_or(CodecError::Cut("bits"))?;
                self.held |= u128::from(byte) << self.count;
                self.count += 8;
                self.bytes = rest;
            }
        }
        let value = (self.held & ((1u128 << count) - 1)) as u64;
        self.held >>= count;
        self.count -= count;
        Ok(value)
    }

    /// Nothing is left but the rest of the last byte.
    pub fn end(&self) -> Result<(), CodecError> {
        match self.bytes.len() + (self.count / 8) as usize {
            0 if self.held == 0 => Ok(()),
            left => Err(CodecError::Trailing(left.max(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_in_order() {
        let mut writer = BitWriter::default();
        let values = [(5, 3), (0, 0), (u64::MAX, 64), (1, 1), (0x1234, 17)];
        for (value, count) in values {
            writer.push(value, count);
        }
        let bytes = writer.finish();
        assert_eq!(bytes.len(), (3 + 64 + 1 + 17usize).div_ceil(8));
        let mut reader = BitReader::new(&bytes);
        for (value, count) in values {
            assert_eq!(reader.take(count), Ok(value));
        }
        assert_eq!(reader.end(), Ok(()));
        assert_eq!(reader.take(8), Err(CodecError::Cut("bits")));
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        let mut out = Vec::new();
        write_varint(&mut out, u64::MAX);
        assert_eq!(Reader(&out).varint("n"), Ok(u64::MAX));
        assert!(Reader(&[0xff; 10]).varint("n").is_err());
        assert_eq!(Reader(&[0xff; 3]).varint("n"), Err(CodecError::Cut("n")));
    }
}
