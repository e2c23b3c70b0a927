//! A strict scanner of JSON: one value after the other, each read as what it must be or skipped.

use super::EngineJsonError;

/// Lists and objects inside one another at most.
const MAX_DEPTH: usize = 64;

pub(super) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, EngineJsonError> {
        let text = std::str::from_utf8(bytes).map_err(|error| EngineJsonError::Want {
            want: "UTF-8",
            at: error.valid_up_to(),
        })?;
        Ok(Self {
            text,
            bytes,
            at: 0,
            depth: 0,
        })
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are not read yet.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn want<T>(&self, want: &'static str) -> Result<T, EngineJsonError> {
        Err(EngineJsonError::Want { want, at: self.at })
    }

    /// The first byte of the next value or mark.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8, want: &'static str) -> Result<(), EngineJsonError> {
        if self.peek() != Some(byte) {
            return self.want(want);
        }
        self.at += 1;
        Ok(())
    }

    pub(super) fn literal(&mut self, literal: &'static [u8]) -> Result<(), EngineJsonError> {
        if !self.bytes[self.at..].starts_with(literal) {
            return self.want("null, true or false");
        }
        self.at += literal.len();
        Ok(())
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Result<(), EngineJsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.want("the end of the document"),
        }
    }

    fn enter(&mut self) -> Result<(), EngineJsonError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.want("at most 64 lists and objects inside one another");
        }
        Ok(())
    }

    /// A list; `element` reads each.
    pub(super) fn list(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), EngineJsonError>,
    ) -> Result<(), EngineJsonError> {
        self.byte(b'[', "a list")?;
        self.enter()?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                element(self)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => break self.at += 1,
                    _ => return self.want("a comma or the list's end"),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// An object; `value` reads the value of each key. Keys are compared as they are written, escapes and all:
    /// those that are looked for have none.
    pub(super) fn object(
        &mut self,
        mut value: impl FnMut(&mut Self, &[u8]) -> Result<(), EngineJsonError>,
    ) -> Result<(), EngineJsonError> {
        self.byte(b'{', "an object")?;
        self.enter()?;
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                let key = self.string()?;
                self.byte(b':', "a colon")?;
                value(self, key)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break self.at += 1,
                    _ => return self.want("a comma or the object's end"),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Any value, checked and left.
    pub(super) fn skip(&mut self) -> Result<(), EngineJsonError> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'[') => self.list(Self::skip),
            Some(b'{') => self.object(|scanner, _| scanner.skip()),
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            _ => self.want("a value"),
        }
    }

    /// A string as it is written, without its quotes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], EngineJsonError> {
        self.byte(b'"', "a string")?;
        let begin = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => break self.at += 1,
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => return self.want("no control character in a string"),
                Some(_) => self.at += 1,
                None => return self.want("the string's closing quote"),
            }
        }
        Ok(&self.bytes[begin..self.at - 1])
    }

    fn escape(&mut self) -> Result<(), EngineJsonError> {
        let rest = &self.bytes[self.at + 1..];
        let length = match rest {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|it| it.is_ascii_hexdigit()) => 6,
            _ => return self.want("an escape of JSON"),
        };
        self.at += length;
        Ok(())
    }

    /// How many digits follow; they are read.
    #[inline]
    fn digits(&mut self) -> usize {
        let begin = self.at;
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - begin
    }

    /// A number as it is written.
    #[inline]
    fn number(&mut self) -> Result<&'a str, EngineJsonError> {
        let begin = self.at;
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        let first = self.bytes.get(self.at).copied();
        let whole = self.digits();
        if whole == 0 || (whole > 1 && first == Some(b'0')) {
            self.at = begin;
            return self.want("a number");
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return self.want("a digit");
            }
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return self.want("a digit");
            }
        }
        Ok(&self.text[begin..self.at])
    }

    /// A finite number in single precision, rounded to double before as in Python.
    pub(super) fn logprob(&mut self) -> Result<f32, EngineJsonError> {
        self.peek();
        let begin = self.at;
        let number = self.number()?;
        match number.parse::<f64>().map(|value| value as f32) {
            Ok(value) if value.is_finite() => Ok(value),
            _ => {
                self.at = begin;
                self.want("a logprob that is finite in single precision")
            }
        }
    }

    /// A whole number, 0 or more, that fits a column of ids.
    pub(super) fn token_id(&mut self) -> Result<i32, EngineJsonError> {
        self.peek();
        let begin = self.at;
        let number = self.number()?;
        decimal(number.as_bytes()).map_or_else(
            || {
                self.at = begin;
                self.want("a token id: a whole number from 0 to 2^31 - 1")
            },
            Ok,
        )
    }
}

/// Decimal digits, without sign, as a token id.
pub(super) fn decimal(digits: &[u8]) -> Option<i32> {
    let clean = !digits.is_empty() && digits.len() <= 10 && digits.iter().all(u8::is_ascii_digit);
    let value = digits
        .iter()
        .fold(0_i64, |value, byte| value * 10 + i64::from(byte & 15));
    i32::try_from(value).ok().filter(|_| clean)
}
