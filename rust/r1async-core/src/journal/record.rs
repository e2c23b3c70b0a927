//! One record: length, kind and checksums, then the body.
//!
//! ```text
//! bytes 0..4   length of the body, little-endian      4   kind      5..8   zero
//!       8..12  CRC-32 of bytes 0..8                   12..16  CRC-32 of the body
//! ```
//! The head has a checksum of its own: a flipped bit in a length would otherwise look like a record that the end of
//! the file cut off, and all behind it would be lost without a word.

use thiserror::Error;

/// Bytes before a record's body.
pub const HEADER_BYTES: usize = 16;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first record of a file: which run, which format.
    Header = 1,
    /// A call of the ledger.
    Event = 2,
    /// What is bulky of one event.
    Payload = 3,
    /// A whole ledger.
    Snapshot = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Kind::Header, Kind::Event, Kind::Payload, Kind::Snapshot]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Bytes that no writer of ours has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Damage {
    /// The head does not fit its checksum.
    #[error("the head of the record does not fit its checksum")]
    Head,
    /// The body does not fit its checksum.
    #[error("the body of the record does not fit its checksum")]
    Body,
    /// The head is whole, but of no kind that is known.
    #[error("a record of the unknown kind {0}")]
    Kind(u8),
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What the body holds.
    pub kind: Kind,
    /// Bytes of the body.
    pub length: usize,
    checksum: u32,
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    /// It is damaged.
    pub fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Damage> {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if crc32fast::hash(&bytes[..8]) != number(8) {
            return Err(Damage::Head);
        }
        Ok(Self {
            kind: Kind::of(bytes[4]).ok_or(Damage::Kind(bytes[4]))?,
            length: number(0) as usize,
            checksum: number(12),
        })
    }

    /// Checks the body that follows the head.
    ///
    /// # Errors
    /// It is damaged.
    pub fn check(&self, body: &[u8]) -> Result<(), Damage> {
        if crc32fast::hash(body) == self.checksum {
            Ok(())
        } else {
            Err(Damage::Body)
        }
    }
}

/// A record's kind, its body, and what follows it.
pub type First<'a> = (Kind, &'a [u8], &'a [u8]);

/// The first record of `bytes`; `None` if they end before it does.
///
/// # Errors
/// The record is damaged.
pub fn first(bytes: &[u8]) -> Result<Option<First<'_>>, Damage> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let head = Head::read(head)?;
    let Some((body, rest)) = rest.split_at_checked(head.length) else {
        return Ok(None);
    };
    head.check(body)?;
    Ok(Some((head.kind, body, rest)))
}

/// Appends a record whose body `fill` writes.
///
/// ```
/// use r1async_core::journal::{Kind, append, first};
/// let mut file = Vec::new();
/// append(&mut file, Kind::Event, |body| body.extend_from_slice(b"hello"));
/// assert_eq!(first(&file)?, Some((Kind::Event, b"hello".as_slice(), b"".as_slice())));
/// assert_eq!(first(&file[..20])?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
/// The body has 4 GiB or more: no message of that size is taken (`max_message_bytes`).
pub fn append(out: &mut Vec<u8>, kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    fill(out);
    let length = u32::try_from(out.len() - start - HEADER_BYTES)
        .expect("messages, and so records, are shorter than 4 GiB");
    let body = crc32fast::hash(&out[start + HEADER_BYTES..]);
    let head = &mut out[start..start + HEADER_BYTES];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4] = kind as u8;
    let checksum = crc32fast::hash(&head[..8]);
    head[8..12].copy_from_slice(&checksum.to_le_bytes());
    head[12..].copy_from_slice(&body.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut file = Vec::new();
        append(&mut file, Kind::Payload, |body| body.extend(0..40u8));
        for bit in 0..file.len() * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            assert!(first(&file).is_err(), "bit {bit}");
            file[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
