//! One file of records: its end, which grows, and its reading from the start.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use r1async_core::journal::{Chain, Damage, HEADER_BYTES, Head, Kind};

use crate::error::JournalError;
use crate::files::Header;

/// Zeros that stand where a power cut kept a block from the disk.
const UNWRITTEN: usize = 512;

/// The end of a file.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) path: PathBuf,
    /// For the thread that waits for the disk, too.
    pub(crate) file: Arc<File>,
    /// Bytes of whole records. What lies behind is of a write that failed, and is written over.
    pub(crate) length: u64,
    /// What the next record follows.
    pub(crate) chain: Chain,
}

impl Tail {
    /// A new file.
    pub(crate) fn create(path: PathBuf, header: &Header) -> Result<Self, JournalError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let file = options.open(&path).map_err(JournalError::io(&path))?;
        let (record, chain) = header.record();
        let mut tail = Self {
            path,
            file: Arc::new(file),
            length: 0,
            chain,
        };
        tail.write(&record)?;
        tail.length = record.len() as u64;
        tail.sync()?;
        Ok(tail)
    }

    /// A file of which `length` bytes are whole; the rest is cut.
    pub(crate) fn open(path: PathBuf, (length, chain): (u64, Chain)) -> Result<Self, JournalError> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .open(&path)
            .map_err(JournalError::io(&path))?;
        file.set_len(length).map_err(JournalError::io(&path))?;
        // A process that was killed may have left it to the system alone: a batch that it bound is answered at once.
        file.sync_data().map_err(JournalError::io(&path))?;
        Ok(Self {
            path,
            file: Arc::new(file),
            length,
            chain,
        })
    }

    /// Writes behind the end, which the caller then moves.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), JournalError> {
        self.file
            .write_all_at(bytes, self.length)
            .map_err(JournalError::io(&self.path))
    }

    pub(crate) fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(JournalError::io(&self.path))
    }
}

/// A file read record by record.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) path: PathBuf,
    file: BufReader<File>,
    /// Where the next record begins.
    pub(crate) offset: u64,
    /// Where the last one began.
    pub(crate) last: u64,
    /// What the next record follows, and what the last one did.
    chain: Chain,
    last_chain: Chain,
    length: u64,
}

impl Records {
    /// Opens a file of the stream and generation given, behind its header.
    pub(crate) fn open(path: PathBuf, what: (&str, u64)) -> Result<(Self, Header), JournalError> {
        Self::begin(path.clone(), what)?.ok_or_else(|| JournalError::Foreign {
            path,
            text: "it does not begin with a header".to_owned(),
        })
    }

    /// The same; `None` if a crash cut the header.
    pub(crate) fn begin(
        path: PathBuf,
        what: (&str, u64),
    ) -> Result<Option<(Self, Header)>, JournalError> {
        let file = File::open(&path).map_err(JournalError::io(&path))?;
        let length = file.metadata().map_err(JournalError::io(&path))?.len();
        let mut records = Self {
            path: path.clone(),
            file: BufReader::with_capacity(1 << 20, file),
            offset: 0,
            last: 0,
            chain: Chain::default(),
            last_chain: Chain::default(),
            length,
        };
        let mut body = Vec::new();
        match records.next(&mut body)? {
            Some(Kind::Header) => {}
            Some(kind) => {
                let text = format!("it begins with a record of kind {kind:?}");
                return Err(JournalError::Foreign { path, text });
            }
            None => return Ok(None),
        }
        let header = Header::read(&body, what, &path)?;
        Ok(Some((records, header)))
    }

    /// Goes on at a place where a record begins.
    pub(crate) fn seek(&mut self, offset: u64, chain: Chain) -> Result<(), JournalError> {
        if offset > self.length {
            let text = format!(
                "the snapshot holds {offset} bytes of it, but it has {} only",
                self.length
            );
            return Err(JournalError::Parts {
                path: self.path.clone(),
                text,
            });
        }
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(JournalError::io(&self.path))?;
        (self.offset, self.chain) = (offset, chain);
        Ok(())
    }

    /// The last record does not count: it ends where that begins.
    pub(crate) fn step_back(&mut self) {
        (self.offset, self.chain) = (self.last, self.last_chain);
    }

    /// Where what was read ends.
    pub(crate) fn end(&self) -> (u64, Chain) {
        (self.offset, self.chain)
    }

    /// Bytes behind the last whole record.
    pub(crate) fn torn(&self) -> u64 {
        self.length - self.offset
    }

    /// Reads the next record's body; `None` at the end, or where a crash cut the file.
    pub(crate) fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<Kind>, JournalError> {
        let left = self.length - self.offset;
        if left < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut head = [0; HEADER_BYTES];
        self.fill(&mut head)?;
        let head = match Head::read(&head, self.chain) {
            Ok(head) => head,
            Err(_) if head.iter().all(|byte| *byte == 0) && self.rest_is_zero()? => {
                return Ok(None);
            }
            Err(damage) => return Err(self.damaged(damage)),
        };
        let whole = (HEADER_BYTES + head.length) as u64;
        if whole > left {
            return Ok(None);
        }
        body.resize(head.length, 0);
        self.fill(body)?;
        if let Err(damage) = head.check(body) {
            let end = &body[body.len().saturating_sub(UNWRITTEN)..];
            if whole == left && end.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            return Err(self.damaged(damage));
        }
        (self.last, self.last_chain) = self.end();
        (self.offset, self.chain) = (self.offset + whole, head.chain);
        Ok(Some(head.kind))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), JournalError> {
        self.file
            .read_exact(bytes)
            .map_err(JournalError::io(&self.path))
    }

    fn rest_is_zero(&mut self) -> Result<bool, JournalError> {
        let mut bytes = [0; 4096];
        loop {
            match self.file.read(&mut bytes) {
                Ok(0) => return Ok(true),
                Ok(count) if bytes[..count].iter().all(|byte| *byte == 0) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(JournalError::io(&self.path)(error)),
            }
        }
    }

    fn damaged(&self, damage: Damage) -> JournalError {
        JournalError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
            damage,
        }
    }
}

/// Whether there is such a file.
pub(crate) fn exists(path: &Path) -> bool {
    path.is_file()
}
