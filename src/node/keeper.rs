//! Writes down what the agent has got.

use std::sync::Arc;

use super::dir::DataDir;
use super::supervisor::House;
use crate::agent::run::Keep;
use crate::pki::NodeIdentity;

/// The directory, as far as the agent may write to it. It stays locked as long as the agent runs.
#[derive(Debug)]
pub struct Keeper {
    dir: Arc<DataDir>,
}

impl Keeper {
    /// Writes to the directory of `house`.
    pub fn new(house: &House) -> Self {
        Self { dir: house.dir.clone() }
    }
}

impl Keep for Keeper {
    fn renew(&self, identity: &NodeIdentity) -> Result<(), String> {
        self.dir.renew_identity(identity).map_err(|error| error.to_string())
    }

    fn trust(&self, roots: &str) -> Result<(), String> {
        self.dir.replace("pki/root.crt", roots.as_bytes()).map_err(|error| error.to_string())
    }
}
