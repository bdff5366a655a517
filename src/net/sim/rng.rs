//! The one source of chance in a simulated world.

use std::{ops::RangeInclusive, time::Duration};

/// `SplitMix64`; the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub(crate) struct SimRng {
    state: u64,
}

impl SimRng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Any 64 bits.
    pub(crate) const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let product = u128::from(self.next()) * (n as u128);
        usize::try_from(product >> 64).expect("below n, which is a usize")
    }

    /// A number in the range, both ends included.
    pub(crate) fn range(&mut self, range: &RangeInclusive<usize>) -> usize {
        let (start, end) = (*range.start(), *range.end());
        if start >= end { start } else { start + self.below((end - start).saturating_add(1)) }
    }

    /// A duration in the range, both ends included.
    pub(crate) fn duration(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        let (start, end) = (*range.start(), *range.end());
        if start >= end {
            return start;
        }
        let span = u64::try_from(end.saturating_sub(start).as_nanos()).expect("under 500 years");
        let product = u128::from(self.next()) * (u128::from(span) + 1);
        start + Duration::from_nanos(u64::try_from(product >> 64).expect("at most span"))
    }

    /// True with probability `p`. Draws nothing when `p` is 0 or less.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.fraction() < p
    }

    /// A number from 0 to 1, 1 excluded.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept, as many as an f64 has")]
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 1 to `n`, small numbers being as likely as large ones; `n` is at least 1.
    pub(crate) fn part_of(&mut self, n: usize) -> usize {
        let shift = self.below(usize::try_from(n.ilog2()).expect("under 64") + 1);
        1 + self.below(n >> shift)
    }

    /// Puts the items in any order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
