//! Columns of numbers as one run of raw bytes: what a snapshot holds is mostly tokens, and a number at a time
//! would take a hundred times as long.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

pub(crate) fn serialize<T: Pod, S: Serializer>(
    column: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytemuck::cast_slice(column))
}

pub(crate) fn deserialize<'de, T: Pod, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_bytes(Column(PhantomData))
}

struct Column<T>(PhantomData<T>);

impl<T: Pod> Visitor<'_> for Column<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes, {} for each number", size_of::<T>())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<T>, E> {
        read(bytes).ok_or_else(|| E::invalid_length(bytes.len(), &self))
    }
}

/// Numbers from raw little-endian bytes, wherever they lie; `None` if the last one is cut.
pub(crate) fn read<T: Pod>(bytes: &[u8]) -> Option<Vec<T>> {
    bytes
        .len()
        .is_multiple_of(size_of::<T>())
        .then(|| bytemuck::pod_collect_to_vec(bytes))
}
