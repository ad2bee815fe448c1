//! The `Range` header (RFC 9110 §14.1.2).

/// What a `Range` header asks of a representation of a known length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// No range, one this server does not understand, or several: "A server MAY ignore the Range header field"
    /// (RFC 9110 §14.2).
    Whole,
    /// One range with bytes in it: first byte and number of bytes (at least one).
    Part {
        /// Offset of the first byte.
        first: u64,
        /// Number of bytes.
        len: u64,
    },
    /// One range that no byte is in.
    Unsatisfiable,
}

/// What `value` asks of a representation of `len` bytes.
pub(crate) fn parse(value: &str, len: u64) -> Range {
    let Some((unit, set)) = value.split_once('=') else {
        return Range::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Range::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Range::Whole;
    };
    match (position(first), position(last)) {
        (Position::Missing, Position::At(suffix)) => {
            // RFC 9110 §14.1.2: "If the selected representation is shorter than the specified suffix-length, the
            // entire representation is used."
            let suffix = suffix.min(len);
            if suffix == 0 {
                Range::Unsatisfiable
            } else {
                Range::Part {
                    first: len - suffix,
                    len: suffix,
                }
            }
        }
        (Position::At(first), Position::Missing) => part(first, u64::MAX, len),
        (Position::At(first), Position::At(last)) if first <= last => part(first, last, len),
        _ => Range::Whole,
    }
}

enum Position {
    Missing,
    At(u64),
    Malformed,
}

/// A decimal number; one too large for 64 bits is as good as the largest.
fn position(digits: &str) -> Position {
    if digits.is_empty() {
        Position::Missing
    } else if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        Position::At(digits.parse().unwrap_or(u64::MAX))
    } else {
        Position::Malformed
    }
}

fn part(first: u64, last: u64, len: u64) -> Range {
    if first >= len {
        return Range::Unsatisfiable;
    }
    Range::Part {
        first,
        len: last.min(len - 1) - first + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_a_thousand_bytes() {
        let part = |first, len| Range::Part { first, len };
        for (value, want) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-999", part(0, 1000)),
            ("bytes=500-", part(500, 500)),
            ("bytes=-1", part(999, 1)),
            ("bytes=-5000", part(0, 1000)),
            ("bytes=990-99999999999999999999999", part(990, 10)),
            ("Bytes=1-2", part(1, 2)),
            ("bytes=1000-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("bytes=", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("lines=1-2", Range::Whole),
            ("0-1", Range::Whole),
        ] {
            assert_eq!(parse(value, 1000), want, "{value}");
        }
        assert_eq!(parse("bytes=0-", 0), Range::Unsatisfiable);
        assert_eq!(parse("bytes=-1", 0), Range::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_always_lies_inside(value in "(bytes=)?[0-9]{0,22}-?[0-9]{0,22}", len: u64) {
            if let Range::Part { first, len: part } = parse(&value, len) {
                prop_assert!(part >= 1);
                prop_assert!(first.checked_add(part).is_some_and(|end| end <= len));
            }
        }
    }
}
