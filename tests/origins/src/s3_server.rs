//! A real S3 server in this process: `s3s` checks signatures and speaks the protocol, `s3s-fs`
//! keeps the objects in a directory. What `s3s-fs` leaves out of reads, ETags in listings and
//! `If-Match`, is added here.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    ChecksumAlgorithm, CreateBucketInput, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, StreamingBlob,
};
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

const ACCESS_KEY: &str = "larder-access-key";
const SECRET_KEY: &str = "larder-secret-key";

struct Shelf {
    files: FileSystem,
    etags: Mutex<HashMap<(String, String), String>>,
    bytes_sent: AtomicU64,
    gets: AtomicU64,
    /// Keys that begin so are sent with so many bytes per second.
    slow: Mutex<Option<(String, u64)>>,
}

impl Shelf {
    fn etag(&self, bucket: &str, key: &str) -> Option<ETag> {
        let etags = self.etags.lock().unwrap_or_else(PoisonError::into_inner);
        etags.get(&(bucket.to_owned(), key.to_owned())).map(|etag| ETag::Strong(etag.clone()))
    }

    fn check(&self, bucket: &str, key: &str, condition: Option<&ETagCondition>) -> S3Result<()> {
        match (condition, self.etag(bucket, key)) {
            (Some(ETagCondition::ETag(wanted)), Some(etag)) if !etag.strong_cmp(wanted) => {
                Err(s3_error!(PreconditionFailed))
            }
            _ => Ok(()),
        }
    }
}

/// `s3s` wants an owned value; the server keeps a handle for its counters.
#[derive(Clone)]
struct Shared(Arc<Shelf>);

#[async_trait::async_trait]
impl S3 for Shared {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.0.check(&request.input.bucket, &request.input.key, request.input.if_match.as_ref())?;
        self.0.gets.fetch_add(1, Relaxed);
        let key = request.input.key.clone();
        let mut answer = self.0.files.get_object(request).await?;
        if let Some(body) = answer.output.body.take() {
            let shelf = Arc::clone(&self.0);
            let slow = self.0.slow.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let per_second = slow.filter(|(start, _)| key.starts_with(start)).map(|(_, per_second)| per_second);
            let counted = body.map_err(io::Error::other).inspect_ok(move |bytes: &Bytes| {
                shelf.bytes_sent.fetch_add(bytes.len() as u64, Relaxed);
            });
            let paced = counted.and_then(move |bytes: Bytes| async move {
                if let Some(per_second) = per_second {
                    let nanos = bytes.len() as u64 * 1_000_000_000 / per_second.max(1);
                    tokio::time::sleep(Duration::from_nanos(nanos)).await;
                }
                Ok(bytes)
            });
            answer.output.body = Some(StreamingBlob::wrap(paced));
        }
        Ok(answer)
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.0.check(&request.input.bucket, &request.input.key, request.input.if_match.as_ref())?;
        self.0.files.head_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let bucket = request.input.bucket.clone();
        let mut answer = self.0.files.list_objects_v2(request).await?;
        for object in answer.output.contents.iter_mut().flatten() {
            object.e_tag = object.key.as_deref().and_then(|key| self.0.etag(&bucket, key));
            object.checksum_algorithm = Some(vec![ChecksumAlgorithm::from_static(ChecksumAlgorithm::CRC64NVME)]);
        }
        Ok(answer)
    }
}

/// The server. Ends with the value; its objects too.
pub struct S3Server {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    runtime: Option<tokio::runtime::Runtime>,
    _root: tempfile::TempDir,
}

impl S3Server {
    /// Starts it on a port of its own with one empty bucket, `models`.
    pub fn start() -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// The same at an address.
    pub fn start_at(address: SocketAddr) -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("larder-s3-").tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let files = FileSystem::new(root.path()).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let (bytes_sent, gets) = (AtomicU64::new(0), AtomicU64::new(0));
        let shelf = Arc::new(Shelf { files, etags: Mutex::default(), bytes_sent, gets, slow: Mutex::default() });
        let mut builder = S3ServiceBuilder::new(Shared(Arc::clone(&shelf)));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A peer that goes away is this server's everyday life.
                    let http = Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        let server = Self { address, shelf, runtime: Some(runtime), _root: root };
        server.create_bucket("models")?;
        Ok(server)
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment in which any AWS tool reaches this server.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }

    /// Sends objects whose keys begin so with so many bytes per second on each connection.
    pub fn slow_down(&self, start: &str, per_second: u64) {
        *self.shelf.slow.lock().unwrap_or_else(PoisonError::into_inner) = Some((start.to_owned(), per_second));
    }

    /// Bytes of objects sent so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.shelf.bytes_sent.load(Relaxed)
    }

    /// Reads of objects so far.
    #[must_use]
    pub fn gets(&self) -> u64 {
        self.shelf.gets.load(Relaxed)
    }

    pub fn create_bucket(&self, name: &str) -> io::Result<()> {
        let input = CreateBucketInput { bucket: name.to_owned(), ..Default::default() };
        self.call(self.shelf.files.create_bucket(request(input)))?;
        Ok(())
    }

    /// Stores an object as one upload of a recent SDK: MD5 as ETag, and a CRC64NVME.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) -> io::Result<()> {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, crc.to_be_bytes());
        let input = PutObjectInput {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            content_length: i64::try_from(bytes.len()).ok(),
            body: Some(StreamingBlob::from(Body::from(Bytes::copy_from_slice(bytes)))),
            checksum_crc64nvme: Some(encoded),
            ..Default::default()
        };
        let answer = self.call(self.shelf.files.put_object(request(input)))?;
        if let Some(ETag::Strong(etag)) = answer.output.e_tag {
            let mut etags = self.shelf.etags.lock().unwrap_or_else(PoisonError::into_inner);
            etags.insert((bucket.to_owned(), key.to_owned()), etag);
        }
        Ok(())
    }

    fn call<T>(&self, work: impl Future<Output = S3Result<T>>) -> io::Result<T> {
        let runtime = self.runtime.as_ref().ok_or_else(|| io::Error::other("the server has ended"))?;
        runtime.block_on(work).map_err(|e| io::Error::other(e.to_string()))
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn request<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: http::Method::PUT,
        uri: http::Uri::from_static("/"),
        headers: http::HeaderMap::new(),
        extensions: http::Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}
