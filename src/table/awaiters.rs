//! Threads that wait for a dialled connection.

use crate::{ConnId, error::CloseReason};

/// Told that a dialled connection is up (`None`), or why it failed.
pub(crate) type Awaiter = Box<dyn FnOnce(Option<CloseReason>) + Send>;

/// Waiters for a dialled connection to be up, or to fail.
#[derive(Default)]
pub(crate) struct Awaiters(Vec<(ConnId, Awaiter)>);

impl Awaiters {
    pub(crate) fn add(&mut self, id: ConnId, awaiter: Awaiter) {
        self.0.push((id, awaiter));
    }

    /// Whether somebody waits for this connection.
    pub(crate) fn is_awaited(&self, id: ConnId) -> bool {
        self.0.iter().any(|(awaited, _)| *awaited == id)
    }

    /// Tells those who wait for a connection that it is up, or why it failed.
    pub(crate) fn tell(&mut self, id: ConnId, failure: Option<&CloseReason>) {
        let mut place = 0;
        while let Some((conn, _)) = self.0.get(place) {
            if *conn == id {
                let (_, awaiter) = self.0.swap_remove(place);
                awaiter(failure.cloned());
            } else {
                place += 1;
            }
        }
    }

    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }
}
