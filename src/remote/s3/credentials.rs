//! The AWS credential chain, asked once for everybody and again before what it gave expires.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

/// Refresh when less than this is left, or a quarter of the lifetime where that is shorter: a
/// request signed just before expiry may be read just after it.
const MARGIN_MAX: Duration = Duration::from_mins(5);
/// The chain may ask several places in turn.
const CHAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// After a refresh that failed, the old credential is used this long before the next try.
const REFRESH_PAUSE: Duration = Duration::from_secs(2);

/// A credential with the time at which to ask again.
#[derive(Clone)]
struct Held {
    credentials: Credentials,
    object_store: Arc<AwsCredential>,
    refresh_at: Option<SystemTime>,
}

/// The chain with a memory. One caller refreshes, the others wait for it or use what still works.
#[derive(Clone)]
pub(super) struct Chain {
    inner: SharedCredentialsProvider,
    held: Arc<Mutex<Option<Held>>>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chain")
    }
}

impl Chain {
    pub(super) fn new(inner: SharedCredentialsProvider) -> Self {
        Self { inner, held: Arc::default() }
    }

    async fn get(&self) -> Result<Held, CredentialsError> {
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        if let Some(held) = &*held
            && held.refresh_at.is_none_or(|at| now < at)
        {
            return Ok(held.clone());
        }
        let asked = tokio::time::timeout(CHAIN_TIMEOUT, self.inner.provide_credentials()).await;
        match asked.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CHAIN_TIMEOUT))) {
            Ok(credentials) => {
                let fresh = Held {
                    object_store: Arc::new(AwsCredential {
                        key_id: credentials.access_key_id().to_owned(),
                        secret_key: credentials.secret_access_key().to_owned(),
                        token: credentials.session_token().map(str::to_owned),
                    }),
                    refresh_at: credentials.expiry().map(|expiry| refresh_at(now, expiry)),
                    credentials,
                };
                *held = Some(fresh.clone());
                Ok(fresh)
            }
            Err(error) => {
                // Still valid is good enough until it is not.
                let Some(old) = held.as_mut().filter(|old| old.credentials.expiry().is_none_or(|expiry| now < expiry))
                else {
                    return Err(error);
                };
                tracing::warn!(error = %super::super::transport::chain(&error), "refreshing the credential failed: using the old one while it lasts");
                old.refresh_at = Some(now + REFRESH_PAUSE);
                Ok(old.clone())
            }
        }
    }
}

/// When to ask for the next credential.
fn refresh_at(now: SystemTime, expiry: SystemTime) -> SystemTime {
    let life = expiry.duration_since(now).unwrap_or_default();
    expiry - (life / 4).min(MARGIN_MAX)
}

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { Ok(self.get().await?.credentials) })
    }
}

#[async_trait]
impl object_store::CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let held = self
            .get()
            .await
            .map_err(|source| object_store::Error::Generic { store: "S3", source: Box::new(source) })?;
        Ok(held.object_store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refreshes_before_the_end_in_proportion_to_the_life() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let check = |life: u64, after: u64| {
            assert_eq!(refresh_at(now, now + Duration::from_secs(life)), now + Duration::from_secs(after));
        };
        check(60, 45);
        check(3600, 3300);
        check(0, 0);
    }
}
