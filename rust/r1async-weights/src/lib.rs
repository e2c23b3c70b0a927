//! Weights in few bytes, and every bit of them.
//!
//! A tensor travels whole, or as what changed since a version that the receiver has (its base). Five codecs; the
//! smallest wins, and the share of values that changed decides which are tried at all ([`encode`]):
//!
//! | [`Codec`] | holds | pays off |
//! |---|---|---|
//! | `Same` | nothing: no bit changed | frozen tensors |
//! | `Ulp` | gaps between changed values, and by how many units in the last place each changed | up to half changed |
//! | `UlpPlanes` | the same differences of all values, as byte planes | more than a quarter changed |
//! | `Planes` | the values themselves, as byte planes | snapshots |
//! | `Raw` | the values as they are | what does not compress |
//!
//! A difference is counted between the bit patterns brought into order ([`Dtype`]), modulo the width, so it is exact
//! for every pattern (-0, NaN payloads, infinities) and two adjacent differences add up: [`merge`] makes one delta of
//! two without the tensor. Pure: no sockets, no clock; threads only while a call of [`parallel`] runs. Whatever bytes
//! [`decode`] and [`merge`] are given, they answer with an error and allocate no more than a small multiple of the
//! tensor that the caller named.

mod baseline;
mod bits;
mod element;
mod error;
pub mod parallel;
mod planes;
mod scan;
mod scratch;
mod sparse;
mod tensor;

pub use crc32c::crc32c;

pub use baseline::{entropy_bound, index_value, xor_zstd, xor_zstd_decode};
pub use element::Dtype;
pub use error::CodecError;
pub use scratch::Scratch;
pub use tensor::{Codec, Encoded, Part, decode, encode, encode_full, hash, merge};
