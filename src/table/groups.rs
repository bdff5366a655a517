//! The members of groups.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::ConnId;

/// All groups that have a member.
#[derive(Debug, Default)]
pub(crate) struct Groups(HashMap<Arc<str>, Group>);

/// The members of a group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    members: BTreeSet<ConnId>,
    /// Those that were up, and the version for which that holds.
    listed: Option<(u64, Arc<[ConnId]>)>,
}

impl Groups {
    pub(crate) fn join(&mut self, id: ConnId, name: Arc<str>) {
        let group = self.0.entry(name).or_default();
        group.members.insert(id);
        group.listed = None;
    }

    pub(crate) fn leave(&mut self, id: ConnId, name: &str) {
        if let Some(group) = self.0.get_mut(name) {
            group.members.remove(&id);
            group.listed = None;
            if group.members.is_empty() {
                self.0.remove(name);
            }
        }
    }

    /// How many members a group has.
    pub(crate) fn size(&self, name: &str) -> usize {
        self.0.get(name).map_or(0, |group| group.members.len())
    }

    /// The members that are up, as `is_up` says. The list is kept for as long as the version is the same,
    /// which grows when a connection comes up, or is so no more. Whether it was made anew.
    pub(crate) fn list(
        &mut self,
        name: &str,
        version: u64,
        is_up: impl Fn(&ConnId) -> bool,
    ) -> (Arc<[ConnId]>, bool) {
        let Some(group) = self.0.get_mut(name) else { return (Arc::default(), false) };
        match &group.listed {
            Some((listed, list)) if *listed == version => (list.clone(), false),
            _ => {
                let list: Arc<[ConnId]> = group.members.iter().copied().filter(is_up).collect();
                group.listed = Some((version, list.clone()));
                (list, true)
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
