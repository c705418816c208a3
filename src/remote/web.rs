//! One file over HTTP(S).
//!
//! Not by `object_store`: its HTTP store cannot keep a query string, and presigned URLs are one.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Method, StatusCode, header};

use super::transport::{self, Refused};
use super::{Body, Error, Listing, Remote};
use crate::domain::{Claims, ModelPath, Object, Scheme, Source, Version};

/// One URL.
#[derive(Debug)]
pub(super) struct Web {
    source: Source,
    client: reqwest::Client,
}

impl Web {
    pub(super) fn open(source: &Source) -> Result<Self, Error> {
        Ok(Self { source: source.clone(), client: transport::client()? })
    }

    fn url(&self) -> String {
        format!("{}://{}/{}", self.source.scheme().as_str(), self.source.authority(), self.source.path())
    }

    async fn ask(&self, method: Method, headers: HeaderMap) -> Result<http::Response<reqwest::Body>, Error> {
        let uri = self.source.to_string();
        let bad = |e: &dyn std::fmt::Display| Error::Settings {
            uri: uri.clone(),
            detail: format!("not a URL that can be asked for: {e}"),
        };
        let mut request = http::Request::new(Bytes::new());
        *request.uri_mut() = self.url().parse().map_err(|e| bad(&e))?;
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        let answer = transport::send(&self.client, request).await;
        let answer =
            answer.map_err(|e| Error::Unavailable { uri: self.source.to_string(), detail: transport::chain(&e) })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        Err(Refused::read(parts.status, &parts.headers, body).await.about(&self.source.to_string()))
    }

    /// Size and version, by HEAD, or by a GET of one byte where HEAD is refused (presigned URLs).
    async fn stat(&self) -> Result<(u64, Version), Error> {
        let head = match self.ask(Method::HEAD, HeaderMap::new()).await {
            Ok(answer) => Some(answer),
            Err(error) if error.is_retryable() => return Err(error),
            Err(_) => None,
        };
        if let Some(answer) = head
            && let Some(size) = number(answer.headers(), "content-length")
        {
            return Ok((size, version(answer.headers())));
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, header::HeaderValue::from_static("bytes=0-0"));
        let answer = self.ask(Method::GET, headers).await?;
        let size = match answer.status() {
            StatusCode::PARTIAL_CONTENT => content_range(answer.headers()).map(|(_, size)| size),
            _ => number(answer.headers(), "content-length"),
        };
        let unknown = || Error::Settings {
            uri: self.source.to_string(),
            detail: "the server does not say how large the file is".into(),
        };
        Ok((size.ok_or_else(unknown)?, version(answer.headers())))
    }
}

#[async_trait]
impl Remote for Web {
    async fn list(&self) -> Result<Listing, Error> {
        let (size, version) = self.stat().await?;
        let path = self.source.path().split(['?', '#']).next().unwrap_or_default();
        let name =
            percent_encoding::percent_decode_str(path.rsplit('/').next().unwrap_or_default()).decode_utf8_lossy();
        let name = ModelPath::new(&name).map_err(|source| Error::BadKey { uri: self.source.to_string(), source })?;
        let object =
            Object { key: path.to_owned(), path: name, size, version, claims: Claims::default(), more_claims: false };
        Ok(Listing { objects: vec![object], markers: 0 })
    }

    async fn claims(&self, object: &Object) -> Result<Claims, Error> {
        Ok(object.claims.clone())
    }

    async fn get(&self, object: &Object, range: Range<u64>) -> Result<Body, Error> {
        let uri = self.source.to_string();
        let mut headers = HeaderMap::new();
        let value = |text: String| {
            header::HeaderValue::try_from(text)
                .map_err(|e| Error::BadAnswer { uri: self.source.to_string(), detail: e.to_string() })
        };
        headers.insert(header::RANGE, value(format!("bytes={}-{}", range.start, range.end - 1))?);
        if let Version::Etag(etag) = &object.version {
            headers.insert(header::IF_MATCH, value(etag.clone())?);
        }
        let answer = self.ask(Method::GET, headers).await?;
        if version(answer.headers()) != object.version {
            return Err(Error::Changed { uri });
        }
        let whole = range == (0..object.size);
        match (answer.status(), content_range(answer.headers())) {
            (StatusCode::PARTIAL_CONTENT, Some((got, size))) if got == range && size == object.size => {}
            (StatusCode::OK, _) if whole => {}
            (StatusCode::OK, _) => {
                let detail = "the server ignores range requests, and a large file is pulled in ranges: serve it from one that answers 206".into();
                return Err(Error::Settings { uri, detail });
            }
            (_, got) => {
                let detail = format!("asked for bytes {}..{}, got {got:?}", range.start, range.end);
                return Err(Error::BadAnswer { uri, detail });
            }
        }
        let stream = http_body_util::BodyStream::new(answer.into_body()).filter_map(move |frame| {
            let slice = match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(e) => Some(Err(Error::Unavailable { uri: uri.clone(), detail: transport::chain(&e) })),
            };
            std::future::ready(slice)
        });
        Ok(Box::pin(stream))
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn origin(&self) -> String {
        let scheme = if self.source.scheme() == Scheme::Https { "https" } else { "http" };
        format!("{scheme} {}", self.source.authority())
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// `bytes a-b/size` as a half-open range (RFC 9110, section 14.4).
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?, size.parse().ok()?))
}

/// A strong ETag, else the time of the last change (weak tags may not be used with ranges).
fn version(headers: &HeaderMap) -> Version {
    use aws_smithy_types::date_time::{DateTime, Format};
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(etag) = text(header::ETAG).filter(|etag| !etag.starts_with("W/")) {
        return Version::Etag(etag.to_owned());
    }
    let modified = text(header::LAST_MODIFIED).and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
    Version::Modified(modified.map_or(0, |date| date.secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_half_open() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_RANGE, "bytes 5-9/100".parse().expect("header"));
        assert_eq!(content_range(&headers), Some((5..10, 100)));
        headers.insert(header::CONTENT_RANGE, "bytes */100".parse().expect("header"));
        assert_eq!(content_range(&headers), None);
    }

    #[test]
    fn weak_tags_do_not_name_bytes() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, "W/\"1\"".parse().expect("header"));
        headers.insert(header::LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT".parse().expect("header"));
        assert_eq!(version(&headers), Version::Modified(784_111_777));
    }
}
