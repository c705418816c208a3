//! The AWS SDK over larder's own HTTP client.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use http::{HeaderMap, StatusCode};

use super::super::Error;
use super::super::transport::{self, Refused};

/// Bytes of an answer that the SDK reads whole: 1,000 keys of 1 KiB are below 2 MiB.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// Sends the SDK's requests (they have small bodies) through the shared client.
#[derive(Debug, Clone)]
pub(super) struct SdkHttp(pub reqwest::Client);

#[derive(Debug)]
struct Connector {
    client: reqwest::Client,
    /// Until the head of an answer, where the caller wants a limit.
    patience: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.client.clone();
        let patience = self.patience.unwrap_or(Duration::MAX);
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|e| ConnectorError::other(e.into(), None))?;
            let (parts, body) = request.into_parts();
            let bytes = body.bytes().map(bytes::Bytes::copy_from_slice).unwrap_or_default();
            let answer = transport::send(&client, http::Request::from_parts(parts, bytes));
            let answer = tokio::time::timeout(patience, answer).await;
            let answer = answer.map_err(|late| ConnectorError::timeout(late.into()))?.map_err(|e| {
                if e.is_timeout() { ConnectorError::timeout(e.into()) } else { ConnectorError::io(e.into()) }
            })?;
            let bounded = answer.map(|body| SdkBody::from_body_1_x(http_body_util::Limited::new(body, ANSWER_LEN_MAX)));
            Response::try_from(bounded).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

impl HttpClient for SdkHttp {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        // The instance's metadata gets a second each for connecting and reading; elsewhere the
        // client's own connect timeout and the timeouts of the operation hold.
        let patience = settings.read_timeout().map(|read| read + settings.connect_timeout().unwrap_or_default());
        SharedHttpConnector::new(Connector { client: self.0.clone(), patience })
    }
}

/// Turns an SDK error about `uri` into ours.
#[expect(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
pub(super) fn error<E>(uri: &str, error: SdkError<E, Response>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let uri_owned = uri.to_owned();
    if let Some(response) = error.raw_response() {
        let status = StatusCode::from_u16(response.status().as_u16()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = HeaderMap::new();
        for name in ["retry-after", "x-amz-bucket-region"] {
            if let Some(value) = response.headers().get(name).and_then(|value| value.parse().ok()) {
                headers.insert(name, value);
            }
        }
        if status.is_success() {
            let detail = format!("cannot be read as an S3 answer ({})", transport::chain(&error));
            return Error::BadAnswer { uri: uri_owned, detail };
        }
        let code = error.code().unwrap_or_default().to_owned();
        let message = error.message().unwrap_or_default().to_owned();
        return Refused::of_parts(status, &headers, &code, &message).about(uri);
    }
    let detail = transport::chain(&error);
    // The chain's own error sits somewhere below; nothing else speaks of credentials.
    if has_source::<aws_credential_types::provider::error::CredentialsError>(&error) || detail.contains("credentials") {
        return Error::Credentials { uri: uri_owned, detail };
    }
    match error {
        SdkError::ConstructionFailure(_) => Error::Settings { uri: uri_owned, detail },
        _ => Error::Unavailable { uri: uri_owned, detail },
    }
}

fn has_source<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<T>() {
            return true;
        }
        next = error.source();
    }
    false
}
