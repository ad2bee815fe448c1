//! Sequence numbers: 32 bits on the wire, modulo 2^32.
//!
//! The connection itself counts in 64 bits (offset 0 is the SYN, offset 1 the first byte of the stream), where plain
//! comparison is right. [`SeqNumber`] is what crosses the wire; [`SeqNumber::unwrap_near`] turns one into the 64-bit
//! offset closest to a known one.

use core::ops::{Add, AddAssign, Sub};

/// A sequence or acknowledgement number as it stands in a TCP header.
///
/// It has no `Ord`: RFC 9293 §3.4, "it is essential to remember that the actual sequence number space is finite ...
/// all arithmetic dealing with sequence numbers must be performed modulo 2^32". [`lt`](SeqNumber::lt) and its
/// siblings compare numbers that are less than 2^31 apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// `self - earlier` as a signed distance: positive when `self` comes later.
    pub const fn distance(self, earlier: SeqNumber) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// `self` comes before `other`.
    pub const fn lt(self, other: SeqNumber) -> bool {
        self.distance(other) < 0
    }

    /// `self` comes before `other` or is the same.
    pub const fn le(self, other: SeqNumber) -> bool {
        self.distance(other) <= 0
    }

    /// `self` comes after `other`.
    pub const fn gt(self, other: SeqNumber) -> bool {
        self.distance(other) > 0
    }

    /// `self` comes after `other` or is the same.
    pub const fn ge(self, other: SeqNumber) -> bool {
        self.distance(other) >= 0
    }

    /// The number at 64-bit offset `offset` in a sequence space that starts (its SYN) at `self`.
    pub const fn at(self, offset: u64) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(offset as u32))
    }

    /// The 64-bit offset of `self` in the sequence space that starts at `initial`: of all offsets with this number,
    /// the one nearest to `near`. It is negative when `self` lies before the start.
    pub const fn unwrap_near(self, initial: SeqNumber, near: u64) -> i64 {
        near as i64 + self.distance(initial.at(near)) as i64
    }
}

impl Add<u32> for SeqNumber {
    type Output = SeqNumber;
    fn add(self, n: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for SeqNumber {
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for SeqNumber {
    type Output = SeqNumber;
    fn sub(self, n: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_sub(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_survives_the_wrap() {
        let before = SeqNumber(u32::MAX - 1);
        let after = before + 5;
        assert_eq!(after, SeqNumber(3));
        assert!(before.lt(after) && before.le(after) && after.gt(before) && after.ge(before));
        assert!(before.le(before) && before.ge(before) && !before.lt(before) && !before.gt(before));
        assert_eq!(after - 5, before);
    }

    #[test]
    fn unwrapping_finds_the_nearest_offset() {
        let initial = SeqNumber(u32::MAX - 9);
        for offset in [
            0u64,
            1,
            9,
            10,
            1 << 20,
            (1 << 32) - 1,
            1 << 32,
            (1 << 33) + 7,
            1 << 50,
        ] {
            for slip in [-1_000_000i64, -1, 0, 1, 1_000_000] {
                let near = offset.saturating_add_signed(slip);
                assert_eq!(initial.at(offset).unwrap_near(initial, near), offset as i64);
            }
        }
        assert_eq!((initial - 1).unwrap_near(initial, 0), -1);
    }
}
