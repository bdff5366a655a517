//! A small seeded generator for jitter and ids; not for secrets.

/// `SplitMix64`: one addition and a mix a number (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: u64,
}

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to `bound`, both included, with a bias below 2⁻⁶⁴ times `bound`.
    pub(crate) fn up_to(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * (u128::from(bound) + 1);
        (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn same_seed_gives_the_same_numbers() {
        let mut a = Rng::new(7);
        let mut b = Rng::new(7);
        assert_eq!([a.next(), a.next(), a.next()], [b.next(), b.next(), b.next()]);
        assert_ne!(Rng::new(8).next(), Rng::new(7).next());
    }

    #[test]
    fn up_to_reaches_both_ends_and_stays_between() {
        let mut rng = Rng::new(1);
        let mut seen = [0_u32; 4];
        for _ in 0..1000 {
            seen[usize::try_from(rng.up_to(3)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| count > 150), "{seen:?}");
        assert!(rng.up_to(u64::MAX) != rng.up_to(u64::MAX));
    }
}
