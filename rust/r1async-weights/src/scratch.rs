//! What a thread keeps between tensors: zstd's tables.

use zstd::bulk::{Compressor, Decompressor};

use crate::CodecError;
use crate::bits::{Reader, write_varint};

/// Level 1: the entropy coding is what pays here, and more search for repetitions finds none.
const LEVEL: i32 = 1;

/// zstd's working memory, about a megabyte; one per thread.
pub struct Scratch {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            compressor: Compressor::new(LEVEL).expect("zstd has a level 1"),
            decompressor: Decompressor::new().expect("zstd only needs memory"),
        }
    }
}

impl Scratch {
    pub(crate) fn compress(&mut self, bytes: &[u8]) -> Vec<u8> {
        let small = self.compressor.compress(bytes);
        small.expect("the buffer has zstd's own bound")
    }

    /// The length that is stored, and the bytes: compressed if that is shorter, as they are otherwise.
    pub(crate) fn write_stream(&mut self, out: &mut Vec<u8>, bytes: &[u8]) {
        let small = self.compress(bytes);
        let stored = if small.len() < bytes.len() {
            &small
        } else {
            bytes
        };
        write_varint(out, stored.len() as u64);
        out.extend_from_slice(stored);
    }

    /// Inverse of `write_stream`: fills `bytes`, whose length the caller has bounded.
    pub(crate) fn read_stream(
        &mut self,
        from: &mut Reader,
        bytes: &mut [u8],
        what: &'static str,
    ) -> Result<(), CodecError> {
        let stored = from.count(bytes.len() as u64, what)?;
        let stored = from.bytes(stored, what)?;
        if stored.len() == bytes.len() {
            bytes.copy_from_slice(stored);
            return Ok(());
        }
        self.decompress(stored, bytes, what)
    }

    pub(crate) fn decompress(
        &mut self,
        stored: &[u8],
        bytes: &mut [u8],
        what: &'static str,
    ) -> Result<(), CodecError> {
        let text = match self.decompressor.decompress_to_buffer(stored, bytes) {
            Ok(len) if len == bytes.len() => return Ok(()),
            Ok(len) => format!("{len} bytes, not {}", bytes.len()),
            Err(error) => error.to_string(),
        };
        Err(CodecError::Zstd { what, text })
    }
}
