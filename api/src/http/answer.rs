//! The response to a request: status, head and where the body comes from.

use super::range::{self, Range};
use super::request::{Conditions, Method, Request};
use super::site::{Found, FoundFile, Site};
use super::status::Status;
use super::{listing, target};
use std::fmt::Write;
use std::fs::File;
use std::time::SystemTime;

/// A response, ready to be sent.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: Status,
    /// The head, and behind it a body that was made up here (a listing, an error page).
    pub(crate) memory: Vec<u8>,
    /// The part of a file that follows.
    pub(crate) file: Option<FileBody>,
    /// The connection stays open behind it.
    pub(crate) keep_alive: bool,
}

/// A range of a file, not empty.
#[derive(Debug)]
pub(crate) struct FileBody {
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Answers `request` from `site`; `now` is what the `Date` field says.
pub(crate) fn answer(site: &Site, request: &Request, now: SystemTime) -> Response {
    let shown = match target::encoded_path(&request.target) {
        Ok(path) => percent_encoding::percent_decode_str(path)
            .decode_utf8_lossy()
            .into_owned(),
        Err(status) => return error(status, request, now),
    };
    let found = target::resolve(&request.target).and_then(|target| site.find(&target, &shown));
    match found {
        Ok(Found::File(found)) => file(found, request, now),
        Ok(Found::Listing(html)) => {
            let mut head = Head::new(Status::Ok, now, request.keep_alive);
            head.field("Content-Type", "text/html; charset=utf-8");
            head.made_up(html, request.method)
        }
        Ok(Found::MissingSlash) => {
            let path = target::encoded_path(&request.target).unwrap_or("/");
            let mut head = Head::new(Status::MovedPermanently, now, request.keep_alive);
            // One leading slash only: `//x/` would be a host. A parsed target has no control characters.
            head.field("Location", &format!("/{}/", path.trim_start_matches('/')));
            head.made_up(error_page(Status::MovedPermanently), request.method)
        }
        Err(status) => error(status, request, now),
    }
}

/// The response to bytes that are no acceptable request; the connection closes behind it.
pub(crate) fn refuse(status: Status, now: SystemTime) -> Response {
    let mut head = Head::new(status, now, false);
    if status == Status::MethodNotAllowed {
        head.field("Allow", "GET, HEAD");
    }
    head.field("Content-Type", "text/html; charset=utf-8");
    head.made_up(error_page(status), Method::Get)
}

fn error(status: Status, request: &Request, now: SystemTime) -> Response {
    let mut head = Head::new(status, now, request.keep_alive);
    head.field("Content-Type", "text/html; charset=utf-8");
    head.made_up(error_page(status), request.method)
}

fn error_page(status: Status) -> Vec<u8> {
    let title = listing::escape(&status.to_string());
    format!("<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n")
        .into_bytes()
}

fn file(found: FoundFile, request: &Request, now: SystemTime) -> Response {
    let last_modified = httpdate::fmt_http_date(found.modified);
    let validators = |head: &mut Head| {
        head.field("Last-Modified", &last_modified);
        head.field("ETag", &found.etag);
    };
    match precondition(&request.conditions, &found) {
        Precondition::Holds => {}
        Precondition::NotModified => {
            let mut head = Head::new(Status::NotModified, now, request.keep_alive);
            validators(&mut head);
            return head.bodiless();
        }
        Precondition::Failed => return error(Status::PreconditionFailed, request, now),
    }
    let wanted = match &request.conditions.range {
        Some(value) if range_applies(&request.conditions, &found) => range::parse(value, found.len),
        _ => Range::Whole,
    };
    let (status, first, len) = match wanted {
        Range::Whole => (Status::Ok, 0, found.len),
        Range::Part { first, len } => (Status::PartialContent, first, len),
        Range::Unsatisfiable => {
            let mut head = Head::new(Status::RangeNotSatisfiable, now, request.keep_alive);
            head.field("Content-Range", &format!("bytes */{}", found.len));
            head.field("Content-Type", "text/html; charset=utf-8");
            return head.made_up(error_page(Status::RangeNotSatisfiable), request.method);
        }
    };
    let mut head = Head::new(status, now, request.keep_alive);
    validators(&mut head);
    head.field("Accept-Ranges", "bytes");
    head.field("Content-Type", &found.content_type);
    if status == Status::PartialContent {
        head.field(
            "Content-Range",
            &format!("bytes {first}-{}/{}", first + len - 1, found.len),
        );
    }
    head.field("Content-Length", &len.to_string());
    let mut response = head.bodiless();
    if request.method == Method::Get && len > 0 {
        response.file = Some(FileBody {
            file: found.file,
            offset: first,
            len,
        });
    }
    response
}

enum Precondition {
    Holds,
    NotModified,
    Failed,
}

/// RFC 9110 §13.2.2, in its order.
fn precondition(conditions: &Conditions, found: &FoundFile) -> Precondition {
    if let Some(list) = &conditions.if_match {
        if !matches_strongly(list, &found.etag) {
            return Precondition::Failed;
        }
    } else if let Some(date) = date(&conditions.if_unmodified_since)
        && found.modified > date
    {
        return Precondition::Failed;
    }
    if let Some(list) = &conditions.if_none_match {
        if matches_weakly(list, &found.etag) {
            return Precondition::NotModified;
        }
    } else if let Some(date) = date(&conditions.if_modified_since)
        && found.modified <= date
    {
        return Precondition::NotModified;
    }
    Precondition::Holds
}

/// RFC 9110 §13.1.5: the range holds only for the representation the client has a part of.
fn range_applies(conditions: &Conditions, found: &FoundFile) -> bool {
    match &conditions.if_range {
        None => true,
        Some(tag) if tag.starts_with('"') => *tag == found.etag,
        Some(text) => httpdate::parse_http_date(text).is_ok_and(|date| date == found.modified),
    }
}

/// An invalid date is ignored (RFC 9110 §13.1.3: "A recipient MUST ignore If-Modified-Since if the received field
/// value is not a valid HTTP-date").
fn date(value: &Option<String>) -> Option<SystemTime> {
    httpdate::parse_http_date(value.as_deref()?).ok()
}

fn matches_strongly(list: &str, etag: &str) -> bool {
    list.trim() == "*" || list.split(',').any(|tag| tag.trim() == etag)
}

fn matches_weakly(list: &str, etag: &str) -> bool {
    list.trim() == "*"
        || list
            .split(',')
            .any(|tag| tag.trim().trim_start_matches("W/") == etag)
}

/// A head under construction.
struct Head {
    status: Status,
    keep_alive: bool,
    text: String,
}

impl Head {
    fn new(status: Status, now: SystemTime, keep_alive: bool) -> Head {
        let mut text = String::with_capacity(320);
        let date = httpdate::HttpDate::from(now);
        write!(
            text,
            "HTTP/1.1 {status}\r\nServer: uktls\r\nDate: {date}\r\n"
        )
        .expect("writing to a String cannot fail");
        if !keep_alive {
            text.push_str("Connection: close\r\n");
        }
        Head {
            status,
            keep_alive,
            text,
        }
    }

    fn field(&mut self, name: &str, value: &str) {
        self.text.push_str(name);
        self.text.push_str(": ");
        self.text.push_str(value);
        self.text.push_str("\r\n");
    }

    fn bodiless(mut self) -> Response {
        self.text.push_str("\r\n");
        Response {
            status: self.status,
            memory: self.text.into_bytes(),
            file: None,
            keep_alive: self.keep_alive,
        }
    }

    /// With `body`, which a response to HEAD only measures.
    fn made_up(mut self, body: Vec<u8>, method: Method) -> Response {
        self.field("Content-Length", &body.len().to_string());
        let mut response = self.bodiless();
        if method == Method::Get {
            response.memory.extend_from_slice(&body);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Parsed, parse};
    use super::*;
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    fn site(folder: &Path) -> Site {
        std::fs::write(folder.join("ten.bin"), "0123456789").expect("write");
        std::fs::write(folder.join("empty"), "").expect("write");
        std::fs::create_dir(folder.join("sub dir")).expect("mkdir");
        let time =
            std::fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(784_111_777));
        let file = std::fs::File::options()
            .write(true)
            .open(folder.join("ten.bin"))
            .expect("open");
        file.set_times(time).expect("set the time");
        Site::open(folder).expect("open")
    }

    fn ask(site: &Site, line: &str, fields: &str) -> (Response, String) {
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let Ok(Parsed::Complete(request, _)) = parse(head.as_bytes()) else {
            panic!("{head} is no request")
        };
        let response = answer(site, &request, UNIX_EPOCH);
        let text = String::from_utf8_lossy(&response.memory).into_owned();
        (response, text)
    }

    #[test]
    fn whole_files_parts_and_heads() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let site = site(folder.path());

        let (response, head) = ask(&site, "GET /ten.bin", "");
        assert_eq!(response.status, Status::Ok);
        assert!(
            head.contains("Content-Length: 10\r\n")
                && head.contains("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT")
        );
        let body = response.file.expect("a body");
        assert_eq!((body.offset, body.len), (0, 10));

        let (response, head) = ask(&site, "GET /ten.bin", "Range: bytes=2-4\r\n");
        assert_eq!(response.status, Status::PartialContent);
        assert!(
            head.contains("Content-Range: bytes 2-4/10\r\n")
                && head.contains("Content-Length: 3\r\n")
        );
        let body = response.file.expect("a body");
        assert_eq!((body.offset, body.len), (2, 3));

        let (response, head) = ask(&site, "GET /ten.bin", "Range: bytes=10-\r\n");
        assert_eq!(response.status, Status::RangeNotSatisfiable);
        assert!(head.contains("Content-Range: bytes */10\r\n") && response.file.is_none());

        let (response, head) = ask(&site, "HEAD /ten.bin", "");
        assert!(
            head.contains("Content-Length: 10\r\n")
                && head.ends_with("\r\n\r\n")
                && response.file.is_none()
        );

        let (response, head) = ask(&site, "GET /empty", "Range: bytes=0-\r\n");
        assert_eq!(response.status, Status::RangeNotSatisfiable);
        assert!(head.contains("bytes */0"));
        let (response, _) = ask(&site, "GET /empty", "");
        assert!(response.status == Status::Ok && response.file.is_none());
    }

    #[test]
    fn conditions_are_evaluated_in_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let site = site(folder.path());
        let (_, head) = ask(&site, "GET /ten.bin", "");
        let etag = head
            .lines()
            .find_map(|line| line.strip_prefix("ETag: "))
            .expect("an ETag")
            .to_owned();
        let same = "Sun, 06 Nov 1994 08:49:37 GMT";
        let before = "Sat, 05 Nov 1994 08:49:37 GMT";
        for (fields, want) in [
            (format!("If-Modified-Since: {same}\r\n"), 304),
            (format!("If-Modified-Since: {before}\r\n"), 200),
            ("If-Modified-Since: yesterday\r\n".into(), 200),
            (format!("If-None-Match: \"x\", W/{etag}\r\n"), 304),
            ("If-None-Match: *\r\n".into(), 304),
            (
                format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {same}\r\n"),
                200,
            ),
            ("If-Match: \"x\"\r\n".into(), 412),
            (format!("If-Match: {etag}\r\n"), 200),
            (format!("If-Unmodified-Since: {before}\r\n"), 412),
            (format!("Range: bytes=0-1\r\nIf-Range: {etag}\r\n"), 206),
            ("Range: bytes=0-1\r\nIf-Range: \"x\"\r\n".into(), 200),
            (format!("Range: bytes=0-1\r\nIf-Range: {same}\r\n"), 206),
            (format!("Range: bytes=0-1\r\nIf-Range: {before}\r\n"), 200),
        ] {
            let (response, head) = ask(&site, "GET /ten.bin", &fields);
            assert_eq!(response.status.code(), want, "{fields}");
            assert_eq!(response.file.is_some(), want / 100 == 2, "{fields}: {head}");
        }
    }

    #[test]
    fn folders_redirect_and_list_and_errors_have_pages() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let site = site(folder.path());
        let (response, head) = ask(&site, "GET //sub%20dir", "");
        assert_eq!(response.status, Status::MovedPermanently);
        assert!(head.contains("Location: /sub%20dir/\r\n"), "{head}");
        let (response, page) = ask(&site, "GET /sub%20dir/", "");
        assert!(response.status == Status::Ok && page.contains("<h1>/sub dir/</h1>"));
        let (response, page) = ask(&site, "GET /none", "");
        assert!(
            response.status == Status::NotFound
                && page.contains("<h1>404 Not Found</h1>")
                && response.keep_alive
        );
        let (response, head) = ask(&site, "HEAD /none", "");
        assert!(response.status == Status::NotFound && head.ends_with("\r\n\r\n"));
        let refused = refuse(Status::MethodNotAllowed, UNIX_EPOCH);
        let text = String::from_utf8(refused.memory).expect("UTF-8");
        assert!(
            text.contains("Allow: GET, HEAD\r\n")
                && text.contains("Connection: close\r\n")
                && !refused.keep_alive
        );
    }
}
