//! Queues that nobody uses.

use super::WriteQueue;
use crate::core::spares::Spares;

/// Empty queues with their buffers, for the connections that have something to write next.
#[derive(Debug, Default)]
pub(crate) struct QueuePool {
    #[expect(clippy::vec_box, reason = "a connection holds its queue by pointer, to be small")]
    free: Vec<Box<WriteQueue>>,
    /// Bytes of memory that `free` holds.
    bytes: usize,
    /// Buffers of large frames, which the bodies that are referred to may have been the last to hold.
    pub(crate) spares: Spares,
}

impl QueuePool {
    /// The most bytes that all kept queues hold together.
    const MOST_BYTES: usize = 8 * 1024 * 1024;

    pub(crate) fn take(&mut self) -> Box<WriteQueue> {
        let Some(queue) = self.free.pop() else { return Box::default() };
        self.bytes -= queue.memory();
        queue
    }

    pub(crate) fn give(&mut self, mut queue: Box<WriteQueue>) {
        // Frames without bytes are charged, although there is nothing to write of them.
        if queue.cost() > 0 {
            queue.forget();
        }
        queue.trim();
        let bytes = queue.memory();
        if self.bytes + bytes <= Self::MOST_BYTES {
            self.bytes += bytes;
            self.free.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{SPARE_BYTES, SPARE_URGENT, What},
        *,
    };

    #[test]
    fn pool_holds_8_mib_at_most() {
        let mut pool = QueuePool::default();
        let queues: Vec<_> = (0..1000)
            .map(|number| {
                let mut queue = pool.take();
                let len = if number % 3 == 0 { 100 } else { SPARE_BYTES };
                let what = What::Push { is_caused: true };
                queue.push(what, 0, len, |out| out.resize(out.len() + len, 0));
                queue.push_urgent(|out| out.resize(SPARE_URGENT, 0));
                queue
            })
            .collect();
        for queue in queues {
            pool.give(queue);
        }
        let held = |pool: &QueuePool| pool.free.iter().map(|queue| queue.memory()).sum::<usize>();
        assert_eq!(held(&pool), pool.bytes);
        let most = QueuePool::MOST_BYTES;
        assert!((most - 2 * SPARE_BYTES..=most).contains(&pool.bytes), "{}", pool.bytes);
        while pool.bytes > 0 {
            pool.take();
            assert_eq!(held(&pool), pool.bytes);
        }
    }
}
