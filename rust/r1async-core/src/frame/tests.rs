use proptest::prelude::*;

use super::*;

const CAP: usize = 1 << 20;

fn sample() -> Vec<u8> {
    let mut open = FrameWriter::new("chunks")
        .int("n", -7)
        .float("x", 0.5)
        .bool("last", true)
        .list("items", 2, |out| {
            out.list(2);
            out.int(1 << 40);
            out.nil();
            out.map(1);
            out.str("ü");
            out.bin(b"\x00\xff");
        })
        .column::<i32>("tokens", 3)
        .column::<f32>("logprobs", 0)
        .column::<u8>("flags", 5)
        .open();
    open.fill(&[1, -2, 3]);
    open.fill::<f32>(&[]);
    open.put(&[1_u8, 2]);
    open.put_zeros::<u8>(2);
    open.put_each([9_u8]);
    open.end_column();
    open.finish()
}

/// `bytes` at an address that is `shift` past a multiple of 8.
fn shifted(bytes: &[u8], shift: usize) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut room = vec![0; bytes.len() + 16];
    let begin = room.as_ptr().align_offset(8) + shift;
    room[begin..begin + bytes.len()].copy_from_slice(bytes);
    (room, begin..begin + bytes.len())
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = sample();
    let frame = Frame::decode(&bytes, CAP).unwrap();
    assert_eq!(frame.kind, "chunks");
    assert_eq!(frame.get("n"), Some(&Value::Int(-7)));
    assert_eq!(frame.get("x"), Some(&Value::Float(0.5)));
    assert_eq!(frame.get("last"), Some(&Value::Bool(true)));
    let items = Value::Array(vec![
        Value::Array(vec![Value::Int(1 << 40), Value::Nil]),
        Value::Map(vec![("ü", Value::Bin(b"\x00\xff"))]),
    ]);
    assert_eq!(frame.get("items"), Some(&items));
    assert_eq!(
        &*frame.column("tokens").unwrap().elements::<i32>().unwrap(),
        [1, -2, 3]
    );
    assert!(frame.column("logprobs").unwrap().is_empty());
    assert_eq!(
        &*frame.column("flags").unwrap().elements::<u8>().unwrap(),
        [1, 2, 0, 0, 9]
    );
    assert_eq!(frame.column("tokens").unwrap().elements::<f32>(), None);
}

#[test]
fn frame_is_allocated_once_and_exactly() {
    let bytes = sample();
    assert_eq!(bytes.len(), bytes.capacity());
    assert_eq!(bytes.len() % 8, 0);
}

#[test]
fn columns_are_borrowed_where_aligned_and_right_where_not() {
    let bytes = sample();
    for shift in 0..8 {
        let (room, range) = shifted(&bytes, shift);
        let frame = Frame::decode(&room[range], CAP).unwrap();
        let tokens = frame.column("tokens").unwrap().elements::<i32>().unwrap();
        assert_eq!(&*tokens, [1, -2, 3]);
        assert_eq!(
            matches!(tokens, Cow::Borrowed(_)),
            shift % 4 == 0,
            "shift {shift}"
        );
    }
}

/// A frame around a header as it is.
fn around(header: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn msgpack_error(header: &[u8]) -> &'static str {
    match Frame::decode(&around(header), CAP) {
        Err(FrameError::Msgpack { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_allocated() {
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xdd\xff\xff\xff\xff"),
        "a longer list or map than the header holds"
    );
    assert_eq!(
        msgpack_error(b"\xdf\xff\xff\xff\xff"),
        "a longer list or map than the header holds"
    );
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xdb\xff\xff\xff\xffabc"),
        "a value goes past the end"
    );
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xc6\xff\xff\xff\xffabc"),
        "a value goes past the end"
    );
    let mut many = b"\x81\xa1t\xdd".to_vec();
    many.extend((MAX_VALUES as u32 + 1).to_be_bytes());
    many.resize(many.len() + MAX_VALUES + 1, 0xc0);
    let Err(FrameError::Msgpack { what, .. }) = Frame::decode(&around(&many), 4 << 20) else {
        panic!()
    };
    assert_eq!(what, "a longer list or map than the header holds");
}

#[test]
fn nesting_stops_at_a_depth() {
    let mut deep = b"\x81\xa1t".to_vec();
    deep.resize(deep.len() + 100_000, 0x91);
    assert_eq!(msgpack_error(&deep), "nested too deeply");
}

#[test]
fn header_that_is_not_ours_is_refused_with_the_reason() {
    assert_eq!(msgpack_error(b"\x81\xa1t\xc1"), "a type we do not take");
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xd4\x01\x00"),
        "a type we do not take"
    );
    assert_eq!(
        msgpack_error(b"\x81\x01\xa1t"),
        "a map key that is not a string"
    );
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xa2\xff\xfe"),
        "a string that is not UTF-8"
    );
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
        "an integer above 2^63 - 1"
    );
    assert_eq!(
        msgpack_error(b"\x81\xa1t\xa1x\x00"),
        "bytes after the value"
    );
    assert_eq!(
        Frame::decode(&around(b"\x90"), CAP),
        Err(FrameError::NoType)
    );
    assert_eq!(
        Frame::decode(&around(b"\x81\xa1t\x01"), CAP),
        Err(FrameError::NoType)
    );
    assert_eq!(
        Frame::decode(b"R1A1", CAP),
        Err(FrameError::NotOurs {
            len: 4,
            begin: b"R1A1".to_vec()
        })
    );
    let web = Frame::decode(b"GET / HTTP/1.1\r\n", CAP).unwrap_err();
    assert!(web.to_string().contains("R1A1"));
    assert_eq!(
        Frame::decode(&[0; 64], 32),
        Err(FrameError::TooBig { got: 64, cap: 32 })
    );
    let header = FrameError::HeaderSize {
        header: u32::MAX as usize,
        frame: 8,
    };
    assert_eq!(Frame::decode(b"R1A1\xff\xff\xff\xff", CAP), Err(header));
}

#[test]
fn columns_that_do_not_fit_the_frame_are_refused() {
    let column = |count: i64| {
        let writer = FrameWriter::new("x").list("cols", 1, |out| {
            out.list(3);
            out.str("tokens");
            out.str("i8");
            out.int(count);
        });
        // The announced `cols` come last and win, so this one is taken out again.
        let mut bytes = writer.finish();
        let at = bytes
            .windows(5)
            .rposition(|window| window == b"\xa4cols")
            .unwrap();
        bytes[at + 1..at + 5].copy_from_slice(b"what");
        bytes
    };
    assert!(matches!(
        Frame::decode(&column(i64::MAX), CAP),
        Err(FrameError::ColumnEnd { .. })
    ));
    assert!(matches!(
        Frame::decode(&column(1), CAP),
        Err(FrameError::ColumnEnd { .. })
    ));
    assert!(matches!(
        Frame::decode(&column(-1), CAP),
        Err(FrameError::ColumnEntry { index: 0 })
    ));
    assert!(Frame::decode(&column(0), CAP).is_ok());
    let mut longer = sample();
    longer.extend([0; 8]);
    assert_eq!(Frame::decode(&longer, CAP), Err(FrameError::Trailing(8)));
    let shorter = sample();
    assert!(matches!(
        Frame::decode(&shorter[..shorter.len() - 8], CAP),
        Err(FrameError::ColumnEnd { .. })
    ));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Frame::decode(&bytes, CAP);
        let _ = Frame::decode(&around(&bytes), CAP);
    }

    #[test]
    fn mutated_frames_never_panic_nor_read_outside(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in 0_usize..32,
    ) {
        let mut bytes = sample();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(frame) = Frame::decode(&bytes, CAP) {
            let held: usize = frame.columns.iter().map(|column| column.bytes.len()).sum();
            prop_assert!(held <= bytes.len());
        }
    }
}
