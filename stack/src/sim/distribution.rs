//! How delays scatter, in integers.
//!
//! A distribution is a table of its inverse cumulative function at 257 evenly spaced probabilities, with straight lines in between, in
//! units of 2⁻¹³ standard deviations. A random number then is a place in the table: no logarithm, no root, and the same
//! delay on every machine. The outermost values are set so that the tables' own moments come out right, which also bounds the tails:
//! 3.3 standard deviations for the normal one, 12.5 for Pareto's.

/// The shape of jitter around the delay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// Anything between `delay - jitter` and `delay + jitter`, equally likely.
    #[default]
    Uniform,
    /// The normal distribution; `jitter` is its standard deviation.
    Normal,
    /// Pareto's with shape 3, moved to mean zero: most packets a little early, few of them very late. `jitter` is its standard deviation.
    Pareto,
}

/// Fraction bits of the tables' values.
const SCALE_BITS: u32 = 13;

impl Distribution {
    /// How far from the mean a packet is, in nanoseconds, for 32 random bits.
    pub fn offset(self, jitter_nanos: u64, bits: u32) -> i64 {
        let jitter = i128::from(jitter_nanos);
        let offset = match self {
            Distribution::Uniform => ((jitter * 2 * i128::from(bits)) >> 32) - jitter,
            Distribution::Normal => (jitter * i128::from(look_up(&NORMAL, bits))) >> SCALE_BITS,
            Distribution::Pareto => (jitter * i128::from(look_up(&PARETO, bits))) >> SCALE_BITS,
        };
        i64::try_from(offset).unwrap_or(i64::MAX)
    }
}

/// The table's value at the place `bits`, between two of its entries: the upper 8 bits say which, the rest how far between.
fn look_up(table: &[i32; 257], bits: u32) -> i32 {
    let (index, between) = ((bits >> 24) as usize, i64::from(bits & 0x00ff_ffff));
    let (low, high) = (i64::from(table[index]), i64::from(table[index + 1]));
    (low + (((high - low) * between) >> 24)) as i32
}

/// The normal distribution's inverse.
#[rustfmt::skip]
const NORMAL: [i32; 257] = [
    -26_670, -21_791, -19_805, -18_565, -17_645, -16_904, -16_281, -15_740, -15_259, -14_827, -14_432, -14_068,
    -13_729, -13_413, -13_115, -12_834, -12_568, -12_313, -12_071, -11_838, -11_615, -11_399, -11_192, -10_991,
    -10_797, -10_609, -10_426, -10_248, -10_075, -9_906, -9_742, -9_581, -9_424, -9_270, -9_119, -8_972,
    -8_827, -8_685, -8_546, -8_409, -8_274, -8_141, -8_011, -7_883, -7_756, -7_631, -7_508, -7_387,
    -7_268, -7_149, -7_033, -6_917, -6_804, -6_691, -6_580, -6_469, -6_360, -6_253, -6_146, -6_040,
    -5_935, -5_831, -5_729, -5_627, -5_525, -5_425, -5_326, -5_227, -5_129, -5_032, -4_935, -4_839,
    -4_744, -4_650, -4_556, -4_462, -4_370, -4_277, -4_186, -4_095, -4_004, -3_914, -3_824, -3_735,
    -3_646, -3_558, -3_470, -3_382, -3_295, -3_208, -3_122, -3_036, -2_950, -2_865, -2_780, -2_695,
    -2_610, -2_526, -2_442, -2_358, -2_275, -2_192, -2_109, -2_026, -1_943, -1_861, -1_779, -1_697,
    -1_615, -1_533, -1_451, -1_370, -1_289, -1_208, -1_127, -1_046, -965, -884, -803, -723,
    -642, -562, -482, -401, -321, -241, -160, -80, 0, 80, 160, 241,
    321, 401, 482, 562, 642, 723, 803, 884, 965, 1_046, 1_127, 1_208,
    1_289, 1_370, 1_451, 1_533, 1_615, 1_697, 1_779, 1_861, 1_943, 2_026, 2_109, 2_192,
    2_275, 2_358, 2_442, 2_526, 2_610, 2_695, 2_780, 2_865, 2_950, 3_036, 3_122, 3_208,
    3_295, 3_382, 3_470, 3_558, 3_646, 3_735, 3_824, 3_914, 4_004, 4_095, 4_186, 4_277,
    4_370, 4_462, 4_556, 4_650, 4_744, 4_839, 4_935, 5_032, 5_129, 5_227, 5_326, 5_425,
    5_525, 5_627, 5_729, 5_831, 5_935, 6_040, 6_146, 6_253, 6_360, 6_469, 6_580, 6_691,
    6_804, 6_917, 7_033, 7_149, 7_268, 7_387, 7_508, 7_631, 7_756, 7_883, 8_011, 8_141,
    8_274, 8_409, 8_546, 8_685, 8_827, 8_972, 9_119, 9_270, 9_424, 9_581, 9_742, 9_906,
    10_075, 10_248, 10_426, 10_609, 10_797, 10_991, 11_192, 11_399, 11_615, 11_838, 12_071, 12_313,
    12_568, 12_834, 13_115, 13_413, 13_729, 14_068, 14_432, 14_827, 15_259, 15_740, 16_281, 16_904,
    17_645, 18_565, 19_805, 21_791, 26_670,
];

/// `((1 - u)^(-1/3) - 3/2) / √(3/4)`: Pareto's inverse for shape 3, mean 0 and standard deviation 1.
#[rustfmt::skip]
const PARETO: [i32; 257] = [
    -4_730, -4_717, -4_705, -4_692, -4_680, -4_667, -4_655, -4_642, -4_629, -4_616, -4_603, -4_590,
    -4_577, -4_564, -4_551, -4_537, -4_524, -4_510, -4_497, -4_483, -4_470, -4_456, -4_442, -4_428,
    -4_414, -4_400, -4_386, -4_372, -4_357, -4_343, -4_328, -4_314, -4_299, -4_284, -4_269, -4_255,
    -4_240, -4_224, -4_209, -4_194, -4_178, -4_163, -4_147, -4_132, -4_116, -4_100, -4_084, -4_068,
    -4_052, -4_035, -4_019, -4_003, -3_986, -3_969, -3_952, -3_935, -3_918, -3_901, -3_884, -3_866,
    -3_849, -3_831, -3_814, -3_796, -3_778, -3_760, -3_741, -3_723, -3_704, -3_686, -3_667, -3_648,
    -3_629, -3_610, -3_590, -3_571, -3_551, -3_531, -3_512, -3_491, -3_471, -3_451, -3_430, -3_410,
    -3_389, -3_368, -3_347, -3_325, -3_304, -3_282, -3_260, -3_238, -3_216, -3_194, -3_171, -3_148,
    -3_125, -3_102, -3_079, -3_055, -3_032, -3_008, -2_983, -2_959, -2_934, -2_910, -2_885, -2_859,
    -2_834, -2_808, -2_782, -2_756, -2_730, -2_703, -2_676, -2_649, -2_622, -2_594, -2_566, -2_538,
    -2_509, -2_481, -2_452, -2_422, -2_393, -2_363, -2_332, -2_302, -2_271, -2_240, -2_208, -2_176,
    -2_144, -2_112, -2_079, -2_045, -2_012, -1_978, -1_943, -1_909, -1_873, -1_838, -1_802, -1_765,
    -1_729, -1_691, -1_653, -1_615, -1_577, -1_537, -1_498, -1_458, -1_417, -1_376, -1_334, -1_292,
    -1_249, -1_205, -1_161, -1_117, -1_072, -1_026, -979, -932, -884, -836, -786, -736,
    -685, -634, -582, -528, -474, -420, -364, -307, -250, -191, -131, -71,
    -9, 54, 117, 182, 249, 316, 385, 455, 526, 599, 674, 749,
    827, 906, 987, 1_069, 1_153, 1_239, 1_328, 1_418, 1_510, 1_605, 1_702, 1_801,
    1_903, 2_007, 2_115, 2_225, 2_338, 2_454, 2_574, 2_697, 2_824, 2_955, 3_090, 3_230,
    3_374, 3_522, 3_676, 3_836, 4_001, 4_173, 4_351, 4_537, 4_730, 4_931, 5_141, 5_361,
    5_591, 5_832, 6_085, 6_352, 6_634, 6_931, 7_246, 7_581, 7_938, 8_320, 8_729, 9_170,
    9_647, 10_165, 10_732, 11_355, 12_046, 12_818, 13_690, 14_686, 15_842, 17_209, 18_865, 20_936,
    23_648, 27_456, 33_483, 45_874, 102_739,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::random::Stream;

    /// Mean and standard deviation of a million draws with a jitter of a million.
    fn moments(distribution: Distribution) -> (i64, i64) {
        let mut stream = Stream::new(9, "test", "distribution");
        let draws: Vec<i64> = (0..1_000_000)
            .map(|_| distribution.offset(1_000_000, (stream.bits() >> 32) as u32))
            .collect();
        let mean = draws.iter().sum::<i64>() / 1_000_000;
        let variance = draws
            .iter()
            .map(|draw| i128::from(draw - mean) * i128::from(draw - mean))
            .sum::<i128>()
            / 1_000_000;
        (mean, variance.isqrt() as i64)
    }

    #[test]
    fn moments_are_what_the_names_say() {
        for (distribution, deviation) in [
            (Distribution::Uniform, 577_350),
            (Distribution::Normal, 1_000_000),
        ] {
            let (mean, found) = moments(distribution);
            assert!(mean.abs() < 5_000, "{distribution:?}: mean {mean}");
            assert!(
                (found - deviation).abs() < 5_000,
                "{distribution:?}: deviation {found}"
            );
        }
        let (mean, deviation) = moments(Distribution::Pareto);
        assert!(mean.abs() < 5_000, "Pareto: mean {mean}");
        assert!(
            (700_000..1_000_000).contains(&deviation),
            "Pareto: deviation {deviation}"
        );
    }

    #[test]
    fn tables_rise_and_pareto_has_the_long_tail_on_the_late_side() {
        for table in [&NORMAL, &PARETO] {
            assert!(table.windows(2).all(|pair| pair[0] < pair[1]));
        }
        assert!(-PARETO[0] < PARETO[256] / 8);
        for bits in [0, 1, u32::MAX / 2, u32::MAX] {
            let uniform = Distribution::Uniform.offset(1_000, bits);
            assert!((-1_000..=1_000).contains(&uniform));
            assert!(Distribution::Pareto.offset(u64::MAX, bits).abs() > 0);
        }
        assert_eq!(Distribution::Normal.offset(1_000_000, 1 << 31), 0);
    }
}
