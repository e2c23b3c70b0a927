//! Token ids and logprobs out of the JSON that inference engines answer with, without a tree in between.
//!
//! One pass over the bytes: what is wanted goes straight into its column, everything else is only checked.
//! Strict: what RFC 8259 does not allow is an error that names its byte, and so is a logprob that is null or
//! a token without an id. A number is rounded to double and then to single precision, as Python would.

mod scan;

use thiserror::Error;

use scan::Scanner;

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineShape {
    /// SGLang's `output_token_logprobs`, `[[logprob, id, text or null], ...]`: the list itself, or the whole
    /// answer of `/generate` with the list in its `meta_info`.
    Sglang,
    /// vLLM's `logprobs` of an OpenAI completion (`tokens` and `token_logprobs`) or chat (`content`): the object
    /// itself, or the whole answer with one choice. Ids are the choice's `token_ids` (`return_token_ids`), else
    /// tokens are written as `token_id:N` (`return_tokens_as_token_ids`).
    Vllm,
}

/// The sampled tokens of one completion.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampled {
    /// Token ids.
    pub tokens: Vec<i32>,
    /// Log-probability of each, in nats; finite.
    pub logprobs: Vec<f32>,
}

/// Why an answer cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EngineJsonError {
    /// Something else stands where a value of the shape, or of JSON, is wanted.
    #[error("want {want} at byte {at}")]
    Want {
        /// What may stand there.
        want: &'static str,
        /// Offset of the byte.
        at: usize,
    },
    /// The same field a second time: nobody could say which one counts.
    #[error("{field} is given again at byte {at}")]
    Again {
        /// The field.
        field: &'static str,
        /// Offset of its value.
        at: usize,
    },
    /// The answer has no such field.
    #[error("the answer has no {0}")]
    Missing(&'static str),
    /// Ids and logprobs do not pair up.
    #[error("{tokens} token ids and {logprobs} logprobs; want as many of each")]
    Lengths {
        /// Ids.
        tokens: usize,
        /// Logprobs.
        logprobs: usize,
    },
}

/// Reads the tokens of the one completion in `json`.
///
/// # Errors
/// Where the bytes are not JSON or not of the shape.
///
/// ```
/// use r1async_core::{EngineShape, parse_engine_json};
/// let sampled = parse_engine_json(b"[[-0.5, 17, null], [-1.25, 4, \" a\"]]", EngineShape::Sglang)?;
/// assert_eq!((sampled.tokens, sampled.logprobs), (vec![17, 4], vec![-0.5, -1.25]));
/// # Ok::<(), r1async_core::EngineJsonError>(())
/// ```
pub fn parse_engine_json(json: &[u8], shape: EngineShape) -> Result<Sampled, EngineJsonError> {
    let mut scanner = Scanner::new(json)?;
    let sampled = match shape {
        EngineShape::Sglang => sglang(&mut scanner)?,
        EngineShape::Vllm => vllm(&mut scanner)?,
    };
    scanner.end()?;
    Ok(sampled)
}

/// The list, or the object that it is in.
fn sglang(scanner: &mut Scanner<'_>) -> Result<Sampled, EngineJsonError> {
    let mut found = None;
    match scanner.peek() {
        Some(b'[') => found = Some(triples(scanner)?),
        Some(b'{') => scanner.object(|scanner, key| match key {
            b"meta_info" => scanner.object(|scanner, key| match key {
                b"output_token_logprobs" => {
                    once(&mut found, "output_token_logprobs", scanner, triples)
                }
                _ => scanner.skip(),
            }),
            _ => scanner.skip(),
        })?,
        _ => return scanner.want("a list of [logprob, id, text] or an object"),
    }
    found.ok_or(EngineJsonError::Missing("meta_info.output_token_logprobs"))
}

/// `[[logprob, id, text or null], ...]`
fn triples(scanner: &mut Scanner<'_>) -> Result<Sampled, EngineJsonError> {
    // An entry as engines write it has 20 to 40 bytes; the guess costs at most a reallocation.
    let guess = scanner.left() / 32;
    let mut sampled = Sampled {
        tokens: Vec::with_capacity(guess),
        logprobs: Vec::with_capacity(guess),
    };
    scanner.list(|scanner| {
        scanner.byte(b'[', "[logprob, id, text]")?;
        sampled.logprobs.push(scanner.logprob()?);
        scanner.byte(b',', "a comma and the token's id")?;
        sampled.tokens.push(scanner.token_id()?);
        scanner.byte(b',', "a comma and the token's text or null")?;
        match scanner.peek() {
            Some(b'n') => scanner.literal(b"null")?,
            _ => scanner.string().map(drop)?,
        }
        scanner.byte(b']', "the entry's closing bracket")
    })?;
    Ok(sampled)
}

/// What has been found of a vLLM answer.
#[derive(Default)]
struct Choice {
    /// `token_ids` of the choice.
    ids: Option<Vec<i32>>,
    /// `tokens` written as `token_id:N`, or why they are not: it only matters when there are no `ids`.
    named: Option<Result<Vec<i32>, EngineJsonError>>,
    logprobs: Option<Vec<f32>>,
}

fn vllm(scanner: &mut Scanner<'_>) -> Result<Sampled, EngineJsonError> {
    let mut choice = Choice::default();
    let mut choices = None;
    scanner.object(|scanner, key| match key {
        b"choices" => once(&mut choices, "choices", scanner, |scanner| {
            scanner.byte(b'[', "a list of one choice")?;
            scanner.object(|scanner, key| choice.field(scanner, key))?;
            scanner.byte(b']', "the end of the list: one choice")
        }),
        key => choice.field(scanner, key),
    })?;
    let logprobs = choice
        .logprobs
        .ok_or(EngineJsonError::Missing("token_logprobs or content"))?;
    let tokens = match (choice.ids, choice.named) {
        (Some(ids), _) => ids,
        (None, Some(named)) => named?,
        (None, None) => return Err(EngineJsonError::Missing("token_ids or tokens")),
    };
    if tokens.len() != logprobs.len() {
        let (tokens, logprobs) = (tokens.len(), logprobs.len());
        return Err(EngineJsonError::Lengths { tokens, logprobs });
    }
    Ok(Sampled { tokens, logprobs })
}

impl Choice {
    /// A field of the choice or of its `logprobs`: the names do not overlap.
    fn field(&mut self, scanner: &mut Scanner<'_>, key: &[u8]) -> Result<(), EngineJsonError> {
        match key {
            // Chat answers have a `content` list in `logprobs`, and a `message` that we skip.
            b"logprobs" => scanner.object(|scanner, key| self.field(scanner, key)),
            b"token_ids" => once(&mut self.ids, "token_ids", scanner, |scanner| {
                let mut ids = Vec::new();
                scanner.list(|scanner| {
                    ids.push(scanner.token_id()?);
                    Ok(())
                })?;
                Ok(ids)
            }),
            b"tokens" => once(&mut self.named, "tokens", scanner, |scanner| {
                let mut ids = Ok(Vec::new());
                scanner.list(|scanner| named_token(scanner, &mut ids))?;
                Ok(ids)
            }),
            b"token_logprobs" => once(&mut self.logprobs, "token_logprobs", scanner, |scanner| {
                let mut logprobs = Vec::with_capacity(scanner.left() / 32);
                scanner.list(|scanner| {
                    logprobs.push(scanner.logprob()?);
                    Ok(())
                })?;
                Ok(logprobs)
            }),
            b"content" => self.content(scanner),
            _ => scanner.skip(),
        }
    }

    /// `[{"token": "token_id:N", "logprob": number, ...}, ...]`
    fn content(&mut self, scanner: &mut Scanner<'_>) -> Result<(), EngineJsonError> {
        let (mut ids, mut logprobs) = (Ok(Vec::new()), Vec::new());
        scanner.list(|scanner| {
            let (mut token, mut logprob) = (None, None);
            scanner.object(|scanner, key| match key {
                b"token" => once(&mut token, "token", scanner, |scanner| {
                    named_token(scanner, &mut ids)
                }),
                b"logprob" => once(&mut logprob, "logprob", scanner, |scanner| {
                    scanner.logprob()
                }),
                _ => scanner.skip(),
            })?;
            token.ok_or(EngineJsonError::Missing("content[].token"))?;
            logprobs.push(logprob.ok_or(EngineJsonError::Missing("content[].logprob"))?);
            Ok(())
        })?;
        if self.named.is_some() || self.logprobs.is_some() {
            let (field, at) = ("content", scanner.at());
            return Err(EngineJsonError::Again { field, at });
        }
        (self.named, self.logprobs) = (Some(ids), Some(logprobs));
        Ok(())
    }
}

/// Reads a value that may be given once.
fn once<T>(
    slot: &mut Option<T>,
    field: &'static str,
    scanner: &mut Scanner<'_>,
    read: impl FnOnce(&mut Scanner<'_>) -> Result<T, EngineJsonError>,
) -> Result<(), EngineJsonError> {
    let at = scanner.at();
    if slot.replace(read(scanner)?).is_some() {
        return Err(EngineJsonError::Again { field, at });
    }
    Ok(())
}

/// One string `token_id:N`; the first that is none is what `ids` becomes.
fn named_token(
    scanner: &mut Scanner<'_>,
    ids: &mut Result<Vec<i32>, EngineJsonError>,
) -> Result<(), EngineJsonError> {
    let text = scanner.string()?;
    let Ok(known) = ids else {
        return Ok(());
    };
    let digits = text.strip_prefix(b"token_id:").unwrap_or_default();
    match scan::decimal(digits) {
        Some(id) => known.push(id),
        None => {
            let at = scanner.at() - text.len() - 1;
            let want = "a string token_id:N (or ask the engine for token_ids)";
            *ids = Err(EngineJsonError::Want { want, at });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
