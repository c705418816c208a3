//! S3 and everything that speaks it: `object_store` moves the bytes, the AWS SDK does the rest
//! (settings, credential chain, listings with checksum names, stored checksums).

mod credentials;
mod sdk;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{IdentityCache, Region};
use aws_sdk_s3::types::{ChecksumMode, RequestPayer, ServerSideEncryption};
use futures::StreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore as _};

use self::credentials::Chain;
use super::keys::{Keys, Kind};
use super::objects::{self, Bounds, Entry};
use super::transport::{self, Connector, Refused};
use super::{Body, Error, Listing, Options, Remote};
use crate::domain::{Checksum, Claims, Object, Source, Version};

/// Where the SDK finds no region at all, as the AWS CLI assumes for S3-compatible endpoints.
const REGION_DEFAULT: &str = "us-east-1";
/// A label of a host's name.
const REGION_LEN_MAX: usize = 63;
/// Asking for stored checksums costs a request: worth it for files of at least this many bytes.
const CLAIMS_SIZE_MIN: u64 = 8 << 20;
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// One S3 source.
#[derive(Debug)]
pub(super) struct S3 {
    source: Source,
    bytes: AmazonS3,
    api: aws_sdk_s3::Client,
    origin: String,
    requester_pays: bool,
}

impl S3 {
    /// Reads the settings users have and prepares both clients. Makes no request to the bucket.
    pub(super) async fn open(source: &Source, options: &Options) -> Result<Self, Error> {
        // Of the keys below the source, none can be asked for where any of them cannot.
        location(&source.to_string(), &format!("{}x", objects::directory(source.path())))?;
        if options.keys.is_none() && !options.anonymous {
            credentials::check_environment(&|name| std::env::var_os(name))
                .map_err(|detail| Error::Credentials { uri: source.to_string(), detail })?;
        }
        let http = transport::client()?;
        let settings = settings(&http, options).await;
        options.endpoints.check(source)?;
        let endpoint = options.endpoints.s3().map(str::to_owned);
        let region = settings.region().map(ToString::to_string).filter(|region| !region.is_empty());
        let region = region.unwrap_or_else(|| REGION_DEFAULT.to_owned());
        let path_style = path_style(endpoint.as_deref(), source.authority());
        let bad = |detail: String| Error::Settings { uri: source.to_string(), detail };
        if !is_region(&region) {
            let detail = format!(
                "{region:?} is no region: letters, digits, `-`, `_` and `.` only (is there a newline at its end?)"
            );
            return Err(bad(detail));
        }

        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(source.authority())
            .with_region(&region)
            .with_virtual_hosted_style_request(!path_style)
            .with_request_payer(options.requester_pays)
            .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
            .with_http_connector(Connector(http.clone()));
        let mut config = aws_sdk_s3::config::Builder::from(&settings)
            .region(Region::new(region.clone()))
            .force_path_style(path_style)
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(OPERATION_TIMEOUT).build());
        // What the environment says may have been overruled.
        config.set_endpoint_url(endpoint.clone());
        if let Some(endpoint) = &endpoint {
            builder = builder
                .with_endpoint(with_bucket(endpoint, source.authority(), path_style))
                .with_allow_http(endpoint.starts_with("http://"));
        }
        if options.anonymous && options.keys.is_none() {
            builder = builder.with_skip_signature(true);
            config = config.allow_no_auth();
        } else if let Some(provider) = settings.credentials_provider() {
            let chain = Chain::new(provider);
            builder = builder.with_credentials(Arc::new(chain.clone()));
            config = config.credentials_provider(chain).identity_cache(IdentityCache::no_cache());
        }
        let bytes = builder.build().map_err(|e| bad(transport::chain(&e)))?;
        Ok(Self {
            source: source.clone(),
            bytes,
            api: aws_sdk_s3::Client::from_conf(config.build()),
            origin: options.endpoints.origin(source),
            requester_pays: options.requester_pays,
        })
    }

    fn uri(&self, key: &str) -> String {
        self.source.object_uri(key)
    }

    fn payer(&self) -> Option<RequestPayer> {
        self.requester_pays.then_some(RequestPayer::Requester)
    }
}

async fn settings(http: &reqwest::Client, options: &Options) -> aws_config::SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(sdk::SdkHttp(http.clone()));
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if options.anonymous || options.endpoints.is_s3_given() {
        // The region chain ends at the instance's metadata, which takes seconds to say nothing.
        // Templates set a variable to nothing where they have no value for it.
        let set = |name| std::env::var(name).ok().filter(|region| !region.is_empty());
        let region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION"));
        loader = loader.region(Region::new(region.unwrap_or_else(|| REGION_DEFAULT.into())));
    }
    match options.keys.as_ref().map(Keys::kind) {
        Some(Kind::Aws { id, secret, token }) => {
            loader = loader.credentials_provider(Credentials::new(id, secret, token.clone(), None, "the caller's"));
        }
        _ if options.anonymous => loader = loader.no_credentials(),
        _ => {}
    }
    loader.load().await
}

/// What may stand in a signature and in a host's name. The libraries panic over a line break.
fn is_region(region: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !region.is_empty() && region.len() <= REGION_LEN_MAX && region.bytes().all(plain)
}

/// Path style for other endpoints (most have no wildcard DNS) and for buckets with dots (their
/// names match no wildcard certificate); `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` decides otherwise.
fn path_style(endpoint: Option<&str>, bucket: &str) -> bool {
    match std::env::var("AWS_VIRTUAL_HOSTED_STYLE_REQUEST").as_deref() {
        Ok("true" | "1") => false,
        Ok("false" | "0") => true,
        _ => endpoint.is_some() || bucket.contains('.'),
    }
}

/// `object_store` wants the bucket inside a virtual-hosted endpoint.
fn with_bucket(endpoint: &str, bucket: &str, path_style: bool) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_owned(),
    }
}

#[async_trait]
impl Remote for S3 {
    async fn list(&self) -> Result<Listing, Error> {
        let prefix = self.source.path();
        let (mut entries, mut bounds) = (Vec::new(), Bounds::default());
        let mut token: Option<String> = None;
        loop {
            let request = self.api.list_objects_v2().bucket(self.source.authority()).prefix(prefix);
            let request = request.set_continuation_token(token.clone()).set_request_payer(self.payer());
            let page = request.send().await.map_err(|e| sdk::error(&self.source.to_string(), e))?;
            for object in page.contents() {
                let entry = entry(&self.source, object)?;
                bounds.add(&self.source, &entry.key, &entry.version)?;
                entries.push(entry);
            }
            let bad = |detail: &str| Error::BadAnswer { uri: self.source.to_string(), detail: detail.to_owned() };
            if page.is_truncated() != Some(true) {
                break;
            }
            let next = page.next_continuation_token().filter(|next| !next.is_empty()).map(str::to_owned);
            let next = next.ok_or_else(|| bad("the listing goes on, but says not where"))?;
            if token.as_ref() == Some(&next) || page.contents().is_empty() {
                return Err(bad("the listing goes in circles"));
            }
            token = Some(next);
        }
        objects::listing(&self.source, entries)
    }

    async fn claims(&self, object: &Object) -> Result<Claims, Error> {
        let etag = match &object.version {
            Version::Etag(etag) => Some(etag.to_string()),
            _ => None,
        };
        let request = self.api.head_object().bucket(self.source.authority()).key(&object.key).set_if_match(etag);
        let request = request.checksum_mode(ChecksumMode::Enabled).set_request_payer(self.payer());
        let head = request.send().await.map_err(|e| sdk::error(&self.uri(&object.key), e))?;
        let same = match &object.version {
            Version::Etag(etag) => head.e_tag().is_none_or(|got| *etag == *got),
            Version::Modified(at) => head.last_modified().is_none_or(|got| got.secs() == *at),
            Version::Generation(_) => true,
        };
        if !same {
            return Err(Error::Changed { uri: self.uri(&object.key) });
        }
        let composite = head.checksum_type().is_some_and(|kind| kind.as_str() == "COMPOSITE");
        // A checksum of part checksums has `-N` behind it and says nothing of the bytes alone.
        let whole = |value: Option<&str>| value.filter(|value| !composite && !value.contains('-')).map(str::to_owned);
        let mut checksums = Vec::new();
        checksums.extend(whole(head.checksum_crc64_nvme()).and_then(|v| Checksum::crc64nvme_from_base64(&v)));
        checksums.extend(whole(head.checksum_crc32_c()).and_then(|v| Checksum::crc32c_from_base64(&v)));
        checksums.extend(whole(head.checksum_sha256()).and_then(|v| Checksum::sha256_from_base64(&v)));
        // Encrypted by a key service or the customer's key, an ETag is no MD5.
        let other_etag = head.sse_customer_algorithm().is_some()
            || matches!(
                head.server_side_encryption(),
                Some(ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse)
            );
        if !other_etag {
            checksums.extend(head.e_tag().and_then(Checksum::md5_from_etag));
        }
        Ok(Claims { checksums, md5_is_etag: true })
    }

    async fn get(&self, object: &Object, range: Range<u64>) -> Result<Body, Error> {
        let uri = self.uri(&object.key);
        let location = location(&uri, &object.key)?;
        let if_match = match &object.version {
            Version::Etag(etag) => Some(etag.to_string()),
            _ => None,
        };
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: if_match.clone(),
            ..Default::default()
        };
        let answer = self.bytes.get_opts(&location, options).await.map_err(|e| store_error(&uri, &e))?;
        if answer.range != range || answer.meta.size != object.size {
            let detail = format!(
                "bytes {}..{} of {} instead of {}..{} of {}",
                answer.range.start, answer.range.end, answer.meta.size, range.start, range.end, object.size
            );
            return Err(Error::BadAnswer { uri, detail });
        }
        let same = match &object.version {
            Version::Modified(at) => answer.meta.last_modified.timestamp() == *at,
            _ => answer.meta.e_tag == if_match,
        };
        if !same {
            return Err(Error::Changed { uri });
        }
        Ok(Box::pin(answer.into_stream().map(move |slice| slice.map_err(|e| store_error(&uri, &e)))))
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }
}

/// The key as `object_store` takes it. It would ask for `k` where the key is `/k`, and has no words
/// for keys with empty, `.` or `..` components: those are refused, so that no other is asked for.
fn location(uri: &str, key: &str) -> Result<Path, Error> {
    let location = Path::parse(key).ok().filter(|location| location.as_ref() == key);
    location.ok_or_else(|| Error::Settings {
        uri: uri.to_owned(),
        detail: "keys with an empty, `.` or `..` component (as in `//`) cannot be asked for with larder's S3 client: write one `/`, or copy the objects to a prefix without it".into(),
    })
}

fn entry(source: &Source, object: &aws_sdk_s3::types::Object) -> Result<Entry, Error> {
    let lacks = |what: &str| Error::BadAnswer {
        uri: source.to_string(),
        detail: format!("the listing gives `{}` no {what}", object.key().unwrap_or_default()),
    };
    let key = object.key().ok_or_else(|| lacks("key"))?.to_owned();
    let size = object.size().and_then(|size| u64::try_from(size).ok()).ok_or_else(|| lacks("size"))?;
    let etag = object.e_tag().map(|etag| if etag.starts_with('"') { etag.to_owned() } else { format!("\"{etag}\"") });
    if let Some(etag) = etag.as_ref().filter(|etag| !transport::is_etag(etag)) {
        let detail = format!("the listing gives `{key}` an ETag that no header can carry: {etag:?}");
        return Err(Error::BadAnswer { uri: source.to_string(), detail });
    }
    let md5 = etag.as_deref().and_then(Checksum::md5_from_etag);
    let version = match (etag, object.last_modified()) {
        (Some(etag), _) => Version::Etag(etag.into()),
        (None, Some(modified)) => Version::Modified(modified.secs()),
        (None, None) => {
            let detail = format!(
                "the server lists `{key}` with neither an ETag nor a LastModified, so larder could not tell when it changes between two requests and would mix its versions: pull it from a server that lists either"
            );
            return Err(Error::Settings { uri: source.to_string(), detail });
        }
    };
    Ok(Entry {
        key,
        size,
        version,
        claims: Claims { checksums: md5.into_iter().collect(), md5_is_etag: true },
        more_claims: !object.checksum_algorithm().is_empty() || size >= CLAIMS_SIZE_MIN,
    })
}

/// `object_store` wraps our own error several times: what we said ourselves is found inside.
fn store_error(uri: &str, error: &object_store::Error) -> Error {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = next {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return refused.clone().about(uri);
        }
        if inner.is::<aws_credential_types::provider::error::CredentialsError>() {
            return Error::Credentials { uri: uri.to_owned(), detail: transport::chain(inner) };
        }
        if let Some(http) = inner.downcast_ref::<reqwest::Error>() {
            return Error::Unavailable { uri: uri.to_owned(), detail: transport::chain(http) };
        }
        next = inner.source();
    }
    let detail = transport::chain(error);
    match error {
        object_store::Error::Precondition { .. } => Error::Changed { uri: uri.to_owned() },
        _ => Error::BadAnswer { uri: uri.to_owned(), detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_follows_the_endpoint_and_the_bucket() {
        assert!(path_style(Some("http://127.0.0.1:9000"), "b"));
        assert!(path_style(None, "a.b"));
        assert!(!path_style(None, "ab"));
        assert_eq!(with_bucket("https://host/", "b", false), "https://b.host");
        assert_eq!(with_bucket("https://host/", "b", true), "https://host");
    }

    #[test]
    fn a_region_is_a_name() {
        for region in ["us-east-1", "RegionOne", "auto", "garage_1", "a.b"] {
            assert!(is_region(region), "{region}");
        }
        for none in ["", "us-east-1\n", "a b", "ü", "a/b", &"x".repeat(64)] {
            assert!(!is_region(none), "{none}");
        }
    }

    #[test]
    fn keys_that_would_become_others_are_refused() {
        for key in ["k", "m/a.bin", "m/ü?#%20", ".a/b..", "x"] {
            assert_eq!(location("u", key).expect(key).as_ref(), key);
        }
        for key in ["/k", "k/", "m//a", "//", "/", "./k", "m/../k", "..", "m/.", "m/a\nb"] {
            let told = location("s3://b/k", key).expect_err(key);
            assert!(matches!(told, Error::Settings { .. }) && !told.is_retryable(), "{key}: {told}");
        }
    }

    #[test]
    fn an_entry_without_a_version_is_none() {
        let source = Source::parse("s3://b/m").expect("uri");
        let object = || aws_sdk_s3::types::Object::builder().key("m/a").size(5);
        let modified = aws_sdk_s3::primitives::DateTime::from_secs(7);
        let listed = entry(&source, &object().last_modified(modified).build()).expect("an entry");
        assert_eq!(listed.version, Version::Modified(7));
        let listed = entry(&source, &object().e_tag("x").last_modified(modified).build()).expect("an entry");
        assert_eq!(listed.version, Version::Etag("\"x\"".into()));
        for etag in ["\"a\nb\"", "\"a\u{1b}\"", "\"ü\""] {
            let told = entry(&source, &object().e_tag(etag).build()).expect_err("no header");
            assert!(matches!(told, Error::BadAnswer { .. }) && !told.to_string().contains(['\n', '\u{1b}']), "{told}");
        }
        let told = entry(&source, &object().build()).expect_err("nothing to hold it to");
        assert!(matches!(told, Error::Settings { .. }), "{told:?}");
        assert!(told.to_string().contains("lists `m/a` with neither an ETag nor a LastModified"), "{told}");
        let told = entry(&source, &aws_sdk_s3::types::Object::builder().key("m/a").build()).expect_err("no size");
        assert!(told.to_string().contains("the listing gives `m/a` no size"), "{told}");
    }
}
