//! Single rules by example, then all of them at once against a sorted map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MICRO: Duration = Duration::from_micros(1);
const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_hours(365 * 24);

fn wheel<T>() -> (TimerWheel<T>, Moment) {
    (TimerWheel::new(), Moment::START)
}

/// The instant at which a tick begins.
fn at(start: Moment, tick: u64) -> Moment {
    start + Duration::from_millis(tick)
}

/// Advances and pops all that is due.
fn fire<T>(wheel: &mut TimerWheel<T>, now: Moment) -> Vec<T> {
    wheel.advance(now);
    wheel.check();
    pop_all(wheel)
}

fn pop_all<T>(wheel: &mut TimerWheel<T>) -> Vec<T> {
    std::iter::from_fn(|| wheel.pop_due()).map(|(_, value)| value).collect()
}

#[test]
fn timer_never_fires_early() {
    let (mut wheel, start) = wheel();
    // Rounded the wrong way, `now` or the deadline would fire them a part of a tick too soon.
    let deadline = at(start, 7) + 300 * MICRO;
    wheel.insert(deadline, "between ticks");
    wheel.insert(at(start, 8), "on a tick");
    assert!(fire(&mut wheel, deadline).is_empty());
    assert!(fire(&mut wheel, start + Duration::from_nanos(7_999_999)).is_empty());
    assert_eq!(fire(&mut wheel, at(start, 8)), ["between ticks", "on a tick"]);
}

#[test]
fn timer_fires_at_its_tick_on_every_level() {
    for level in 0..LEVELS {
        for ticks in [1 << (SLOT_BITS * level), (1 << (SLOT_BITS * level)) + 1, 63, 64, 65] {
            let (mut wheel, start) = wheel();
            let deadline = at(start, ticks);
            wheel.insert(deadline, ());
            assert!(fire(&mut wheel, at(start, ticks - 1)).is_empty(), "tick {ticks} fired early");
            assert_eq!(fire(&mut wheel, deadline), [()], "tick {ticks} did not fire");
        }
    }
}

#[test]
fn earlier_deadline_fires_first_in_a_long_pass() {
    let (mut wheel, start) = wheel();
    let ticks = [5_000_000_000, 70, 3, 300_000, 5_000, 64, 20_000_000, 4, 300_001];
    for tick in ticks {
        wheel.insert(at(start, tick), tick);
    }
    let mut sorted = ticks;
    sorted.sort_unstable();
    assert_eq!(fire(&mut wheel, start + YEAR), sorted);
}

#[test]
fn equal_deadlines_fire_in_insertion_order() {
    let (mut wheel, start) = wheel();
    for number in 0..10 {
        // All of these round up to one tick.
        wheel.insert(at(start, 4) + MICRO * (1_000 - 90 * number), number);
    }
    assert_eq!(fire(&mut wheel, at(start, 5)), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn equal_deadlines_keep_insertion_order_across_cascades() {
    let (mut wheel, start) = wheel();
    let tick = 64 * 64 * 64 + 64 * 64 + 64 + 1;
    let deadline = at(start, tick);
    // Each is inserted from nearer by, when the earlier ones have moved down a level.
    for (number, ticks_before) in [tick, 5_000, 4_096, 65, 64, 2, 1].into_iter().enumerate() {
        assert!(fire(&mut wheel, at(start, tick - ticks_before)).is_empty());
        wheel.insert(deadline, number);
    }
    assert_eq!(fire(&mut wheel, deadline), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn timer_inserted_in_a_pass_does_not_run_in_it() {
    let (mut wheel, start) = wheel();
    let now = at(start, 10);
    wheel.insert(now, "first");
    wheel.advance(now);
    assert_eq!(wheel.pop_due().unwrap().1, "first");
    wheel.insert(now, "inserted by first");
    assert!(!wheel.has_due());
    assert!(wheel.pop_due().is_none());
    assert_eq!(fire(&mut wheel, now), ["inserted by first"]);
}

#[test]
fn past_deadline_fires_in_the_next_pass_after_those_waiting() {
    let (mut wheel, start) = wheel();
    wheel.insert(at(start, 10), "waiting");
    wheel.insert(at(start, 11), "due in the next pass");
    wheel.advance(at(start, 10));
    wheel.insert(start, "past");
    wheel.insert(start.checked_sub(SECOND).unwrap_or(start), "before the start");
    assert!(wheel.has_due());
    let all = ["waiting", "past", "before the start", "due in the next pass"];
    assert_eq!(fire(&mut wheel, at(start, 11)), all);
}

#[test]
fn cancel_unlinks_at_once_from_either_end_and_the_middle() {
    let (mut wheel, start) = wheel();
    let deadline = start + SECOND;
    let keys: Vec<_> = (0..5).map(|number| wheel.insert(deadline, number)).collect();
    for number in [2, 0, 4] {
        assert_eq!(wheel.cancel(keys[number]), Some(number));
        wheel.check();
    }
    assert_eq!(wheel.len(), 2);
    assert_eq!(fire(&mut wheel, deadline), [1, 3]);
}

#[test]
fn cancel_unlinks_from_the_due_list() {
    let (mut wheel, start) = wheel();
    let keys: Vec<_> = (0..4).map(|number| wheel.insert(start + SECOND, number)).collect();
    wheel.advance(start + SECOND);
    let overdue = wheel.insert(start, 4);
    for key in [keys[0], keys[2], overdue] {
        assert!(wheel.cancel(key).is_some());
        wheel.check();
    }
    assert_eq!(pop_all(&mut wheel), [1, 3]);
    assert!(fire(&mut wheel, start + SECOND).is_empty());
    assert!(wheel.is_empty());
}

#[test]
fn cancelled_timer_wakes_nobody() {
    let (mut wheel, start) = wheel();
    for deadline in [start, at(start, 1), start + SECOND, start + YEAR, start + 50 * YEAR] {
        let key = wheel.insert(deadline, ());
        assert!(wheel.next_wake().is_some());
        wheel.cancel(key);
        assert_eq!(wheel.next_wake(), None);
    }
}

#[test]
fn key_finds_nothing_after_cancel_or_fire() {
    let (mut wheel, start) = wheel();
    let cancelled = wheel.insert(start + SECOND, "cancelled");
    let fired = wheel.insert(start + SECOND, "fired");
    assert_eq!(wheel.cancel(cancelled), Some("cancelled"));
    wheel.advance(start + SECOND);
    assert_eq!(wheel.pop_due(), Some((fired, "fired")));
    assert_eq!(wheel.cancel(cancelled), None);
    assert_eq!(wheel.cancel(fired), None);
    wheel.check();
}

#[test]
fn stale_key_finds_nothing_after_reuse() {
    let (mut wheel, start) = wheel();
    let stale = wheel.insert(start + SECOND, "stale");
    wheel.cancel(stale);
    let fresh = wheel.insert(start + SECOND, "fresh");
    assert_eq!(fresh.index, stale.index, "the entry is not reused, so this proves nothing");
    assert_eq!(wheel.cancel(stale), None);
    assert_eq!(wheel.cancel(fresh), Some("fresh"));
}

#[test]
fn key_of_another_wheel_cannot_break_the_lists() {
    let (mut wheel, start) = wheel();
    let key = wheel.insert(start + SECOND, ());
    wheel.cancel(key);
    // The generation that the free entry will have next.
    let foreign = TimerKey { generation: key.generation + 1, ..key };
    assert_eq!(wheel.cancel(foreign), None);
    assert_eq!(wheel.cancel(TimerKey { index: 1_000, generation: 0 }), None);
    wheel.check();
}

#[test]
fn entry_out_of_generations_is_not_used_again() {
    let (mut wheel, start) = wheel();
    let key = wheel.insert(start + SECOND, ());
    wheel.cancel(key);
    wheel.entry_mut(key.index).generation = RETIRED - 1;
    let last = wheel.insert(start + SECOND, ());
    assert_eq!((last.index, last.generation), (key.index, RETIRED - 1));
    wheel.cancel(last);
    wheel.check();
    assert_ne!(wheel.insert(start + SECOND, ()).index, key.index);
    wheel.check();
}

#[test]
fn deadline_beyond_the_range_fires_at_its_tick() {
    for ticks in [RANGE - 1, RANGE, RANGE + 1, RANGE + (1 << 30), 3 * RANGE - 1, 40 * RANGE + 77] {
        let (mut wheel, start) = wheel();
        let deadline = at(start, ticks);
        // From the middle of a round, so that the slot may be behind, here or ahead.
        wheel.advance(at(start, 5 << 30));
        wheel.insert(deadline, ());
        assert!(fire(&mut wheel, at(start, ticks - 1)).is_empty(), "tick {ticks} fired early");
        assert_eq!(fire(&mut wheel, deadline), [()], "tick {ticks} did not fire");
    }
}

#[test]
fn deadline_beyond_all_ticks_is_kept() {
    let (mut wheel, start) = wheel();
    let far = (0..64).rev().find_map(|bit| start.checked_add(Duration::from_secs(1 << bit)));
    let key = wheel.insert(far.unwrap(), ());
    assert!(wheel.next_wake().unwrap() <= start + 3 * YEAR);
    assert!(fire(&mut wheel, start + 500 * YEAR).is_empty());
    assert_eq!(wheel.cancel(key), Some(()));
}

#[test]
fn clock_going_back_is_ignored() {
    let (mut wheel, start) = wheel();
    wheel.advance(at(start, 10));
    wheel.insert(at(start, 11), "armed");
    wheel.insert(at(start, 5), "past");
    // Still a pass, for what is late by the wheel's own time.
    assert_eq!(fire(&mut wheel, start), ["past"]);
    assert!(wheel.next_wake().unwrap() > at(start, 10));
    assert_eq!(fire(&mut wheel, at(start, 11)), ["armed"]);
}

#[test]
fn empty_wheel_never_wakes() {
    let (mut wheel, start) = wheel();
    assert_eq!(wheel.next_wake(), None);
    wheel.insert(start + SECOND, ());
    fire(&mut wheel, start + SECOND);
    assert_eq!(wheel.next_wake(), None);
}

#[test]
fn wheel_wakes_at_once_while_something_waits() {
    let (mut wheel, start) = wheel();
    wheel.insert(start + SECOND, "due");
    wheel.advance(start + SECOND);
    assert!(wheel.next_wake().unwrap() <= start + SECOND);
    wheel.pop_due();
    wheel.insert(start, "overdue");
    assert!(wheel.next_wake().unwrap() <= start + SECOND);
}

#[test]
fn lone_timer_wakes_at_most_once_per_level() {
    for ticks in [1, 63, 64, 4_097, 300_000, 99_999_999, RANGE / 2 - 1, RANGE - 1, RANGE + 12_345] {
        let (mut wheel, start) = wheel();
        let deadline = at(start, ticks);
        wheel.insert(deadline, ());
        let mut wakes = 0;
        while !wheel.is_empty() {
            let wake = wheel.next_wake().unwrap();
            assert!(wake <= deadline, "tick {ticks} is woken late");
            fire(&mut wheel, wake);
            wakes += 1;
            assert!(wakes <= LEVELS + 1, "tick {ticks} wakes too often");
        }
    }
}

#[test]
fn timer_within_the_current_slots_wakes_once() {
    let (mut wheel, start) = wheel();
    wheel.advance(at(start, 100));
    wheel.insert(at(start, 127), ());
    assert_eq!(wheel.next_wake(), Some(at(start, 127)));
}

#[test]
fn arm_and_cancel_uses_one_entry_over_and_over() {
    let (mut wheel, start) = wheel();
    for number in 0..1_000_000 {
        let key = wheel.insert(start + SECOND, number);
        assert_eq!(wheel.cancel(key), Some(number));
    }
    assert_eq!((wheel.chunks.len(), wheel.chunks[0].free), (1, 0));
    assert_eq!(wheel.entry(1).generation, 0);
}

/// Of a million timers one is left, wherever it is.
#[test]
fn memory_of_a_burst_is_given_back_although_one_timer_is_left() {
    const BURST: usize = 1_000_000;
    for left in [0, BURST / 2, BURST - 1] {
        let (mut wheel, start) = wheel();
        let keys: Vec<_> = (0..BURST).map(|n| wheel.insert(start + SECOND, n)).collect();
        for (number, key) in keys.iter().enumerate() {
            if number != left {
                wheel.cancel(*key).unwrap();
            }
        }
        wheel.check();
        assert!(wheel.held() <= KEPT_CHUNKS as usize + 1, "{} chunks", wheel.held());
        // What stays of a chunk is little beside its entries.
        assert!(size_of::<Chunk<usize>>() * 100 < size_of::<Entry<usize>>() * CHUNK);
        assert_eq!(wheel.cancel(keys[left]), Some(left));
    }
}

#[test]
fn memory_that_was_given_back_is_used_again_before_new_one() {
    let (mut wheel, start) = wheel();
    let burst = CHUNK * 100;
    for _ in 0..3 {
        let keys: Vec<_> = (0..burst).map(|n| wheel.insert(start + SECOND, n)).collect();
        assert_eq!(wheel.chunks.len(), 100);
        for key in keys {
            wheel.cancel(key).unwrap();
        }
        wheel.check();
        assert_eq!(wheel.held(), KEPT_CHUNKS as usize);
    }
}

/// At the border of a chunk, and of those that are kept.
#[test]
fn load_that_comes_and_goes_gives_nothing_back() {
    let (mut wheel, start) = wheel();
    let mut keys: Vec<_> = (0..CHUNK * 40).map(|n| wheel.insert(start + SECOND, n)).collect();
    let mut places = Vec::new();
    for _ in 0..5 {
        for key in keys.split_off(CHUNK * 30) {
            wheel.cancel(key);
        }
        let held = wheel
            .chunks
            .iter()
            .map(|chunk| chunk.entries.as_ref().map(|entries| entries.as_ptr()))
            .collect();
        places.push(held);
        keys.extend((0..CHUNK * 10).map(|n| wheel.insert(start + SECOND, n)));
    }
    let first: &Vec<_> = &places[0];
    assert!(places.iter().all(|place| place == first));
}

#[test]
fn stale_key_finds_nothing_after_memory_was_given_back() {
    let (mut wheel, start) = wheel();
    let burst = (KEPT_CHUNKS as usize + 3) * CHUNK;
    let mut stale = Vec::new();
    for round in 0..3 {
        let keys: Vec<_> = (0..burst).map(|_| wheel.insert(start + SECOND, round)).collect();
        assert!(stale.iter().all(|&key| wheel.cancel(key).is_none()), "round {round}");
        // Some entries are used more often than others.
        let last = keys[keys.len() - 1];
        wheel.cancel(last);
        let again = wheel.insert(start + SECOND, round);
        stale.extend(keys.iter().copied().chain([again]));
        for &key in &keys {
            wheel.cancel(key);
        }
        wheel.cancel(again);
        wheel.check();
        assert_eq!(wheel.held(), KEPT_CHUNKS as usize);
        assert!(stale.iter().all(|&key| wheel.cancel(key).is_none()), "round {round}");
    }
}

#[test]
fn memory_of_a_worn_entry_is_kept() {
    let (mut wheel, start) = wheel();
    let burst = (KEPT_CHUNKS as usize + 2) * CHUNK;
    let keys: Vec<_> = (0..burst).map(|_| wheel.insert(start + SECOND, ())).collect();
    let last = keys[keys.len() - 1];
    wheel.entry_mut(last.index).generation = WORN - 1;
    for key in &keys[..keys.len() - 1] {
        wheel.cancel(*key);
    }
    wheel.cancel(TimerKey { generation: WORN - 1, ..last });
    wheel.check();
    assert_eq!(wheel.entry(last.index).generation, WORN);
}

#[test]
fn overhead_is_24_bytes_an_entry() {
    // A value with a niche, as all enums, references and `Bytes` have.
    type Value = [Box<()>; 3];
    assert_eq!(size_of::<Entry<Value>>(), size_of::<Value>() + 24);
}

/// What the wheel must do, done by sorting.
struct Model {
    start: Moment,
    elapsed: u64,
    /// By tick and insertion; the value is the timer's number, which is its insertion too.
    armed: BTreeMap<(u64, usize), usize>,
    due: BTreeMap<(u64, usize), usize>,
    /// The key of each timer there.
    keys: Vec<(u64, usize)>,
}

impl Model {
    fn insert(&mut self, deadline: Moment, number: usize) {
        let nanos = deadline.saturating_duration_since(self.start).as_nanos();
        let tick = u64::try_from(nanos.div_ceil(1_000_000)).unwrap();
        let key = (tick.max(self.elapsed), number);
        self.armed.insert(key, number);
        self.keys.push(key);
    }

    fn cancel(&mut self, number: usize) -> Option<usize> {
        let key = self.keys[number];
        self.armed.remove(&key).or_else(|| self.due.remove(&key))
    }

    fn advance(&mut self, now: Moment) {
        let nanos = now.saturating_duration_since(self.start).as_nanos();
        self.elapsed = self.elapsed.max(u64::try_from(nanos / 1_000_000).unwrap());
        let later = self.armed.split_off(&(self.elapsed + 1, 0));
        self.due.append(&mut self.armed);
        self.armed = later;
    }

    fn pop_due(&mut self) -> Option<usize> {
        self.due.pop_first().map(|(_, number)| number)
    }

    /// The bounds of the next wake, in ticks.
    fn next_wake(&self) -> Option<std::ops::RangeInclusive<u64>> {
        if !self.due.is_empty() {
            return Some(0..=self.elapsed);
        }
        let &(tick, _) = self.armed.keys().next()?;
        Some(if tick > self.elapsed { self.elapsed + 1..=tick } else { 0..=self.elapsed })
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// At this many microseconds from now.
    Insert(i64),
    /// At the deadline of an earlier timer.
    InsertSame(prop::sample::Index),
    Cancel(prop::sample::Index),
    /// By this many microseconds.
    Advance(i64),
    AdvanceToWake,
    Pop(usize),
    /// Arms so many.
    Burst(usize),
    /// Cancels all but those whose number this divides.
    Thin(usize),
}

/// Microseconds of every magnitude, so that each level has its turn.
fn micros(years: i64) -> impl Strategy<Value = i64> {
    let year = 365 * 24 * 3600 * 1_000_000;
    prop_oneof![
        1 => -10_000_000..0_i64,
        4 => 0..5_000_i64,
        4 => 0..100_000_i64,
        4 => 0..10_000_000_i64,
        4 => 0..100_000_000_000_i64,
        2 => 0..year,
        1 => 0..years * year,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => micros(100).prop_map(Step::Insert),
        4 => any::<prop::sample::Index>().prop_map(Step::InsertSame),
        4 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        3 => micros(5).prop_map(Step::Advance),
        3 => Just(Step::AdvanceToWake),
        4 => (0..8_usize).prop_map(Step::Pop),
    ]
}

fn bursts() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => step(),
        1 => (1..12_000_usize).prop_map(Step::Burst),
        1 => (2..5_000_usize).prop_map(Step::Thin),
    ]
}

fn shifted(now: Moment, micros: i64) -> Moment {
    let by = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { now.checked_sub(by).unwrap_or(now) } else { now + by }
}

proptest! {
    #[test]
    fn wheel_does_as_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
        does_as_a_sorted_map(steps)?;
    }
}

proptest! {
    // Fewer, as each of them arms many timers.
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn wheel_that_gives_memory_back_does_as_a_sorted_map(
        steps in prop::collection::vec(bursts(), 1..40)
    ) {
        does_as_a_sorted_map(steps)?;
    }
}

fn does_as_a_sorted_map(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut wheel, start) = wheel();
    let (armed, due) = (BTreeMap::new(), BTreeMap::new());
    let mut model = Model { start, elapsed: 0, armed, due, keys: Vec::new() };
    let mut now = start;
    let mut timers: Vec<(TimerKey, Moment)> = Vec::new();
    for step in steps {
        match step {
            Step::Insert(_) | Step::InsertSame(_) => {
                let deadline = match step {
                    Step::InsertSame(at) if !timers.is_empty() => at.get(&timers).1,
                    Step::Insert(micros) => shifted(now, micros),
                    _ => now,
                };
                model.insert(deadline, timers.len());
                let key = wheel.insert(deadline, timers.len());
                timers.push((key, deadline));
            }
            Step::Cancel(at) if !timers.is_empty() => {
                let number = at.index(timers.len());
                prop_assert_eq!(wheel.cancel(timers[number].0), model.cancel(number));
            }
            Step::Cancel(_) => {}
            Step::Burst(count) => {
                for _ in 0..count {
                    let deadline = shifted(now, 7 * i64::try_from(timers.len()).unwrap());
                    model.insert(deadline, timers.len());
                    timers.push((wheel.insert(deadline, timers.len()), deadline));
                }
            }
            Step::Thin(divisor) => {
                for number in (0..timers.len()).filter(|number| number % divisor != 0) {
                    prop_assert_eq!(wheel.cancel(timers[number].0), model.cancel(number));
                }
            }
            Step::Advance(micros) => {
                now = shifted(now, micros);
                model.advance(now);
                wheel.advance(now);
            }
            Step::AdvanceToWake => {
                now = wheel.next_wake().unwrap_or(now).max(now);
                model.advance(now);
                wheel.advance(now);
            }
            Step::Pop(count) => {
                for _ in 0..count {
                    let expected = model.pop_due().map(|number| (timers[number].0, number));
                    prop_assert_eq!(wheel.pop_due(), expected);
                }
            }
        }
        wheel.check();
        prop_assert_eq!(wheel.len(), model.armed.len() + model.due.len());
        prop_assert_eq!(wheel.is_empty(), model.armed.is_empty() && model.due.is_empty());
        prop_assert_eq!(wheel.has_due(), !model.due.is_empty());
        let wake = wheel.next_wake().map(|wake| wake.saturating_duration_since(start).as_millis());
        let wake = wake.map(|ticks| u64::try_from(ticks).unwrap());
        let bounds = model.next_wake();
        prop_assert!(
            wake.is_none() == bounds.is_none()
                && wake.is_none_or(|wake| bounds.clone().unwrap().contains(&wake)),
            "wakes at {:?}, not in {:?}",
            wake,
            bounds
        );
    }
    // To the end, with no pop in between, and in order.
    let end = start + 1_000 * YEAR;
    model.advance(end);
    wheel.advance(end);
    wheel.check();
    while let Some(number) = model.pop_due() {
        prop_assert_eq!(wheel.pop_due(), Some((timers[number].0, number)));
    }
    prop_assert!(wheel.is_empty());
    Ok(())
}
