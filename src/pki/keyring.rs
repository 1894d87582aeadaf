//! A manager's data keys at work: the one that seals what is written from now on, and those that files still name.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use super::seal::DataKey;

/// The data keys of one manager, newest first, shared: a clone sees what the others do. Whoever writes a file takes the
/// newest key and holds on to it until the file is finished, so that [`Self::is_held`] tells when a key is out of use in
/// this process.
#[derive(Clone)]
pub struct Keyring(Arc<Mutex<Vec<Arc<DataKey>>>>);

impl Keyring {
    /// These keys, newest first.
    ///
    /// # Panics
    ///
    /// When there are none.
    pub fn new(keys: impl IntoIterator<Item = DataKey>) -> Self {
        let keys: Vec<_> = keys.into_iter().map(Arc::new).collect();
        assert!(!keys.is_empty(), "a manager has a data key");
        Self(Arc::new(Mutex::new(keys)))
    }

    /// The key to seal with.
    pub fn newest(&self) -> Arc<DataKey> {
        self.lock().first().expect("a keyring is never empty").clone()
    }

    /// The key with this id, to open what is sealed with it.
    pub fn of(&self, id: u64) -> Option<Arc<DataKey>> {
        self.lock().iter().find(|key| key.id() == id).cloned()
    }

    /// Makes `key` the newest.
    pub fn add(&self, key: DataKey) {
        self.lock().insert(0, Arc::new(key));
    }

    /// Forgets the keys that `keep` says nothing for, but never the newest.
    pub fn retain(&self, keep: impl Fn(u64) -> bool) {
        let newest = self.newest().id();
        self.lock().retain(|key| key.id() == newest || keep(key.id()));
    }

    /// Whether somebody in this process works with the key of this id.
    pub fn is_held(&self, id: u64) -> bool {
        self.lock().iter().any(|key| key.id() == id && Arc::strong_count(key) > 1)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<DataKey>>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().iter()).finish()
    }
}

impl From<DataKey> for Keyring {
    fn from(key: DataKey) -> Self {
        Self::new([key])
    }
}

impl From<&DataKey> for Keyring {
    fn from(key: &DataKey) -> Self {
        Self::new([key.clone()])
    }
}

impl From<&Self> for Keyring {
    fn from(keyring: &Self) -> Self {
        keyring.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_key_seals_and_the_others_open_until_they_are_forgotten() {
        let (old, new) = (DataKey::from_bytes([1; 32]), DataKey::from_bytes([2; 32]));
        let keyring = Keyring::from(&old);
        let shared = keyring.clone();
        keyring.add(new.clone());
        assert_eq!(shared.newest().id(), new.id());
        let held = shared.of(old.id());
        assert!(held.is_some() && keyring.is_held(old.id()) && !keyring.is_held(new.id()));
        drop(held);
        assert!(!keyring.is_held(old.id()));
        keyring.retain(|_| false);
        assert!(shared.of(old.id()).is_none() && shared.of(new.id()).is_some());
        assert!(!format!("{shared:?}").contains("[2"));
    }
}
