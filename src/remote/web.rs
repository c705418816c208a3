//! One file over HTTP(S).
//!
//! Not by `object_store`: its HTTP store cannot keep a query string, and presigned URLs are one.

use std::ops::Range;

use async_trait::async_trait;
use aws_smithy_types::date_time::{DateTime, Format};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Method, StatusCode, header};

use super::objects::ETAG_LEN_MAX;
use super::transport::{self, ANSWER_TIMEOUT, Refused};
use super::{Body, Endpoints, Error, Listing, Remote};
use crate::domain::{Claims, ModelPath, Object, Source, Version};

/// One URL.
#[derive(Debug)]
pub(super) struct Web {
    source: Source,
    client: reqwest::Client,
}

impl Web {
    pub(super) fn open(source: &Source) -> Result<Self, Error> {
        let web = Self { source: source.clone(), client: transport::client()? };
        web.url()?;
        Ok(web)
    }

    fn settings(&self, detail: impl Into<String>) -> Error {
        Error::Settings { uri: self.source.to_string(), detail: detail.into() }
    }

    fn url(&self) -> Result<http::Uri, Error> {
        let url = self.source.secret_url().ok_or_else(|| {
            self.settings("larder keeps no query of a URL because it may hold a secret: give the whole URL again")
        })?;
        url.parse().map_err(|e| self.settings(format!("not a URL that can be asked for: {e}")))
    }

    async fn ask(&self, method: Method, headers: HeaderMap) -> Result<http::Response<reqwest::Body>, Error> {
        let mut request = http::Request::new(Bytes::new());
        *request.uri_mut() = self.url()?;
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        let uri = self.source.to_string();
        let answer = async {
            let answer = transport::send(&self.client, request).await;
            answer.map_err(|e| Error::Unavailable { uri: uri.clone(), detail: transport::chain(&e) })
        };
        let answer = transport::in_time(ANSWER_TIMEOUT, &uri, "answer", answer).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        Err(Refused::read(parts.status, &parts.headers, body).await.about(&uri))
    }

    /// Size and version, by HEAD, or by a GET of one byte where HEAD is refused (presigned URLs) or
    /// says too little.
    async fn stat(&self) -> Result<(u64, Version), Error> {
        let head = match self.ask(Method::HEAD, HeaderMap::new()).await {
            Ok(answer) => Some(answer),
            Err(error) if error.is_retryable() => return Err(error),
            Err(_) => None,
        };
        if let Some(answer) = head
            && let Some(size) = number(answer.headers(), "content-length")
            && let Some(version) = version(answer.headers())
        {
            return Ok((size, version));
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, header::HeaderValue::from_static("bytes=0-0"));
        let answer = self.ask(Method::GET, headers).await?;
        let size = match answer.status() {
            StatusCode::PARTIAL_CONTENT => content_range(answer.headers()).map(|(_, size)| size),
            _ => number(answer.headers(), "content-length"),
        };
        let size = size.ok_or_else(|| self.settings("the server does not say how large the file is"))?;
        // Ranges of two versions must never meet in one file.
        let version = version(answer.headers()).ok_or_else(|| {
            self.settings("the server sends neither a strong ETag nor a Last-Modified, so larder could not tell when the file changes between two requests and would mix its versions: serve it from one that sends either")
        })?;
        Ok((size, version))
    }
}

#[async_trait]
impl Remote for Web {
    async fn list(&self) -> Result<Listing, Error> {
        let (size, version) = self.stat().await?;
        let path = self.source.path();
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
        match &object.version {
            Version::Etag(etag) => {
                headers.insert(header::IF_MATCH, value(etag.to_string())?);
            }
            Version::Modified(at) => {
                headers.insert(header::IF_UNMODIFIED_SINCE, value(http_date(*at))?);
            }
            Version::Generation(_) => {}
        }
        let answer = self.ask(Method::GET, headers).await?;
        // A server may ignore conditions: its answer says what it is a range of.
        let got = match &object.version {
            Version::Etag(_) => strong_etag(answer.headers()),
            _ => last_modified(answer.headers()),
        };
        match got {
            Some(got) if got == object.version => {}
            Some(_) => return Err(Error::Changed { uri }),
            None => {
                let detail = "a range came without the ETag or Last-Modified that the file had before, so nothing says which version it is of".into();
                return Err(Error::BadAnswer { uri, detail });
            }
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
        Endpoints::default().origin(&self.source)
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

/// A strong ETag, else the time of the last change.
fn version(headers: &HeaderMap) -> Option<Version> {
    strong_etag(headers).or_else(|| last_modified(headers))
}

/// Weak tags may not be used with ranges, and an empty one says nothing.
fn strong_etag(headers: &HeaderMap) -> Option<Version> {
    let etag = headers.get(header::ETAG)?.to_str().ok()?;
    let says = !etag.starts_with("W/") && !etag.trim_matches('"').is_empty() && etag.len() <= ETAG_LEN_MAX;
    says.then(|| Version::Etag(etag.into()))
}

fn last_modified(headers: &HeaderMap) -> Option<Version> {
    let date = headers.get(header::LAST_MODIFIED)?.to_str().ok()?;
    Some(Version::Modified(DateTime::from_str(date, Format::HttpDate).ok()?.secs()))
}

fn http_date(seconds: i64) -> String {
    // Cannot fail for a time that was read from a header; an empty date is ignored by servers.
    DateTime::from_secs(seconds).fmt(Format::HttpDate).unwrap_or_default()
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
        assert_eq!(version(&headers), Some(Version::Modified(784_111_777)));
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        headers.insert(header::ETAG, "\"1\"".parse().expect("header"));
        assert_eq!(version(&headers), Some(Version::Etag("\"1\"".into())));
        for none in ["W/\"1\"", "\"\"", ""] {
            headers.insert(header::ETAG, none.parse().expect("header"));
            headers.insert(header::LAST_MODIFIED, "yesterday".parse().expect("header"));
            assert_eq!(version(&headers), None, "{none}");
        }
    }
}
