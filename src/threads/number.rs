//! The number of a reactor, which tells its connections' ids from those of the others in the process.

use std::sync::{Mutex, PoisonError};

/// Numbers that an id has room for.
const NUMBERS: usize = 1 << 8;

/// How far the generations of one holder of a number start from those of the one before: the golden
/// part of 2³², so that many holders lie as far apart as they can.
const STRIDE: u32 = 0x9E37_79B9;

/// A number, held for as long as the reactor or one of its handles lives.
#[derive(Debug)]
pub(crate) struct ReactorNumber {
    number: u8,
    /// What the generations of its slots start behind.
    base: u32,
    /// Where it is given back.
    registry: Option<&'static Mutex<Registry>>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry::new());

impl ReactorNumber {
    /// A number that no living reactor holds, or, where there is none, one that few do.
    pub(crate) fn take() -> Self {
        Self::take_from(&REGISTRY)
    }

    fn take_from(registry: &'static Mutex<Registry>) -> Self {
        let (number, base) = registry.lock().unwrap_or_else(PoisonError::into_inner).take();
        Self { number, base, registry: Some(registry) }
    }

    /// A number that the test answers for.
    #[cfg(test)]
    pub(crate) const fn fixed(number: u8) -> Self {
        Self { number, base: 0, registry: None }
    }

    pub(crate) const fn get(&self) -> u8 {
        self.number
    }

    /// What the generations of this holder's slots start behind.
    pub(crate) const fn base(&self) -> u32 {
        self.base
    }
}

impl Drop for ReactorNumber {
    fn drop(&mut self) {
        if let Some(registry) = self.registry {
            registry.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.number);
        }
    }
}

/// The holders of the numbers.
#[derive(Debug)]
struct Registry {
    holders: [u32; NUMBERS],
    /// The base of the next holder of each number.
    bases: [u32; NUMBERS],
    /// Where the search for a free number begins, so that one just given back rests for long.
    next: u8,
}

impl Registry {
    const fn new() -> Self {
        Self { holders: [0; NUMBERS], bases: [0; NUMBERS], next: 0 }
    }

    fn take(&mut self) -> (u8, u32) {
        let from_next = (0..=u8::MAX).map(|step| self.next.wrapping_add(step));
        // The first of those with the fewest holders, which is none at all but for a crowd.
        let number = from_next.min_by_key(|number| self.holders[usize::from(*number)]);
        let number = number.unwrap_or_default();
        let place = usize::from(number);
        self.next = number.wrapping_add(1);
        self.holders[place] += 1;
        let base = self.bases[place];
        self.bases[place] = base.wrapping_add(STRIDE);
        (number, base)
    }

    fn give_back(&mut self, number: u8) {
        self.holders[usize::from(number)] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conn, Handler, Message, Reactor, protocol::Native};

    fn registry() -> &'static Mutex<Registry> {
        Box::leak(Box::new(Mutex::new(Registry::new())))
    }

    #[test]
    fn living_reactors_have_numbers_of_their_own_and_a_free_one_rests_first() {
        let registry = registry();
        let first = ReactorNumber::take_from(registry);
        let second = ReactorNumber::take_from(registry);
        assert_eq!((first.get(), second.get()), (0, 1));
        drop(first);
        let others: Vec<_> = (0..255).map(|_| ReactorNumber::take_from(registry).get()).collect();
        assert_eq!(others[..254], (2..=255).collect::<Vec<_>>());
        assert_eq!(others[254], 0, "number 1 is held");
    }

    #[test]
    fn number_is_held_for_as_long_as_a_handle_is() {
        let reactor = Reactor::<Quiet>::new(Quiet).unwrap();
        let other = Reactor::<Quiet>::new(Quiet).unwrap();
        let handle = reactor.handle();
        let number = handle.number();
        assert_ne!(number, other.handle().number());
        drop(reactor);
        assert_eq!(REGISTRY.lock().unwrap().holders[usize::from(number)], 1);
    }

    struct Quiet;

    impl Handler for Quiet {
        type Protocol = Native;

        fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
    }

    #[test]
    fn who_takes_a_number_over_counts_generations_from_elsewhere() {
        let registry = registry();
        let holders = 1000;
        let mut bases = Vec::new();
        for _ in 0..holders * NUMBERS {
            let number = ReactorNumber::take_from(registry);
            if number.get() == 7 {
                bases.push(number.base());
            }
        }
        bases.sort_unstable();
        assert_eq!((bases.len(), bases[0]), (holders, 0), "the first starts at the start");
        let nearest = bases.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
        assert!(nearest > 1_000_000, "{nearest}");
    }

    #[test]
    fn more_reactors_than_numbers_share_them() {
        let registry = registry();
        let crowd: Vec<_> = (0..600).map(|_| ReactorNumber::take_from(registry)).collect();
        let mut keys: Vec<_> = crowd.iter().map(|number| (number.get(), number.base())).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), crowd.len(), "two reactors count alike");
        assert!(registry.lock().unwrap().holders.iter().all(|holders| (2..=3).contains(holders)));
        drop(crowd);
        assert!(registry.lock().unwrap().holders.iter().all(|holders| *holders == 0));
    }
}
