//! Response heads and chunked bodies, for `uktls get`.

use std::io::{self, ErrorKind};
use std::ops::Range;

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

/// What a client needs of a response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) location: Option<String>,
    pub(crate) body: Body,
}

const MAX_FIELDS: usize = 128;

/// The head of the response to a GET at the front of `bytes`, and its length; `None` while it is not complete.
/// Interim responses (1xx) are skipped.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut start = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let len = match head
            .parse(&bytes[start..])
            .map_err(|error| bad(error.to_string()))?
        {
            httparse::Status::Complete(len) => len,
            httparse::Status::Partial => return Ok(None),
        };
        start += len;
        let status = head.code.unwrap_or(0);
        if (100..200).contains(&status) {
            continue;
        }
        let reason = head.reason.unwrap_or_default().to_owned();
        let location = field(head.headers, "location");
        return Ok(Some((
            Head {
                status,
                reason,
                location,
                body: body(status, head.headers)?,
            },
            start,
        )));
    }
}

fn body(status: u16, fields: &[httparse::Header<'_>]) -> io::Result<Body> {
    if status == 204 || status == 304 {
        return Ok(Body::Length(0));
    }
    if let Some(coding) = field(fields, "transfer-encoding") {
        // "If a message is received with both a Transfer-Encoding and a Content-Length header field, the
        // Transfer-Encoding overrides the Content-Length."
        let chunked = coding.trim().eq_ignore_ascii_case("chunked");
        return if chunked {
            Ok(Body::Chunked)
        } else {
            Err(bad(format!("transfer coding {coding} is not supported")))
        };
    }
    let mut lengths = fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("content-length"));
    let Some(first) = lengths.next() else {
        return Ok(Body::UntilClose);
    };
    if lengths.any(|other| other.value != first.value) {
        return Err(bad("two different lengths".into()));
    }
    let digits = std::str::from_utf8(first.value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()) {
        Some(len) => Ok(Body::Length(len)),
        None => Err(bad("the length is no number".into())),
    }
}

fn field(fields: &[httparse::Header<'_>], name: &str) -> Option<String> {
    let found = fields
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case(name))?;
    Some(String::from_utf8_lossy(found.value).into_owned())
}

fn bad(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// Decodes a chunked body piece by piece (RFC 9112 §7.1).
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    state: State,
    /// The front of a line that is not complete.
    line: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Size,
    Data(u64),
    /// The line end behind a chunk's data.
    DataEnd,
    Trailers,
}

/// What one step found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Body bytes, as a range of the input. May be empty.
    pub(crate) data: Range<usize>,
    /// Bytes of the input that are dealt with.
    pub(crate) used: usize,
    /// The body is complete.
    pub(crate) done: bool,
}

/// Longest line between chunks; extensions beyond are an attack.
const MAX_LINE: usize = 4096;

impl Chunks {
    /// Bytes of the current chunk that are still to come: body bytes, all of them.
    pub(crate) fn rest(&self) -> u64 {
        match self.state {
            State::Data(left) => left,
            _ => 0,
        }
    }

    /// Somebody else took `n` of the [rest](Self::rest).
    pub(crate) fn skip(&mut self, n: u64) {
        if let State::Data(left) = &mut self.state {
            *left -= n;
            if *left == 0 {
                self.state = State::DataEnd;
            }
        }
    }

    /// Goes on with `input`, which is not empty; uses at least one byte of it.
    pub(crate) fn next(&mut self, input: &[u8]) -> io::Result<Step> {
        if let State::Data(left) = self.state {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
            let left = left - here as u64;
            self.state = if left == 0 {
                State::DataEnd
            } else {
                State::Data(left)
            };
            return Ok(Step {
                data: 0..here,
                used: here,
                done: false,
            });
        }
        let end = input.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(input.len(), |at| at + 1);
        self.line.extend_from_slice(&input[..used]);
        if self.line.len() > MAX_LINE {
            return Err(bad("a line between chunks is too long".into()));
        }
        let mut done = false;
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            self.state = match self.state {
                State::Size => match httparse::parse_chunk_size(&line) {
                    Ok(httparse::Status::Complete((_, 0))) => State::Trailers,
                    Ok(httparse::Status::Complete((_, size))) => State::Data(size),
                    _ => return Err(bad("a chunk without a size".into())),
                },
                State::DataEnd if line.trim_ascii().is_empty() => State::Size,
                State::DataEnd => return Err(bad("a chunk is longer than its size".into())),
                State::Trailers if line.trim_ascii().is_empty() => {
                    done = true;
                    State::Trailers
                }
                other => other,
            };
        }
        Ok(Step {
            data: 0..0,
            used,
            done,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_say_how_the_body_ends() {
        for (head, want) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                Body::Length(5),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                Body::Chunked,
            ),
            ("HTTP/1.0 200 OK\r\n\r\n", Body::UntilClose),
            ("HTTP/1.1 204 No Content\r\n\r\n", Body::Length(0)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Body::Length(0),
            ),
        ] {
            let (parsed, len) = parse(head.as_bytes()).expect("a head").expect("complete");
            assert_eq!(parsed.body, want, "{head}");
            assert!(head[..len].ends_with("\r\n\r\n"));
        }
        assert!(
            parse(b"HTTP/1.1 200 OK\r\nContent-")
                .expect("a front")
                .is_none()
        );
        assert!(parse(b"SSH-2.0-x\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n").is_err());
        let (moved, _) = parse(b"HTTP/1.1 301 Moved\r\nLocation: /x\r\n\r\n")
            .expect("a head")
            .expect("complete");
        assert_eq!((moved.status, moved.location.as_deref()), (301, Some("/x")));
    }

    fn decode(pieces: impl Iterator<Item = Vec<u8>>) -> io::Result<(Vec<u8>, bool)> {
        let (mut chunks, mut out) = (Chunks::default(), Vec::new());
        for piece in pieces {
            let mut at = 0;
            while at < piece.len() {
                let step = chunks.next(&piece[at..])?;
                assert!(step.used > 0);
                out.extend_from_slice(&piece[at..][step.data]);
                at += step.used;
                if step.done {
                    return Ok((out, true));
                }
            }
        }
        Ok((out, false))
    }

    #[test]
    fn bad_chunks_are_errors() {
        for body in ["x\r\n", "5\r\nhelloX\r\n", "5;x\n"] {
            let decoded = decode(std::iter::once(body.as_bytes().to_vec()));
            assert!(!matches!(decoded, Ok((_, true))), "{body:?}");
        }
        let endless = vec![b'0'; MAX_LINE + 1];
        assert!(decode(std::iter::once(endless)).is_err());
    }

    proptest! {
        #[test]
        fn chunks_come_back_whatever_the_pieces(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
            size in 1usize..40,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
            let (out, done) = decode(body.chunks(size).map(<[u8]>::to_vec)).expect("a good body");
            prop_assert!(done);
            prop_assert_eq!(out, chunks.concat());
        }
    }
}
