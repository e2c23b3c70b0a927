//! One record: length, kind and checksums, then the body.
//!
//! ```text
//! bytes 0..4   length of the body, little-endian      4   kind      5..8   zero
//!       8..12  CRC-32 of bytes 0..8, running on from the records before it
//!       12..16 CRC-32 of the body
//! ```
//! The head has a checksum of its own: a flipped bit in a length would otherwise look like a record that the end of
//! the file cut off, and all behind it would be lost without a word. It runs through all heads of a file: a whole
//! record that is gone, doubled, or of another place or file would otherwise be told as what happened next.

use serde::{Deserialize, Serialize};
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
    /// The head does not fit its checksum, or not behind the record before it.
    #[error("the head of the record does not fit its checksum and the record before it")]
    Head,
    /// The body does not fit its checksum.
    #[error("the body of the record does not fit its checksum")]
    Body,
    /// The head is whole, but of no kind that is known.
    #[error("a record of the unknown kind {0}")]
    Kind(u8),
}

/// The checksum that runs through the heads of a file, up to some record: a record fits only where it was written.
/// The default is the start of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain(u32);

impl Chain {
    fn over(self, bytes: &[u8]) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(bytes);
        Self(hasher.finalize())
    }
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What the body holds.
    pub kind: Kind,
    /// Bytes of the body.
    pub length: usize,
    /// What the next record follows.
    pub chain: Chain,
    checksum: u32,
}

impl Head {
    /// Reads a head that follows the records of `before`.
    ///
    /// # Errors
    /// It is damaged, or follows others.
    pub fn read(bytes: &[u8; HEADER_BYTES], before: Chain) -> Result<Self, Damage> {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let chain = before.over(&bytes[..8]);
        if chain.0 != number(8) {
            return Err(Damage::Head);
        }
        Ok(Self {
            kind: Kind::of(bytes[4]).ok_or(Damage::Kind(bytes[4]))?,
            length: number(0) as usize,
            chain: chain.over(&bytes[12..]),
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

/// The first record of `bytes`, which follows those of `chain`; `None` if they end before it does.
///
/// # Errors
/// The record is damaged.
pub fn first<'a>(bytes: &'a [u8], chain: &mut Chain) -> Result<Option<First<'a>>, Damage> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let head = Head::read(head, *chain)?;
    let Some((body, rest)) = rest.split_at_checked(head.length) else {
        return Ok(None);
    };
    head.check(body)?;
    *chain = head.chain;
    Ok(Some((head.kind, body, rest)))
}

/// Appends a record whose body `fill` writes. It fits in a file once it is [`link`]ed.
///
/// ```
/// use r1async_core::journal::{Chain, Kind, append, first, link};
/// let mut file = Vec::new();
/// append(&mut file, Kind::Event, |body| body.extend_from_slice(b"hello"));
/// append(&mut file, Kind::Event, |body| body.extend_from_slice(b"again"));
/// link(&mut file, Chain::default());
/// let mut chain = Chain::default();
/// let (kind, body, rest) = first(&file, &mut chain)?.unwrap();
/// assert_eq!((kind, body), (Kind::Event, b"hello".as_slice()));
/// assert_eq!(first(&rest[..20], &mut chain)?, None);
/// assert!(first(rest, &mut Chain::default()).is_err());
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
    head[12..].copy_from_slice(&body.to_le_bytes());
}

/// Has whole records follow those of `before`; answers what follows them.
pub fn link(mut records: &mut [u8], before: Chain) -> Chain {
    let mut chain = before;
    while let Some((head, rest)) = records.split_first_chunk_mut::<HEADER_BYTES>() {
        chain = chain.over(&head[..8]);
        head[8..12].copy_from_slice(&chain.0.to_le_bytes());
        chain = chain.over(&head[12..]);
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        records = &mut rest[length as usize..];
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bodies: &[&[u8]]) -> Vec<u8> {
        let mut file = Vec::new();
        for body in bodies {
            append(&mut file, Kind::Payload, |out| out.extend_from_slice(body));
        }
        link(&mut file, Chain::default());
        file
    }

    /// Bodies up to the end or the damage.
    fn read(mut rest: &[u8]) -> (Vec<&[u8]>, Option<Damage>) {
        let (mut bodies, mut chain) = (Vec::new(), Chain::default());
        loop {
            match first(rest, &mut chain) {
                Ok(Some((_, body, behind))) => {
                    bodies.push(body);
                    rest = behind;
                }
                Ok(None) => return (bodies, None),
                Err(damage) => return (bodies, Some(damage)),
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes: Vec<u8> = (0..40).collect();
        let mut file = file(&[&bytes]);
        for bit in 0..file.len() * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            assert!(first(&file, &mut Chain::default()).is_err(), "bit {bit}");
            file[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_whole_record_fits_only_where_it_was_written() {
        let bodies: [&[u8]; 4] = [b"one", b"two", b"six", b"one"];
        let whole = file(&bodies);
        assert_eq!(read(&whole), (bodies.to_vec(), None));
        let record = |index: usize| &whole[index * 19..][..19];
        // Records in the order given, and how many are read before the damage.
        for (order, good) in [
            (vec![0, 2, 1, 3], 1), // exchanged
            (vec![0, 2, 3], 1),    // gone
            (vec![0, 1, 1, 2], 2), // doubled
            (vec![3, 1, 2, 0], 0), // the same body, of another place
        ] {
            let bytes: Vec<u8> = order
                .iter()
                .flat_map(|&index| record(index).to_vec())
                .collect();
            assert_eq!(
                read(&bytes),
                (bodies[..good].to_vec(), Some(Damage::Head)),
                "{order:?}"
            );
        }
    }
}
