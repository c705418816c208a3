//! Opened origins, kept for a while: opening one asks for credentials and makes a connection pool.

use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::{Scheme, Source};
use crate::remote::{self, Endpoints, Keys, Remote};

/// Origins that stay open. Beyond this the least recently used is opened again when asked for.
const OPEN_MAX: usize = 32;

/// The way to all origins.
#[derive(Debug)]
pub struct Origins {
    options: remote::Options,
    open: Mutex<Vec<(String, Arc<dyn Remote>)>>,
}

impl Origins {
    /// Reaches every origin with these options.
    #[must_use]
    pub fn new(options: remote::Options) -> Self {
        Self { options, open: Mutex::default() }
    }

    /// The servers of buckets.
    pub const fn endpoints(&self) -> &Endpoints {
        &self.options.endpoints
    }

    /// Opens a source, or gives the one that is open, with the daemon's credentials or with `keys`.
    ///
    /// # Errors
    /// As [`remote::open`].
    pub async fn open(&self, source: &Source, keys: Option<&Keys>) -> Result<Arc<dyn Remote>, remote::Error> {
        // What is shown of an https source stands for many: a signature expires, and is not shown.
        let keeps = matches!(source.scheme(), Scheme::S3 | Scheme::Gs);
        let name = format!("{source} {}", keys.map(Keys::fingerprint).unwrap_or_default());
        if keeps {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = open.iter().position(|(known, _)| *known == name) {
                let entry = open.remove(at);
                let remote = Arc::clone(&entry.1);
                open.push(entry);
                return Ok(remote);
            }
        }
        let options = remote::Options { keys: keys.cloned(), ..self.options.clone() };
        let remote = Box::pin(remote::open(source, &options)).await?;
        if keeps {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() >= OPEN_MAX {
                open.remove(0);
            }
            open.push((name, Arc::clone(&remote)));
        }
        Ok(remote)
    }
}
