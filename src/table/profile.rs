//! Protocols and settings, shared by the connections that were made alike.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
};

use crate::{config::Config, protocol::Protocol};

/// The protocol and settings of connections that were made alike.
#[derive(Debug)]
pub(crate) struct Profile<P> {
    pub(crate) protocol: P,
    pub(crate) config: Config,
    /// [`Config::choke_mark`], which is looked at for every message.
    pub(crate) choke_mark: usize,
}

impl<P> Profile<P> {
    fn new(protocol: P, config: Config) -> Arc<Self> {
        let choke_mark = config.choke_mark();
        Arc::new(Self { protocol, config, choke_mark })
    }
}

/// The profiles of a reactor.
#[derive(Debug)]
pub(crate) struct Profiles<P> {
    /// Of what is given none of its own; lives as long as the reactor.
    defaults: Arc<Profile<P>>,
    /// Those in use, by the hash of their settings.
    shared: HashMap<u64, Vec<Weak<Profile<P>>>>,
    hasher: RandomState,
    /// How many are entered, those that nobody uses any more included.
    len: usize,
    /// At how many the next look for those that nobody uses pays.
    sweep_at: usize,
}

/// The fewest profiles of which it pays to look for those that nobody uses.
const FIRST_SWEEP: usize = 64;

impl<P: Protocol> Profiles<P> {
    pub(crate) fn new(protocol: P, config: Config) -> Self {
        Self {
            defaults: Profile::new(protocol, config),
            shared: HashMap::new(),
            hasher: RandomState::new(),
            len: 0,
            sweep_at: FIRST_SWEEP,
        }
    }

    /// That of what is given none of its own.
    pub(crate) const fn defaults(&self) -> &Arc<Profile<P>> {
        &self.defaults
    }

    /// The profile of this protocol and these settings, found again where it is in use.
    pub(crate) fn get(&mut self, protocol: &P, config: &Config) -> Arc<Profile<P>> {
        let is_same =
            |profile: &Profile<P>| profile.config == *config && profile.protocol == *protocol;
        if is_same(&self.defaults) {
            return self.defaults.clone();
        }
        if self.len >= self.sweep_at {
            self.sweep();
        }
        let alike = self.shared.entry(self.hasher.hash_one(config)).or_default();
        if let Some(known) = alike.iter().filter_map(Weak::upgrade).find(|known| is_same(known)) {
            return known;
        }
        let profile = Profile::new(protocol.clone(), config.clone());
        alike.push(Arc::downgrade(&profile));
        self.len += 1;
        profile
    }

    /// The most that are under one hash, and so compared with one another.
    #[cfg(test)]
    pub(crate) fn most_alike(&self) -> usize {
        self.shared.values().map(Vec::len).max().unwrap_or(0)
    }

    /// Forgets those that nobody uses any more.
    fn sweep(&mut self) {
        self.shared.retain(|_, alike| {
            alike.retain(|profile| profile.strong_count() > 0);
            !alike.is_empty()
        });
        self.len = self.shared.values().map(Vec::len).sum();
        self.sweep_at = (2 * self.len).max(FIRST_SWEEP);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Reconnect,
        protocol::{AnyProtocol, Native, Tcpstream},
    };

    fn profiles() -> Profiles<AnyProtocol> {
        Profiles::new(Native.into(), Config::new())
    }

    #[test]
    fn defaults_stay_whatever_others_come_and_go() {
        let mut profiles = profiles();
        for seconds in 1..1000 {
            let config = Config::new().connect_timeout(Duration::from_secs(seconds));
            profiles.get(&Tcpstream.into(), &config);
        }
        assert_eq!(profiles.defaults().protocol, AnyProtocol::from(Native));
        assert_eq!(profiles.defaults().config, Config::new());
    }

    #[test]
    fn equal_settings_are_shared_while_in_use() {
        let mut profiles = profiles();
        let first = profiles.get(&Tcpstream.into(), &Config::new());
        let second = profiles.get(&Tcpstream.into(), &Config::new());
        assert!(Arc::ptr_eq(&first, &second));
        let other = profiles.get(&Native.into(), &Config::go_tcpstream());
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(Arc::ptr_eq(&profiles.get(&Native.into(), &Config::new()), profiles.defaults()));
    }

    #[test]
    fn profiles_that_nobody_uses_are_forgotten() {
        let mut profiles = profiles();
        for _ in 0..10_000 {
            let config = Config::new().reconnect(Reconnect::custom(|_| None));
            profiles.get(&Native.into(), &config);
        }
        assert!(profiles.len <= 2 * FIRST_SWEEP, "{}", profiles.len);
    }

    /// A policy of the application's is like no other, so each dial brings settings of its own.
    #[test]
    fn looking_a_profile_up_does_not_compare_it_with_all() {
        let mut profiles = profiles();
        let mut kept = Vec::new();
        for _ in 0..2000 {
            let config = Config::new().reconnect(Reconnect::custom(|_| None));
            kept.push(profiles.get(&Native.into(), &config));
        }
        let longest = profiles.shared.values().map(Vec::len).max();
        assert!(longest <= Some(3), "{longest:?} profiles have the same hash");
    }
}
