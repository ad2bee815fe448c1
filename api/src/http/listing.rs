//! A folder as a page.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::fs::{AtFlags, Dir, FileType, statat};
use std::fmt::Write;
use std::os::fd::BorrowedFd;

/// Entries behind this many are not listed: a page nobody reads is not worth the memory.
const MAX_ENTRIES: usize = 10_000;

/// Unreserved characters (RFC 3986 §2.3) stay, everything else is escaped.
const HREF: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The HTML page that lists the folder `fd`, shown under the decoded name `title`.
pub(crate) fn page(fd: BorrowedFd<'_>, title: &str) -> rustix::io::Result<Vec<u8>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." || entries.len() >= MAX_ENTRIES {
            continue;
        }
        // An entry that vanished in between is not there; one that may not be looked at is shown without a size.
        let size = match statat(fd, name, AtFlags::empty()) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => None,
            Ok(stat) => Some(stat.st_size),
            Err(_) => continue,
        };
        entries.push((name.to_bytes().to_vec(), size));
    }
    entries.sort_by(|a, b| (a.1.is_some(), &a.0).cmp(&(b.1.is_some(), &b.0)));
    Ok(render(title, &entries).into_bytes())
}

/// `entries` are names with their size, folders without.
fn render(title: &str, entries: &[(Vec<u8>, Option<i64>)]) -> String {
    let title = escape(title);
    let mut html = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body><h1>{title}</h1>\n<table>\n"
    );
    if title != "/" {
        html.push_str("<tr><td><a href=\"../\">../</a></td><td></td></tr>\n");
    }
    for (name, size) in entries {
        let slash = if size.is_none() { "/" } else { "" };
        let href = percent_encode(name, HREF);
        let shown = escape(&String::from_utf8_lossy(name));
        let size = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        // `./` in front keeps a name with a colon from being read as a scheme.
        writeln!(
            html,
            "<tr><td><a href=\"./{href}{slash}\">{shown}{slash}</a></td><td>{size}</td></tr>"
        )
        .expect("writing to a String cannot fail");
    }
    html.push_str("</table></body></html>\n");
    html
}

/// Escapes text for HTML elements and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn names_are_escaped_for_html_and_for_urls() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("<b>&\"x y.txt"), "12345").expect("write");
        std::fs::create_dir(folder.path().join("sub")).expect("mkdir");
        let fd = std::fs::File::open(folder.path()).expect("open");
        let html = String::from_utf8(page(fd.as_fd(), "/<i>/").expect("a page")).expect("UTF-8");
        assert!(html.contains("<h1>/&lt;i&gt;/</h1>"));
        assert!(html.contains(
            "<a href=\"./%3Cb%3E%26%22x%20y.txt\">&lt;b&gt;&amp;&quot;x y.txt</a></td><td>5</td>"
        ));
        let sub = html
            .find("<a href=\"./sub/\">sub/</a>")
            .expect("the folder is listed");
        assert!(
            sub < html.find("x y.txt").expect("the file is listed"),
            "folders come first"
        );
    }
}
