//! Which nonces each key has protected a plaintext with: none twice.
//!
//! A counter's nonces are next to each other, so what is kept is ranges. Under TLS 1.3 a nonce is `iv XOR number`, and the numbers in order do not make
//! nonces in order; so ranges are of `nonce XOR first nonce of this key`. That is a permutation: nothing is lost or confused, and a run of
//! numbers becomes a handful of ranges, whichever of the two ways the nonces are made.

use super::Table;
use std::collections::BTreeMap;
use uktls_record::suite::NONCE_LEN;

/// The nonces of all keys.
#[derive(Debug, Default)]
pub(super) struct Nonces(Table<(u64, [u8; 4]), Used>);

/// The nonces of one key that share their first four bytes.
#[derive(Debug)]
struct Used {
    first: u64,
    /// First and last of each range; ranges neither touch nor overlap.
    ranges: BTreeMap<u64, u64>,
}

impl Nonces {
    /// Counts `nonce` as used under the key with this fingerprint. False if it was used before.
    pub(super) fn insert(&mut self, fingerprint: u64, nonce: &[u8; NONCE_LEN]) -> bool {
        let [a, b, c, d, tail @ ..] = *nonce;
        let tail = u64::from_be_bytes(tail);
        let used = self
            .0
            .entry((fingerprint, [a, b, c, d]))
            .or_insert_with(|| Used {
                first: tail,
                ranges: BTreeMap::new(),
            });
        used.insert(tail ^ used.first)
    }
}

impl Used {
    fn insert(&mut self, number: u64) -> bool {
        let above = number
            .checked_add(1)
            .and_then(|next| self.ranges.get(&next).copied());
        match self.ranges.range_mut(..=number).next_back() {
            Some((_, last)) if *last >= number => return false,
            Some((_, last)) if *last + 1 == number => *last = above.unwrap_or(number),
            _ => {
                self.ranges.insert(number, above.unwrap_or(number));
            }
        }
        if above.is_some() {
            self.ranges.remove(&(number + 1));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn nonce(tail: u64) -> [u8; NONCE_LEN] {
        let mut nonce = [7; NONCE_LEN];
        nonce[4..].copy_from_slice(&tail.to_be_bytes());
        nonce
    }

    #[test]
    fn a_million_records_are_a_handful_of_ranges() {
        for counting in [true, false] {
            let mut nonces = Nonces::default();
            let iv = 0x1234_5678_9abc_def0;
            for number in 1..1_000_000u64 {
                let tail = if counting { iv + number } else { iv ^ number };
                assert!(nonces.insert(1, &nonce(tail)));
            }
            let used = &nonces.0[&(1, [7; 4])];
            assert!(used.ranges.len() < 40, "{}", used.ranges.len());
            assert!(!nonces.insert(1, &nonce(if counting { iv + 77 } else { iv ^ 77 })));
        }
    }

    #[test]
    fn keys_do_not_share_their_nonces() {
        let mut nonces = Nonces::default();
        assert!(nonces.insert(1, &nonce(5)));
        assert!(nonces.insert(2, &nonce(5)));
        assert!(nonces.insert(1, &[8; NONCE_LEN]), "another salt");
        assert!(!nonces.insert(1, &nonce(5)));
    }

    proptest! {
        #[test]
        fn says_what_a_set_says(numbers in proptest::collection::vec(prop_oneof![0u64..40, u64::MAX - 5..=u64::MAX], 0..80)) {
            let mut used = Used { first: 0, ranges: BTreeMap::new() };
            let mut set = BTreeSet::new();
            for number in numbers {
                prop_assert_eq!(used.insert(number), set.insert(number));
            }
        }
    }
}
