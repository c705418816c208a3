//! The AWS credential chain, asked once for everybody and again before what it gave expires.
//!
//! A refresh is a task of its own: a request is given up after a second or so without an answer,
//! and a chain that takes longer than that would never come to an end inside of one.

use std::ffi::OsString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use object_store::aws::AwsCredential;
use tokio::task::AbortHandle;

use super::super::transport;

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

impl Held {
    fn new(credentials: Credentials, now: SystemTime) -> Self {
        Self {
            object_store: Arc::new(AwsCredential {
                key_id: credentials.access_key_id().to_owned(),
                secret_key: credentials.secret_access_key().to_owned(),
                token: credentials.session_token().map(str::to_owned),
            }),
            refresh_at: credentials.expiry().map(|expiry| refresh_at(now, expiry)),
            credentials,
        }
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        self.refresh_at.is_none_or(|at| now < at)
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.credentials.expiry().is_none_or(|expiry| now < expiry)
    }
}

type Outcome = Shared<BoxFuture<'static, Result<Held, Arc<CredentialsError>>>>;

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// The refresh begun last, and where all that wait for it hear of its end.
    refresh: Option<(AbortHandle, Outcome)>,
}

/// The chain with a memory. One refresh at a time runs beside the requests: they use the old
/// credential while it is valid, and wait where there is none.
#[derive(Clone)]
pub(super) struct Chain {
    inner: SharedCredentialsProvider,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}

impl Chain {
    pub(super) fn new(inner: SharedCredentialsProvider) -> Self {
        Self { inner, state: Arc::default() }
    }

    async fn get(&self) -> Result<Held, CredentialsError> {
        let outcome = {
            let mut state = lock(&self.state);
            let now = SystemTime::now();
            if let Some(held) = state.held.as_ref().filter(|held| held.is_fresh(now)) {
                return Ok(held.clone());
            }
            let outcome = self.refresh(&mut state);
            if let Some(held) = state.held.as_ref().filter(|held| held.is_valid(now)) {
                return Ok(held.clone());
            }
            outcome
        };
        outcome.await.map_err(again)
    }

    /// The refresh that runs, or a new one.
    fn refresh(&self, state: &mut State) -> Outcome {
        if let Some((task, outcome)) = &state.refresh
            && !task.is_finished()
        {
            return outcome.clone();
        }
        let (inner, shared) = (self.inner.clone(), Arc::clone(&self.state));
        let task = tokio::spawn(async move {
            let asked = tokio::time::timeout(CHAIN_TIMEOUT, inner.provide_credentials()).await;
            let asked = asked.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CHAIN_TIMEOUT)));
            take(&mut lock(&shared), asked, SystemTime::now())
        });
        let handle = task.abort_handle();
        let outcome = task.map(|ended| match ended {
            Ok(outcome) => outcome,
            Err(panic) => Err(Arc::new(CredentialsError::unhandled(panic))),
        });
        let outcome = outcome.boxed().shared();
        state.refresh = Some((handle, outcome.clone()));
        outcome
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what the chain gave; where it failed, what is still valid is good enough until it is not.
fn take(
    state: &mut State,
    asked: Result<Credentials, CredentialsError>,
    now: SystemTime,
) -> Result<Held, Arc<CredentialsError>> {
    match asked.and_then(usable) {
        Ok(credentials) => Ok(state.held.insert(Held::new(credentials, now)).clone()),
        Err(error) => {
            let Some(old) = state.held.as_mut().filter(|old| old.is_valid(now)) else {
                return Err(Arc::new(error));
            };
            tracing::warn!(error = %transport::chain(&error), "refreshing the credential failed: using the old one while it lasts");
            old.refresh_at = Some(now + REFRESH_PAUSE);
            Ok(old.clone())
        }
    }
}

/// Variables that may hold secrets. What the libraries say of one that is no text shows its value.
const SECRETS: [&str; 6] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Refuses an environment that holds no text where the chain looks for a secret.
pub(super) fn check_environment(env: &dyn Fn(&str) -> Option<OsString>) -> Result<(), String> {
    let is_text = |name: &&str| env(name).is_none_or(|value| value.to_str().is_some());
    match SECRETS.iter().find(|name| !is_text(name)) {
        Some(name) => Err(format!("the environment variable {name} is not UTF-8 text")),
        None => Ok(()),
    }
}

/// Refuses a credential that cannot be sent: the libraries would panic over it. The values are secrets
/// and are not shown.
fn usable(credentials: Credentials) -> Result<Credentials, CredentialsError> {
    let token = credentials.session_token().unwrap_or_default();
    let fields = [
        ("access key id", credentials.access_key_id()),
        ("secret access key", credentials.secret_access_key()),
        ("session token", token),
    ];
    let Some((name, _)) = fields.into_iter().find(|(_, value)| !value.bytes().all(|byte| byte.is_ascii_graphic()))
    else {
        return Ok(credentials);
    };
    Err(CredentialsError::invalid_configuration(format!(
        "the AWS {name} has a line break, a blank or another character that none has: is there a newline at its end?"
    )))
}

/// One failure, told to each that waited.
#[derive(Debug)]
struct Cause(Arc<CredentialsError>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

fn again(error: Arc<CredentialsError>) -> CredentialsError {
    match &*error {
        CredentialsError::CredentialsNotLoaded(_) => CredentialsError::not_loaded(Cause(error)),
        CredentialsError::InvalidConfiguration(_) => CredentialsError::invalid_configuration(Cause(error)),
        _ => CredentialsError::provider_error(Cause(error)),
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
#[expect(clippy::disallowed_methods, reason = "an async test enters a runtime of its own")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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

    const DELAY: Duration = Duration::from_millis(400);
    /// Far less than `DELAY`, far more than a lock takes.
    const AT_ONCE: Duration = Duration::from_millis(150);
    const HOUR: Duration = Duration::from_hours(1);

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Mood {
        Gives,
        Fails,
        Panics,
    }

    /// A chain that takes its time and counts.
    #[derive(Debug, Clone)]
    struct Slow {
        asked: Arc<AtomicU32>,
        mood: Arc<Mutex<Mood>>,
    }

    impl ProvideCredentials for Slow {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(async {
                let number = self.asked.fetch_add(1, Relaxed) + 1;
                tokio::time::sleep(DELAY).await;
                let mood = *self.mood.lock().expect("no panic with it");
                match mood {
                    Mood::Gives => Ok(credentials(&format!("new-{number}"), Some(SystemTime::now() + HOUR))),
                    Mood::Fails => Err(CredentialsError::not_loaded("the place is closed")),
                    Mood::Panics => panic!("in the provider"),
                }
            })
        }
    }

    fn credentials(id: &str, expiry: Option<SystemTime>) -> Credentials {
        Credentials::new(id, "secret", None, expiry, "test")
    }

    fn slow(mood: Mood) -> (Chain, Slow) {
        let slow = Slow { asked: Arc::default(), mood: Arc::new(Mutex::new(mood)) };
        (Chain::new(SharedCredentialsProvider::new(slow.clone())), slow)
    }

    /// Makes the chain hold a credential that is due for a refresh and expires after `left`, or
    /// has expired long ago.
    fn hold(chain: &Chain, left: Option<Duration>) {
        let now = SystemTime::now();
        let expiry = left.map_or(now - HOUR, |left| now + left);
        let held = Held { refresh_at: Some(now), ..Held::new(credentials("old", Some(expiry)), now) };
        lock(&chain.state).held = Some(held);
    }

    async fn at_once(chain: &Chain) -> Option<String> {
        let held = tokio::time::timeout(AT_ONCE, chain.get()).await.ok()?;
        Some(held.expect("a credential").credentials.access_key_id().to_owned())
    }

    #[test]
    fn a_credential_that_no_header_can_carry_is_refused_without_its_value() {
        for (id, secret, token) in
            [("S3CR\n", "s", None), ("i", "S3CR\r", None), ("i", "s", Some("S3CR T")), ("ü", "s", None)]
        {
            let credentials = Credentials::new(id, secret, token.map(str::to_owned), None, "test");
            let told = transport::chain(&usable(credentials).expect_err("refused"));
            assert!(told.contains("line break") && !told.contains("S3CR"), "{told}");
        }
        usable(Credentials::new("AKIA", "a/b+c=", Some("FwoG+/==".to_owned()), None, "test"))
            .expect("as AWS makes them");
    }

    #[tokio::test]
    async fn a_refresh_outlives_those_who_wait_for_it() {
        let (chain, slow) = slow(Mood::Gives);
        for _ in 0..2 {
            assert_eq!(at_once(&chain).await, None, "cancelled while it waits");
        }
        tokio::time::sleep(DELAY).await;
        assert_eq!(at_once(&chain).await.as_deref(), Some("new-1"));
        assert_eq!(slow.asked.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn many_wait_for_one_refresh() {
        let (chain, slow) = slow(Mood::Gives);
        let all = futures::future::join_all((0..8).map(|_| chain.get())).await;
        for held in all {
            assert_eq!(held.expect("a credential").credentials.access_key_id(), "new-1");
        }
        assert_eq!(slow.asked.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_valid_credential_is_used_while_the_refresh_runs() {
        let (chain, slow) = slow(Mood::Gives);
        hold(&chain, Some(HOUR));
        for _ in 0..8 {
            assert_eq!(at_once(&chain).await.as_deref(), Some("old"));
        }
        tokio::time::sleep(DELAY * 2).await;
        assert_eq!(at_once(&chain).await.as_deref(), Some("new-1"));
        assert_eq!(slow.asked.load(Relaxed), 1, "one at a time");
    }

    #[tokio::test]
    async fn an_expired_credential_is_never_used() {
        let (chain, slow) = slow(Mood::Gives);
        hold(&chain, None);
        assert_eq!(at_once(&chain).await, None, "it waits");
        assert_eq!(chain.get().await.expect("refreshed").credentials.access_key_id(), "new-1");
        assert_eq!(slow.asked.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failed_refresh_is_no_failure_while_the_old_one_lasts() {
        let (chain, slow) = slow(Mood::Fails);
        hold(&chain, Some(HOUR));
        assert_eq!(at_once(&chain).await.as_deref(), Some("old"));
        tokio::time::sleep(DELAY * 2).await;
        for _ in 0..8 {
            assert_eq!(at_once(&chain).await.as_deref(), Some("old"));
        }
        assert_eq!(slow.asked.load(Relaxed), 1, "the next try is {REFRESH_PAUSE:?} away");
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_and_forgotten() {
        let (chain, slow) = slow(Mood::Fails);
        let (one, two) = tokio::join!(chain.get(), chain.get());
        for failed in [one.map(|_| ()), two.map(|_| ())] {
            let failed = failed.expect_err("it fails");
            assert!(matches!(failed, CredentialsError::CredentialsNotLoaded(_)), "{failed:?}");
            assert_eq!(transport::chain(&failed), "the credential provider was not enabled: the place is closed");
        }
        *slow.mood.lock().expect("no panic with it") = Mood::Panics;
        assert!(chain.get().await.is_err(), "a panic of the provider is an error");
        *slow.mood.lock().expect("no panic with it") = Mood::Gives;
        assert_eq!(chain.get().await.expect("asked anew").credentials.access_key_id(), "new-3");
    }
}
