//! Batches in memory that the learners of one machine map: files without a name, which the kernel removes when nobody
//! has them any more, however their processes end.
//!
//! A segment is one such file and holds one batch at a time. It is lent to one learner, which says when it does not
//! look at it any more; then the next batch is written over it, so that its pages are made once.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memmap2::MmapMut;
use r1async_core::HolderId;
use r1async_core::service::{BatchMemory, Room};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

/// Segments of one learner at most: the batch it trains, the next one, and parts of them.
pub const MAX_SEGMENTS: usize = 4;
/// Segments are a multiple of this.
const GRAIN: usize = 1 << 16;

/// The segments of all learners.
#[derive(Debug)]
pub struct Segments {
    lent: HashMap<HolderId, Vec<Segment>>,
    made: u64,
    cap: usize,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    map: MmapMut,
    /// A learner may look at it.
    in_use: bool,
}

impl Segments {
    /// No segment yet; at most `cap` bytes of them for each learner.
    ///
    /// # Errors
    /// The operating system makes no such files, which is tried here so that it is known before a batch needs one.
    pub fn new(cap: usize) -> io::Result<Self> {
        Segment::new(0, GRAIN)?;
        Ok(Self {
            lent: HashMap::new(),
            made: 0,
            cap,
        })
    }
}

impl BatchMemory for Segments {
    fn room(&mut self, holder: HolderId, bytes: usize) -> Option<Room<'_>> {
        let segments = self.lent.entry(holder).or_default();
        let fits = |segment: &&mut Segment| !segment.in_use && segment.map.len() >= bytes;
        let found = segments.iter_mut().filter(fits).map(|it| it.number).next();
        let number = match found {
            Some(number) => number,
            None => {
                segments.retain(|segment| segment.in_use); // Those that are too small.
                let held: usize = segments.iter().map(|segment| segment.map.len()).sum();
                // Batches differ: with some air the next ones fit, too.
                let size = (bytes + bytes / 4).next_multiple_of(GRAIN);
                if segments.len() >= MAX_SEGMENTS || held + size > self.cap {
                    return None;
                }
                self.made += 1;
                // Without memory or descriptors for one more the batch travels, as where there is no room.
                segments.push(Segment::new(self.made, size).ok()?);
                self.made
            }
        };
        let segment = segments.iter_mut().find(|it| it.number == number)?;
        segment.in_use = true;
        Some(Room {
            process: std::process::id(),
            descriptor: segment.file.as_raw_fd(),
            segment: number,
            bytes: &mut segment.map,
        })
    }

    fn free(&mut self, holder: HolderId, segments: &[i64]) {
        for segment in self.lent.get_mut(&holder).into_iter().flatten() {
            segment.in_use &= !segments.contains(&(segment.number as i64));
        }
    }

    fn forget(&mut self, holder: HolderId) {
        self.lent.remove(&holder);
    }
}

impl Segment {
    fn new(number: u64, size: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // By its name a learner knows it from another file that has got its descriptor since.
        let file = File::from(memfd_create(format!("r1async-batch-{number}"), flags)?);
        file.set_len(size as u64)?;
        // Where there are no pages for it, that is known now and not by a signal when it is written.
        fallocate(&file, FallocateFlags::empty(), 0, size as u64)?;
        #[expect(unsafe_code, reason = "mapping a file has no other call")]
        // SAFETY: nobody else has it yet, and after the seals below nobody else can write to it or cut it off.
        let map = unsafe { MmapMut::map_mut(&file) }?;
        let seals = [
            SealFlags::SHRINK,
            SealFlags::GROW,
            SealFlags::FUTURE_WRITE, // but through the map above
            SealFlags::SEAL,
        ];
        fcntl_add_seals(&file, seals.into_iter().collect())?;
        Ok(Self {
            number,
            file,
            map,
            in_use: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HolderId = HolderId(1);
    const B: HolderId = HolderId(2);

    fn segments() -> Segments {
        Segments::new(1 << 20).unwrap()
    }

    /// Number of the segment, after its bytes are set.
    fn write(segments: &mut Segments, holder: HolderId, size: usize, byte: u8) -> Option<u64> {
        let room = segments.room(holder, size)?;
        room.bytes[..size].fill(byte);
        Some(room.segment)
    }

    #[test]
    fn a_segment_is_written_again_only_when_its_learner_has_freed_it() {
        let mut segments = segments();
        assert_eq!(write(&mut segments, A, 1000, 1), Some(1));
        assert_eq!(write(&mut segments, A, 1000, 2), Some(2));
        segments.free(B, &[1]); // not B's to free
        assert_eq!(write(&mut segments, A, 1000, 3), Some(3));
        segments.free(A, &[2, 77]);
        assert_eq!(write(&mut segments, A, 900, 4), Some(2));
        assert_eq!(write(&mut segments, B, 1000, 5), Some(4));
    }

    #[test]
    fn past_the_cap_there_is_no_room() {
        let mut segments = segments();
        for number in 1..=MAX_SEGMENTS as u64 {
            assert_eq!(write(&mut segments, A, 1000, 0), Some(number));
        }
        assert_eq!(write(&mut segments, A, 1000, 0), None);
        assert_eq!(write(&mut segments, B, 1 << 20, 0), None); // with its air it is past the cap
        assert!(write(&mut segments, B, 1 << 19, 0).is_some());
    }

    #[test]
    fn one_that_is_too_small_makes_room_for_a_larger_one() {
        let mut segments = segments();
        write(&mut segments, A, 1000, 0);
        segments.free(A, &[1]);
        assert_eq!(write(&mut segments, A, 600_000, 0), Some(2));
        assert_eq!(segments.lent[&A].len(), 1);
    }

    #[test]
    fn a_learner_that_is_forgotten_keeps_what_it_has_mapped() {
        let mut segments = segments();
        let room = segments.room(A, 8).unwrap();
        room.bytes[..8].copy_from_slice(b"its own!");
        let path = format!("/proc/{}/fd/{}", room.process, room.descriptor);
        let file = File::open(path).unwrap();
        #[expect(unsafe_code, reason = "as a learner maps it")]
        // SAFETY: nobody writes to it any more.
        let seen = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        segments.forget(A);
        assert_eq!(write(&mut segments, A, 8, 9), Some(2));
        assert_eq!(&seen[..8], b"its own!");
        assert!(file.set_len(0).is_err(), "its size is sealed");
    }
}
