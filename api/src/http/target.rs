//! From a request target to a path beneath the served folder.
//!
//! The path that comes out is relative and has no `..` in it; that the file system agrees (symbolic links) is
//! `openat2`'s business in [`super::site`].

use super::status::Status;
use percent_encoding::percent_decode_str;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What a request target names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Relative path without `.`, `..` or empty parts; `.` itself for the root.
    pub(crate) path: PathBuf,
    /// The target ended in `/`: it means a folder.
    pub(crate) folder: bool,
}

/// Resolves a target in origin-form (`/a/b?q`) or absolute-form (`https://host/a/b`) (RFC 9112 §3.2).
pub(crate) fn resolve(target: &str) -> Result<Target, Status> {
    let path = encoded_path(target)?;
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    if decoded.contains(&0) {
        return Err(Status::BadRequest);
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in decoded.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            // Above the root there is nothing; a browser never asks for it, since it resolves `..` itself.
            b".." => drop(parts.pop().ok_or(Status::BadRequest)?),
            part => parts.push(part),
        }
    }
    let folder = decoded.ends_with(b"/") || decoded.ends_with(b"/.") || decoded.ends_with(b"/..");
    let path = if parts.is_empty() {
        b".".to_vec()
    } else {
        parts.join(&b'/')
    };
    Ok(Target {
        path: PathBuf::from(OsString::from_vec(path)),
        folder,
    })
}

/// The path of a target as it was sent, without the query.
pub(crate) fn encoded_path(target: &str) -> Result<&str, Status> {
    let rest = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(Status::BadRequest)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(Status::BadRequest);
        }
        match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => &rest[at..],
            _ => "/",
        }
    };
    Ok(rest.split(['?', '#']).next().unwrap_or("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn targets_that_name_something() {
        for (target, path, folder) in [
            ("/", ".", true),
            ("/a", "a", false),
            ("/a/b.txt?x=/../y#z", "a/b.txt", false),
            ("//a///b/", "a/b", true),
            ("/a/./b/../c", "a/c", false),
            ("/a/..", ".", true),
            ("/a%2fb%20c", "a/b c", false),
            ("/%C3%A4", "ä", false),
            ("/%zz", "%zz", false),
            ("https://example.net/x/y", "x/y", false),
            ("http://example.net", ".", true),
            ("HTTP://example.net?x", ".", true),
        ] {
            let want = Target {
                path: path.into(),
                folder,
            };
            assert_eq!(resolve(target), Ok(want), "{target}");
        }
    }

    #[test]
    fn targets_that_are_refused() {
        for target in [
            "",
            "*",
            "a",
            "/..",
            "/a/../..",
            "/%2e%2e/etc/passwd",
            "/a%00b",
            "ftp://x/",
            "example.net:443",
        ] {
            assert_eq!(resolve(target), Err(Status::BadRequest), "{target}");
        }
    }

    proptest! {
        #[test]
        fn what_comes_out_never_leaves_the_root(target in "(/|%2f|%2F|\\.|%2e|a|%|\\?|:|\\PC){0,40}") {
            for target in [target.clone(), format!("/{target}")] {
                if let Ok(resolved) = resolve(&target) {
                    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
                    prop_assert!(resolved.path == Path::new(".") || resolved.path.components().all(normal));
                }
            }
        }
    }
}
