//! Google Cloud Storage: google-cloud-storage moves the bytes, pinned to a generation;
//! google-cloud-auth has the credentials; the listing is the documented JSON call, which alone
//! brings generation, CRC32C and MD5 of a thousand objects in one answer.
//!
//! Both libraries have HTTP clients of their own: see [`transport`].

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use google_cloud_auth::credentials::{self, CacheableResource, Credentials, service_account};
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::Storage;
use google_cloud_storage::model_ext::ReadRange;
use google_cloud_storage::read_resume_policy::NeverResume;
use http::Method;
use serde::Deserialize;

use super::endpoints;
use super::keys::{Keys, Kind};
use super::objects::{self, Bounds, Entry};
use super::transport::{self, ANSWER_TIMEOUT, Refused};
use super::{Body, Error, Listing, Options, Remote};
use crate::domain::{Checksum, Claims, Object, Source, Version};

const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_only";
/// A page of 1,000 objects is below 1 MiB.
const PAGE_LEN_MAX: usize = 8 << 20;
/// Pages without an object in a row: a server may have looked through many that do not match.
const EMPTY_PAGES_MAX: u32 = 100;

/// One GCS source.
#[derive(Debug)]
pub(super) struct Gcs {
    source: Source,
    storage: Storage,
    credentials: Credentials,
    http: reqwest::Client,
    endpoint: String,
    origin: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    items: Vec<Item>,
    #[serde(rename = "nextPageToken")]
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    name: String,
    size: String,
    generation: String,
    crc32c: Option<String>,
    md5_hash: Option<String>,
    content_encoding: Option<String>,
}

impl Gcs {
    /// Reads the settings users have and prepares the clients. Makes no request to the bucket.
    pub(super) async fn open(source: &Source, options: &Options) -> Result<Self, Error> {
        let endpoint = options.endpoints.gcs().to_owned();
        let uri = source.to_string();
        options.endpoints.check(source)?;
        let unusable = |detail: String| Error::Credentials { uri: uri.clone(), detail };
        let credentials = match options.keys.as_ref().map(Keys::kind) {
            Some(Kind::Google(json)) => {
                // The text of a key is not repeated by whatever is said about it.
                let key = serde_json::from_str(json).map_err(|_| unusable("`key.json` is not JSON".to_owned()))?;
                let built = service_account::Builder::new(key)
                    .with_access_specifier(service_account::AccessSpecifier::from_scopes([SCOPE]))
                    .build();
                built.map_err(|e| unusable(transport::chain(&e)))?
            }
            _ if options.anonymous || endpoints::emulator().is_some() => credentials::anonymous::Builder::new().build(),
            _ => {
                let built = credentials::Builder::default().with_scopes([SCOPE]).build();
                built.map_err(|e| unusable(transport::chain(&e)))?
            }
        };
        let storage = Storage::builder()
            .with_endpoint(&endpoint)
            .with_credentials(credentials.clone())
            .with_retry_policy(NeverRetry)
            .with_read_resume_policy(NeverResume);
        // Asks the metadata server for its domain, where that is where the credentials are.
        let storage = async {
            storage.build().await.map_err(|e| Error::Settings { uri: uri.clone(), detail: transport::chain(&e) })
        };
        let storage = transport::in_time(ANSWER_TIMEOUT, &uri, "answer of the metadata server", storage).await?;
        Ok(Self {
            source: source.clone(),
            storage,
            credentials,
            http: transport::client()?,
            endpoint,
            origin: options.endpoints.origin(source),
        })
    }

    /// One page of the listing: the token of the credentials, the question and the whole answer.
    async fn page(&self, token: Option<&str>) -> Result<Page, Error> {
        let page = self.ask_page(token);
        transport::in_time(ANSWER_TIMEOUT, &self.source.to_string(), "page of the listing", page).await
    }

    async fn ask_page(&self, token: Option<&str>) -> Result<Page, Error> {
        let uri = self.source.to_string();
        let bad = |detail: String| Error::BadAnswer { uri: uri.clone(), detail };
        let mut url = url::Url::parse(&format!("{}/storage/v1/b/{}/o", self.endpoint, self.source.authority()))
            .map_err(|e| Error::Settings {
                uri: uri.clone(),
                detail: format!("the endpoint `{}` is not a URL: {e}", self.endpoint),
            })?;
        url.query_pairs_mut()
            .append_pair("prefix", self.source.path())
            .append_pair("fields", "nextPageToken,items(name,size,generation,crc32c,md5Hash,contentEncoding)")
            .extend_pairs(token.map(|token| ("pageToken", token)));
        let mut request = http::Request::new(Bytes::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = url.as_str().parse().map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?;
        let headers = self.credentials.headers(http::Extensions::new()).await;
        match headers.map_err(|e| Error::Credentials { uri: uri.clone(), detail: transport::chain(&e) })? {
            CacheableResource::New { data, .. } => *request.headers_mut() = data,
            CacheableResource::NotModified => {}
        }
        let answer = transport::send(&self.http, request).await;
        let answer = answer.map_err(|e| Error::Unavailable { uri: uri.clone(), detail: transport::chain(&e) })?;
        let (parts, body) = answer.into_parts();
        if !parts.status.is_success() {
            let mut refused = Refused::read(parts.status, &parts.headers, body).await;
            if parts.status == http::StatusCode::NOT_FOUND {
                // Listing a bucket that is there never says 404, whatever the prefix.
                refused.code = "NoSuchBucket".into();
            }
            return Err(refused.about(&uri));
        }
        let limited = http_body_util::Limited::new(body, PAGE_LEN_MAX);
        let bytes = http_body_util::BodyExt::collect(limited).await;
        let bytes =
            bytes.map_err(|e| Error::Unavailable { uri: uri.clone(), detail: transport::chain(&*e) })?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("the listing is no JSON of the expected form ({e})")))
    }
}

fn entry(uri: &str, item: Item) -> Result<Entry, Error> {
    let bad = |what: &str| Error::BadAnswer {
        uri: uri.to_owned(),
        detail: format!("the listing gives `{}` no {what}", item.name),
    };
    if item.content_encoding.as_deref() == Some("gzip") {
        let detail = "the object is stored gzip-encoded, so its ranges are not ranges of the file: store it without Content-Encoding".into();
        return Err(Error::Settings { uri: format!("{uri} ({})", item.name), detail });
    }
    let mut checksums = Vec::new();
    checksums.extend(item.crc32c.as_deref().and_then(Checksum::crc32c_from_base64));
    checksums.extend(item.md5_hash.as_deref().and_then(Checksum::md5_from_base64));
    Ok(Entry {
        size: item.size.parse().map_err(|_| bad("size"))?,
        version: Version::Generation(item.generation.parse().map_err(|_| bad("generation"))?),
        key: item.name,
        claims: Claims { checksums, md5_is_etag: false },
        more_claims: false,
    })
}

#[async_trait]
impl Remote for Gcs {
    async fn list(&self) -> Result<Listing, Error> {
        let uri = self.source.to_string();
        let (mut entries, mut bounds) = (Vec::new(), Bounds::default());
        let mut token: Option<String> = None;
        let mut empty_pages = 0;
        loop {
            let page = self.page(token.as_deref()).await?;
            empty_pages = if page.items.is_empty() { empty_pages + 1 } else { 0 };
            if empty_pages > EMPTY_PAGES_MAX {
                let detail = format!("the listing goes on after {EMPTY_PAGES_MAX} pages without an object");
                return Err(Error::BadAnswer { uri, detail });
            }
            for item in page.items {
                let entry = entry(&uri, item)?;
                bounds.add(&self.source, &entry.key, &entry.version)?;
                entries.push(entry);
            }
            match page.next.filter(|next| !next.is_empty()) {
                None => break,
                Some(next) if token.as_ref() == Some(&next) => {
                    return Err(Error::BadAnswer { uri, detail: "the listing goes in circles".into() });
                }
                next => token = next,
            }
        }
        objects::listing(&self.source, entries)
    }

    async fn claims(&self, object: &Object) -> Result<Claims, Error> {
        Ok(object.claims.clone())
    }

    async fn get(&self, object: &Object, range: Range<u64>) -> Result<Body, Error> {
        let uri = Arc::<str>::from(self.source.object_uri(&object.key));
        let bucket = format!("projects/_/buckets/{}", self.source.authority());
        let mut request = self
            .storage
            .read_object(bucket, &object.key)
            .set_read_range(ReadRange::segment(range.start, range.end - range.start));
        if let Version::Generation(generation) = object.version {
            request = request.set_generation(generation);
        }
        let answer = request.send().await.map_err(|e| storage_error(&uri, &e))?;
        let got = answer.object();
        if Version::Generation(got.generation) != object.version || u64::try_from(got.size).ok() != Some(object.size) {
            return Err(Error::Changed { uri: uri.to_string() });
        }
        // The client reads `Content-Range` only to count the bytes: it does not compare it with what
        // was asked for, and does not hand it on. Too many or too few bytes are seen by whoever
        // reads the body; the right number from elsewhere in the object is caught by the CRC32C of
        // the whole object, which GCS has of every object.
        Ok(Box::pin(futures::stream::unfold(Some(answer), move |answer| {
            let uri = Arc::clone(&uri);
            async move {
                let mut answer = answer?;
                match answer.next().await? {
                    Ok(slice) => Some((Ok(slice), Some(answer))),
                    Err(error) => Some((Err(storage_error(&uri, &error)), None)),
                }
            }
        })))
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }
}

fn storage_error(uri: &str, error: &google_cloud_storage::Error) -> Error {
    let detail = transport::chain(error);
    if error.is_authentication() {
        return Error::Credentials { uri: uri.to_owned(), detail };
    }
    match error.http_status_code().and_then(|code| http::StatusCode::from_u16(code).ok()) {
        // A generation that is gone is a version that changed.
        Some(http::StatusCode::NOT_FOUND) => Error::Changed { uri: uri.to_owned() },
        Some(status) => {
            let headers = error.http_headers().cloned().unwrap_or_default();
            Refused::of_parts(status, &headers, "", &detail).about(uri)
        }
        None => Error::Unavailable { uri: uri.to_owned(), detail },
    }
}
