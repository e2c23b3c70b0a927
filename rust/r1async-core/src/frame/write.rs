//! Writing a frame: the header first, then columns straight into the one buffer they travel in.

use rmp::encode::{self, ByteBuf};

use super::{Dtype, Element, MAGIC, Value, padded};
use crate::figure::Figure;

/// Collects the header and the shapes of the columns; [`FrameWriter::open`] allocates the frame.
#[derive(Debug)]
pub struct FrameWriter {
    body: Nested,
    entries: u32,
    cols: Vec<(String, Dtype, usize)>,
}

impl FrameWriter {
    /// A message of type `kind`.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self {
            body: Nested::default(),
            entries: 0,
            cols: Vec::new(),
        }
        .str("t", kind)
    }

    fn entry(mut self, name: &str, write: impl FnOnce(&mut Nested)) -> Self {
        self.entries += 1;
        self.body.str(name);
        write(&mut self.body);
        self
    }

    /// An integer under `name`.
    #[must_use]
    pub fn int(self, name: &str, value: i64) -> Self {
        self.entry(name, |out| out.int(value))
    }

    /// A double under `name`.
    #[must_use]
    pub fn float(self, name: &str, value: f64) -> Self {
        self.entry(name, |out| out.float(value))
    }

    /// A truth under `name`.
    #[must_use]
    pub fn bool(self, name: &str, value: bool) -> Self {
        self.entry(name, |out| out.bool(value))
    }

    /// A text under `name`.
    #[must_use]
    pub fn str(self, name: &str, value: &str) -> Self {
        self.entry(name, |out| out.str(value))
    }

    /// A list of `len` under `name`; `write` gives exactly that many values.
    #[must_use]
    pub fn list(self, name: &str, len: usize, write: impl FnOnce(&mut Nested)) -> Self {
        self.entry(name, |out| {
            out.list(len);
            write(out);
        })
    }

    /// A map of `len` entries under `name`; `write` gives that many keys and values, in turn.
    #[must_use]
    pub fn map(self, name: &str, len: usize, write: impl FnOnce(&mut Nested)) -> Self {
        self.entry(name, |out| {
            out.map(len);
            write(out);
        })
    }

    /// A tree of figures under `name`.
    #[must_use]
    pub fn figure(self, name: &str, figure: &Figure) -> Self {
        self.entry(name, |out| figure.write(out))
    }

    /// Announces a column of `count` elements; [`Open::put`] fills the columns in the order announced.
    #[must_use]
    pub fn column<T: Element>(mut self, name: impl Into<String>, count: usize) -> Self {
        self.cols.push((name.into(), T::DTYPE, count));
        self
    }

    /// The header written and the columns counted: what is left is to say where the frame is to lie.
    #[must_use]
    pub fn seal(self) -> Sealed {
        let Self {
            body,
            entries,
            cols,
        } = self;
        let mut head = Nested::default();
        head.map(entries as usize + 1);
        head.0.as_mut_vec().extend_from_slice(body.as_slice());
        head.str("cols");
        head.list(cols.len());
        for (name, dtype, count) in &cols {
            head.list(3);
            head.str(name);
            head.str(dtype.name());
            head.int(*count as i64);
        }
        Sealed {
            head: head.0.into_vec(),
            columns: cols
                .into_iter()
                .map(|(_, dtype, count)| (dtype, dtype.size() * count))
                .collect(),
        }
    }

    /// The frame with its header written and room for exactly the columns announced.
    #[must_use]
    pub fn open(self) -> Open {
        self.seal().open()
    }

    /// A frame without columns.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.open().finish()
    }
}

/// A header, and columns of known sizes that are to follow it.
#[derive(Debug)]
pub struct Sealed {
    head: Vec<u8>,
    /// Type and bytes of each column.
    columns: Vec<(Dtype, usize)>,
}

impl Sealed {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn size(&self) -> usize {
        let columns: usize = self.columns.iter().map(|&(_, size)| padded(size)).sum();
        padded(8 + self.head.len()) + columns
    }

    /// In memory of its own.
    #[must_use]
    pub fn open(self) -> Open {
        let bytes = Vec::with_capacity(self.size());
        self.open_in(bytes)
    }

    /// At the start of memory that is there.
    ///
    /// # Panics
    /// It is shorter than [`Sealed::size`].
    #[must_use]
    pub fn open_at(self, memory: &mut [u8]) -> Open<Filled<'_>> {
        assert!(memory.len() >= self.size(), "room for the frame");
        self.open_in(Filled { memory, len: 0 })
    }

    fn open_in<B: Bytes>(self, mut bytes: B) -> Open<B> {
        bytes.write(&MAGIC);
        bytes.write(&(self.head.len() as u32).to_le_bytes());
        bytes.write(&self.head);
        bytes.write_zeros(padded(bytes.written()) - bytes.written());
        Open {
            begin: bytes.written(),
            bytes,
            columns: self.columns,
            at: 0,
        }
    }
}

/// Where a frame is written, from the start on.
pub trait Bytes {
    /// Bytes written.
    fn written(&self) -> usize;
    /// Writes these behind them.
    fn write(&mut self, bytes: &[u8]);
    /// Writes `count` zeros.
    fn write_zeros(&mut self, count: usize);
}

impl Bytes for Vec<u8> {
    fn written(&self) -> usize {
        self.len()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn write_zeros(&mut self, count: usize) {
        self.resize(self.len() + count, 0);
    }
}

/// Memory of others, of which the first `len` bytes are written.
#[derive(Debug)]
pub struct Filled<'a> {
    memory: &'a mut [u8],
    len: usize,
}

impl Bytes for Filled<'_> {
    fn written(&self) -> usize {
        self.len
    }

    fn write(&mut self, bytes: &[u8]) {
        self.memory[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn write_zeros(&mut self, count: usize) {
        self.memory[self.len..][..count].fill(0);
        self.len += count;
    }
}

/// A frame whose columns are being filled, in order.
#[derive(Debug)]
pub struct Open<B = Vec<u8>> {
    bytes: B,
    /// Type and bytes of each column.
    columns: Vec<(Dtype, usize)>,
    /// The column being filled.
    at: usize,
    /// Where it begins.
    begin: usize,
}

impl<B: Bytes> Open<B> {
    /// Appends elements to the current column. A column that is full is left for the next by [`Open::end_column`].
    pub fn put<T: Element>(&mut self, elements: &[T]) {
        debug_assert_eq!(
            self.columns[self.at].0,
            T::DTYPE,
            "column {} holds another type",
            self.at
        );
        self.bytes.write(bytemuck::cast_slice(elements));
    }

    /// Appends `count` zeros.
    pub fn put_zeros<T: Element>(&mut self, count: usize) {
        self.bytes.write_zeros(count * T::DTYPE.size());
    }

    /// Appends one element for each of the iterator.
    pub fn put_each<T: Element>(&mut self, elements: impl IntoIterator<Item = T>) {
        for element in elements {
            self.bytes.write(bytemuck::bytes_of(&element));
        }
    }

    /// Ends the current column.
    ///
    /// # Panics
    /// It does not hold what was announced: a bug of ours, and a frame nobody could read.
    pub fn end_column(&mut self) {
        let (_, size) = self.columns[self.at];
        assert_eq!(
            self.bytes.written() - self.begin,
            size,
            "bytes of column {}",
            self.at
        );
        self.bytes
            .write_zeros(padded(self.bytes.written()) - self.bytes.written());
        self.begin = self.bytes.written();
        self.at += 1;
    }

    /// A whole column at once.
    pub fn fill<T: Element>(&mut self, elements: &[T]) {
        self.put(elements);
        self.end_column();
    }

    /// The frame.
    ///
    /// # Panics
    /// A column was announced and not filled: a bug of ours.
    #[must_use]
    pub fn finish(self) -> B {
        assert_eq!(self.at, self.columns.len(), "columns filled");
        self.bytes
    }
}

/// Values inside a list or a map of the header. Writing into memory cannot fail, and the types say so.
#[derive(Debug, Default)]
pub struct Nested(ByteBuf);

impl Nested {
    /// Nothing.
    pub fn nil(&mut self) {
        let Ok(()) = encode::write_nil(&mut self.0);
    }

    /// A truth.
    pub fn bool(&mut self, value: bool) {
        let Ok(()) = encode::write_bool(&mut self.0, value);
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        let Ok(_) = encode::write_sint(&mut self.0, value);
    }

    /// A double.
    pub fn float(&mut self, value: f64) {
        let Ok(()) = encode::write_f64(&mut self.0, value);
    }

    /// A text.
    pub fn str(&mut self, value: &str) {
        let Ok(()) = encode::write_str(&mut self.0, value);
    }

    /// Bytes.
    pub fn bin(&mut self, value: &[u8]) {
        let Ok(()) = encode::write_bin(&mut self.0, value);
    }

    /// A list of `len`; its values follow.
    pub fn list(&mut self, len: usize) {
        let Ok(_) = encode::write_array_len(&mut self.0, len as u32);
    }

    /// A map of `len` entries; keys and values follow, in turn.
    pub fn map(&mut self, len: usize) {
        let Ok(_) = encode::write_map_len(&mut self.0, len as u32);
    }

    /// A value that was read.
    pub fn value(&mut self, value: &Value<'_>) {
        match value {
            Value::Nil => self.nil(),
            Value::Bool(value) => self.bool(*value),
            Value::Int(value) => self.int(*value),
            Value::Float(value) => self.float(*value),
            Value::Str(value) => self.str(value),
            Value::Bin(value) => self.bin(value),
            Value::Array(values) => {
                self.list(values.len());
                values.iter().for_each(|value| self.value(value));
            }
            Value::Map(entries) => {
                self.map(entries.len());
                for (key, value) in entries {
                    self.str(key);
                    self.value(value);
                }
            }
        }
    }

    fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }
}
