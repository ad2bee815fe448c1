//! Request heads: from bytes to what the server needs to know, or to the status that refuses them.

use super::status::Status;

/// The longest request head that is read.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// The longest request target; RFC 9112 §3 recommends "a minimum of 8000 octets" for the request line.
const MAX_TARGET: usize = 8000;
const MAX_FIELDS: usize = 96;
/// Bodies up to here are tolerated (the connection closes behind the response); longer ones are refused.
const MAX_BODY: u64 = 1 << 20;

/// The methods that are answered with a representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
}

/// Conditions and ranges, as they were sent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) if_match: Option<String>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) if_modified_since: Option<String>,
    pub(crate) if_unmodified_since: Option<String>,
}

/// One request for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// As sent; resolved by [`super::target`].
    pub(crate) target: String,
    /// The connection may carry another request after this one.
    pub(crate) keep_alive: bool,
    pub(crate) conditions: Conditions,
}

/// What is at the front of a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Not yet a whole head.
    Partial,
    /// A request and the length of its head.
    Complete(Request, usize),
}

/// Parses the head at the front of `bytes`. After an error nothing more can be read from the connection.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Status> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let head_len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Complete(_)) => return Err(too_large(bytes)),
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(Parsed::Partial),
        Ok(httparse::Status::Partial) => return Err(too_large(bytes)),
        Err(httparse::Error::TooManyHeaders) => return Err(Status::HeaderFieldsTooLarge),
        Err(httparse::Error::Version) if names_a_version(bytes) => {
            return Err(Status::HttpVersionNotSupported);
        }
        Err(_) => return Err(Status::BadRequest),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Err(Status::BadRequest);
    };
    if target.len() > MAX_TARGET {
        return Err(Status::UriTooLong);
    }
    let fields = read_fields(head.headers, minor)?;
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH" | "TRACE" | "CONNECT" => {
            return Err(Status::MethodNotAllowed);
        }
        _ => return Err(Status::NotImplemented),
    };
    let keep_alive = fields.keep_alive && !fields.body;
    let request = Request {
        method,
        target: target.to_owned(),
        keep_alive,
        conditions: fields.conditions,
    };
    Ok(Parsed::Complete(request, head_len))
}

/// Whether the end of the head was not found because the request line alone is too long.
fn too_large(bytes: &[u8]) -> Status {
    let line = bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(bytes.len());
    if line > MAX_TARGET {
        Status::UriTooLong
    } else {
        Status::HeaderFieldsTooLarge
    }
}

/// Whether the request line ends in `HTTP/digit.digit`, so that only the number is wrong.
fn names_a_version(bytes: &[u8]) -> bool {
    let line = bytes
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    let word = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    matches!(word, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}

struct Fields {
    keep_alive: bool,
    body: bool,
    conditions: Conditions,
}

fn read_fields(headers: &[httparse::Header<'_>], minor: u8) -> Result<Fields, Status> {
    let mut fields = Fields {
        keep_alive: minor >= 1,
        body: false,
        conditions: Conditions::default(),
    };
    let mut hosts = 0;
    let mut content_length: Option<u64> = None;
    for header in headers {
        let value = header.value.trim_ascii();
        let conditions = &mut fields.conditions;
        match header.name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "connection" => {
                for option in String::from_utf8_lossy(value).split(',') {
                    match option.trim().to_ascii_lowercase().as_str() {
                        "close" => fields.keep_alive = false,
                        "keep-alive" if minor == 0 => fields.keep_alive = true,
                        _ => {}
                    }
                }
            }
            "content-length" => {
                let digits = std::str::from_utf8(value)
                    .ok()
                    .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                let length = digits
                    .and_then(|text| text.parse().ok())
                    .ok_or(Status::BadRequest)?;
                if content_length.is_some_and(|before| before != length) {
                    return Err(Status::BadRequest);
                }
                content_length = Some(length);
            }
            "transfer-encoding" => {
                // RFC 9112 §6.1: "A server that receives a request message with a transfer coding it does not
                // understand SHOULD respond with 501 (Not Implemented)."
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Status::NotImplemented);
                }
                fields.body = true;
            }
            "range" => set(&mut conditions.range, value),
            "if-range" => set(&mut conditions.if_range, value),
            "if-match" => set(&mut conditions.if_match, value),
            "if-none-match" => set(&mut conditions.if_none_match, value),
            "if-modified-since" => set(&mut conditions.if_modified_since, value),
            "if-unmodified-since" => set(&mut conditions.if_unmodified_since, value),
            _ => {}
        }
    }
    // RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message that
    // lacks a Host header field and to any request message that contains more than one Host header field".
    if hosts > 1 || (hosts == 0 && minor >= 1) {
        return Err(Status::BadRequest);
    }
    // RFC 9112 §6.1: both together "ought to be handled as an error" (request smuggling).
    if fields.body && (content_length.is_some() || minor == 0) {
        return Err(Status::BadRequest);
    }
    match content_length {
        Some(length) if length > MAX_BODY => return Err(Status::ContentTooLarge),
        Some(length) if length > 0 => fields.body = true,
        _ => {}
    }
    Ok(fields)
}

/// Several lines of one field are one list (RFC 9110 §5.3).
fn set(field: &mut Option<String>, value: &[u8]) {
    let value = String::from_utf8_lossy(value);
    match field {
        None => *field = Some(value.into_owned()),
        Some(before) => {
            before.push_str(", ");
            before.push_str(&value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(head: &str) -> Status {
        match parse(head.as_bytes()) {
            Err(status) => status,
            Ok(parsed) => panic!("{head:?} gave {parsed:?}"),
        }
    }

    fn accepted(head: &str) -> Request {
        match parse(head.as_bytes()) {
            Ok(Parsed::Complete(request, len)) => {
                assert_eq!(len, head.find("\r\n\r\n").map_or(head.len(), |at| at + 4));
                request
            }
            other => panic!("{head:?} gave {other:?}"),
        }
    }

    #[test]
    fn a_request_is_parsed_and_the_next_one_left() {
        let request = accepted("GET /a?b HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\nGET /next");
        assert_eq!(
            (request.method, request.target.as_str(), request.keep_alive),
            (Method::Get, "/a?b", true)
        );
        assert_eq!(request.conditions.range.as_deref(), Some("bytes=0-1"));
    }

    #[test]
    fn who_keeps_the_connection() {
        assert!(
            !accepted("GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n").keep_alive
        );
        assert!(!accepted("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(accepted("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive);
        assert!(!accepted("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n").keep_alive);
        assert!(accepted("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").keep_alive);
    }

    #[test]
    fn refusals_by_status() {
        for (head, want) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("\x16\x03\x01\x02\x00\x01", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
                413,
            ),
            ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
                501,
            ),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ] {
            assert_eq!(refused(head).code(), want, "{head:?}");
        }
        let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000));
        assert_eq!(refused(&long_target).code(), 414);
        let endless_target = format!("GET /{}", "x".repeat(MAX_HEAD));
        assert_eq!(refused(&endless_target).code(), 414);
        let endless_head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(refused(&endless_head).code(), 431);
        let many_fields = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(200)
        );
        assert_eq!(refused(&many_fields).code(), 431);
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(parse(&bytes));
        }

        #[test]
        fn a_prefix_of_a_good_request_is_partial(cut in 0usize..60, path in "/[a-z/]{0,20}") {
            let head = format!("GET {path} HTTP/1.1\r\nHost: example.net\r\nAccept: */*\r\n\r\n");
            let cut = cut.min(head.len() - 1);
            prop_assert_eq!(parse(&head.as_bytes()[..cut]), Ok(Parsed::Partial));
            let whole = parse(head.as_bytes());
            prop_assert!(matches!(whole, Ok(Parsed::Complete(_, len)) if len == head.len()));
        }
    }
}
