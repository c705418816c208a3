//! The one HTTP client of our own: the bytes of S3 and https, every call of the AWS SDK, and the
//! listings of GCS go through it.
//!
//! So proxies (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), `AWS_CA_BUNDLE` and the connection pool
//! mean the same for listing, credentials and transfer. It turns a refusal into [`Refused`] with
//! all that the origin said, because the libraries above drop `Retry-After` and the region.
//!
//! The bytes and credentials of GCS do not: google-cloud-storage and google-cloud-auth make clients
//! of their own and take none from outside. Those are `reqwest` too and read the same variables
//! for proxies, but know neither `AWS_CA_BUNDLE` (they trust what the system trusts, as we do
//! besides) nor our connect timeout, nor that metadata services are never behind a proxy.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use super::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for an answer that nobody above limits.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const POOL_IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// Error bodies are XML or JSON of a few hundred bytes; no more than this is read of one.
const ERROR_BODY_LEN_MAX: usize = 64 << 10;
/// A moved file and a storage host behind it need two.
const REDIRECTS_MAX: usize = 5;
/// Where credentials of machines live (EC2 and ECS, EKS, GCE): never behind a proxy.
const LINK_LOCAL: &str =
    "169.254.169.254,169.254.170.2,169.254.170.23,[fd00:ec2::254],[fd00:ec2::23],metadata.google.internal";

/// Makes the client.
///
/// # Errors
/// [`Error::Settings`] for a CA bundle that cannot be read or a proxy that is no URL.
pub(super) fn client() -> Result<reqwest::Client, Error> {
    let settings = |detail: String| Error::Settings { uri: "HTTP client".into(), detail };
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .http1_only()
        .redirect(reqwest::redirect::Policy::custom(follow));
    for proxy in proxies()? {
        builder = builder.proxy(proxy);
    }
    if let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        let shown = path.to_string_lossy().into_owned();
        let bad = |e: &dyn std::fmt::Display| settings(format!("AWS_CA_BUNDLE=`{shown}` cannot be used: {e}"));
        let pem = read_file(&path).map_err(|e| bad(&e))?;
        let bundle = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(&e))?;
        builder = builder.tls_certs_merge(bundle);
    }
    builder.build().map_err(|e| settings(chain(&e)))
}

/// Follows a few redirects, and none from TLS to plain text: besides the bytes, it would carry the
/// request of somebody who may ask for https only to whatever answers http near this machine, such
/// as a metadata service.
fn follow(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error(format!("more than {REDIRECTS_MAX} redirects"))
    } else if from_tls && attempt.url().scheme() != "https" {
        attempt.error("the server redirects from https to plain http, which is not followed")
    } else {
        attempt.follow()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one file of the user's that this layer reads")]
fn read_file(path: &std::ffi::OsStr) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
}

fn proxies() -> Result<Vec<reqwest::Proxy>, Error> {
    let var =
        |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let no_proxy = var(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    let exempt = reqwest::NoProxy::from_string(&format!("{no_proxy},{LINK_LOCAL}"));
    let bad = |e: reqwest::Error| Error::Settings {
        uri: "proxy".into(),
        detail: format!("the proxy of the environment cannot be used: {}", chain(&e)),
    };
    let mut proxies = Vec::new();
    if let Some(url) = var(["HTTPS_PROXY", "https_proxy"]) {
        proxies.push(reqwest::Proxy::https(url).map_err(bad)?.no_proxy(exempt.clone()));
    }
    if let Some(url) = var(["HTTP_PROXY", "http_proxy"]) {
        proxies.push(reqwest::Proxy::http(url).map_err(bad)?.no_proxy(exempt.clone()));
    }
    if let Some(url) = var(["ALL_PROXY", "all_proxy"]) {
        proxies.push(reqwest::Proxy::all(url).map_err(bad)?.no_proxy(exempt));
    }
    Ok(proxies)
}

/// Ends a wait that nobody above limits: "no `what` within so many seconds".
pub(super) async fn in_time<T>(
    limit: Duration,
    uri: &str,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_| {
        let detail = format!("no {what} within {} s", limit.as_secs_f64());
        Err(Error::Unavailable { uri: uri.to_owned(), detail })
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// Refuses an endpoint that is no base URL. One that may have a secret in it is not shown, and
/// nothing goes on with it: the endpoint is kept on disk as the origin of every object.
pub(super) fn check_endpoint(uri: &str, endpoint: &str) -> Result<(), Error> {
    let bad = |detail: String| Error::Settings { uri: uri.to_owned(), detail };
    let want = "want http://host:port or https://host";
    if endpoint.contains('@') {
        return Err(bad(format!(
            "the endpoint URL has a user name or password before an `@`, and larder keeps endpoints on disk: {want}, and give credentials by the credential chain"
        )));
    }
    if endpoint.contains(['?', '#']) {
        return Err(bad(format!("the endpoint URL has a query or a fragment, which no endpoint has: {want}")));
    }
    match url::Url::parse(endpoint) {
        // The libraries take it for a `Uri`, which knows no blanks and no letters beyond ASCII.
        Ok(url)
            if matches!(url.scheme(), "http" | "https") && url.has_host() && endpoint.parse::<http::Uri>().is_ok() =>
        {
            Ok(())
        }
        _ => Err(bad(format!("the endpoint `{endpoint}` is not a URL: {want}"))),
    }
}

/// Whether an ETag can be sent back as a condition. (RFC 9110 lets bytes beyond ASCII stand in one;
/// nobody can compare them.)
pub(super) fn is_etag(etag: &str) -> bool {
    !etag.is_empty() && etag.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// What an origin said when it did not give the bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{status} {code} {message}")]
pub(super) struct Refused {
    pub status: StatusCode,
    /// The code of an S3 or GCS error body, or empty.
    pub code: String,
    /// Its message, without what could hold a secret, or empty.
    pub message: String,
    pub retry_after: Option<Duration>,
    /// `x-amz-bucket-region`.
    pub region: Option<String>,
}

impl Refused {
    /// A refusal whose body somebody else has read.
    pub(super) fn of_parts(status: StatusCode, headers: &HeaderMap, code: &str, message: &str) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let retry_after = text("retry-after").and_then(|value| retry_after(&value, SystemTime::now()));
        Self { status, code: clean(code), message: clean(message), retry_after, region: text("x-amz-bucket-region") }
    }

    /// Reads a refusal, with a bounded body.
    pub(super) async fn read(status: StatusCode, headers: &HeaderMap, body: reqwest::Body) -> Self {
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(Ok(slice)) = stream.next().await {
                let room = ERROR_BODY_LEN_MAX - bytes.len();
                bytes.extend_from_slice(&slice[..slice.len().min(room)]);
                if bytes.len() == ERROR_BODY_LEN_MAX {
                    break;
                }
            }
        };
        // A body that never ends must not hold up the error it belongs to.
        let _ = tokio::time::timeout(Duration::from_secs(2), reading).await;
        let body = String::from_utf8_lossy(&bytes);
        let (code, message) = code_and_message(&body);
        let mut refused = Self::of_parts(status, headers, &code, &message);
        refused.region = refused.region.or_else(|| element(&body, "Region"));
        refused
    }

    /// The refusal as an error about `uri`.
    pub(super) fn about(self, uri: &str) -> Error {
        let uri = uri.to_owned();
        let detail = self.detail();
        let slow = matches!(
            self.code.as_str(),
            "SlowDown" | "RequestLimitExceeded" | "ThrottlingException" | "TooManyRequests"
        );
        match self.status.as_u16() {
            412 => Error::Changed { uri },
            429 | 503 => Error::Throttled { uri, detail, retry_after: self.retry_after },
            _ if slow => Error::Throttled { uri, detail, retry_after: self.retry_after },
            // The chain gives a new one in a moment; a clock that is wrong will say so again.
            400 | 403 if matches!(self.code.as_str(), "ExpiredToken" | "TokenRefreshRequired") => {
                Error::Unavailable { uri, detail: format!("the origin says the credential has expired ({detail})") }
            }
            403 if self.code == "RequestTimeTooSkewed" => {
                Error::Settings { uri, detail: format!("this machine's clock is wrong ({detail})") }
            }
            301 | 307 | 308 | 400 if self.region.is_some() => {
                let region = self.region.unwrap_or_default();
                Error::Settings { uri, detail: format!("the bucket is in region `{region}`: set AWS_REGION={region}") }
            }
            401 | 403 => Error::Denied { uri, detail: format!("access denied ({detail})") },
            404 if self.code == "NoSuchBucket" => Error::NotFound { uri, detail: "no such bucket".into() },
            404 | 410 => Error::NotFound { uri, detail: format!("not there ({detail})") },
            408 | 500 | 502 | 504 => Error::Unavailable { uri, detail },
            status if status >= 500 => Error::Unavailable { uri, detail },
            _ => Error::BadAnswer { uri, detail: format!("HTTP {detail}") },
        }
    }

    fn detail(&self) -> String {
        let mut detail = self.status.as_u16().to_string();
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                detail.push(' ');
                detail.push_str(part);
            }
        }
        detail
    }
}

/// `<Code>` and `<Message>` of an S3 body, or the same of a Google JSON body.
fn code_and_message(body: &str) -> (String, String) {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(body) {
        let reason = json.pointer("/error/errors/0/reason").and_then(|v| v.as_str()).unwrap_or_default();
        let message = json.pointer("/error/message").and_then(|v| v.as_str()).unwrap_or_default();
        return (clean(reason), clean(message));
    }
    (clean(&element(body, "Code").unwrap_or_default()), clean(&element(body, "Message").unwrap_or_default()))
}

/// The text of the first element of that name. Error bodies are flat; a parser would only find
/// more ways to fail.
fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    Some(text.to_owned())
}

/// One line of at most 160 characters, printable.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect::<String>().trim().to_owned()
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110, section 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    use aws_smithy_types::date_time::{DateTime, Format};
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTime::from_str(value.trim(), Format::HttpDate).ok()?;
    SystemTime::try_from(at).ok()?.duration_since(now).ok()
}

/// An error and its causes in one line, each once, without URLs (they may be signed).
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(http) = error.downcast_ref::<reqwest::Error>() {
            // What lies above only repeats that a request failed.
            return clean(&http_failure(http));
        }
        let text = without_urls(&error.to_string());
        if !text.is_empty() && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    // Wrappers mostly repeat the inner text behind a colon: keep what adds something.
    parts.retain({
        let all = parts.clone();
        move |part| !all.iter().any(|other| other != part && part.ends_with(&format!(": {other}")))
    });
    clean(&parts.join(": "))
}

/// What went wrong on the wire, in the words of the innermost cause.
fn http_failure(error: &reqwest::Error) -> String {
    let mut root: &dyn std::error::Error = error;
    while let Some(inner) = root.source() {
        root = inner;
    }
    let root = without_urls(&root.to_string());
    let peer = error.url().and_then(|url| {
        let host = url.host_str()?;
        Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
    });
    match peer {
        Some(peer) if error.is_connect() && error.is_timeout() => {
            format!("cannot connect to `{peer}` within {} s", CONNECT_TIMEOUT.as_secs())
        }
        Some(peer) if error.is_connect() => format!("cannot connect to `{peer}`: {root}"),
        _ if error.is_body() || error.is_decode() => format!("the body broke off: {root}"),
        _ => format!("the connection broke: {root}"),
    }
}

fn without_urls(text: &str) -> String {
    text.split(' ')
        .map(|word| match (word.find("://"), word.find('?')) {
            (Some(_), Some(at)) => {
                format!("{}?<query hidden>{}", &word[..at], if word.ends_with(')') { ")" } else { "" })
            }
            _ => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Gives `object_store` our client.
#[derive(Debug, Clone)]
pub(super) struct Connector(pub reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _options: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(self.0.clone())))
    }
}

#[derive(Debug)]
struct Service(reqwest::Client);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let ranged = request.headers().contains_key(header::RANGE);
        let (parts, body) = request.into_parts();
        let bytes = body.as_bytes().cloned().unwrap_or_else(Bytes::new);
        let answer = send(&self.0, http::Request::from_parts(parts, bytes)).await;
        let answer = answer.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let (parts, body) = answer.into_parts();
        if ranged && parts.status != StatusCode::PARTIAL_CONTENT || !parts.status.is_success() {
            let refused = Refused::read(parts.status, &parts.headers, body).await;
            return Err(HttpError::new(HttpErrorKind::Unknown, refused));
        }
        let body = HttpResponseBody::new(body.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e)));
        Ok(HttpResponse::from_parts(parts, body))
    }
}

/// Sends a request and hands over the answer as it is.
pub(super) async fn send(
    client: &reqwest::Client,
    request: http::Request<Bytes>,
) -> Result<http::Response<reqwest::Body>, reqwest::Error> {
    let request = reqwest::Request::try_from(request.map(reqwest::Body::from))?;
    Ok(client.execute(request).await?.into())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an async test enters a runtime of its own")]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        assert_eq!(retry_after("3", now), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(90)));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn a_refusal_says_what_the_origin_said() {
        let xml =
            "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce\nyour rate</Message></Error>";
        assert_eq!(code_and_message(xml), ("SlowDown".into(), "Please reduce your rate".into()));
        let json = r#"{"error":{"code":403,"message":"no","errors":[{"reason":"forbidden"}]}}"#;
        assert_eq!(code_and_message(json), ("forbidden".into(), "no".into()));
        assert_eq!(code_and_message("<html>"), (String::new(), String::new()));
    }

    #[test]
    fn signed_urls_are_not_shown() {
        let error = std::io::Error::other("error sending request for url (https://h/k?X-Amz-Signature=abc)");
        assert_eq!(chain(&error), "error sending request for url (https://h/k?<query hidden>)");
    }

    #[tokio::test]
    async fn a_wait_ends_in_a_sentence() {
        let limit = Duration::from_millis(20);
        let silent = in_time(limit, "https://h/f", "answer", std::future::pending::<Result<(), Error>>()).await;
        let told = silent.expect_err("late");
        assert!(told.is_retryable());
        assert_eq!(told.to_string(), "`https://h/f`: no answer within 0.02 s");
        assert!(in_time(limit, "u", "answer", async { Ok(()) }).await.is_ok());
    }

    #[test]
    fn endpoints_with_secrets_are_refused_unseen() {
        let told = |endpoint: &str| match check_endpoint("s3://b/", endpoint) {
            Err(Error::Settings { detail, .. }) => detail,
            other => panic!("{endpoint}: {other:?}"),
        };
        for endpoint in ["http://us3r:p4ss@host:9000", "us3r:p4ss@host", "https://us3r@host", "https://h/?k=p4ss"] {
            let told = told(endpoint);
            assert!(!told.contains("us3r") && !told.contains("p4ss"), "{told}");
        }
        assert!(told("not a url").starts_with("the endpoint `not a url` is not a URL"));
        for bad in ["ftp://host", "http://ho st", "http://host/a b", "http://müller.example", "http://host\n"] {
            assert!(told(bad).contains("is not a URL"), "{bad}");
        }
        for endpoint in ["http://127.0.0.1:9000", "https://host", "https://host/base/"] {
            assert!(check_endpoint("s3://b/", endpoint).is_ok(), "{endpoint}");
        }
    }

    #[test]
    fn statuses_become_the_right_kind() {
        let refused = |status: u16, code: &str| Refused {
            status: StatusCode::from_u16(status).expect("status"),
            code: code.into(),
            message: String::new(),
            retry_after: None,
            region: None,
        };
        assert!(matches!(refused(412, "").about("u"), Error::Changed { .. }));
        assert!(matches!(refused(503, "SlowDown").about("u"), Error::Throttled { .. }));
        assert!(matches!(refused(400, "ExpiredToken").about("u"), Error::Unavailable { .. }));
        assert!(matches!(refused(403, "AccessDenied").about("u"), Error::Denied { .. }));
        assert!(matches!(refused(404, "NoSuchBucket").about("u"), Error::NotFound { .. }));
        assert!(matches!(refused(500, "").about("u"), Error::Unavailable { .. }));
        assert!(matches!(refused(200, "").about("u"), Error::BadAnswer { .. }));
    }
}
