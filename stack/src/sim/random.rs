//! Random streams that depend on nothing but their names.
//!
//! A [`Stream`] is named by a run's seed, the entity that draws from it (a host, one direction of a link) and the purpose it
//! draws for. Each has its own generator, so adding a host, turning on a knob or drawing once more for one purpose shifts nobody
//! else's numbers, and two runs of one seed differ only where they were made to.
//!
//! The generator is PCG (`Mcg128Xsl64`), whose output its authors promise to keep; the names go through SipHash-1-3 with a
//! fixed key. All arithmetic is on integers: a float's rounding may differ between machines, these numbers may not. None of
//! this is for secrets.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// A probability in parts per million: exact for everything people write down, and the same on every machine.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chance(u32);

impl Chance {
    /// It never happens.
    pub const NEVER: Chance = Chance(0);
    /// It always happens.
    pub const ALWAYS: Chance = Chance(1_000_000);

    /// `parts` in a million; more than a million is [`Chance::ALWAYS`].
    pub const fn ppm(parts: u32) -> Chance {
        Chance(if parts > 1_000_000 { 1_000_000 } else { parts })
    }

    /// `parts` in a thousand.
    pub const fn per_mille(parts: u32) -> Chance {
        Chance::ppm(parts.saturating_mul(1_000))
    }

    /// `parts` in a hundred.
    pub const fn percent(parts: u32) -> Chance {
        Chance::ppm(parts.saturating_mul(10_000))
    }

    /// Parts per million.
    pub const fn as_ppm(self) -> u32 {
        self.0
    }

    /// The chance that it does not happen.
    pub const fn complement(self) -> Chance {
        Chance(1_000_000 - self.0)
    }
}

/// As the Rust expression that makes it, which is what printed schedules need.
impl std::fmt::Debug for Chance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            parts if parts % 10_000 == 0 => write!(f, "Chance::percent({})", parts / 10_000),
            parts if parts % 1_000 == 0 => write!(f, "Chance::per_mille({})", parts / 1_000),
            parts => write!(f, "Chance::ppm({parts})"),
        }
    }
}

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(Pcg64Mcg);

impl Stream {
    /// The stream of this seed, entity and purpose. The same three give the same numbers, always.
    pub fn new(seed: u64, entity: &str, purpose: &str) -> Stream {
        let mut hasher = SipHasher13::new_with_keys(seed, 0);
        // The length in front keeps ("ab", "c") and ("a", "bc") apart.
        hasher.write(&(entity.len() as u64).to_le_bytes());
        hasher.write(entity.as_bytes());
        hasher.write(purpose.as_bytes());
        Stream(Pcg64Mcg::new(hasher.finish128().as_u128()))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`, each as likely as the others to within 2⁻³² for bounds below 2³². Zero for a bound of zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Whether something of this chance happens now. Certain and impossible things draw nothing.
    pub fn happens(&mut self, chance: Chance) -> bool {
        match chance {
            Chance::NEVER => false,
            Chance::ALWAYS => true,
            Chance(parts) => self.below(1_000_000) < u64::from(parts),
        }
    }

    /// Fills `bytes` with random ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

/// Draws of one purpose that remember the last one, netem's *correlation*.
///
/// With the correlation's probability the last draw is repeated, otherwise a new one is made. So every draw has the distribution it
/// would have alone and neighbours correlate by just that much, where netem blends new and old numbers and thereby changes how often things happen.
#[derive(Clone, Debug)]
pub struct Correlated {
    stream: Stream,
    last: u32,
}

impl Correlated {
    /// Draws from this stream; the first depends on nothing.
    pub fn new(mut stream: Stream) -> Correlated {
        let last = (stream.bits() >> 32) as u32;
        Correlated { stream, last }
    }

    /// 32 random bits that repeat the last draw's with this probability.
    pub fn bits(&mut self, correlation: Chance) -> u32 {
        if !self.stream.happens(correlation) {
            self.last = (self.stream.bits() >> 32) as u32;
        }
        self.last
    }

    /// Whether something of this chance happens now, given what happened the last time. Impossible things draw nothing.
    pub fn happens(&mut self, chance: Chance, correlation: Chance) -> bool {
        chance != Chance::NEVER
            && (u64::from(self.bits(correlation)) * 1_000_000) >> 32 < u64::from(chance.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_they_have_always_been() {
        // A change here changes every recorded seed: it must be meant.
        let mut stream = Stream::new(42, "client>server", "loss");
        let drawn: Vec<u64> = (0..3).map(|_| stream.bits()).collect();
        assert_eq!(drawn, FIRST_OF_SEED_42);
    }

    const FIRST_OF_SEED_42: [u64; 3] = [
        6_165_684_562_608_928_771,
        3_736_021_015_322_534_619,
        509_894_977_305_373_914,
    ];

    #[test]
    fn names_keep_streams_apart() {
        let first = |seed, entity, purpose| Stream::new(seed, entity, purpose).bits();
        let all = [
            first(1, "ab", "c"),
            first(1, "a", "bc"),
            first(2, "ab", "c"),
            first(1, "ab", "d"),
            first(1, "", "abc"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one));
        }
        assert_eq!(first(1, "ab", "c"), first(1, "ab", "c"));
    }

    #[test]
    fn things_happen_as_often_as_their_chance_says() {
        let mut stream = Stream::new(1, "test", "chance");
        for parts in [1_000, 20_000, 500_000, 999_000] {
            let chance = Chance::ppm(parts);
            let hits = (0..1_000_000).filter(|_| stream.happens(chance)).count() as i64;
            // Five standard deviations of a binomial count are at most 2,500 here.
            assert!((hits - i64::from(parts)).abs() < 2_500, "{hits} of {parts}");
        }
        assert!(!(0..1_000).any(|_| stream.happens(Chance::NEVER)));
        assert!((0..1_000).all(|_| stream.happens(Chance::ALWAYS)));
    }

    #[test]
    fn correlation_keeps_the_rate_and_makes_runs() {
        let mut draws = Correlated::new(Stream::new(1, "test", "correlated"));
        let (chance, correlation) = (Chance::percent(10), Chance::percent(60));
        let happened: Vec<bool> = (0..1_000_000)
            .map(|_| draws.happens(chance, correlation))
            .collect();
        let hits = happened.iter().filter(|&&hit| hit).count();
        assert!((97_000..103_000).contains(&hits), "{hits}");
        // P(hit | hit before) = 0.6 + 0.4 × 0.1 = 0.64.
        let pairs = happened
            .windows(2)
            .filter(|pair| pair[0] && pair[1])
            .count();
        let given = pairs * 1_000 / hits;
        assert!((620..660).contains(&given), "{given} per mille");
    }

    #[test]
    fn bounds_hold() {
        let mut stream = Stream::new(1, "test", "below");
        let mut seen = [0u32; 7];
        for _ in 0..70_000 {
            seen[stream.below(7) as usize] += 1;
        }
        assert!(
            seen.iter().all(|&count| (9_500..10_500).contains(&count)),
            "{seen:?}"
        );
        assert_eq!(stream.below(0), 0);
        assert_eq!(stream.below(1), 0);
    }

    #[test]
    fn chances_print_as_they_are_written() {
        assert_eq!(format!("{:?}", Chance::percent(3)), "Chance::percent(3)");
        assert_eq!(
            format!("{:?}", Chance::per_mille(1)),
            "Chance::per_mille(1)"
        );
        assert_eq!(format!("{:?}", Chance::ppm(12_345)), "Chance::ppm(12345)");
        assert_eq!(Chance::percent(200), Chance::ALWAYS);
        assert_eq!(Chance::percent(30).complement(), Chance::percent(70));
    }
}
