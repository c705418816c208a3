//! One switch that ends a pull from anywhere.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

use super::Error;

/// Clones share the switch.
#[derive(Debug, Clone)]
pub struct Cancel {
    sender: watch::Sender<bool>,
}

impl Default for Cancel {
    fn default() -> Self {
        Self { sender: watch::Sender::new(false) }
    }
}

impl Cancel {
    /// Ends everything that is guarded, now and later.
    pub fn cancel(&self) {
        self.sender.send_replace(true);
    }

    /// Whether it was used.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.sender.borrow()
    }

    /// Runs a future until it ends or the switch is used.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub async fn guard<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        let mut receiver = self.sender.subscribe();
        tokio::select! {
            biased;
            _ = receiver.wait_for(|cancelled| *cancelled) => Err(Error::Interrupted),
            output = future => Ok(output),
        }
    }

    /// Sleeps.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub async fn sleep(&self, pause: Duration) -> Result<(), Error> {
        self.guard(tokio::time::sleep(pause)).await
    }
}
