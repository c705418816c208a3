//! Short-lived credentials over the protocols of the clouds' metadata and token services.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::http::{Answer, Request, Server, Site};

/// What IMDSv2 hands out for a session.
const IMDS_TOKEN: &str = "imds-session-token";
const ROLE: &str = "node-role";

struct State {
    life: Duration,
    issued: Mutex<HashMap<String, SystemTime>>,
    /// Milliseconds before any answer.
    delay: AtomicU64,
}

/// Issues credentials that live for a fixed time and knows which of them are valid.
pub struct Issuer {
    server: Server,
    state: Arc<State>,
}

impl Issuer {
    /// Every credential lives for `life`.
    pub fn start(life: Duration) -> io::Result<Self> {
        let state = Arc::new(State { life, issued: Mutex::default(), delay: AtomicU64::new(0) });
        let server = Server::start(Arc::clone(&state) as _)?;
        Ok(Self { server, state })
    }

    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// From now on, every answer takes this long; what it issues lives from before the wait.
    pub fn set_delay(&self, delay: Duration) {
        self.state.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Credentials issued so far.
    #[must_use]
    pub fn issued(&self) -> usize {
        self.state.lock().len()
    }

    /// A judge of requests that outlives the borrow: whether the request carries a session token
    /// (S3) or bearer token (GCS) that was issued here and has not expired.
    pub fn judge(&self) -> impl Fn(&Request) -> bool + Send + Sync + 'static {
        let state = Arc::clone(&self.state);
        move |request| {
            let token = request
                .header("x-amz-security-token")
                .or_else(|| request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")));
            token.is_some_and(|token| state.lock().get(token).is_some_and(|expiry| SystemTime::now() < *expiry))
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, SystemTime>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new token and its expiry in RFC 3339, whole seconds.
    fn issue(&self) -> (String, String) {
        let mut issued = self.lock();
        let token = format!("token-{}", issued.len());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // The text has whole seconds; the judge must not be stricter than what was said.
        let expiry = (now + self.life).as_secs();
        issued.insert(token.clone(), SystemTime::UNIX_EPOCH + Duration::from_secs(expiry));
        (token, rfc3339(expiry))
    }

    fn aws_json(&self) -> Answer {
        let (token, expiration) = self.issue();
        let body = json!({
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": "2026-11-02T10:00:00Z",
            "AccessKeyId": "ASIATESTTESTTESTTEST",
            "SecretAccessKey": "secret",
            "Token": token,
            "Expiration": expiration,
        });
        Answer::new(200, body.to_string()).with("Content-Type", "application/json")
    }
}

impl Site for State {
    fn answer(&self, request: &Request) -> Answer {
        Answer { delay: Duration::from_millis(self.delay.load(Relaxed)), ..self.reply(request) }
    }
}

impl State {
    fn reply(&self, request: &Request) -> Answer {
        let security_credentials = "/latest/meta-data/iam/security-credentials/";
        match (request.method.as_str(), request.path.as_str()) {
            // IMDSv2: a session first, then everything with its token.
            ("PUT", "/latest/api/token") => {
                Answer::new(200, IMDS_TOKEN).with("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", 21600)
            }
            (_, path)
                if path.starts_with("/latest/") && request.header("x-aws-ec2-metadata-token") != Some(IMDS_TOKEN) =>
            {
                Answer::new(401, "")
            }
            ("GET", path) if path.trim_end_matches('/') == security_credentials.trim_end_matches('/') => {
                Answer::new(200, ROLE)
            }
            ("GET", path) if path.starts_with(security_credentials) => self.aws_json(),
            // ECS tasks and EKS Pod Identity.
            ("GET", "/v1/credentials") => match request.header("authorization") {
                Some("pod-identity-token") => self.aws_json(),
                _ => Answer::new(401, ""),
            },
            // STS AssumeRoleWithWebIdentity: IRSA.
            ("POST", "/") => {
                let form = String::from_utf8_lossy(&request.body).into_owned();
                if !form.contains("Action=AssumeRoleWithWebIdentity")
                    || !form.contains("WebIdentityToken=projected-token")
                {
                    return Answer::new(
                        400,
                        "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>no</Message></Error></ErrorResponse>",
                    );
                }
                let (token, expiration) = self.issue();
                Answer::new(200, format!(
                    "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIATESTTESTTESTTEST</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{expiration}</Expiration></Credentials><AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/r/s</Arn><AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                )).with("Content-Type", "text/xml")
            }
            // GCE and GKE workload identity.
            ("GET", path) if path.starts_with("/computeMetadata/v1/") => {
                if request.header("metadata-flavor") != Some("Google") {
                    return Answer::new(403, "");
                }
                if path.ends_with("/universe-domain") || path.ends_with("/universe_domain") {
                    return Answer::new(200, "googleapis.com").with("Metadata-Flavor", "Google");
                }
                let (token, _) = self.issue();
                let body = json!({"access_token": token, "expires_in": self.life.as_secs(), "token_type": "Bearer"});
                Answer::new(200, body.to_string())
                    .with("Content-Type", "application/json")
                    .with("Metadata-Flavor", "Google")
            }
            _ => Answer::new(404, ""),
        }
    }
}

/// Days to civil date after Howard Hinnant's algorithm.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_709_210_096), "2024-02-29T12:34:56Z");
    }
}
