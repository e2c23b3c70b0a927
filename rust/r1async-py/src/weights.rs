//! The weight codec for Python: all tensors of a version lie in one array of bytes, one after the other.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use r1async_weights::{Codec, CodecError, Dtype, Encoded, Part, Scratch, parallel};

use crate::buffer::wrong;

/// Where a tensor lies: dtype, first byte, bytes.
type Place = (String, usize, usize);
/// Codec, payload, values that changed.
type EncodedPart<'py> = (&'static str, Bound<'py, PyArray1<u8>>, usize);
/// Codec, first byte in a blob, bytes.
type PartPlace = (String, usize, usize);

/// One tensor's dtype and bytes.
struct Slot {
    dtype: Dtype,
    start: usize,
    len: usize,
}

fn slots(layout: &[Place]) -> PyResult<Vec<Slot>> {
    let slot = |(name, start, len): &Place| {
        let dtype = Dtype::named(name).ok_or_else(|| wrong(format!("unknown dtype {name:?}")))?;
        Ok(Slot {
            dtype,
            start: *start,
            len: *len,
        })
    };
    layout.iter().map(slot).collect()
}

fn within(bytes: &[u8], start: usize, len: usize) -> PyResult<&[u8]> {
    let part = start.checked_add(len).and_then(|end| bytes.get(start..end));
    part.ok_or_else(|| wrong(format!("{len} bytes from {start} on, of {}", bytes.len())))
}

fn cut<'a>(bytes: &'a [u8], slots: &[Slot]) -> PyResult<Vec<&'a [u8]>> {
    let part = |slot: &Slot| within(bytes, slot.start, slot.len);
    slots.iter().map(part).collect()
}

/// As `cut`, to be written: tensors are in order and do not overlap.
fn cut_mut<'a>(mut bytes: &'a mut [u8], slots: &[Slot]) -> PyResult<Vec<&'a mut [u8]>> {
    let (total, mut at) = (bytes.len(), 0);
    let mut parts = Vec::with_capacity(slots.len());
    for slot in slots {
        let bad = || {
            let (len, start) = (slot.len, slot.start);
            wrong(format!(
                "{len} bytes from {start} on, after {at} of {total}"
            ))
        };
        let skip = slot.start.checked_sub(at).ok_or_else(bad)?;
        let (_, rest) = bytes.split_at_mut_checked(skip).ok_or_else(bad)?;
        let (part, rest) = rest.split_at_mut_checked(slot.len).ok_or_else(bad)?;
        at = slot.start + slot.len;
        parts.push(part);
        bytes = rest;
    }
    Ok(parts)
}

fn parts<'a>(places: &[PartPlace], blob: &'a [u8], slots: &[Slot]) -> PyResult<Vec<Part<'a>>> {
    if places.len() != slots.len() {
        let (got, wanted) = (places.len(), slots.len());
        return Err(wrong(format!("{got} encoded tensors, not {wanted}")));
    }
    let part = |(codec, start, len): &PartPlace| {
        Ok(Part {
            codec: Codec::named(codec).map_err(wrong)?,
            payload: within(blob, *start, *len)?,
        })
    };
    places.iter().map(part).collect()
}

/// The first error, with the number of its tensor.
fn all<T>(results: Vec<Result<T, CodecError>>) -> PyResult<Vec<T>> {
    let numbered = results.into_iter().enumerate();
    numbered
        .map(|(at, result)| result.map_err(|error| wrong(format!("tensor {at}: {error}"))))
        .collect()
}

fn to_python<'py>(py: Python<'py>, encoded: Vec<Encoded>) -> Vec<EncodedPart<'py>> {
    let one =
        |Encoded {
             codec,
             payload,
             changed,
         }: Encoded| { (codec.name(), payload.into_owned().into_pyarray(py), changed) };
    encoded.into_iter().map(one).collect()
}

/// Encodes every tensor of `new`, against `base` if there is one.
#[pyfunction]
#[pyo3(signature = (new, base, layout, threads))]
pub fn weights_encode<'py>(
    py: Python<'py>,
    new: PyReadonlyArray1<'py, u8>,
    base: Option<PyReadonlyArray1<'py, u8>>,
    layout: Vec<Place>,
    threads: usize,
) -> PyResult<Vec<EncodedPart<'py>>> {
    let slots = slots(&layout)?;
    let new = cut(new.as_slice()?, &slots)?;
    let base = base
        .as_ref()
        .map(|base| cut(base.as_slice()?, &slots))
        .transpose()?;
    let encoded = py.detach(|| {
        let item = |at: usize| (new[at], base.as_ref().map(|base| base[at]), slots[at].dtype);
        let items: Vec<_> = (0..slots.len()).map(item).collect();
        parallel::map(
            items,
            threads,
            |(new, ..)| new.len(),
            |(new, base, dtype), scratch| match base {
                None => r1async_weights::encode_full(new, dtype, scratch),
                Some(base) => r1async_weights::encode(base, new, dtype, scratch),
            },
        )
    });
    Ok(to_python(py, all(encoded)?))
}

/// Decodes every tensor into its place in `data`, which holds the base.
#[pyfunction]
pub fn weights_decode<'py>(
    py: Python<'py>,
    mut data: PyReadwriteArray1<'py, u8>,
    layout: Vec<Place>,
    places: Vec<PartPlace>,
    blob: PyReadonlyArray1<'py, u8>,
    threads: usize,
) -> PyResult<Vec<String>> {
    let slots = slots(&layout)?;
    let parts = parts(&places, blob.as_slice()?, &slots)?;
    let shadows = cut_mut(data.as_slice_mut()?, &slots)?;
    let hashes = py.detach(|| {
        let dtypes = slots.iter().map(|slot| slot.dtype);
        let items: Vec<_> = shadows.into_iter().zip(parts).zip(dtypes).collect();
        let size = |((shadow, _), _): &((&mut [u8], Part), Dtype)| shadow.len();
        parallel::map(items, threads, size, |((shadow, part), dtype), scratch| {
            r1async_weights::decode(part, dtype, shadow, scratch)?;
            Ok(hex(r1async_weights::hash(shadow)))
        })
    });
    all(hashes)
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// CRC-32C (Castagnoli) of some bytes.
#[pyfunction]
pub fn crc32c(py: Python<'_>, data: PyReadonlyArray1<'_, u8>) -> PyResult<u32> {
    let data = data.as_slice()?;
    Ok(py.detach(|| r1async_weights::crc32c(data)))
}

/// xxh3-128 of every tensor's bytes.
#[pyfunction]
pub fn weights_hashes<'py>(
    py: Python<'py>,
    data: PyReadonlyArray1<'py, u8>,
    layout: Vec<Place>,
    threads: usize,
) -> PyResult<Vec<String>> {
    let tensors = cut(data.as_slice()?, &slots(&layout)?)?;
    Ok(py.detach(|| {
        parallel::map(
            tensors,
            threads,
            |tensor| tensor.len(),
            |tensor, _| hex(r1async_weights::hash(tensor)),
        )
    }))
}

/// One encoding of every tensor that does what two do, one after the other.
#[pyfunction]
#[pyo3(signature = (layout, first, first_blob, second, second_blob, threads))]
pub fn weights_merge<'py>(
    py: Python<'py>,
    layout: Vec<Place>,
    first: Vec<PartPlace>,
    first_blob: PyReadonlyArray1<'py, u8>,
    second: Vec<PartPlace>,
    second_blob: PyReadonlyArray1<'py, u8>,
    threads: usize,
) -> PyResult<Vec<EncodedPart<'py>>> {
    let slots = slots(&layout)?;
    let first = parts(&first, first_blob.as_slice()?, &slots)?;
    let second = parts(&second, second_blob.as_slice()?, &slots)?;
    let merged = py.detach(|| {
        let items: Vec<_> = first.into_iter().zip(second).zip(&slots).collect();
        let size = |((first, second), _): &((Part, Part), &Slot)| {
            first.payload.len() + second.payload.len()
        };
        parallel::map(items, threads, size, |((first, second), slot), scratch| {
            r1async_weights::merge(first, second, slot.dtype, slot.len, scratch)
        })
    });
    Ok(to_python(py, all(merged)?))
}

/// XOR with the base and zstd-1, tensor after tensor, on one thread.
#[pyfunction]
pub fn weights_xor_zstd<'py>(
    py: Python<'py>,
    new: PyReadonlyArray1<'py, u8>,
    base: PyReadonlyArray1<'py, u8>,
    layout: Vec<Place>,
) -> PyResult<Vec<Bound<'py, PyArray1<u8>>>> {
    let slots = slots(&layout)?;
    let (new, base) = (
        cut(new.as_slice()?, &slots)?,
        cut(base.as_slice()?, &slots)?,
    );
    let encoded = py.detach(|| {
        let mut scratch = Scratch::default();
        let pairs = base.into_iter().zip(new);
        pairs
            .map(|(base, new)| r1async_weights::xor_zstd(base, new, &mut scratch))
            .collect()
    });
    Ok(all(encoded)?
        .into_iter()
        .map(|payload| payload.into_pyarray(py))
        .collect())
}

/// Inverse of `weights_xor_zstd`.
#[pyfunction]
pub fn weights_xor_zstd_decode<'py>(
    py: Python<'py>,
    mut data: PyReadwriteArray1<'py, u8>,
    layout: Vec<Place>,
    payloads: Vec<PyReadonlyArray1<'py, u8>>,
) -> PyResult<()> {
    let shadows = cut_mut(data.as_slice_mut()?, &slots(&layout)?)?;
    let payloads: Vec<&[u8]> = payloads
        .iter()
        .map(|each| each.as_slice())
        .collect::<Result<_, _>>()?;
    let done = py.detach(|| {
        let mut scratch = Scratch::default();
        let pairs = shadows.into_iter().zip(payloads);
        pairs
            .map(|(shadow, payload)| {
                r1async_weights::xor_zstd_decode(payload, shadow, &mut scratch)
            })
            .collect()
    });
    all(done).map(|_| ())
}

/// Bytes of index and value, and the bytes that no code of independent changes gets below.
#[pyfunction]
pub fn weights_bounds<'py>(
    py: Python<'py>,
    new: PyReadonlyArray1<'py, u8>,
    base: PyReadonlyArray1<'py, u8>,
    dtype: &str,
) -> PyResult<(usize, f64)> {
    let (new, base) = (new.as_slice()?, base.as_slice()?);
    let dtype = Dtype::named(dtype).ok_or_else(|| wrong(format!("unknown dtype {dtype:?}")))?;
    let same = new.len() == base.len() && new.len().is_multiple_of(dtype.width());
    if !same {
        return Err(wrong(format!(
            "{} and {} bytes are not two versions",
            new.len(),
            base.len()
        )));
    }
    Ok(py.detach(|| {
        let index_value = r1async_weights::index_value(base, new, dtype);
        (
            index_value,
            r1async_weights::entropy_bound(base, new, dtype),
        )
    }))
}
